"""The latents of a data set on disk: encoded once, whitened when they are read.

encoded_img/<cache id>/ holds shards of moments (posterior mean and logvar, fp16) and, written
last, manifest.json. What is read is a fresh draw from each posterior, per channel of mean 0 and
std 1 over the training set. N: images, c: latent channels, h, w: latent size.
"""

import hashlib
import json
import math
import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from common import files
from common.errors import AbsentError, DamagedError, UserError
from data.batches import load_batches
from data.images import ImageDataset
from data.pixels import to_pixels
from data.tensor_files import DIGEST, TensorFile, as_bytes, write_tensors

SHARD = 4096  # images per shard: an interrupted caching loses at most one
BATCH = 64  # images per call of encode
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


def cache_id(autoencoder_id: str, datasets: Mapping[str, ImageDataset], mirror: bool) -> str:
    """Name of the folder, 16 hexadecimal digits: another encoder, size, order or set of images
    gives another one."""
    parts: list[object] = [autoencoder_id, mirror, SHARD]
    parts += [(k, d.size, d.channels, d.stamp()) for k, d in sorted(datasets.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def cache_bytes(
    datasets: Mapping[str, ImageDataset], latent_shape: tuple[int, int, int], mirror: bool
) -> int:
    """Bytes on disk of the cache of these data sets; latent_shape = (c, h, w)."""
    copies = {"train": 1 + mirror, "valid": 1}
    images = sum(copies[split] * len(dataset) for split, dataset in datasets.items())
    return _bytes(images, latent_shape)


def _bytes(images: int, latent_shape: tuple[int, ...]) -> int:
    return images * 2 * math.prod(latent_shape) * torch.float16.itemsize


def cache_latents(
    encode: Callable[[torch.Tensor], torch.Tensor],
    datasets: Mapping[str, ImageDataset],
    latent_shape: tuple[int, int, int],
    folder: str | Path,
    mirror: bool,
    workers: int,
    about: Mapping[str, object] | None = None,
) -> None:
    """Fill folder with the moments of datasets = {"train": .., "valid": ..}; goes on if begun.

    encode: (B, C, H, W) in [-1, 1] -> moments (B, 2c, h, w), any device. mirror: also store the
    mirror image of each training image. about: what it says of itself in the manifest, for whoever
    wonders which cache this is. workers: see load_batches. Raises UserError when the disk is too
    small, the encoder gives what is not finite, or no training image can be read. Every image is
    decoded and encoded once (twice with its mirror image), a shard at a time in memory.
    """
    folder = Path(folder)
    files.make_folder(folder)
    files.remove_leftovers(folder)
    shards = list(_shards(datasets, mirror))
    names = {s: [name for split, *_, name in shards if split == s] for s in ("train", "valid")}

    # Say that the disk is too small before hours of encoding; finished shards need no more room.
    missing = sum(len(indices) for *_, indices, name in shards if not (folder / name).exists())
    needed, free = _bytes(missing, latent_shape), shutil.disk_usage(folder)[2]
    if needed > free:
        raise UserError(
            f"the latents need another {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB "
            "are free; make room, or choose a smaller --size"
        )

    # One file at a time, so that an interrupted caching goes on with the first that is missing.
    # What is there is read, for disks and copies fail: what is damaged is made again.
    made, digests = 0, None
    with _made_again():
        stats, known, found = read_manifest(folder)
        right = known == names and len(stats.mean) == len(stats.std) == latent_shape[0]
        digests = found if right else None
    total = sum(len(indices) for *_, indices, _ in shards)
    with tqdm(total=total, desc="latents", unit="images", smoothing=0.05, delay=1) as bar:
        for split, flip, indices, name in shards:
            if _is_whole(folder / name, (digests or {}).get(name), latent_shape):
                bar.update(len(indices))
                continue
            batches = [list(indices[i : i + BATCH]) for i in range(0, len(indices), BATCH)]
            with closing(load_batches(datasets[split], batches, workers)) as images:
                moments = _encode(encode, images, flip, latent_shape, bar)
            _write_shard(moments, folder / name)
            made += 1

    # With the manifest the cache is complete. It is of the sums of all shards.
    if made or digests is None:
        _write_manifest(folder, names, {**(about or {}), "mirror": mirror})


@contextmanager
def _made_again() -> Iterator[None]:
    """Around what is read to know whether it must be made again: absence is no matter, damage is
    told. That it may not be read is neither, and raised."""
    try:
        yield
    except DamagedError as error:
        tqdm.write(f"made again: {error}")
    except AbsentError:
        pass


def _is_whole(path: Path, digest: str | None, latent_shape: tuple[int, int, int]) -> bool:
    """Read a shard: whether it is there and as written. digest: of the right one, if known."""
    c, h, w = latent_shape
    whole = False
    with _made_again(), closing(_open_shard(path, digest, (2 * c, h, w))) as file:
        file.read()
        whole = bool(_sums(file))
    return whole


def _open_shard(path: Path, digest: str | None, shape: tuple[int, ...] | None) -> TensorFile:
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


def _sums(file: TensorFile) -> tuple[int, torch.Tensor]:
    """What _write_shard has put beside the moments: the count, and the sums (3, c) in float64."""
    with suppress(KeyError, TypeError, ValueError, RuntimeError):
        found = files.parse_json(file.metadata["sums"])
        sums = torch.tensor([found[key] for key in SUMS], dtype=torch.float64)
        if type(found["count"]) is int and 2 * sums.shape[1] == file.entries["moments"].shape[1]:
            return found["count"], sums
    raise DamagedError(file.path, "it does not say its sums")


def _shards(
    datasets: Mapping[str, ImageDataset], mirror: bool
) -> Iterator[tuple[str, bool, range, str]]:
    """(split, whether mirrored, indices of the images, file name) of every shard, in order."""
    for split, flip in [("train", False), ("valid", False)] + [("train", True)] * mirror:
        size = len(datasets[split])
        for start in range(0, size, SHARD):
            name = f"{split}{'-mirror' * flip}-{start // SHARD:05d}.safetensors"
            yield split, flip, range(start, min(start + SHARD, size)), name


def _encode(
    encode: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, list[int]]],
    flip: bool,
    latent_shape: tuple[int, int, int],
    bar: tqdm,
) -> torch.Tensor:
    """The moments (N, 2c, h, w) of these batches, fp16 on the CPU; N may be 0."""
    c, h, w = latent_shape
    parts = [torch.empty(0, 2 * c, h, w, dtype=torch.float16)]
    for images, _ in batches:
        x = to_pixels(images)
        parts.append(encode(x.flip(3) if flip else x).half().cpu())
        bar.update(len(images))
    return torch.cat(parts)


def _write_shard(moments: torch.Tensor, path: Path) -> None:
    """One file of moments (N, 2c, h, w), and beside them the sums that the statistics need."""
    if not torch.isfinite(moments).all():
        raise UserError("the encoder's output is not finite; its checkpoint is not usable")
    mean, logvar = moments.double().chunk(2, dim=1)
    sums = {
        "count": len(mean) * mean.shape[2] * mean.shape[3],
        "mean": mean.sum(dim=(0, 2, 3)).tolist(),
        "square": mean.square().sum(dim=(0, 2, 3)).tolist(),
        "variance": logvar.exp().sum(dim=(0, 2, 3)).tolist(),
    }
    write_tensors(path, {"moments": moments}, {"sums": json.dumps(sums)})


def _write_manifest(
    folder: Path, shards: Mapping[str, Sequence[str]], about: Mapping[str, object]
) -> None:
    """Statistics over all training shards, in float64, and the list of files: cache complete."""
    # The shards carry their sums, so that no moments are read again.
    count, totals = 0, torch.zeros(3, 1, dtype=torch.float64)
    digests: dict[str, str] = {}
    for split, names in shards.items():
        for name in names:
            with closing(TensorFile(folder / name)) as file:
                digests |= {name: file.metadata[DIGEST]} if DIGEST in file.metadata else {}
                more, sums = _sums(file) if split == "train" else (0, 0)
                count, totals = count + more, totals + sums
    if not count:
        raise UserError("none of the training images can be read (named above)")

    # The variance of what is drawn: of the means, plus the mean variance of the posteriors.
    mean, square, variance = totals / count
    std = (square - mean.square() + variance).sqrt()
    manifest = {
        "about": about,
        "stats": {"mean": mean.tolist(), "std": std.tolist()},
        "shards": shards,
        "digests": digests,
    }
    text = json.dumps({**manifest, DIGEST: files.json_digest(manifest)}, indent=1)
    files.write_atomic(folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))


# ---- Reading ------------------------------------------------------------------------------------


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

    len(): N. stats: LatentStats of the training set. checked: whether cache_latents has just read
    all shards; otherwise each is checked when it is first read from. Raises UserError when a file
    is missing, damaged, or may not be read; so does what reads from it.
    """

    def __init__(self, folder: str | Path, split: str, checked: bool = False) -> None:
        self.stats, shards, digests = read_manifest(Path(folder))
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
            self._files[i] = _open_shard(*self._shards[i], self._shape)
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
