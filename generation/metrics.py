"""How alike two sets of images are, in some space of features, in float64 on the CPU.

N, M: images, D: features.
"""

import torch

from common.errors import UserError

NEIGHBOURHOOD = 3  # k of precision and recall, as in Kynkäänniemi et al. 2019
CHUNK = 1000  # images whose distances to all others are in memory at a time


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
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


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def precision_recall(samples: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """(share of samples among the real images, share of real images among the samples).

    Of features (N, D) and (M, D), better as many of one as of the other. An image is among the
    others when it is no further from one of them than that one's k-th nearest neighbour
    (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2). Raises UserError for k images or fewer.
    """
    if min(len(samples), len(real)) <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need more than {NEIGHBOURHOOD} images")
    samples, real = samples.double().cpu(), real.double().cpu()
    return _share_among(samples, real), _share_among(real, samples)


def _share_among(images: torch.Tensor, others: torch.Tensor) -> float:
    """Share of images (N, D) that lie within the radius of one of the others (M, D)."""
    nearest = [
        torch.cdist(part, others).topk(NEIGHBOURHOOD + 1, largest=False).values[:, -1]
        for part in others.split(CHUNK)
    ]
    radii = torch.cat(nearest)  # to the k-th nearest neighbour, itself left out
    among = [(torch.cdist(part, others) <= radii).any(dim=1) for part in images.split(CHUNK)]
    return torch.cat(among).double().mean().item()
