"""How near a reconstruction is to its image: numbers per image, as they come.

B: batch, C, H, W: an image in [-1, 1].
"""

import torch
from torch.nn import functional as F


def psnr(x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,): both in [-1, 1] (peak 2), x_hat clamped."""
    error = (x_hat.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error).log10()


def ssim(x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
    """Structural similarity per image, (B,), 1 for equals: (B, C, H, W) in [-1, 1], x_hat clamped.

    Wang et al. 2004: Gaussian windows of 11 pixels, sigma 1.5, no padding, K1 = 0.01, K2 = 0.03,
    a range of 2; the mean over pixels and channels. Smaller images get windows that fit.
    """
    # The window is the product of two Gaussians, of sum 1.
    x_hat = x_hat.clamp(-1, 1)
    size = min(11, *x.shape[2:])
    position = torch.arange(size) - (size - 1) / 2
    window = torch.exp(-(position**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(image: torch.Tensor) -> torch.Tensor:  # each channel by itself
        flat = image.flatten(0, 1)[:, None]
        return F.conv2d(flat, window[None, None].to(flat))[:, 0].unflatten(0, image.shape[:2])

    # Moments of each window, then Wang's eq. 13: luminance, and contrast with structure.
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean, mean_hat = blur(x), blur(x_hat)
    variance = blur(x * x) - mean**2
    variance_hat = blur(x_hat * x_hat) - mean_hat**2
    covariance = blur(x * x_hat) - mean * mean_hat
    alike = (2 * mean * mean_hat + c1) / (mean**2 + mean_hat**2 + c1)
    alike = alike * (2 * covariance + c2) / (variance + variance_hat + c2)
    return alike.mean(dim=(1, 2, 3))


def gradient_magnitude(x: torch.Tensor) -> torch.Tensor:
    """Mean length of the gradient per image, (B,), of (B, C, H, W): differences of neighbours.

    A reconstruction's below its original's is blur, above it is grain.
    """
    down, right = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
    return (down**2 + right**2).sqrt().mean(dim=(1, 2, 3))
