"""Distances of sets of images against closed forms and independent ways."""

import math

import pytest
import torch

from generation import metrics


def gaussian(n, mean, std):
    """n vectors whose sample mean and covariance are exactly mean and diag(std^2)."""
    x = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, _ = torch.linalg.qr(x - x.mean(dim=0))  # orthonormal columns, still of mean 0
    return q * math.sqrt(n - 1) * torch.tensor(std) + torch.tensor(mean)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    a = gaussian(50, [0.0, 1.0, -2.0], [1.0, 2.0, 0.5])
    b = gaussian(80, [3.0, 1.0, -2.0], [2.0, 2.0, 1.5])
    want = 3.0**2 + (1 - 2.0) ** 2 + 0 + (0.5 - 1.5) ** 2
    assert metrics.frechet_distance(a, b) == pytest.approx(want, rel=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(want, rel=1e-9)


def test_frechet_distance_does_not_depend_on_the_axes():
    a, b = gaussian(40, [0.0, 1.0], [1.0, 3.0]), gaussian(60, [2.0, 0.0], [0.3, 2.0])
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    skew = torch.tensor([[1.0, 0.8], [0.0, 1.0]], dtype=torch.float64)
    a, b = a @ skew, b @ turn  # covariances that do not commute
    want = metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(want, rel=1e-9)
    # tr (A B)^(1/2) by the eigenvalues of A B itself.
    product = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.sqrt().sum()
    by_hand = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum()
    assert want == pytest.approx((by_hand - 2 * product).item(), rel=1e-9)


def test_frechet_distance_of_equals_is_zero_and_of_one_image_refused():
    a = torch.randn(30, 64)  # fewer images than features: a singular covariance
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="at least 2 images"):
        metrics.frechet_distance(a, a[:1])


def test_precision_and_recall_of_what_is_where():
    generator = torch.Generator().manual_seed(0)
    here, there = torch.randn(2, 200, 2, generator=generator)
    there = there + 100
    assert metrics.precision_recall(here, here) == (1.0, 1.0)
    assert metrics.precision_recall(here, there) == (0.0, 0.0)
    # Samples of one of two modes: precise, but half of the real images are out of their reach.
    precision, recall = metrics.precision_recall(here, torch.cat([here + 0.01, there]))
    assert precision > 0.95 and 0.45 < recall <= 0.5
    precision, recall = metrics.precision_recall(torch.cat([here + 0.01, there]), here)
    assert 0.45 < precision < 0.55 and recall > 0.95
    with pytest.raises(ValueError, match="more than 3 images"):
        metrics.precision_recall(here[:3], there)


def test_precision_counts_the_radius_of_the_third_neighbour():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii 10, 9, 8 and 10
    samples = torch.tensor([[-9.9], [19.9], [20.1], [-10.1], [0.5]])
    precision, _ = metrics.precision_recall(samples, real)
    assert precision == pytest.approx(3 / 5)
