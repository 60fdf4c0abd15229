"""The latents that a denoiser learns: encoded once, kept on the disk, drawn anew at each step."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.caching import cache_bytes, cache_latents
from data.images import ImageDataset
from data.labels import Labels, in_cache
from data.latents import MANIFEST, LatentDataset, LatentStats
from data.order import fixed_sample
from models.autoencoder import AutoencoderKL
from models.draws import Draws, Purpose
from training import distributed
from training.codec import LatentCodec, encode
from training.denoiser import DenoiserData
from training.first_stage import goes_with
from training.progress import file_size, told
from training.run import NUM_VALID
from training.runtime import Runtime


def cache_folder(cache: str) -> Path:
    """Where the latents of that id (data.caching.cache_id) are, or were."""
    return Path("encoded_img") / cache


def cached_latents(
    cache: str, images: Mapping[str, ImageDataset], autoencoder: AutoencoderKL, runtime: Runtime,
    mirror: bool, about: dict[str, Any], known: Mapping[str, Any],
) -> dict[str, LatentDataset]:  # fmt: skip
    """{"train": .., "valid": ..} of the images, encoded now if they were not before, and whitened
    as the network to go on with knows them, whose facts are known, or by their own stats.

    about: {"data", "size", ..}, what the cache says of itself. mirror: also the mirror image of
    each training image.
    """
    # What will be written, if it is not there.
    folder, shape = cache_folder(cache), autoencoder.latent_shape(about["size"])
    if not (folder / MANIFEST).is_file():
        count = (1 + mirror) * len(images["train"]) + len(images["valid"])
        size = file_size(cache_bytes(images, shape, mirror))
        what = f"encoding {count} images of {about['data']} into {folder}: {size}"
        print(told("latents", what), flush=True)

    # Encode, and read.
    cache_latents(
        lambda x: encode(autoencoder, runtime, x).moments(),
        images, shape, folder, mirror, runtime.workers, about, distributed,
    )  # fmt: skip
    stats = None
    if known and goes_with(autoencoder, known["autoencoder_id"]):
        stats = LatentStats(**known["latent_stats"])
    return {split: LatentDataset(folder, split, stats, checked=True) for split in images}


def latent_data(
    latents: Mapping[str, LatentDataset], images: Mapping[str, ImageDataset],
    labels: Labels | None, mirror: bool, autoencoder: AutoencoderKL, runtime: Runtime,
) -> DenoiserData:  # fmt: skip
    """What the loop needs of the latents; the validation ones are drawn once."""
    train, split = latents["train"], "valid" if len(latents["valid"]) else "train"
    valid = fixed_sample(len(latents[split]), NUM_VALID)
    counts = {split: len(dataset) for split, dataset in latents.items()}
    known = in_cache(labels, images, counts, mirror, runtime.workers) if labels else {}

    def draw(dataset: LatentDataset, indices: torch.Tensor, draws: Draws) -> torch.Tensor:
        noise = partial(draws.normal, Purpose.POSTERIOR)
        return runtime.send(dataset.draw(indices, draws.device, noise))

    return DenoiserData(
        draw=partial(draw, train),
        num_train=len(train),
        valid=draw(latents[split], valid, Draws(0, 0, range(len(valid)))),
        codec=LatentCodec(autoencoder, train.stats, runtime),
        labels=known.get("train"),
        valid_c=known[split][valid].to(runtime.device) if known else None,
    )
