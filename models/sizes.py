"""Which sizes of images the networks take: every halving needs an even number."""

from collections.abc import Sequence

from common.errors import UserError

# The autoencoder that train_encoder.py builds, and the denoiser of its latents, have three levels
# each. Images must be multiples of both strides together, or a denoiser could not follow.
AUTOENCODER_STRIDE, DENOISER_STRIDE = 4, 4  # pixels per latent; latents per deepest feature
IMAGE_MULTIPLE = AUTOENCODER_STRIDE * DENOISER_STRIDE


def stride(channels: Sequence[int]) -> int:
    """How much smaller the last of these levels is than the first: each but one halves the size."""
    return 2 ** (len(channels) - 1)


def check_divides(height: int, width: int, multiple: int) -> None:
    """Raise UserError, naming the nearest sizes that work, unless multiple divides both sides."""
    if height % multiple or width % multiple or min(height, width) < multiple:
        rounded = (max(multiple, round(n / multiple) * multiple) for n in (height, width))
        nearest = "x".join(map(str, rounded))
        raise UserError(
            f"height and width must be multiples of {multiple}, but the size is {height}x{width}; "
            f"the nearest that works is {nearest}"
        )
