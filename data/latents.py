"""The latents of a data set on disk: encoded once, whitened when they are read.

encoded_img/<cache id>/ holds shards of moments (posterior mean and logvar, fp16) and, written
last, manifest.json. What is read is a fresh draw from each posterior, per channel of mean 0 and
std 1 over the training set. N: images, c: latent channels, h, w: latent size.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from common.errors import UserError
from common.files import make_folder, remove_leftovers, write_atomic
from data.batches import load_batches
from data.images import ImageDataset
from data.pixels import to_pixels

SHARD = 4096  # images per shard: an interrupted caching loses at most one
BATCH = 64  # images per call of encode
MANIFEST = "manifest.json"

Indices = torch.Tensor | Sequence[int]  # of images, (B,)


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation per latent channel over a training set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

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
    # The manifest comes last: with it the cache is complete.
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return
    make_folder(folder)
    remove_leftovers(folder)

    # Say that the disk is too small before hours of encoding; finished shards need no more room.
    done = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    missing, free = cache_bytes(datasets, latent_shape, mirror) - done, shutil.disk_usage(folder)[2]
    if missing > free:
        raise UserError(
            f"the latents need another {missing / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB "
            "are free; make room, or choose a smaller --size"
        )

    # One file at a time, so that an interrupted caching goes on with the first that is missing.
    shards = list(_shards(datasets, mirror))
    total = sum(len(indices) for *_, indices, _ in shards)
    with tqdm(total=total, desc="encoding", unit="images", smoothing=0.05) as bar:
        for split, flip, indices, name in shards:
            if (folder / name).is_file():
                bar.update(len(indices))
                continue
            batches = [list(indices[i : i + BATCH]) for i in range(0, len(indices), BATCH)]
            with closing(load_batches(datasets[split], batches, workers)) as images:
                moments = _encode(encode, images, flip, latent_shape, bar)
            _write_shard(moments, folder / name)

    # Reads the sums of all shards, also of those that an earlier run wrote.
    try:
        names = [(split, name) for split, *_, name in shards]
        _write_manifest(folder, names, {**(about or {}), "mirror": mirror})
    except SafetensorError as error:
        raise UserError(f"{folder} is damaged ({error}); delete it: it is made again") from None


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
    metadata = {"sums": json.dumps(sums)}  # one key: several would be written in any order
    write_atomic(path, lambda file: save_file({"moments": moments}, file, metadata))


def _write_manifest(
    folder: Path, shards: Sequence[tuple[str, str]], about: Mapping[str, object]
) -> None:
    """Statistics over all training shards, in float64, and the list of files: cache complete."""
    # The shards carry their sums, so that no moments are read again.
    count: int = 0
    totals: dict[str, torch.Tensor] = {}
    for split, name in shards:
        if split == "train":
            with safe_open(folder / name, "pt") as file:
                sums = json.loads(file.metadata()["sums"])
            count += sums.pop("count")
            for key, values in sums.items():
                per_channel = torch.tensor(values, dtype=torch.float64)
                totals[key] = totals.get(key, 0) + per_channel
    if not count:
        raise UserError("none of the training images can be read (named above)")

    # The variance of what is drawn: of the means, plus the mean variance of the posteriors.
    mean = totals["mean"] / count
    std = (totals["square"] / count - mean.square() + totals["variance"] / count).sqrt()

    # With this file the cache is complete.
    manifest = {
        "about": about,
        "stats": {"mean": mean.tolist(), "std": std.tolist()},
        "shards": {s: [n for split, n in shards if split == s] for s in ("train", "valid")},
    }
    write_atomic(folder / MANIFEST, lambda file: file.write_text(json.dumps(manifest, indent=1)))


class LatentDataset:
    """One split of a finished cache, mapped into memory, not read: it may be larger than that.

    len(): N. stats: LatentStats of the training set. Raises UserError when a file is missing or
    damaged.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            self.stats = LatentStats(*(tuple(manifest["stats"][k]) for k in ("mean", "std")))
            self._shards: list[torch.Tensor] = []
            for name in manifest["shards"][split]:
                with safe_open(folder / name, "pt") as file:
                    self._shards.append(file.get_tensor("moments"))  # a map of the file
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} is damaged ({error}); delete it: it is made again") from None
        self._starts = torch.tensor([0] + [len(s) for s in self._shards]).cumsum(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def moments(self, indices: Indices) -> torch.Tensor:
        """(B,) indices -> (B, 2c, h, w) fp16 on the CPU: mean and logvar as stored.

        Time and memory are O(B), plus a bisection among the shards.
        """
        indices = torch.as_tensor(indices)
        shard_of = torch.bucketize(indices, self._starts, right=True) - 1
        order = shard_of.argsort()  # one read per shard
        counts = torch.bincount(shard_of, minlength=len(self._shards)).tolist()
        rows = (indices - self._starts[shard_of])[order].split(counts)
        parts = [shard[r] for shard, r in zip(self._shards, rows, strict=True) if len(r)]
        out = torch.empty(len(indices), *self._shards[0].shape[1:], dtype=torch.float16)
        out[order] = torch.cat(parts)
        return out

    def means(self, indices: Indices) -> torch.Tensor:
        """Whitened means of the posteriors of these images: (B, c, h, w) float32 on the CPU."""
        return self.stats.whiten(self.moments(indices).float().chunk(2, dim=1)[0])

    def draw(
        self,
        indices: Indices,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Whitened samples of the posteriors of these images: (B, c, h, w) float32 on device.

        generator: of that device, for the samples' noise; None: torch's own.
        """
        cuda = torch.device(device).type == "cuda"  # which need not be waited for
        moments = self.moments(indices).to(device, non_blocking=cuda).float()
        mean, logvar = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, device=device, generator=generator)
        return self.stats.whiten(mean + (0.5 * logvar).exp() * noise)
