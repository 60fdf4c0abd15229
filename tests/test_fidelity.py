"""Distances of an image and its reconstruction, against closed forms and independent ways."""

import math

import pytest
import torch

from training.fidelity import gradient_magnitude, psnr, ssim


def test_psnr_is_per_image_then_averaged():
    x = torch.zeros(2, 1, 4, 4)
    x_hat = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    torch.testing.assert_close(psnr(x, x_hat), torch.tensor([20.0, 40.0]))
    ones = torch.ones(1, 1, 4, 4)
    assert psnr(ones, 5 * ones).item() == math.inf  # clamped


def test_psnr_and_ssim_of_known_errors():
    x = torch.rand(2, 3, 20, 24) - 0.5
    assert psnr(x, x + 0.2).tolist() == pytest.approx([20.0] * 2, abs=1e-4)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    # Constant images: only the means count.
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    c1 = 0.02**2
    want = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    assert ssim(a, b).item() == pytest.approx(want, rel=1e-3)
    assert ssim(0.5 + x, 0.5 - x).max() < -0.5  # opposite structure around one mean
    assert ssim(x[..., :7, :5], x[..., :7, :5]).tolist() == pytest.approx([1, 1])


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
    assert ssim(x, y).item() == pytest.approx(sum(values).item() / 2, rel=1e-6)


def test_gradient_magnitude_of_a_ramp():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    ramp = (3 * y + 4 * x)[None, None]
    assert gradient_magnitude(ramp).item() == pytest.approx(5)
