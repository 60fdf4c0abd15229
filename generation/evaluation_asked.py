"""Whether pictures show what was asked for, as a classifier of real images reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.pixels import to_pixels
from generation.classifier import features
from generation.image_sets import PER_FEATURE, read_pictures
from generation.metrics import frechet_distance
from generation.output import picture_path
from models.classifier import Classifier


@torch.no_grad()
def measure_asked(
    classifier: Classifier, folder: Path, seeds: Sequence[int], real: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, Any]:  # fmt: skip
    """{"share", "real share", "classes": {name: {"share", "frechet"}}} of the pictures of these
    seeds in folder, of which seed s was asked for class s % K: how many the classifier reads as
    that, of the pictures and of real images (M, 1, 28, 28) with labels (M,), and the distance from
    the real ones of the class in its features, None where they are too few for it."""
    described = [_described(classifier, part) for part in read_pictures(_paths(folder, seeds))]
    f, read = (torch.cat(parts) for parts in zip(*described, strict=True))
    real_f, real_read = _described(classifier, real)
    asked = torch.tensor(list(seeds)) % classifier.config.classes
    right, classes = (read == asked).double(), {}
    for i in range(classifier.config.classes):
        mine, theirs = f[asked == i], real_f[labels == i]
        enough = min(len(mine), len(theirs)) >= PER_FEATURE * f.shape[1]
        classes[str(i)] = {
            "share": right[asked == i].mean().item() if len(mine) else None,
            "frechet": frechet_distance(mine, theirs) if enough else None,
        }
    real_share = (real_read == labels).double().mean().item()
    return {"share": right.mean().item(), "real share": real_share, "classes": classes}


def _paths(folder: Path, seeds: Sequence[int]) -> list[Path]:
    return [picture_path(folder, seed) for seed in seeds]


def _described(classifier: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) and classes (N,) of uint8 images."""
    parts = [to_pixels(part) for part in images.split(500)]
    read = torch.cat([classifier(part).argmax(dim=1) for part in parts])
    return features(classifier, torch.cat(parts)), read


def print_asked(record: Mapping[str, Any]) -> None:
    """What measure_asked found, as a table."""
    share, real = record["share"], record["real share"]
    print(f"\nread as asked: {share:.1%} (test images as what they are: {real:.1%})")
    print(f"{'class':<8}{'as asked':>12}{'Frechet distance':>20}")
    for name, found in record["classes"].items():
        distance = "too few" if found["frechet"] is None else f"{found['frechet']:.4g}"
        as_asked = "" if found["share"] is None else f"{found['share']:.1%}"
        print(f"{name:<8}{as_asked:>12}{distance:>20}")
