"""The names among which users choose, and what goes with each. No torch: the command line reads
them, and what is behind each name is found where it is done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerChoice:
    """steps: calls of the network per picture unless the user says otherwise; None: all T of the
    schedule. settings: the flags that it takes beside the number of steps."""

    steps: int | None
    settings: tuple[str, ...]


SAMPLERS = {
    "ddpm": SamplerChoice(None, ("sigma_scale",)),
    "ddim": SamplerChoice(50, ("eta", "sigma_scale")),
    "dpm++": SamplerChoice(20, ()),
}
DENOISER_LEVELS = 3  # of every UNet that the scripts build; 0 is the finest
NUM_STEPS = 1000  # T of every schedule of noise
SCHEDULES = "linear", "scaled_linear", "cosine"  # of noise over t; models/scheduler.py
PREDICTIONS = "v", "eps"  # what a denoiser's network puts out; models/diffusion.py
T_DENSITIES = "uniform", "lognormal"  # how t is drawn in training; models/diffusion.py
LR_SCHEDULES = "trapezoid", "cosine"  # training/optimizer.py
OPTIMIZERS = "muon", "adamw"  # training/optimizer.py
PERCEPTUAL = "auto", "vgg16", "squeezenet", "efficientnet"  # networks; training/pretrained.py
PRECISIONS = "fp32", "bf16", "fp16"  # training/runtime.py
LOGS = "none", "tensorboard"  # beside metrics.jsonl; training/logs.py
MOST_PIXELS = 2**23  # of an image; and values of an x0 that a file may ask for
PICTURES = ".png", ".jpg", ".jpeg"  # endings of --out that mean one grid
