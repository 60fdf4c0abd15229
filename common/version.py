"""The version of this code, said once: checkpoints and `--version` have it."""

__version__ = "1.0.0"
NAME = "latent-diffusion-from-scratch"
