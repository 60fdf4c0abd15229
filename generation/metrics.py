"""How alike two sets of images are, in some space of features; and how alike two images are.

N, M: images, D: features. Sets are compared in float64 on the CPU, single images as they come.
"""

import torch
from torch.nn import functional as F

from common.errors import UserError

NEIGHBOURHOOD = 3  # k of precision and recall, as in Kynkäänniemi et al. 2019
CHUNK = 1000  # images whose distances to all others are in memory at a time


def frechet_distance(a, b):
    """Squared Wasserstein-2 distance of the Gaussians that fit features a (N, D) and b (M, D).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), with the covariances A and B (Heusel et al.
    2017, arXiv:1706.08500). Raises UserError where fewer than 2 images make no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise UserError("the Frechet distance needs at least 2 images on either side")
    a, b = a.double().cpu(), b.double().cpu()
    root = _root(torch.atleast_2d(a.T.cov()))
    # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2).
    values = torch.linalg.eigvalsh(root @ torch.atleast_2d(b.T.cov()) @ root)
    variances = a.var(dim=0).sum() + b.var(dim=0).sum()
    difference = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, (difference + variances - 2 * values.clamp(min=0).sqrt().sum()).item())


def _root(matrix):
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def precision_recall(samples, real):
    """(share of samples among the real images, share of real images among the samples).

    Of features (N, D) and (M, D), better as many of one as of the other. An image is among the
    others when it is no further from one of them than that one's k-th nearest neighbour
    (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2). Raises UserError for k images or fewer.
    """
    if min(len(samples), len(real)) <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need more than {NEIGHBOURHOOD} images")
    samples, real = samples.double().cpu(), real.double().cpu()
    return _share_among(samples, real), _share_among(real, samples)


def _share_among(images, others):
    """Share of images (N, D) that lie within the radius of one of the others (M, D)."""
    nearest = [
        torch.cdist(part, others).topk(NEIGHBOURHOOD + 1, largest=False).values[:, -1]
        for part in others.split(CHUNK)
    ]
    radii = torch.cat(nearest)  # to the k-th nearest neighbour, itself left out
    among = [(torch.cdist(part, others) <= radii).any(dim=1) for part in images.split(CHUNK)]
    return torch.cat(among).double().mean().item()


def psnr(x, x_hat):
    """Peak signal-to-noise ratio per image in dB, (B,): both in [-1, 1] (peak 2), x_hat clamped."""
    error = (x_hat.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error).log10()


def ssim(x, x_hat):
    """Structural similarity per image, (B,), 1 for equals: (B, C, H, W) in [-1, 1], x_hat clamped.

    Wang et al. 2004: Gaussian windows of 11 pixels, sigma 1.5, no padding, K1 = 0.01, K2 = 0.03,
    a range of 2; the mean over pixels and channels. Smaller images get windows that fit.
    """
    x_hat = x_hat.clamp(-1, 1)
    size = min(11, *x.shape[2:])
    position = torch.arange(size) - (size - 1) / 2
    window = torch.exp(-(position**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(image):  # each channel by itself
        flat = image.flatten(0, 1)[:, None]
        return F.conv2d(flat, window[None, None].to(flat))[:, 0].unflatten(0, image.shape[:2])

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean, mean_hat = blur(x), blur(x_hat)
    variance = blur(x * x) - mean**2
    variance_hat = blur(x_hat * x_hat) - mean_hat**2
    covariance = blur(x * x_hat) - mean * mean_hat
    alike = (2 * mean * mean_hat + c1) / (mean**2 + mean_hat**2 + c1)
    alike = alike * (2 * covariance + c2) / (variance + variance_hat + c2)
    return alike.mean(dim=(1, 2, 3))


def gradient_magnitude(x):
    """Mean length of the gradient per image, (B,), of (B, C, H, W): differences of neighbours.

    A reconstruction's below its original's is blur, above it is grain.
    """
    down, right = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
    return (down**2 + right**2).sqrt().mean(dim=(1, 2, 3))
