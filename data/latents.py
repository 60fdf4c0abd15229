"""The latents of a data set on disk, as they are read: whitened.

encoded_img/<cache id>/ holds shards of moments (posterior mean and logvar, fp16) and, written
last, manifest.json (data/caching.py). What is read is a fresh draw from each posterior, per channel
of mean 0 and std 1 over the training set. c: latent channels, h, w: latent size.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from common import files
from common.errors import DamagedError
from data.tensor_files import DIGEST, TensorFile, as_bytes

MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"(train|valid)(-mirror)?-\d{5,}\.safetensors")
LARGEST_MANIFEST = 2**26  # bytes
SUMS = "mean", "square", "variance"  # over images and positions, of each shard
NUMBER, POSITIVE = r"-?\d{1,6}(\.\d+)?(e-\d+)?", r"(?!0(\.0)?[,\]])\d{1,6}(\.\d+)?(e-0\d)?"
STATS = rf'\{{"mean": \[{NUMBER}(, {NUMBER})*\], "std": \[{POSITIVE}(, {POSITIVE})*\]\}}'  # JSON
OPEN_FILES = 100  # at a time; some systems allow 256

Indices = torch.Tensor | Sequence[int]  # of images, (B,)


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation per latent channel over a training set."""

    mean: Sequence[float]
    std: Sequence[float]

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) on the autoencoder's scale -> mean 0, std 1 per channel."""
        return (z - self._column(self.mean, z)) / self._column(self.std, z)

    def unwhiten(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of whiten."""
        return z * self._column(self.std, z) + self._column(self.mean, z)

    @staticmethod
    def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        """(c, 1, 1), type and device of like."""
        column = torch.tensor(values, dtype=like.dtype)[:, None, None]
        return column.to(like.device, non_blocking=like.is_cuda)


def open_shard(path: Path, digest: str | None, shape: tuple[int, ...] | None) -> TensorFile:
    """Its header read. Raises DamagedError unless it is a shard, of moments of this shape (2c, h,
    w) and with this digest, where they are known."""
    file = TensorFile(path)
    entry = file.entries.get("moments")
    found = entry.shape if entry and entry.dtype == torch.float16 else ()
    right = len(found) == 4 and len(file.entries) == 1 and shape in (None, found[1:])
    if not right or digest not in (None, file.metadata.get(DIGEST)):
        file.close()
        raise DamagedError(path, "it is not the shard that belongs here")
    return file


def sums_of(file: TensorFile) -> tuple[int, torch.Tensor]:
    """What _write_shard has put beside the moments: the count, and the sums (3, c) in float64."""
    with suppress(KeyError, TypeError, ValueError, RuntimeError):
        found = files.parse_json(file.metadata["sums"])
        sums = torch.tensor([found[key] for key in SUMS], dtype=torch.float64)
        if type(found["count"]) is int and 2 * sums.shape[1] == file.entries["moments"].shape[1]:
            return found["count"], sums
    raise DamagedError(file.path, "it does not say its sums")


def read_manifest(folder: Path) -> tuple[LatentStats, dict[str, list[str]], dict[str, str]]:
    """(stats, {split: names of shards}, {name: digest}) of a finished cache; earlier versions knew
    no digests. Raises AbsentError, DamagedError, UnreadableError."""
    path = folder / MANIFEST
    with files.reading(path), files.open_regular(path) as file:
        text = file.read(LARGEST_MANIFEST) or b""
    try:
        found = files.parse_json(text)
        if found.pop(DIGEST, None) != (files.json_digest(found) if "digests" in found else None):
            raise ValueError("it is not as written")
        shards = {split: list(found["shards"][split]) for split in ("train", "valid")}
        names, digests = sum(shards.values(), []), found.get("digests", {})
        right = shards["train"] and all(map(SHARD_NAME.fullmatch, names))
        if not right or len(set(names)) < len(names):
            raise ValueError("it names what is no shard, or one twice, or none")
        if not re.fullmatch(STATS, json.dumps(found["stats"])) or type(digests) is not dict:
            raise ValueError("its stats or digests are none")
        return LatentStats(**found["stats"]), shards, digests
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(path, str(error)) from None


class LatentDataset:
    """One split of a finished cache, on the disk: it may be larger than the memory.

    len(): N. stats: by which it is whitened; None: those of its training set. checked: whether
    cache_latents has just read all shards; otherwise each is checked when it is first read from.
    Raises UserError when a file is missing, damaged, or may not be read; so does what reads from
    it.
    """

    def __init__(
        self, folder: str | Path, split: str, stats: LatentStats | None = None,
        checked: bool = False,
    ) -> None:  # fmt: skip
        measured, shards, digests = read_manifest(Path(folder))
        self.stats = stats or measured
        self._shards = [(Path(folder, name), digests.get(name)) for name in shards[split]]
        self._files: dict[int, TensorFile] = {}  # those that are open
        self._starts, self._shape = [0], None
        self._checked = [True] * len(self._shards)  # their headers are enough for now
        for i in range(len(self._shards)):
            n, *shape = self._file(i).entries["moments"].shape
            if not shape[0] == 2 * len(self.stats.mean) == 2 * len(self.stats.std):
                raise DamagedError(Path(folder, MANIFEST), "its stats are of other channels")
            self._starts.append(self._starts[-1] + n)
            self._shape = tuple(shape)
        self._checked = [checked] * len(self._shards)

    def __len__(self) -> int:
        return self._starts[-1]

    def moments(self, indices: Indices, pin_memory: bool = False) -> torch.Tensor:
        """(B,) indices -> (B, 2c, h, w) fp16 on the CPU: mean and logvar as stored. pin_memory: for
        a CUDA GPU, which else is waited for. Time and memory: O(B), and a bisection among shards.
        """
        # Read, not mapped: the system kills whoever reads a map of a file that became shorter.
        assert self._shape, "nothing is in this split"
        out = torch.empty(len(indices), *self._shape, dtype=torch.float16, pin_memory=pin_memory)
        rows, size = as_bytes(out), out[:1].nbytes
        starts, file_of = self._starts, self._file
        for row, index in enumerate(torch.as_tensor(indices).tolist()):
            shard = bisect_right(starts, index) - 1
            at = size * (index - starts[shard])
            file_of(shard).read_into(rows[row * size : (row + 1) * size], at)
        return out

    def _file(self, i: int) -> TensorFile:
        """An open shard, checked."""
        if i not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[i] = open_shard(*self._shards[i], self._shape)
        if not self._checked[i]:
            self._files[i].read()
            self._checked[i] = True
        return self._files[i]

    def means(self, indices: Indices) -> torch.Tensor:
        """Whitened means of the posteriors of these images: (B, c, h, w) float32 on the CPU."""
        return self.stats.whiten(self.moments(indices).float().chunk(2, dim=1)[0])

    def draw(
        self,
        indices: Indices,
        device: torch.device | str = "cpu",
        noise: Callable[[torch.Size], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Whitened samples of the posteriors of these images: (B, c, h, w) float32 on device.
        noise: (c, h, w) -> standard normal (B, c, h, w) on that device; None: torch's own."""
        cuda = torch.device(device).type == "cuda"  # which need not be waited for
        moments = self.moments(indices, pin_memory=cuda).to(device, non_blocking=cuda).float()
        mean, logvar = moments.chunk(2, dim=1)
        z = noise(mean.shape[1:]) if noise else torch.randn_like(mean)
        return self.stats.whiten(mean + (0.5 * logvar).exp() * z)
