"""From images to x0, what a denoiser learns and makes, and back.

B: batch, C, H, W: an image in [-1, 1], c, h, w: x0.
"""

import torch


class PixelCodec:
    """x0 is the image itself."""

    lossless = True

    def encode(self, x):
        """(B, C, H, W) -> the same."""
        return x

    def decode(self, x0):
        """(B, C, H, W) -> the same."""
        return x0


class LatentCodec:
    """x0 is the whitened mean of the autoencoder's posterior. Both directions take tensors of any
    device and give float32 on the runtime's."""

    lossless = False

    def __init__(self, autoencoder, stats, runtime):
        self.autoencoder, self.stats, self.runtime = autoencoder, stats, runtime

    @torch.no_grad()
    def encode(self, x):
        """(B, C, H, W) -> (B, c, h, w)."""
        with self.runtime.autocast():
            mean = self.autoencoder.encode(self.runtime.send(x)).mean
        return self.stats.whiten(mean.float())

    @torch.no_grad()
    def decode(self, x0):
        """(B, c, h, w) -> (B, C, H, W), not clamped."""
        with self.runtime.autocast():
            return self.autoencoder.decode(self.stats.unwhiten(self.runtime.send(x0))).float()
