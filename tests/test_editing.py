"""Editing against what must come out: the input, a plain sample, or, with the exact denoiser of a
Gaussian, what is known of it in closed form."""

import math

import pytest
import torch
from helpers import MEAN, STD, exact_denoiser, exact_v, randomize, scheduler, small_unet

from common.choices import SAMPLERS
from generation.editing import (
    FEATHER,
    feathered,
    filled,
    inpaint,
    invert,
    to_shape,
    variation_timesteps,
    vary,
)
from models.diffusion import epsilon
from models.samplers import picture_noise, sample

SHAPE = 2, 8, 8
SETTINGS = [("ddpm", {"sigma_scale": 0.9}), ("ddim", {"eta": 0.0}), ("ddim", {"eta": 0.7})]


def draw(*seeds, shape=SHAPE):
    return picture_noise(seeds, shape, "cpu")


def network():
    return randomize(small_unet(2))


# ---- Inpainting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "settings"), SETTINGS)
def test_an_empty_mask_returns_the_input(sampler, settings):
    x0, mask = torch.randn(1, *SHAPE), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    x = inpaint(network(), scheduler(), x0, mask, draw(1, 2), sampler, 5, 3, **settings)
    assert torch.equal(x, x0.expand(2, -1, -1, -1))


@pytest.mark.parametrize("resampling", [1, 4])
@pytest.mark.parametrize(("sampler", "settings"), SETTINGS)
def test_a_full_mask_gives_a_plain_sample(sampler, settings, resampling):
    x0, mask = torch.randn(1, *SHAPE), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    s, model = scheduler(), network()
    x = inpaint(model, s, x0, mask, draw(1, 2), sampler, 5, resampling, **settings)
    assert torch.equal(x, sample(model, s, draw(1, 2), sampler, 5, **settings))


def test_what_is_known_stays_and_what_is_masked_does_not_matter():
    x0, mask = torch.randn(1, *SHAPE), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5, 3:7] = True
    other = torch.where(mask, torch.randn(1, *SHAPE), x0)
    a, b = (inpaint(network(), scheduler(), x, mask, draw(1), "ddpm", 6, 3) for x in (x0, other))
    assert torch.equal(a, b)
    assert torch.equal(a[~mask.expand_as(a)], x0[~mask.expand_as(x0)])
    assert (a - x0)[mask.expand_as(a)].abs().min() > 1e-3


def test_a_picture_depends_on_its_seed_alone():
    x0, mask = torch.randn(1, *SHAPE), torch.rand(1, 1, 8, 8) > 0.5
    together, alone = (
        inpaint(network(), scheduler(), x0, mask, draw(*seeds), "ddpm", 4, 3)
        for seeds in ([3, 4, 5], [5])
    )
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)


def test_the_network_is_called_as_often_as_is_said():
    calls = []
    x0, mask = torch.randn(1, *SHAPE), torch.rand(1, 1, 8, 8) > 0.5
    inpaint(network(), scheduler(), x0, mask, draw(1), "ddpm", 5, 3, lambda t, *_: calls.append(t))
    assert calls == [999] * 3 + [799] * 3 + [599] * 3 + [399] * 3 + [199]


CORRELATION, KNOWN = 0.8, 1.25  # of neighbours; the value of one


def correlated():
    """(mean (3,), covariance (3, 3)) of three pixels in a row."""
    distance = (torch.arange(3)[:, None] - torch.arange(3)).abs()
    return torch.full((3,), MEAN).double(), STD**2 * CORRELATION ** distance.double()


def correlated_denoiser(s):
    """E[eps | xt] for x0 of that Gaussian: linear in xt, (B, 1, 1, 3)."""
    mean, covariance = correlated()
    values, vectors = torch.linalg.eigh(covariance)

    def model(xt, t):
        alpha_bar = s.alpha_bar[t[0]]
        inverse = vectors @ torch.diag(1 / (alpha_bar * values + 1 - alpha_bar)) @ vectors.T
        return (1 - alpha_bar).sqrt() * (xt - alpha_bar.sqrt() * mean) @ inverse

    return model


def inpainted_gaussian(s, sampler, steps, resampling, n, **settings):
    """n draws (n, 2) of the last two pixels, the first being known."""
    generator = torch.Generator().manual_seed(resampling)
    x0 = torch.tensor([KNOWN, 9.0, 9.0]).double().view(1, 1, 1, 3)
    mask = torch.tensor([False, True, True]).view(1, 1, 1, 3)
    x = inpaint(
        correlated_denoiser(s), s, x0, mask,
        lambda: torch.randn(n, 1, 1, 3, generator=generator, dtype=torch.float64),
        sampler, steps, resampling, **settings,
    )  # fmt: skip
    assert (x[:, 0, 0, 0] == KNOWN).all()
    return x[:, 0, 0, 1:]


def conditional():
    """(mean (2,), covariance (2, 2)) of the last two pixels, given the first."""
    mean, covariance = correlated()
    slope = covariance[1:, 0] / covariance[0, 0]
    return mean[1:] + slope * (KNOWN - mean[0]), covariance[1:, 1:] - torch.outer(
        slope, covariance[0, 1:]
    )


def test_inpainting_of_a_correlated_gaussian_is_conditional():
    """With all T steps, each done 40 times, the bias is less than 1000 draws can show: the mean's
    is 0.04 standard deviations, the variance's 2 %."""
    n, s = 1000, scheduler(100, schedule="cosine")
    x = inpainted_gaussian(s, "ddpm", 100, 40, n)
    mean, covariance = conditional()
    deviations = covariance.diagonal().sqrt()
    error = ((x.mean(dim=0) - mean) / deviations).abs().max()
    assert error < 3.5 / math.sqrt(n), error
    scaled = (x.T.cov() - covariance) / torch.outer(deviations, deviations)
    assert scaled.abs().max() < 3.5 * math.sqrt(2 / n), scaled


def test_the_bias_of_inpainting_falls_with_resampling():
    """Of the way from the mean to the conditional mean, almost half is missed at 1; later what is
    missed falls as 1 / resampling does."""
    s, missed = scheduler(50, schedule="cosine"), {}
    (mean, _), free = conditional()[0], correlated()[0][1]
    for resampling in (1, 4, 12):
        x = inpainted_gaussian(s, "ddpm", 50, resampling, 4000)[:, 0]
        missed[resampling] = ((mean - x.mean()) / (mean - free)).item()
    assert missed[1] == pytest.approx(0.45, abs=0.05), missed
    assert missed[4] / missed[12] == pytest.approx(3, rel=0.3), missed


# ---- Variations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, 50, 700, 1000])
@pytest.mark.parametrize(("sampler", "settings"), [*SETTINGS, ("dpm++", {})])
def test_strength_1_is_a_plain_sample(sampler, settings, steps):
    def model(xt, t):
        return 0.9 * xt + 0.2 * torch.sin(3 * xt + 0.01 * t.view(-1, 1, 1, 1))

    s, x0 = scheduler(), torch.randn(1, *SHAPE)
    x = vary(model, s, x0, draw(1, 2), sampler, steps, 1.0, **settings)
    assert torch.equal(x, sample(model, s, draw(1, 2), sampler, steps, **settings))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_towards_0_returns_the_input(sampler):
    """Nearer with less strength, and x0 itself in the end."""
    s, x0, errors = scheduler(), MEAN + STD * torch.randn(1, *SHAPE), []
    for strength in (0.5, 0.1, 0.02, 0.001, 1e-6):
        x = vary(exact_denoiser(s), s, x0, draw(1, 2), sampler, 20, strength)
        errors.append((x - x0).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3 and errors[-2] < 0.02 and errors[-1] == 0


@pytest.mark.parametrize("steps", [1, 20, 333, 1000])
@pytest.mark.parametrize("strength", [0.001, 0.0016, 0.3, 0.5, 0.999, 1.0])
def test_a_variation_takes_its_share_of_the_steps(steps, strength):
    s = scheduler()
    pairs = variation_timesteps(s, steps, strength)
    assert pairs[0][0] == round(1000 * strength) - 1 and pairs[-1][1] == -1
    assert all(t > t_prev for t, t_prev in pairs)
    assert [t for t, _ in pairs[1:]] == [t_prev for _, t_prev in pairs[:-1]]
    assert len(pairs) == min(math.ceil(strength * steps), round(1000 * strength))
    if strength == 1:
        assert pairs == s.timesteps(steps)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_variations_of_a_gaussian_are_of_it(sampler, strength):
    """x0 of the data, noise added and removed, is of the data again."""
    s, generator = scheduler(250, schedule="cosine"), torch.Generator().manual_seed(1)

    def normal():
        return torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64)

    x = vary(exact_denoiser(s), s, MEAN + STD * normal(), normal, sampler, 250, strength)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(STD, rel=0.02)


# ---- Inversion ----------------------------------------------------------------------------------


def from_noise(model, s, xt, steps):
    """Forth again, by ddim."""
    return sample(model, s, lambda: xt, "ddim", steps)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_there_and_back_is_of_first_order_in_the_steps(schedule, prediction):
    s = scheduler(schedule=schedule, prediction=prediction)
    model = epsilon(exact_v(s), s) if prediction == "v" else exact_denoiser(s)
    x0 = torch.linspace(-1, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    errors = []
    for steps in (50, 100, 200):
        back = from_noise(model, s, invert(model, s, x0, steps), steps)
        errors.append((back - x0).abs().max().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.25), errors
    assert errors[-1] < 0.1


def test_inversion_finds_the_noise_of_the_exact_flow():
    """The probability flow keeps a Gaussian's ratio of x to its standard deviation."""
    s = scheduler()
    x0 = torch.linspace(-1, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    end = s.alpha_bar[-1].item()
    exact = math.sqrt(end) * MEAN + (x0 - MEAN) / STD * math.sqrt(end * STD**2 + 1 - end)
    errors = [
        (invert(exact_denoiser(s), s, x0, steps) - exact).abs().max().item()
        for steps in (100, 200, 400)
    ]
    assert errors[0] > 1.6 * errors[1] > 2.5 * errors[2] and errors[2] < 0.05, errors


# ---- Pictures and masks -------------------------------------------------------------------------


def test_a_hole_is_filled_from_its_surroundings():
    mask = torch.zeros(1, 1, 20, 31, dtype=torch.bool)
    mask[..., 5:16, 3:29] = True
    x = torch.rand(1, 3, 20, 31)
    other = torch.where(mask, torch.rand(1, 3, 20, 31), x)
    assert torch.equal(filled(x, mask), filled(other, mask))
    assert torch.equal(
        filled(x, mask)[:, ~mask[0].expand(3, -1, -1)], x[:, ~mask[0].expand(3, -1, -1)]
    )
    inside = filled(x, mask)
    assert inside.min() >= 0 and inside.max() <= 1
    flat = torch.where(mask, 7.0, torch.full((1, 1, 20, 31), 0.25))
    torch.testing.assert_close(filled(flat, mask), torch.full((1, 1, 20, 31), 0.25))
    assert torch.equal(filled(x, mask & False), x)
    assert not filled(x, mask | True).any()


@pytest.mark.parametrize(("size", "width"), [(28, 0), (64, 2), (200, FEATHER)])
def test_feathers_lie_around_the_mask_and_are_narrow(size, width):
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., 8:20, :20] = True
    share = feathered(mask)[0, 0]
    assert (share[mask[0, 0]] == 1).all()
    steps = [k / (width + 1) for k in range(width + 2)]
    assert share[7 - width : 9, 2].tolist() == pytest.approx(steps)
    assert (share[: 8 - width] == 0).all() and (share[20 + width :] == 0).all()
    assert (share[:, 20 + width :] == 0).all()
    assert (feathered(mask | True) == 1).all() and (feathered(mask & False) == 0).all()


def test_a_place_is_masked_where_any_of_it_is():
    mask = torch.zeros(1, 1, 12, 8, dtype=torch.bool)
    mask[..., 5, 2] = True
    assert to_shape(mask, (3, 2)).nonzero().tolist() == [[0, 0, 1, 0]]
    assert to_shape(mask, (12, 8)).equal(mask)
    assert to_shape(mask, (24, 16))[..., 10:12, 4:6].all()
