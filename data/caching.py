"""The latents of a data set, encoded once and put on the disk; data/latents.py reads them.

N: images, c: latent channels, h, w: latent size.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from common import files
from common.errors import AbsentError, DamagedError, UserError
from common.launch import is_first
from data.batches import load_batches
from data.images import ImageDataset
from data.latents import MANIFEST, open_shard, read_manifest, sums_of
from data.pixels import to_pixels
from data.tensor_files import DIGEST, TensorFile, write_tensors

SHARD = 4096  # images per shard: an interrupted caching loses at most one
BATCH = 64  # images per call of encode


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
    images = sum(len(indices) for *_, indices, _ in _shards(datasets, mirror))
    return images * _bytes_each(latent_shape)


def _bytes_each(latent_shape: tuple[int, int, int]) -> int:
    return 2 * math.prod(latent_shape) * torch.float16.itemsize  # a mean and a logvar


def cache_latents(
    encode: Callable[[torch.Tensor], torch.Tensor],
    datasets: Mapping[str, ImageDataset],
    latent_shape: tuple[int, int, int],
    folder: str | Path,
    mirror: bool,
    workers: int,
    about: Mapping[str, object] | None = None,
    processes: ModuleType | None = None,
) -> None:
    """Fill folder with the moments of datasets = {"train": .., "valid": ..}; goes on if begun.

    encode: (B, C, H, W) in [-1, 1] -> moments (B, 2c, h, w), any device. mirror: also store the
    mirror image of each training image. about: what it says of itself in the manifest, for whoever
    wonders which cache this is. workers: see load_batches. processes: training.distributed, where
    several of them call this and divide the shards; all return when all is done. Raises UserError
    when the disk is too small, the encoder gives what is not finite, or no training image can be
    read. Every image is decoded and encoded once (twice with its mirror image), a shard at a time
    in memory.
    """
    folder = Path(folder)
    files.make_folder(folder)
    files.remove_leftovers(folder)
    shards = list(_shards(datasets, mirror))
    names = {s: [name for split, *_, name in shards if split == s] for s in ("train", "valid")}

    missing = sum(len(indices) for *_, indices, name in shards if not (folder / name).exists())
    _check_room(folder, missing * _bytes_each(latent_shape))

    # What is there is read, for disks and copies fail: what is damaged is made again.
    digests = None
    with _made_again():
        stats, known, found = read_manifest(folder)
        if known == names and len(stats.mean) == len(stats.std) == latent_shape[0]:
            digests = found
    mine = processes.mine if processes else list
    lacking = {
        name for *_, name in tqdm(mine(shards), "checking latents", delay=1, leave=False)
        if not _is_whole(folder / name, (digests or {}).get(name), latent_shape)
    }  # fmt: skip
    lacking = set().union(*processes.everyones(lacking)) if processes else lacking

    # One file at a time, so that an interrupted caching goes on with the first that is missing.
    todo = mine([shard for shard in shards if shard[3] in lacking])
    total = sum(len(indices) for *_, indices, _ in todo)
    with tqdm(total=total, desc="latents", unit="images", smoothing=0.05, delay=1) as bar:
        for split, flip, indices, name in todo:
            batches = [list(indices[i : i + BATCH]) for i in range(0, len(indices), BATCH)]
            with closing(load_batches(datasets[split], batches, workers)) as images:
                moments = _encode(encode, images, flip, latent_shape, bar)
            _write_shard(moments, folder / name)

    # With the manifest the cache is complete. It is of the sums of all shards.
    if processes:
        for dataset in datasets.values():
            dataset.tally.add_all(processes.everyones(dataset.tally.reasons))
    if is_first() and (lacking or digests is None):
        _write_manifest(folder, names, {**(about or {}), "mirror": mirror})
    if processes:
        processes.total(0)  # the others wait for it


def _check_room(folder: Path, needed: int) -> None:
    """Raise UserError where the disk has fewer bytes free, which shards that are there need not."""
    free = shutil.disk_usage(folder)[2]
    if needed > free:
        raise UserError(
            f"the latents need another {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB "
            "are free; make room, or choose a smaller --size"
        )


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
    with _made_again(), closing(open_shard(path, digest, (2 * c, h, w))) as file:
        file.read()
        whole = bool(sums_of(file))
    return whole


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
                if split == "train":
                    more, sums = sums_of(file)
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
