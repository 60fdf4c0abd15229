"""The step of one network: rates, clipping, scaled losses, who takes which weights."""

import math

import pytest
import torch
from helpers import cpu, small_unet
from torch import nn

from common.errors import UserError
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from training.optimizer import MAX_GRADIENT, LrSchedule, Optimizer


def rates(name, steps, begun_as=None):
    schedule = LrSchedule(name, steps, begun_as or steps, LrSchedule.fall_of(steps))
    return [schedule.factor(step) for step in range(steps)]


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.01), ("trapezoid", 0.0)])
def test_rate_warms_up_then_falls(name, last):
    found = rates(name, 1000)
    top = found.index(max(found))
    assert max(found) == 1 and 45 <= top <= 55
    assert found[:top] == sorted(found[:top]) and found[top:] == sorted(found[top:], reverse=True)
    assert found[0] > 0 and found[-1] == pytest.approx(last, abs=3e-3)
    assert all(0 < rate <= 1 for steps in (1, 2, 7) for rate in rates(name, steps))


def test_a_trapezoid_stays_up_until_its_last_fifth():
    """There it falls by 1 - sqrt (Hägele et al. 2024)."""
    found = rates("trapezoid", 1000)
    assert set(found[50:801]) == {1.0} and found[801] < 1
    assert found[850] == pytest.approx(1 - math.sqrt(50 / 200))


def test_a_longer_run_has_the_same_rates_until_the_shorter_one_falls():
    short, long = rates("trapezoid", 1000), rates("trapezoid", 5000, begun_as=1000)
    fall = LrSchedule.fall_of(1000)
    assert short[:fall] == long[:fall] and short[fall + 1] < long[fall + 1]


def test_no_schedule_of_another_name():
    with pytest.raises(UserError, match="trapezoid or cosine, not linear"):
        LrSchedule.whole("linear", 10)


def step(optimizer, loss, rate):
    optimizer.backward(loss)
    return optimizer.step(rate)


def test_gradient_is_clipped_and_its_norm_reported():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, "adamw", 0.1, cpu())
    before = model.weight.item()
    norm = step(optimizer, 1000 * model.weight.sum(), rate=0.5)
    assert norm.item() == pytest.approx(1000)
    assert before - model.weight.item() == pytest.approx(0.05, rel=0.01)  # lr * rate, Adam's unit
    assert model.weight.grad is None
    mean = optimizer.optimizers["adamw"].state[model.weight]["exp_avg"].item()
    assert mean == pytest.approx((1 - 0.9) * MAX_GRADIENT, rel=1e-3)  # of the clipped gradient


def test_fp16_scales_the_loss_and_keeps_its_scale():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, "adamw", 0.1, cpu("fp16"))
    assert optimizer.scaler.get_scale() > 1
    before = model.weight.item()
    norm = step(optimizer, 2 * model.weight.sum(), rate=1.0)
    assert norm.item() == pytest.approx(2)  # of the unscaled gradient
    assert before - model.weight.item() == pytest.approx(0.1, rel=0.01)
    other = Optimizer(model, "adamw", 0.1, cpu("fp16"))
    saved = optimizer.state_dict()
    saved["scaler"]["scale"] = 1024.0
    other.load_state_dict(saved)
    assert other.scaler.get_scale() == 1024


@pytest.mark.parametrize("latent_channels", [3, 8])
def test_inner_matrices_are_muons_and_all_else_is_adamws(latent_channels):
    outer = ["encoder.conv_in", "encoder.conv_out", "quant_conv"]
    outer += ["post_quant_conv", "decoder.conv_in", "decoder.conv_out"]
    config = AutoencoderConfig(3, latent_channels, (8, 16, 16), 1, 8)
    for model, outer_layers in (
        (small_unet(latent_channels), ["conv_in", "conv_out"]), (AutoencoderKL(config), outer)
    ):  # fmt: skip
        named = {parameter: name for name, parameter in model.named_parameters()}
        parts = Optimizer(model, "muon", 1e-3, cpu()).optimizers
        names = {k: [named[w] for w in o.param_groups[0]["params"]] for k, o in parts.items()}
        assert sorted(names["muon"] + names["adamw"]) == sorted(named.values())
        matrices = {name for weight, name in named.items() if weight.ndim > 1}
        assert set(names["muon"]) == matrices - {f"{layer}.weight" for layer in outer_layers}
        alone = Optimizer(model, "adamw", 1e-3, cpu()).optimizers
        assert list(alone) == ["adamw"]
        assert len(alone["adamw"].param_groups[0]["params"]) == len(named)
    with pytest.raises(UserError, match="muon or adamw, not Muon"):
        Optimizer(model, "Muon", 1e-3, cpu())


def test_an_infinite_gradient_moves_no_weight_in_fp16():
    """Neither optimizer steps when only one of them has an infinite gradient."""
    for infinite in ("bias", "weight"):
        model = nn.Linear(8, 8)
        optimizer = Optimizer(model, "muon", 0.1, cpu("fp16"))
        scale = optimizer.scaler.get_scale()
        before = [p.detach().clone() for p in model.parameters()]
        loss = sum(
            (p * (math.inf if n == infinite else 1)).sum() for n, p in model.named_parameters()
        )
        assert step(optimizer, loss, 1.0) is None and optimizer.skipped == 1
        assert all(map(torch.equal, before, model.parameters()))
        assert optimizer.scaler.get_scale() < scale
        assert step(optimizer, sum(p.sum() for p in model.parameters()), 1.0).isfinite()
        assert optimizer.skipped == 0
        assert not any(map(torch.equal, before, model.parameters()))


def test_a_process_without_an_image_takes_part_in_fp16():
    model = nn.Linear(2, 2)
    optimizer = Optimizer(model, "muon", 0.1, cpu("fp16"))
    assert optimizer.step(1.0).item() == 0 and optimizer.skipped == 0


def test_moments_that_do_not_fit_are_refused():
    """Fused kernels would write beyond them."""
    model = nn.Linear(4, 4)
    optimizer = Optimizer(model, "adamw", 0.1, cpu())
    step(optimizer, model(torch.ones(2, 4)).sum(), 1.0)
    state = optimizer.state_dict()
    state["adamw"]["state"][0]["exp_avg"] = torch.zeros(3)
    with pytest.raises(RuntimeError):
        Optimizer(model, "adamw", 0.1, cpu()).load_state_dict(state)


def test_how_an_optimizer_works_is_not_taken_from_a_state():
    model = nn.Linear(4, 4)
    optimizer = Optimizer(model, "adamw", 0.1, cpu())
    step(optimizer, model(torch.ones(2, 4)).sum(), 1.0)
    state = optimizer.state_dict()
    groups = [
        {**group, "betas": (1, 1), "amsgrad": True} for group in state["adamw"]["param_groups"]
    ]
    optimizer.load_state_dict({**state, "adamw": {**state["adamw"], "param_groups": groups}})
    group = optimizer.optimizers["adamw"].param_groups[0]
    assert group["betas"] == (0.9, 0.99) and not group["amsgrad"]
