"""Defaults that differ between the scripts, or depend on other flags; the others stand with their
flags in command_line/groups.py."""

import math
from dataclasses import dataclass

from command_line.flags import EVALUATE


@dataclass(frozen=True)
class TrainingDefaults:
    """Defaults of a training. images: shown in all, on a CPU and on a GPU, from which --epochs
    follows for any data set."""

    images: tuple[int, int]
    batch: int
    lr: float
    optimizer: str
    channels: int


@dataclass(frozen=True)
class DenoiserDefaults:
    """Defaults of a denoiser. num_images: pictures that --show makes; fig: where they go."""

    t_density: str
    prediction: str
    schedule: str
    num_images: int
    fig: str


MNIST = TrainingDefaults((840_000, 840_000), batch=64, lr=1e-3, optimizer="muon", channels=32)
ENCODER = TrainingDefaults((170_000, 1_600_000), batch=16, lr=1e-3, optimizer="muon", channels=32)
LATENT = TrainingDefaults((1_000_000, 3_200_000), batch=64, lr=1e-3, optimizer="adamw", channels=64)
DIGITS = DenoiserDefaults("lognormal", "eps", "linear", 30, "fig/mnist")
FACES = DenoiserDefaults("uniform", "v", "cosine", 15, "fig/denoiser")
CELEBA_SIZE, OTHER_SIZE = (208, 176), (64, 64)  # (H, W): CelebA on a GPU, all else
EVALUATED_STEPS = 50  # ddpm's, in --evaluate

# --num-images in these modes: default, fewest, most (figures are drawn when all pictures are made).
NUM_IMAGES: dict[str, tuple[int, int, float]] = {
    EVALUATE: (2000, 2, math.inf),
    "film": (1, 1, 8),
    "interpolate": (9, 2, math.inf),
    "neighbours": (8, 1, 100),
    "inpaint": (4, 1, 100),
    "vary": (4, 1, 100),
    "invert": (9, 2, 100),
    "label": (10, 1, math.inf),  # of each label
}
ASKED = frozenset({"label", "attributes"})  # of a conditional denoiser's pictures
FIGURES = frozenset({"film", "interpolate", "neighbours"})  # what --show makes instead of pictures
IDLE = {  # flags that would do nothing in these
    "interpolate": frozenset({"seed"}),
    "film": frozenset({"batch"}),
    "reconstruct": ASKED
    | {"sampler", "sampling_steps", "eta", "sigma_scale", "seed", "num_images", "batch"},
    "invert": frozenset({"eta", "seed"}),
}


def default_size(data: str, on_gpu: bool) -> tuple[int, int]:
    """(H, W) of a data set for which nobody said it: what the machine can do in hours."""
    return CELEBA_SIZE if data == "celeba" and on_gpu else OTHER_SIZE
