"""Uncompressed tars, as of WebDataset: which are meant, what lies where in them, its bytes."""

import io
import math
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from common.errors import UserError
from common.files import is_there, open_regular, reading

ENDINGS = ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"
COMPRESSED = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"  # how such a file begins
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MOST_SHARDS = 10**6
BLOCK = 512  # bytes; all in a tar begins at a multiple
LONGEST = 2**20  # bytes of what is said before a file's header, such as a long name
# Kinds of entries: files, what has no content, and what is said of the next entry.
FILES, EMPTY, BEFORE = b"07\0", b"123456", b"gKLxX"

_seeking = Lock()


def find_tars(path: str | Path) -> tuple[list[Path], int]:
    """(the tars that are meant, in order; how many of the last parts of a path tell it from the
    others'). No tars where path is a folder, another file, or nothing. Raises UserError for a range
    of no numbers or too many, and where tars of it are missing."""
    parts = Path(path).parts
    first = next((i for i, part in enumerate(parts) if RANGE.search(part)), None)
    if first is None or is_there(path):
        is_tar = str(path).lower().endswith(ENDINGS) and is_there(path) and not os.path.isdir(path)
        return [Path(path)] * is_tar, 1
    tars = [Path(name) for name in expand(str(path))]
    missing = [tar for tar in tars if not is_there(tar)]
    if missing:
        more = f" nor {len(missing) - 1} others of {len(tars)}" * (len(missing) > 1)
        raise UserError(f"there is no {missing[0]}{more}; bring them, or give another range")
    return tars, len(parts) - first


def expand(pattern: str) -> list[str]:
    """As bash does: {a..b} becomes each number from a to b; the first range is the slowest. Where
    a or b begins with 0, all have as many digits as the longer. Raises UserError."""
    texts, ranges = RANGE.split(pattern)[::3], RANGE.findall(pattern)
    counts = [int(b) - int(a) + 1 for a, b in ranges]
    if min(counts, default=1) < 1:
        raise UserError(f"{pattern}: a range begins above its end; write the smaller number first")
    if math.prod(counts) > MOST_SHARDS:
        raise UserError(f"{pattern} means more than {MOST_SHARDS} tars; give smaller ranges")
    numbers = []
    for a, b in ranges:
        padded = any(number[0] == "0" and len(number) > 1 for number in (a, b))
        width = max(len(a), len(b)) if padded else 1
        numbers.append([f"{i:0{width}}" for i in range(int(a), int(b) + 1)])
    names = (
        texts[0] + "".join(n + text for n, text in zip(chosen, texts[1:], strict=True))
        for chosen in product(*numbers)
    )
    return list(dict.fromkeys(names))


def list_files(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, where its content begins, size in bytes) of each regular file in a tar, in order.

    Only headers are read. What else there is, such as links and sparse files, is passed over.
    Raises UserError where it is compressed or damaged, or has no end: a tar ends with zeros.
    """
    with reading(path), open_regular(path) as file:
        try:
            yield from _walk(file)
        except (ValueError, IndexError):
            file.seek(0)
            if file.read(BLOCK).startswith(COMPRESSED):
                raise UserError(
                    f"{path} is compressed, so no picture in it can be read by itself; unpack it "
                    "to a plain .tar, for example with gunzip"
                ) from None
            raise UserError(
                f"{path} is damaged, ends too early or is no tar; copy it anew, or make it again"
            ) from None


def _walk(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """What list_files says. Raises ValueError or IndexError where something is wrong."""
    end, at = file.seek(0, os.SEEK_END), 0
    said: dict[bytes, bytes] = {}  # of the next file, before its header
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        kind, name, size = _parse(header)
        if kind not in BEFORE:
            size = int(said.get(b"size", size))
        start, flag = at + BLOCK, 482
        while kind == b"S" and header[flag]:  # where a sparse file has holes goes on
            header, start, flag = file.read(BLOCK), start + BLOCK, 504
        if kind in EMPTY:
            size = 0
        if size < 0 or start + size > end or kind in BEFORE and size > LONGEST:
            raise ValueError
        at = start + -(-size // BLOCK) * BLOCK
        if kind == b"L":
            said[b"path"] = file.read(size)
        elif kind in b"xX":
            said |= _records(file.read(size))
        if kind in BEFORE:
            continue
        name = said.get(b"path", name).split(b"\0")[0]
        sparse = any(key.startswith(b"GNU.sparse") for key in said)
        said = {}
        if kind in FILES and not sparse and not name.endswith(b"/"):  # that would be a folder
            yield name.decode(errors="surrogateescape").removeprefix("./"), start, size


def _parse(header: bytes) -> tuple[bytes, bytes, int]:
    """(kind, name, size in bytes) of an entry. Raises ValueError where its checksum is wrong."""
    checksum = header[148:156]
    if len(header) < BLOCK or sum(header) - sum(checksum) + 8 * ord(" ") != _number(checksum):
        raise ValueError
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return header[156:157], name, _number(header[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or with the first bit set the bytes of a number."""
    if field[0] & 128:
        return int.from_bytes(field, "big") - (128 << 8 * (len(field) - 1))
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _records(content: bytes) -> dict[bytes, bytes]:
    """{key: value} of lines "length key=value", as POSIX has them. Raises ValueError."""
    found, at = {}, 0
    while at < len(content):
        space = content.index(b" ", at, at + 20)
        end = at + int(content[at:space])
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        if not space + 1 < end <= len(content):
            raise ValueError
        found[key], at = value, end
    return found


class Part(io.RawIOBase):
    """A part of an open file, as a file of its own. Threads, and processes that are forked, may
    read parts of the same open file at a time: none depends on its position."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, (0, self._at, self._size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        size, place = max(0, min(len(buffer), self._size - self._at)), self._start + self._at
        if hasattr(os, "pread"):
            content = os.pread(self._file.fileno(), size, place)
        else:  # Windows, which does not fork
            with _seeking:
                self._file.seek(place)
                content = self._file.read(size)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
