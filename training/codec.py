"""From images to x0, what a denoiser learns and makes, and back; and through an autoencoder.

B: batch, C, H, W: an image in [-1, 1], c, h, w: x0. Images come from any device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from data.latents import LatentStats
from models.autoencoder import AutoencoderKL, DiagonalGaussian
from training.runtime import Runtime

SLICE = 16  # images that a decoder makes at a time: its memory does not grow with their number


# ---- An autoencoder by itself -------------------------------------------------------------------


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, runtime: Runtime, x: torch.Tensor) -> DiagonalGaussian:
    """The posterior of x (B, C, H, W), float32 on the runtime's device."""
    with runtime.autocast():
        return autoencoder.encode(runtime.send(x))


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, runtime: Runtime, z: torch.Tensor) -> torch.Tensor:
    """z (B, c, h, w), as the autoencoder scales it and on the runtime's device -> (B, C, H, W),
    float32 there, not clamped."""
    with runtime.autocast():
        return autoencoder.decode(z).float()


def reconstruct(
    autoencoder: AutoencoderKL, runtime: Runtime, x: torch.Tensor
) -> tuple[DiagonalGaussian, torch.Tensor]:
    """The posterior of x (B, C, H, W), and the reconstruction from its mean, float32 on the CPU."""
    x_hat, mean, logvar = [], [], []
    for part in tqdm(x.split(SLICE), "reconstructing", unit="batch", delay=1, leave=False):
        posterior = encode(autoencoder, runtime, part)
        x_hat.append(decode(autoencoder, runtime, posterior.mean).cpu())
        mean.append(posterior.mean.cpu())
        logvar.append(posterior.logvar.cpu())
    return DiagonalGaussian(torch.cat(mean), torch.cat(logvar)), torch.cat(x_hat)


def in_slices(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x) on the CPU, made of SLICE at a time."""
    return torch.cat([function(part).cpu() for part in x.split(SLICE)])


# ---- What a denoiser needs ----------------------------------------------------------------------


class PixelCodec:
    """x0 is the image itself."""

    lossless = True

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return x

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same, on the CPU."""
        return x0.cpu()


@dataclass(frozen=True)
class LatentCodec:
    """x0 is the whitened mean of the autoencoder's posterior.

    stats: of the latents that the denoiser was trained on.
    """

    lossless: ClassVar[bool] = False
    autoencoder: AutoencoderKL
    stats: LatentStats
    runtime: Runtime

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, c, h, w), float32 on the runtime's device."""
        return self.stats.whiten(encode(self.autoencoder, self.runtime, x).mean)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) of any device -> (B, C, H, W), float32 on the CPU, not clamped."""

        def images(part: torch.Tensor) -> torch.Tensor:
            z = self.stats.unwhiten(self.runtime.send(part))
            return decode(self.autoencoder, self.runtime, z)

        return in_slices(images, x0)

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the encoder's deepest features, averaged over the positions: (B, D),
        float32 on the runtime's device."""
        with self.runtime.autocast():
            h = self.autoencoder.encoder.features(self.runtime.send(x))
        return h.float().mean(dim=(2, 3))


Codec = PixelCodec | LatentCodec
