"""How good an autoencoder's reconstructions are: measured, then told and drawn.

B: batch, C, H, W: an image in [-1, 1], c, h, w: a latent.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.errors import UserError
from data.batches import load_batches
from data.images import ImageDataset
from data.pixels import to_pixels
from models.autoencoder import AutoencoderKL, DiagonalGaussian
from training import figures
from training.codec import reconstruct
from training.fidelity import gradient_magnitude, psnr, ssim
from training.progress import told
from training.runtime import Runtime

ACTIVE = 0.01  # least variance of the means of an active channel (Burda et al. 2016, section 5.3)
NUM_SHOWN = 4  # best, median and worst reconstructions in the figure


# ---- Measure ------------------------------------------------------------------------------------


def evaluate_autoencoder(
    autoencoder: AutoencoderKL,
    runtime: Runtime,
    dataset: ImageDataset,
    *,
    batch: int,
    checkpoint: str,
    what: str,
) -> tuple[dict[str, Any], dict[int, float]]:
    """Reconstruct all images of a data set of data/images.py: (a record that JSON can hold, {index
    of each image: its PSNR}).

    what: the images, in words. Raises UserError where none of them can be read. The record:

        autoencoder, precision  the checkpoint's name, and how it was run
        images, of              how many, and which
        psnr, ssim, l1          means over the images: dB, at most 1, per value in [-1, 1]
        gradient                mean gradient magnitude, as a share of the originals'; None where
                                these have none
        latent_mean, latent_std, kl     per channel; kl in nats per latent value
        active                  channels whose means vary
        nats                    KL in nats per image: the rate
    """
    # Scores of each image, and sums over all images of each channel's latents.
    scores: dict[str, list[torch.Tensor]] = {}
    sums: dict[str, torch.Tensor] = {}
    indices: list[int] = []
    batches = [part.tolist() for part in torch.arange(len(dataset)).split(batch)]
    with tqdm(total=len(dataset), unit="image", delay=1, leave=False) as bar:
        for images, found in load_batches(dataset, batches, runtime.workers):
            x = to_pixels(images)
            posterior, x_hat = reconstruct(autoencoder, runtime, x)
            for key, values in _scores(x, x_hat.clamp(-1, 1)).items():
                scores.setdefault(key, []).append(values)
            for key, total in _sums(posterior).items():
                sums[key] = sums.get(key, 0) + total
            indices += found
            bar.update(len(found))
    if not indices:
        raise UserError(f"none of {what} can be read")

    # Their means.
    per_image = {key: torch.cat(values).double() for key, values in scores.items()}
    means = {key: values.mean().item() for key, values in per_image.items()}
    mean, square, kl = (sums[key] / len(indices) for key in ("mean", "square", "kl"))
    variance = (square - mean.square()).clamp(min=0)
    original = means["gradient of x"]
    values_per_channel = posterior.mean[0, 0].numel()
    record = {
        "autoencoder": checkpoint, "images": len(indices), "of": what,
        "psnr": means["psnr"], "ssim": means["ssim"], "l1": means["l1"],
        "gradient": means["gradient"] / original if original else None,
        "latent_mean": mean.tolist(), "latent_std": variance.sqrt().tolist(),
        "kl": kl.tolist(), "active": int((variance > ACTIVE).sum()),
        "nats": (kl.sum() * values_per_channel).item(), "precision": runtime.precision,
    }  # fmt: skip
    return record, dict(zip(indices, per_image["psnr"].tolist(), strict=True))


def _scores(x: torch.Tensor, x_hat: torch.Tensor) -> dict[str, torch.Tensor]:
    """{name: (B,)} of images and their reconstructions, clamped."""
    return {
        "psnr": psnr(x, x_hat),
        "ssim": ssim(x, x_hat),
        "l1": (x_hat - x).abs().mean(dim=(1, 2, 3)),
        "gradient": gradient_magnitude(x_hat),
        "gradient of x": gradient_magnitude(x),
    }


def _sums(posterior: DiagonalGaussian) -> dict[str, torch.Tensor]:
    """{name: (c,)}: sums over the images of each channel's means over the positions, float64."""
    mean, kl = posterior.mean.double(), posterior.kl().double()
    parts = {"mean": mean, "square": mean.square(), "kl": kl}
    return {key: part.mean(dim=(2, 3)).sum(dim=0) for key, part in parts.items()}


# ---- Tell, draw ---------------------------------------------------------------------------------


def print_evaluation(record: Mapping[str, Any]) -> None:
    """A record of evaluate_autoencoder, a line per number."""
    of = f"{record['images']} of {record['of']}"
    print(told("images", f"{of}; posterior mean, averaged weights, {record['precision']}"))
    print(told("PSNR", f"{record['psnr']:.2f} dB (peak 2, mean over the images)"))
    print(told("SSIM", f"{record['ssim']:.4f}"))
    print(told("l1", f"{record['l1']:.4f} per value in [-1, 1]"))
    share = record["gradient"]
    text = "no share" if share is None else f"{share:.3f}"
    print(told("gradient", f"{text} of the originals' mean magnitude"))
    for key, unit in (("latent_mean", ""), ("latent_std", ""), ("kl", "nats per value")):
        numbers = " ".join(f"{value:.3f}" for value in record[key])
        print(told(key.replace("_", " "), f"{numbers} {unit} (per channel)".replace("  ", " ")))
    print(told("active", f"{record['active']} of {len(record['kl'])} channels"))
    print(told("rate", f"{record['nats']:.1f} nats per image"))


def draw_best_and_worst(
    path: Path,
    autoencoder: AutoencoderKL,
    runtime: Runtime,
    dataset: ImageDataset,
    scores: Mapping[int, float],
) -> None:
    """The best, median and worst images by PSNR, {index: dB}, above their reconstructions."""
    # Which ones: NUM_SHOWN of each, or as many as there are.
    indices, values = list(scores), torch.tensor(list(scores.values()), dtype=torch.float64)
    order = values.argsort(descending=True)
    shown = min(NUM_SHOWN, len(order))
    middle = (len(order) - shown) // 2
    picks = torch.cat([order[:shown], order[middle : middle + shown], order[-shown:]]).tolist()

    # Read and reconstruct them once more: keeping all would need the memory of the whole set.
    loaded = [next(load_batches(dataset, [[indices[i]]], 0))[0] for i in picks]
    x = to_pixels(torch.cat(loaded))
    _, x_hat = reconstruct(autoencoder, runtime, x)
    words = [word for word in ("best", "median", "worst") for _ in range(shown)]
    captions = [f"{word}\n{values[i]:.1f} dB" for word, i in zip(words, picks, strict=True)]
    title = f"Best, median and worst reconstructions of {len(order)} images"
    rows = {"original": x, "reconstruction": x_hat}
    figures.image_rows(path, rows, title, {"original": captions})
    print(f"saved {path}")
