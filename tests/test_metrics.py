"""Distances of sets of images, and of images, against closed forms and independent ways."""

import math

import pytest
import torch
from helpers import REAL_DATA

from data.mnist import mnist_images, mnist_labels
from data.pixels import to_pixels
from generation import classifier, metrics


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


def test_psnr_and_ssim_of_known_errors():
    x = torch.rand(2, 3, 20, 24) - 0.5
    assert metrics.psnr(x, x + 0.2).tolist() == pytest.approx([20.0] * 2, abs=1e-4)
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(2))
    # Constant images: only the means count.
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    c1 = 0.02**2
    want = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    assert metrics.ssim(a, b).item() == pytest.approx(want, rel=1e-3)
    assert metrics.ssim(0.5 + x, 0.5 - x).max() < -0.5  # opposite structure around one mean
    assert metrics.ssim(x[..., :7, :5], x[..., :7, :5]).tolist() == pytest.approx([1, 1])


def test_ssim_is_the_mean_over_windows_of_the_definition():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 1, 1, 12, 11, generator=generator, dtype=torch.float64)
    axis = torch.arange(11, dtype=torch.float64) - 5
    w = torch.exp(-(axis**2) / 4.5)
    w = torch.outer(w, w) / w.sum() ** 2
    values = []
    for top in (0, 1):
        p, q = x[0, 0, top : top + 11], y[0, 0, top : top + 11]
        m, n = (w * p).sum(), (w * q).sum()
        v, u = (w * (p - m) ** 2).sum(), (w * (q - n) ** 2).sum()
        cov = (w * (p - m) * (q - n)).sum()
        c1, c2 = 0.02**2, 0.06**2
        values.append((2 * m * n + c1) * (2 * cov + c2) / ((m**2 + n**2 + c1) * (v + u + c2)))
    assert metrics.ssim(x, y).item() == pytest.approx(sum(values).item() / 2, rel=1e-6)


def test_gradient_magnitude_of_a_ramp():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    ramp = (3 * y + 4 * x)[None, None]
    assert metrics.gradient_magnitude(ramp).item() == pytest.approx(5)


@pytest.mark.skipif(not REAL_DATA, reason="needs TEST_DATA_ROOT")
def test_labels_are_the_digits(tmp_path):
    """MNIST's own counts of its test set; and the classifier learns them within 200 steps."""
    labels = mnist_labels(REAL_DATA, "test")
    counts = torch.bincount(labels).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images = mnist_images(REAL_DATA, "train")[:6000], mnist_labels(REAL_DATA, "train")[:6000]
    torch.manual_seed(0)
    model = classifier._train(*images)
    test = mnist_images(REAL_DATA, "test")[:1000]
    assert classifier.accuracy(model, test, labels[:1000]) > 0.93
    assert classifier.features(model, to_pixels(test)).shape == (1000, 128)


def test_classifier_is_kept_and_refuses_what_it_cannot_learn(tmp_path, monkeypatch):
    digits = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    monkeypatch.setattr(classifier, "mnist_images", lambda root, split: digits)
    monkeypatch.setattr(classifier, "mnist_labels", lambda root, split: torch.arange(64) % 10)
    with pytest.raises(ValueError, match="is this MNIST"):
        classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    monkeypatch.setattr(classifier, "AT_LEAST", 0.0)
    state = torch.get_rng_state()
    first = classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # the run's own numbers are untouched
    monkeypatch.setattr(classifier, "_train", None)  # read, not trained again
    again = classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    x = torch.rand(5, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(classifier.features(again, x), classifier.features(first, x))
