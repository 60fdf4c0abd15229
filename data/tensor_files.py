"""Files of tensors in the format of safetensors (huggingface.co/docs/safetensors), with digests.

The length of a header, the header in JSON, the tensors' bytes. Not by the package of that name:
a file of ours has the rights that the umask gives and leaves nothing behind when its writer is
killed; and the package maps files into memory, so that the system kills whoever reads one that has
become shorter.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.errors import DamagedError, UserError, short
from common.files import json_digest, open_regular, parse_json, reading, write_atomic

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LARGEST_HEADER = 2**22  # bytes: of some 25,000 tensors
FINGERPRINT, DIGEST = "fingerprint", "digest"  # in the metadata: of the tensors; of the metadata


class Entry(NamedTuple):
    """A tensor of a file; begin, end: its bytes after the header."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        head = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
        digest.update(head.encode(errors="surrogatepass"))
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def as_bytes(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor on the CPU; a copy of any other's."""
    return memoryview(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())  # type: ignore


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file atomically: equal bytes for equal content, digests of all of it beside metadata.
    No copy of the tensors is made that are contiguous on the CPU."""
    # Wider types first, as safetensors has it: so every tensor begins where its type may.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    about = {**metadata, FINGERPRINT: fingerprint(tensors)}
    header: dict[str, Any] = {"__metadata__": {**about, DIGEST: json_digest(about)}}
    dtypes, end = {dtype: name for name, dtype in DTYPES.items()}, 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        place = {"shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name] = {"dtype": dtypes[tensor.dtype], **place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(as_bytes(tensors[name]))

    write_atomic(path, write)


class TensorFile:
    """An open file of tensors, of which only the header was read.

    metadata: {str: str}. entries: {name: Entry}; their bytes are all that follows. Raises what
    reading() does, and DamagedError where it is no such file; so do the methods that read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with reading(path):
            self._file = open_regular(path, buffering=0)
        try:
            with reading(path):
                self._read_header()
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            if isinstance(error, UserError):
                raise
            raise DamagedError(path, f"truncated or no safetensors file: {error}") from None

    def close(self) -> None:
        self._file.close()

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8) or b"", "little")
        if length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = parse_json(self._file.read(length) or b"")
        metadata = header.pop("__metadata__", {}) if type(header) is dict else None
        if type(metadata) is not dict or not all(type(v) is str for v in metadata.values()):
            raise ValueError("metadata that are no text")
        self.metadata: dict[str, str] = metadata

        # No byte twice, none unused: so no more is read than the file holds.
        self.entries = {name: _entry(name, about) for name, about in header.items()}
        self._data = end = 8 + length
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.begin, entry.end)):
            if self._data + entry.begin != end:
                raise ValueError("tensors that overlap, or leave bytes out")
            end = self._data + entry.end
        if end != size:
            raise ValueError(f"{size} bytes instead of {end}")

    def check_metadata(self) -> None:
        """Raise DamagedError unless they are as written; earlier versions wrote no digest."""
        about = dict(self.metadata)
        if about.pop(DIGEST, None) != (json_digest(about) if FINGERPRINT in about else None):
            raise DamagedError(self.path, "its metadata are not as written")

    def read(self) -> dict[str, torch.Tensor]:
        """{name: tensor on the CPU}. Raises DamagedError unless all are as written, and finite."""
        self.check_metadata()
        tensors = {name: torch.empty(e.shape, dtype=e.dtype) for name, e in self.entries.items()}
        for name, tensor in tensors.items():
            self.read_into(as_bytes(tensor), self.entries[name].begin)
            # An extreme is NaN where any number is; 10 times as fast as isfinite of all.
            extremes = tensor.aminmax() if tensor.is_floating_point() and tensor.numel() else ()
            if not all(extreme.isfinite() for extreme in extremes):
                raise DamagedError(self.path, f"{name} is not finite")
        found = fingerprint(tensors)
        if found != self.metadata.get(FINGERPRINT, found):
            raise DamagedError(self.path, "its tensors are not as written")
        return tensors

    def read_into(self, view: memoryview, begin: int) -> None:
        """Fill view with the bytes from `begin` on, counted from the end of the header."""
        try:
            self._file.seek(self._data + begin)
            while view:
                if not (count := self._file.readinto(view)):
                    raise DamagedError(self.path, "it has become shorter")
                view = view[count:]
        except OSError as error:  # not around all: it takes as long as reading a latent
            with reading(self.path):
                raise error


def _entry(name: str, about: Any) -> Entry:
    """Of a header; raises ValueError, KeyError or TypeError where it is none."""
    dtype, shape, (begin, end) = DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
    whole = all(type(n) is int and 0 <= n < 2**48 for n in [*shape, begin, end])
    # Lengths of 0 count as 1 where torch counts strides, in 64 bits.
    if not whole or len(shape) > 8 or math.prod(n or 1 for n in shape) >= 2**56:
        raise ValueError(f"{short(name)} has a shape or place that no tensor has")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{short(name)} has not as many bytes as its shape says")
    return Entry(tuple(shape), dtype, begin, end)
