"""Sets of images: read, described by features and colours, and compared with each other.

The comparisons return numbers that JSON can hold. B: batch, C, H, W: an image, N: images, D:
features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line, open_regular
from data.batches import load_batches
from data.damage import Unreadable, named_damage
from data.decoding import open_picture, prepare
from data.images import ImageDataset
from data.order import fixed_sample
from data.pixels import to_pixels
from generation.imagenet import BLOCKS, NUM_FEATURES, imagenet_features
from generation.metrics import frechet_distance, precision_recall
from generation.seeing import TrainingSet, nearest
from training.checkpoint import fingerprint
from training.codec import LatentCodec
from training.pretrained import PACKAGE

BATCH = 100  # images described at a time
MOST_NEAREST = 1000  # images of a set whose nearest training image is looked for
GRID = 8  # latents are averaged to at most GRID x GRID before they are compared
PER_FEATURE = 2  # images that a covariance needs on either side, times its features


# ---- Where they are compared --------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Where sets of images are compared. features: (B, C, H, W) in [-1, 1] -> (B, D)."""

    name: str
    features: Callable[[torch.Tensor], torch.Tensor]


def autoencoder_spaces(codec: LatentCodec) -> list[Space]:
    """The two Spaces that a LatentCodec's autoencoder gives: whitened latents, on a coarse grid,
    and the encoder's deepest features, averaged over the positions."""
    name = f"autoencoder {fingerprint(codec.autoencoder)[:8]}"

    def latents(x: torch.Tensor) -> torch.Tensor:
        x0 = codec.encode(x).cpu()  # an Apple GPU pools only to sizes that divide the latents'
        grid = min(GRID, x0.shape[2]), min(GRID, x0.shape[3])
        return F.adaptive_avg_pool2d(x0, grid).flatten(1)

    return [
        Space(f"whitened latents of {name}", latents),
        Space(f"features of {name}", codec.features),
    ]


def imagenet_spaces() -> list[Space]:
    """The Space of ImageNet's features, in which different autoencoders' pictures can be compared;
    none, and a sentence, where its package is not installed."""
    features = imagenet_features()
    if features is None:
        print(f"no distance in ImageNet's features: that needs the package {PACKAGE}")
        return []
    name = f"{NUM_FEATURES} ImageNet features of EfficientNet-Lite0, after block {BLOCKS}"
    return [Space(name, features)]


# ---- Where they come from -----------------------------------------------------------------------


@dataclass(frozen=True)
class RealImages:
    """size images; batches: n -> uint8 batches (B, C, H, W) of n of them, a fixed_sample."""

    name: str
    size: int
    batches: Callable[[int], Iterable[torch.Tensor]]


def tensor_images(name: str, images: torch.Tensor) -> RealImages:
    """RealImages of a tensor (N, C, H, W) uint8."""

    def batches(n: int) -> Iterable[torch.Tensor]:
        return images[fixed_sample(len(images), n)].split(BATCH)

    return RealImages(name, len(images), batches)


def dataset_images(name: str, dataset: ImageDataset, workers: int) -> RealImages:
    """RealImages of a data set of data/images.py."""

    def batches(n: int) -> Iterable[torch.Tensor]:
        parts = [part.tolist() for part in fixed_sample(len(dataset), n).split(BATCH)]
        return (images for images, _ in load_batches(dataset, parts, workers))

    return RealImages(name, len(dataset), batches)


def read_pictures(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
    """uint8 batches (B, C, H, W) of PNGs of one size."""
    for i in range(0, len(paths), BATCH):
        arrays = [_pixels(path) for path in paths[i : i + BATCH]]
        for path, array in zip(paths[i:], arrays, strict=False):
            if array.shape != arrays[0].shape:
                raise UserError(f"{path} has another size; remove it: it is made again")
        batch = torch.from_numpy(np.stack(arrays))
        yield batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2).contiguous()


def _pixels(path: Path) -> np.ndarray:
    """Of a PNG, uint8; UserError where it cannot be read."""
    try:
        with open_regular(path) as file, open_picture(file) as image, named_damage():
            prepare(image, (image.height, image.width))
            return np.asarray(image)
    except (OSError, Unreadable) as error:
        why = first_line(error)
        raise UserError(f"{path} cannot be read ({why}); remove it: it is made again") from None


# ---- What is kept of them -----------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What is kept of some images: features {space: (N, D)}, colours (N, C, 2): each channel's
    mean and standard deviation in [0, 255], x0 of the first MOST_NEAREST, or None where not asked
    for."""

    features: dict[str, torch.Tensor]
    colours: torch.Tensor
    x0: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.colours)


def describe(
    batches: Iterable[torch.Tensor],
    spaces: Sequence[Space],
    what: str,
    total: int,
    to_x0: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Description:
    """The Description of uint8 batches; to_x0: images in [-1, 1] -> x0, where that is wanted.

    what, total: what they are called, and how many they are at most, for the progress bar. Raises
    UserError where there is none of them.
    """
    # Batch by batch, of which no pixels are kept.
    features: dict[str, list[torch.Tensor]] = {space.name: [] for space in spaces}
    colours: list[torch.Tensor] = []
    x0: list[torch.Tensor] = []
    with torch.no_grad(), tqdm(total=total, desc=what, unit="image", delay=1, leave=False) as bar:
        for images in batches:
            x = to_pixels(images)
            for space in spaces:
                features[space.name].append(space.features(x).float().cpu())
            flat = images.float().flatten(2)
            colours.append(torch.stack([flat.mean(dim=2), flat.std(dim=2)], dim=2))
            if to_x0 is not None and sum(map(len, x0)) < MOST_NEAREST:
                x0.append(to_x0(x).float().cpu())
            bar.update(len(images))

    # Images that cannot be read are left out: of all of them, nothing can be said.
    if not colours:
        raise UserError(f"none of the {what} can be read")
    return Description(
        {name: torch.cat(parts) for name, parts in features.items()},
        torch.cat(colours),
        torch.cat(x0)[:MOST_NEAREST] if x0 else None,
    )


# ---- How they compare ---------------------------------------------------------------------------


def compare_features(features: Mapping[str, torch.Tensor], real: torch.Tensor) -> dict[str, Any]:
    """{name: {"frechet", "precision", "recall"}} of {name: features (N, D)}, to real (M, D).

    {"too few": a sentence} where there are too few images of any of them. Precision and recall
    are of as many images of each set as the smallest has.
    """
    counts = {name: len(f) for name, f in features.items()} | {"test images": len(real)}
    if text := too_few(real.shape[1], counts):
        return {"too few": text}
    both, result = min(counts.values()), {}
    for name, f in features.items():
        distance = frechet_distance(f, real)
        precision, recall = precision_recall(f[:both], real[:both])
        result[name] = {"frechet": distance, "precision": precision, "recall": recall}
    return result


def too_few(size: int, counts: Mapping[str, int]) -> str:
    """Which of {name: number of images} there ought to be more of for size features, or ""."""
    if min(counts.values()) >= PER_FEATURE * size:
        return ""
    there = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{size} features need {PER_FEATURE * size} images of each kind; there are {there}"


def compare_colours(sets: Mapping[str, Description]) -> dict[str, dict[str, list[float]]]:
    """{name: {"mean", "spread", "contrast"}}, per channel, of 0 to 255: the mean, the standard
    deviation of the images' means, and the mean standard deviation in an image."""
    result = {}
    for name, described in sets.items():
        mean, contrast = described.colours.unbind(dim=2)
        spread = mean.std(dim=0, correction=min(1, len(mean) - 1))  # 0 for a single image
        numbers = {"mean": mean.mean(dim=0), "spread": spread, "contrast": contrast.mean(dim=0)}
        result[name] = {key: [round(v, 1) for v in n.tolist()] for key, n in numbers.items()}
    return result


def compare_nearest(
    sets: Mapping[str, Description], training_set: TrainingSet
) -> dict[str, dict[str, float]]:
    """{name: {"least", "5 %", "median", "images"}}: quantiles of the distances to the nearest
    training image, and of how many images. Copies would show as samples nearer than others."""
    result = {}
    for name, described in sets.items():
        assert described.x0 is not None, name
        distances = nearest(described.x0, training_set, 1)[0][:, 0]
        least, low, median = torch.quantile(distances, torch.tensor([0.0, 0.05, 0.5])).tolist()
        result[name] = {"least": least, "5 %": low, "median": median, "images": len(distances)}
    return result
