"""Machinery never changes results: precision, order in memory, compiling, random numbers."""

from functools import partial

import pytest
import torch
from helpers import cpu, randomize, small_autoencoder, small_unet

from common.errors import UserError
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from training.autoencoder import adaptive_pulls, discriminate_both
from training.runtime import COMPILE_FROM, Runtime


def test_bf16_and_channels_last_give_the_fp32_loss():
    """Machinery never changes results: bf16 within 2 % of the fp32 loss and of its gradient."""
    model = randomize(small_unet(3))
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8) * 100
    results = {}
    for precision in ("fp32", "bf16"):
        runtime = cpu(precision)
        placed = runtime.place(model)
        with runtime.autocast():
            loss = (placed(runtime.send(x), t) - 1).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results[precision] = loss.item(), torch.cat([g.flatten() for g in grads])
    (loss, grad), (loss16, grad16) = results["fp32"], results["bf16"]
    assert loss16 == pytest.approx(loss, rel=0.02)
    assert (grad16 - grad).norm() < 0.05 * grad.norm()


def test_a_compiled_network_gives_the_same_loss_and_gradient(monkeypatch):
    """Traced as torch.compile does it; not made into code, which takes a minute and a compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = randomize(small_unet(3, channels=(8, 8)))
    x, t = torch.randn(4, 3, 8, 8), torch.arange(4) * 100
    runtime = cpu()
    results = []
    for choice in ("off", "on"):
        runtime.decide_compile(choice, steps=1)
        forward = runtime.compiled(model)
        assert (forward is model) == (choice == "off")
        loss = (forward(x, t) - 1).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss, torch.cat([g.flatten() for g in grads])))
    (loss, grad), (compiled_loss, compiled_grad) = results
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    assert (compiled_grad - grad).norm() < 1e-4 * grad.norm()


def test_compiled_autoencoder_and_discriminator_give_the_same_gradients(monkeypatch):
    """The whole generator's step, as a GPU has it by default: KL, and the discriminator's gradient
    at the reconstruction."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = randomize(small_autoencoder())
    disc = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)), 1)
    x, runtime, results = torch.randn(2, 3, 16, 16), cpu(), []
    for choice in ("off", "on"):
        runtime.decide_compile(choice, steps=1)
        forward, discriminate = runtime.compiled(model), runtime.compiled(disc)
        torch.manual_seed(0)
        x_hat, posterior = forward(x)
        (pull,), _ = adaptive_pulls(discriminate, [x], [x_hat], [1.0], runtime, 1.0)
        loss = (x_hat - x).square().mean() + posterior.kl().mean() + (pull * x_hat).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        real, fake = discriminate_both(discriminate, x, x_hat.detach(), runtime)
        of_disc = torch.autograd.grad((real - fake).mean(), list(disc.parameters()))
        results.append(torch.cat([g.flatten() for g in (loss, *grads, *of_disc)]))
    plain, compiled = results
    assert (compiled - plain).norm() < 1e-4 * plain.norm()
    assert torch.isfinite(plain).all() and plain.norm() > 0


def test_workers_are_as_typed_or_suit_the_device(monkeypatch):
    assert (Runtime("cpu").workers, Runtime("cpu", workers=3).workers) == (0, 3)
    monkeypatch.setattr("training.runtime._device", lambda choice: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("training.runtime.cores", lambda: 4)
    gpu = Runtime("auto")
    assert (gpu.workers, gpu.precision, gpu.on_gpu) == (4, "bf16", True)
    assert (Runtime("auto", workers=0).workers, Runtime("auto", "fp16").precision) == (0, "fp16")


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    """Pinned memory and waiting take no device. fp32 is not TF32 there."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("training.runtime._device", torch.device)
    for name in ("cuda", "cuda:1"):
        assert Runtime(name).on_gpu
    assert chosen == [torch.device("cuda", 1)] and not torch.backends.cudnn.allow_tf32


def test_what_is_not_to_be_had_is_refused(monkeypatch):
    with pytest.raises(UserError, match="--device nonsense cannot be used here"):
        Runtime("nonsense")
    monkeypatch.setattr("training.runtime._device", lambda choice: torch.device("mps"))
    assert Runtime("auto").precision == "fp32"
    with pytest.raises(UserError, match="on mps only fp32"):
        Runtime("auto", "bf16")


def test_a_cpu_compiles_only_when_told_to():
    runtime = cpu()
    for choice, steps, compiles in (
        ("auto", COMPILE_FROM, False),
        ("on", 1, True),
        ("off", 9, False),
    ):
        runtime.decide_compile(choice, steps)
        assert runtime.compile is compiles


def test_what_is_sent_keeps_its_values():
    x = torch.randn(2, 3, 4, 5)
    for runtime in (cpu(), cpu("bf16")):
        sent = runtime.send(x)
        assert torch.equal(sent, x) and sent.is_contiguous(memory_format=runtime.memory_format)
