"""How a denoiser learns: one step, its metrics by bands of t, and its validation."""

import math

import pytest
import torch
from helpers import REAL_DATA, cpu, randomize, run_digits, scheduler, small_autoencoder, small_unet

from models.diffusion import Objective, epsilon
from models.draws import Draws
from training.denoiser import (
    NUM_BANDS,
    DenoiserData,
    DenoiserLearner,
    evaluating,
    metrics,
    validate,
)
from training.optimizer import MAX_GRADIENT
from training.records import read_metrics


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_step_is_adamws_on_the_objective(prediction):
    """Against the same by hand: clipped gradients, the rate's share of lr, then the average."""
    torch.manual_seed(0)
    s, x0 = scheduler(prediction=prediction), torch.randn(4, 1, 8, 8)
    ours, theirs = randomize(small_unet()), cpu().place(randomize(small_unet()))
    settings = {"optimizer": "adamw", "lr": 1e-2, "ema": 0.5}
    learner = DenoiserLearner(ours, s, cpu(), **settings, t_density="lognormal", min_snr=5.0)
    draws = Draws(1, 10**6, range(4))
    got = learner.step(x0, 0.25, draws)

    objective = Objective(s, "lognormal", 5.0, x0.device)
    loss, losses, t = objective(epsilon(theirs.train(), s), x0, draws)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), MAX_GRADIENT)
    first = [p.detach().clone() for p in theirs.parameters()]
    torch.optim.AdamW(theirs.parameters(), 0.25 * 1e-2, (0.9, 0.99), weight_decay=1e-4).step()
    for mine, want, old, average in zip(
        learner.model.parameters(), theirs.parameters(), first, learner.ema.model.parameters(),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(average, (old + mine) / 2)
        assert mine.grad is None
    assert got["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
    for key, value in metrics(losses, t, objective.importance).items():
        torch.testing.assert_close(got[key], value)


def test_a_bands_sum_is_of_its_t():
    """The law of the record: band_sum / band_count is the mean of the band's losses."""
    t, losses = torch.arange(0, 1000, 7), torch.rand(143)
    importance = torch.rand(1000) + 0.5
    sums = metrics(losses, t, importance)
    for band in range(NUM_BANDS):
        inside = t * NUM_BANDS // 1000 == band
        weights = importance[t][inside]
        want = (weights * losses[inside]).sum() / weights.sum()
        torch.testing.assert_close(sums["band_sum"][band] / sums["band_count"][band], want)


def test_band_sums_sort_losses_by_t():
    t = torch.tensor([0, 99, 100, 999, 950])
    sums = metrics(torch.tensor([1.0, 3.0, 5.0, 7.0, 8.0]), t, torch.ones(1000))
    assert sums["band_sum"].tolist() == [4, 5] + [0] * (NUM_BANDS - 3) + [15]
    assert sums["band_count"].tolist() == [2, 1] + [0] * (NUM_BANDS - 3) + [2]
    assert sums["loss"].item() == pytest.approx(24 / 5)


def test_training_goes_on_after_a_validation():
    """With dropout, which a network in eval mode has not."""
    model = randomize(small_autoencoder()).train()
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize("n", [1, 3, 256])
def test_all_t_count_alike_in_the_validation_loss(n):
    """However few validation images there are."""
    seen = []

    def model(xt, t):
        seen.append((t, xt))
        return (t.float() / 1000).sqrt()[:, None, None, None].expand_as(xt)

    images = torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)
    data = DenoiserData(None, 0, images, None)
    model.eval, model.train, model.training = lambda: None, lambda mode: None, True
    loss = validate(model, scheduler(), data, cpu())
    t, xt = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(t) == n * math.ceil(256 / n)
    assert t.float().mean() == pytest.approx(499.5, abs=1) and len(t.unique()) == len(t)
    assert loss == pytest.approx(1.5, abs=0.2)  # 1 of the noise, on average t / 1000 of eps_hat
    again = validate(model, scheduler(), data, cpu())
    assert again == loss
    assert torch.equal(xt, torch.cat([part for _, part in seen[len(seen) // 2 :]]))


@pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT names no real data")
def test_real_digits_are_learnt(tmp_path, monkeypatch, no_figures):
    """60 steps on MNIST bring the validation loss from 1 to below 0.12."""
    monkeypatch.chdir(tmp_path)
    size = ("--steps", 60, "--batch", 16, "--channels", 16)
    run_digits("--data-root", REAL_DATA, *size, "--lr", 2e-3, "--name", "real")
    assert read_metrics("fig/mnist/real/metrics.jsonl", "real")[-1]["valid_raw"] < 0.12
