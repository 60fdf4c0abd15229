"""What a training run needs: averages, rates, GAN weight, reports, and resuming to the bit."""

import gzip
import json
import math
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    CPU,
    REAL_DATA,
    cpu,
    randomize,
    scheduler,
    small_autoencoder,
    small_unet,
    write_images,
    write_mnist,
)
from torch import nn

import latent_diffusion
import mnist_diffusion
import train_encoder
from command_line import options
from data import images
from data.latents import LatentDataset
from data.order import ShuffledOrder
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    generator_loss,
    with_low_frequencies,
)
from training.checkpoint import checkpoints_in, load_model, load_state, save_model, save_state
from training.denoiser import NUM_BANDS, DenoiserData, metrics, validate
from training.ema import EMA
from training.muon import Muon, orthogonalised
from training.optimizer import Optimizer, lr_factor
from training.progress import Progress, append_record, keep_until, read_metrics
from training.run import Run

# ---- EMA, optimizer, rates ----------------------------------------------------------------------


def test_ema_of_constant_weights_is_them():
    model = small_unet()
    ema = EMA(model, 0.999)
    target = randomize(small_unet(), 1)
    for i in range(3000):
        ema.update(target, i)
    for ours, theirs in zip(ema.model.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_ema_forgets_the_first_weights_fast():
    """The warm-up: after 100 updates less than 1 % of the initial weights is left."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.9999)
    nn.init.zeros_(model.weight)
    left = []
    for i in range(100):
        ema.update(model, i)
        left.append(ema.model.weight.item())
    assert left[0] == pytest.approx(0.1) and left[-1] < 0.01
    assert all(b < a for a, b in zip(left, left[1:], strict=False))


def test_ema_has_its_decay_once_it_is_warm():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.75)
    nn.init.zeros_(model.weight)
    ema.update(model, 10**6)
    assert ema.model.weight.item() == pytest.approx(0.75)


def test_rate_warms_up_then_falls():
    rates = [lr_factor(step, 1000) for step in range(1000)]
    top = rates.index(max(rates))
    assert max(rates) == 1 and 45 <= top <= 55
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0 and rates[-1] == pytest.approx(0.01, abs=1e-4)
    assert all(0 < lr_factor(step, steps) <= 1 for steps in (1, 2, 7) for step in range(steps))


def test_gradient_is_clipped_and_its_norm_reported():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, "adamw", 0.1, (0.9, 0.99), 1.0, cpu())
    before = model.weight.item()
    norm = optimizer.step(1000 * model.weight.sum(), rate=0.5)
    assert norm.item() == pytest.approx(1000)
    assert before - model.weight.item() == pytest.approx(0.05, rel=0.01)  # lr * rate, Adam's unit
    assert model.weight.grad is None
    mean = optimizer.optimizers["adamw"].state[model.weight]["exp_avg"].item()
    assert mean == pytest.approx((1 - 0.9) * 1.0, rel=1e-3)  # of the clipped gradient


def test_fp16_scales_the_loss_and_keeps_its_scale():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model, "adamw", 0.1, (0.9, 0.99), 1.0, cpu("fp16"))
    assert optimizer.scaler.get_scale() > 1
    before = model.weight.item()
    norm = optimizer.step(2 * model.weight.sum(), rate=1.0)
    assert norm.item() == pytest.approx(2)  # of the unscaled gradient
    assert before - model.weight.item() == pytest.approx(0.1, rel=0.01)
    other = Optimizer(model, "adamw", 0.1, (0.9, 0.99), 1.0, cpu("fp16"))
    saved = optimizer.state_dict()
    saved["scaler"]["scale"] = 1024.0
    other.load_state_dict(saved)
    assert other.scaler.get_scale() == 1024


@pytest.mark.parametrize("shape", [(3, 8, 40), (1, 24, 6), (2, 16, 16)])
def test_newton_and_schulz_orthogonalise(shape):
    """Singular vectors as an SVD has them, singular values between 0.68 and 1.21 (those that are
    not below 0.002 of the norm)."""
    n, r, c = shape
    k = min(r, c)
    torch.manual_seed(0)
    u = torch.linalg.qr(torch.randn(n, r, k)).Q
    v = torch.linalg.qr(torch.randn(n, c, k)).Q
    s = torch.logspace(0, -2.3, k)
    out = u.mT @ orthogonalised(30 * (u * s) @ v.mT) @ v  # diagonal, where u and v are kept
    values = out.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.68 and values.max() < 1.21
    assert (out - torch.diag_embed(values)).abs().max() < 1e-3
    assert orthogonalised(torch.zeros(shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_muon_steps_as_that_of_torch(shape):
    """torch's takes matrices only, multiplies in bfloat16, and 0.2 times the rate."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start, both = ours.detach().clone(), {"weight_decay": 0.3, "momentum": 0.9}
    optimizers = [
        Muon([ours], lr=0.02, **both),
        torch.optim.Muon(
            [theirs], lr=0.1, adjust_lr_fn="match_rms_adamw", **{**both, "weight_decay": 0.06}
        ),
    ]
    for _ in range(4):
        gradient = torch.randn(shape)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.04 * (theirs - start).norm()


def test_muon_steps_the_same_for_all_at_once_and_for_each_alone():
    """Weights of one shape as matrices, though not as tensors, are orthogonalised together."""
    torch.manual_seed(0)
    wide = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    layers = [wide, nn.Linear(144, 16), nn.Linear(144, 16), nn.Conv2d(8, 32, 1)]
    weights = [layer.weight for layer in layers]
    copies = [nn.Parameter(w.detach().clone()) for w in weights]
    together, alone = Muon(weights, lr=0.1), [Muon([w], lr=0.1) for w in copies]
    for _ in range(2):
        for weight, copy in zip(weights, copies, strict=True):
            weight.grad = torch.randn_like(weight)
            copy.grad = weight.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    for weight, copy in zip(weights, copies, strict=True):
        torch.testing.assert_close(weight, copy, rtol=0, atol=1e-4)


def test_orthogonalising_stays_in_float32_within_autocast():
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(2, 64, 64)).Q
    x = ((u * torch.logspace(0, -3, 64)) @ v.mT)[None]
    with torch.autocast("cpu", torch.bfloat16):
        within = orthogonalised(x)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, orthogonalised(x))


def test_muon_moves_convolutions_by_the_rate():
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 16, 3).to(memory_format=torch.channels_last)
    before = conv.weight.detach().clone()
    conv(torch.randn(8, 32, 5, 5)).square().sum().backward()
    Muon([conv.weight], lr=0.01, weight_decay=0).step()
    step = conv.weight.detach() - before
    assert step.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.3)
    assert (step * conv.weight.grad).sum() < 0
    values = torch.linalg.svdvals(step.flatten(1))
    assert values.max() < 2 * values.min()  # as far in all directions


@pytest.mark.parametrize("latent_channels", [3, 8])
def test_inner_matrices_are_muons_and_all_else_is_adamws(latent_channels):
    outer = ["encoder.conv_in", "encoder.conv_out", "quant_conv"]
    outer += ["post_quant_conv", "decoder.conv_in", "decoder.conv_out"]
    config = AutoencoderConfig(3, latent_channels, (8, 16, 16), 1, 8)
    for model, outer_layers in (
        (small_unet(latent_channels), ["conv_in", "conv_out"]), (AutoencoderKL(config), outer)
    ):  # fmt: skip
        named = {parameter: name for name, parameter in model.named_parameters()}
        parts = Optimizer(model, "muon", 1e-3, (0.9, 0.99), 1.0, cpu()).optimizers
        names = {k: [named[w] for w in o.param_groups[0]["params"]] for k, o in parts.items()}
        assert sorted(names["muon"] + names["adamw"]) == sorted(named.values())
        matrices = {name for weight, name in named.items() if weight.ndim > 1}
        assert set(names["muon"]) == matrices - {f"{layer}.weight" for layer in outer_layers}
        alone = Optimizer(model, "adamw", 1e-3, (0.9, 0.99), 1.0, cpu()).optimizers
        assert list(alone) == ["adamw"]
        assert len(alone["adamw"].param_groups[0]["params"]) == len(named)
    with pytest.raises(ValueError, match="muon or adamw, not Muon"):
        Optimizer(model, "Muon", 1e-3, (0.9, 0.99), 1.0, cpu())


def test_the_size_of_the_state_is_known_before_the_first_step():
    model = small_unet()
    optimizer = Optimizer(model, "muon", 1e-3, (0.9, 0.99), 1.0, cpu())
    expected = optimizer.state_bytes()
    optimizer.step(model(torch.randn(2, 1, 8, 8), torch.tensor([3, 5])).square().sum(), 1.0)
    states = [s for o in optimizer.optimizers.values() for s in o.state.values()]
    kept = sum(4 * v.numel() for s in states for v in s.values() if v.ndim)
    assert kept == expected


def test_an_infinite_gradient_moves_no_weight_in_fp16():
    """Neither optimizer steps when only one of them has an infinite gradient."""
    for infinite in ("bias", "weight"):
        model = nn.Linear(8, 8)
        optimizer = Optimizer(model, "muon", 0.1, (0.9, 0.99), 1.0, cpu("fp16"))
        scale = optimizer.scaler.get_scale()
        before = [p.detach().clone() for p in model.parameters()]
        loss = sum(
            (p * (math.inf if n == infinite else 1)).sum() for n, p in model.named_parameters()
        )
        assert not optimizer.step(loss, 1.0).isfinite()
        assert all(map(torch.equal, before, model.parameters()))
        assert optimizer.scaler.get_scale() < scale
        assert optimizer.step(sum(p.sum() for p in model.parameters()), 1.0).isfinite()
        assert not any(map(torch.equal, before, model.parameters()))


# ---- Autoencoder: GAN and PSNR ------------------------------------------------------------------


def test_gan_phases_are_fractions_of_the_run():
    for steps in (20, 1000, 12345):
        phases = [train_encoder.gan_phase(step, steps) for step in range(steps)]
        trains, ramps = zip(*phases, strict=True)
        assert not any(trains[: steps // 2]) and all(trains[math.ceil(steps / 2) :])
        assert max(ramps[: int(0.55 * steps)]) == 0
        assert min(ramps[math.ceil(0.651 * steps) :]) == 1 and ramps == tuple(sorted(ramps))
    for step, share in ((575, 0.25), (600, 0.5), (625, 0.75)):
        assert train_encoder.gan_phase(step, 1000)[1] == pytest.approx(share)


@pytest.mark.parametrize("residual", [1e-3, 10.0])
def test_adaptive_loss_is_a_scaled_generator_loss(residual):
    """Its gradient is weight * that of generator_loss on detail, weight = min(1, |l2| / |GAN|)."""
    discriminate = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)))
    x = torch.randn(2, 3, 16, 24)
    x_hat = (x + residual * torch.randn_like(x)).requires_grad_()
    optimizer = Optimizer(discriminate, "adamw", 1e-3, (0.5, 0.9), 1.0, cpu())
    loss, metrics = train_encoder.adaptive_gan_loss(discriminate, x, x_hat, cpu(), optimizer)
    (got,) = torch.autograd.grad(loss, x_hat)
    detail = with_low_frequencies(x_hat, x)
    (gan,) = torch.autograd.grad(generator_loss(discriminate(detail)), x_hat)
    (rec,) = torch.autograd.grad((x_hat - x).square().mean(), x_hat)
    weight = min(1.0, (rec.norm() / gan.norm()).item())
    assert metrics["adaptive_weight"].item() == pytest.approx(weight, rel=1e-4)
    torch.testing.assert_close(got, weight * gan, rtol=1e-4, atol=1e-9)
    assert got.norm() <= rec.norm() * 1.001
    assert got.sum(dim=(2, 3)).abs().max() < 1e-4 * got.abs().sum()  # no shift of colours
    # The generator's step does not train it.
    assert all(p.grad is None for p in discriminate.parameters())


def test_random_flip_mirrors_about_half():
    x = torch.arange(1000 * 12).view(1000, 1, 3, 4)
    flipped = train_encoder.random_flip(x)
    same, mirrored = ((flipped == y).all(dim=(1, 2, 3)) for y in (x, x.flip(3)))
    assert 400 < mirrored.sum() < 600 and (same ^ mirrored).all()


# ---- Reports ------------------------------------------------------------------------------------


def test_progress_averages_and_appends(tmp_path):
    path = tmp_path / "fig" / "metrics.jsonl"
    with Progress(path, "run", 0, 4, 8) as progress:
        for value in (1.0, 3.0):
            progress.add(loss=torch.tensor(value), vector=torch.tensor([value, 0.0]))
        progress.report(progress.means(), epoch=1)
        progress.add(loss=torch.tensor(7.0))
        progress.report(progress.means())
    first, second = read_metrics(path, "run")
    assert first["loss"] == 2 and first["vector"] == [2, 0] and first["step"] == 2
    assert second["loss"] == 7 and second["step"] == 3 and second["images_per_second"] > 0
    assert read_metrics(path, "other") == []


def test_resuming_drops_the_records_after_the_state(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"run": run, "step": step} for step in (1, 2, 3) for run in ("a", "b")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"run": "a", "st')
    keep_until(path, "a", 1)
    assert [r["step"] for r in read_metrics(path, "a")] == [1]
    assert [r["step"] for r in read_metrics(path, "b")] == [1, 2, 3]


def test_a_resumed_progress_drops_later_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"run": "a", "step": s}) + "\n" for s in (1, 2, 3)))
    with Progress(path, "a", 1, 4, 8):
        pass
    assert [record["step"] for record in read_metrics(path, "a")] == [1]


def test_band_sums_sort_losses_by_t():
    t = torch.tensor([0, 99, 100, 999, 950])
    sums = metrics(torch.tensor([1.0, 3.0, 5.0, 7.0, 8.0]), t, torch.ones(1000))
    assert sums["band_sum"].tolist() == [4, 5] + [0] * (NUM_BANDS - 3) + [15]
    assert sums["band_count"].tolist() == [2, 1] + [0] * (NUM_BANDS - 3) + [2]
    assert sums["loss"].item() == pytest.approx(24 / 5)


# ---- Precision ----------------------------------------------------------------------------------


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
    optimizer = Optimizer(model, "adamw", 1e-3, (0.9, 0.99), 1.0, cpu())
    x, runtime, results = torch.randn(2, 3, 16, 16), cpu(), []
    for choice in ("off", "on"):
        runtime.decide_compile(choice, steps=1)
        forward, discriminate = runtime.compiled(model), runtime.compiled(disc)
        torch.manual_seed(0)
        x_hat, posterior = forward(x)
        gan, _ = train_encoder.adaptive_gan_loss(discriminate, x, x_hat, runtime, optimizer)
        loss = (x_hat - x).square().mean() + posterior.kl().mean() + gan
        grads = torch.autograd.grad(loss, list(model.parameters()))
        real, fake = train_encoder.discriminate_both(discriminate, x, x_hat.detach(), runtime)
        of_disc = torch.autograd.grad((real - fake).mean(), list(disc.parameters()))
        results.append(torch.cat([g.flatten() for g in (loss, *grads, *of_disc)]))
    plain, compiled = results
    assert (compiled - plain).norm() < 1e-4 * plain.norm()
    assert torch.isfinite(plain).all() and plain.norm() > 0


# ---- Whole runs ---------------------------------------------------------------------------------


def interrupt(monkeypatch, after):
    """Press Ctrl-C in the middle of a run's step `after`, counted from 1."""
    add = Progress.add

    def interrupted(progress, **values):
        if progress.done + 1 == after:
            signal.raise_signal(signal.SIGINT)
        add(progress, **values)

    monkeypatch.setattr(Progress, "add", interrupted)


def assert_same_weights(folder, *names):
    states = [load_model(folder / name, kind)[0].state_dict() for name, kind in names]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_mnist_resumes_to_the_bit(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    common = ["--train", "--steps", "8", "--batch", "16", "--channels", "8", *CPU]
    mnist_diffusion.main(options.parse_mnist([*common, "--name", "whole"]))
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            mnist_diffusion.main(options.parse_mnist([*common, "--name", "parts"]))
    folder = tmp_path / "checkpoints" / "mnist"
    assert not list(folder.glob("parts_epoch*"))
    mnist_diffusion.main(options.parse_mnist(["--train", "--resume", "parts", *CPU]))
    names = [(f"{name}_epoch0001.safetensors", "UNet") for name in ("whole", "parts")]
    assert_same_weights(folder, *names)
    whole, parts = (
        [(r["step"], r["loss"]) for r in read_metrics("fig/mnist/metrics.jsonl", name)]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 8


def test_encoder_and_denoiser_resume_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 24, (40, 56))
    images = ["--data", "pictures", "--size", "48x32"]
    small = ["--batch", "4", "--channels", "8", "--blocks", "1", "--steps", "12", *CPU]
    train_encoder.main(options.parse_encoder([*images, *small, "--name", "whole"]))
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)  # with the discriminator already training
        with pytest.raises(KeyboardInterrupt):
            train_encoder.main(options.parse_encoder([*images, *small, "--name", "parts"]))
    train_encoder.main(options.parse_encoder(["--resume", *CPU]))
    folder = tmp_path / "checkpoints"
    names = [f"{name}_epoch0003.safetensors" for name in ("whole", "parts")]
    assert_same_weights(folder / "autoencoder", *[(name, "AutoencoderKL") for name in names])
    assert_same_weights(folder / "discriminator", *[(name, "PatchDiscriminator") for name in names])
    last = read_metrics("fig/autoencoder/metrics.jsonl", "whole")[-1]
    promised = {"logit_real", "logit_fake", "adaptive_weight", "weights_encoder", "weights_disc"}
    assert promised <= set(last) and 0 <= last["adaptive_weight"] <= 1 and last["gan_weight"] == 2
    assert 0 < last["sharpness"] < 2
    for name in ("reconstructions", "confidences", "losses", "latents"):
        assert (tmp_path / "fig" / "autoencoder" / f"{name}.png").stat().st_size > 5000

    encoder = ["--encoder", str(folder / "autoencoder" / names[0])]
    train = ["--train", *encoder, *small, "--mirror"]
    latent_diffusion.main(options.parse_latent([*train, "--name", "whole"]))
    with monkeypatch.context() as patch:
        interrupt(patch, after=7)
        with pytest.raises(KeyboardInterrupt):
            latent_diffusion.main(options.parse_latent([*train, "--name", "parts"]))
    latent_diffusion.main(options.parse_latent(["--train", "--resume", *CPU]))
    names = [f"{name}_epoch0002.safetensors" for name in ("whole", "parts")]
    assert_same_weights(folder / "denoiser", *[(name, "UNet") for name in names])
    assert len(list((tmp_path / "encoded_img").iterdir())) == 1
    for name in ("samples", "predictions", "losses", "bands"):
        assert (tmp_path / "fig" / "denoiser" / f"{name}.png").stat().st_size > 5000

    # A finished run says so; a larger number of steps stretches it; its settings are its own.
    with pytest.raises(ValueError, match="has done its 12 steps; to go on, pass a larger"):
        latent_diffusion.main(options.parse_latent(["--train", "--resume", *CPU]))
    with pytest.raises(ValueError, match=r"--lr: the run to resume has 0\.001; leave it out"):
        latent_diffusion.main(options.parse_latent(["--train", "--resume", "--lr", "0.1", *CPU]))
    (tmp_path / "pictures").rename(tmp_path / "moved")  # the same images, wherever they lie
    moved = ["--train", "--resume", "--steps", "14", "--data", "moved", *CPU]
    latent_diffusion.main(options.parse_latent(moved))
    assert read_metrics("fig/denoiser/metrics.jsonl", "parts")[-1]["step"] == 14


def test_damaged_images_do_not_shift_a_resumed_run(tmp_path, monkeypatch, no_figures):
    """A batch of which nothing can be read is left out, by the whole run and by its parts alike."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 8, (16, 16))
    for name in ("01.png", "05.png"):  # their headers can be read
        whole = (tmp_path / "pictures" / name).read_bytes()
        (tmp_path / "pictures" / name).write_bytes(whole[: len(whole) // 2])
    flags = ["--data", "pictures", "--size", "16x16", "--gan-weight", "0", "--batch", "1"]
    flags += ["--channels", "8", "--steps", "14", *CPU]
    train_encoder.main(options.parse_encoder([*flags, "--name", "whole"]))
    assert load_state("checkpoints/autoencoder/whole.state")["skipped"] >= 3  # two in each epoch
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)
        with pytest.raises(KeyboardInterrupt):
            train_encoder.main(options.parse_encoder([*flags, "--name", "parts"]))
    assert load_state("checkpoints/autoencoder/parts.state")["skipped"] >= 2
    train_encoder.main(options.parse_encoder(["--resume", *CPU]))
    whole, parts = (
        [r["loss_rec"] for r in read_metrics("fig/autoencoder/metrics.jsonl", name)]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 14


def test_drawn_faces_go_the_whole_way(tmp_path, monkeypatch):
    """--data synthetic, as in make demo: trained on, cached, denoised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "NUM_SYNTHETIC", 40)
    small = ["--batch", "4", "--channels", "8", "--steps", "2", "--name", "n", *CPU]
    data = ["--data", "synthetic", "--size", "16x16", "--gan-weight", "0"]
    train_encoder.main(options.parse_encoder([*data, *small]))
    encoder = "checkpoints/autoencoder/n_epoch0001.safetensors"
    latent_diffusion.main(options.parse_latent(["--train", "--encoder", encoder, *small]))
    (manifest,) = (tmp_path / "encoded_img").glob("*/manifest.json")
    about = json.loads(manifest.read_text())["about"]
    assert about["data"] == "synthetic" and about["size"] == [16, 16] and not about["mirror"]
    assert about["autoencoder"] == encoder
    assert [len(LatentDataset(manifest.parent, split)) for split in ("train", "valid")] == [38, 2]


def test_typed_data_lie_where_those_of_the_autoencoder_do(tmp_path, monkeypatch):
    """--data celeba is looked for in the --data-root of the autoencoder's training."""
    monkeypatch.chdir(tmp_path)
    facts = {"data": "celeba", "data_root": "elsewhere", "size": [16, 16]}
    save_model("a.safetensors", randomize(small_autoencoder()), facts)
    looked = []

    def open_images(data, root, size):
        looked.append((data, root, size))
        raise ValueError("seen")

    monkeypatch.setattr(latent_diffusion, "open_images", open_images)
    for more in ([], ["--data", "celeba"], ["--data", "celeba", "--data-root", "typed"]):
        flags = ["--train", "--encoder", "a.safetensors", *more, *CPU]
        with pytest.raises(ValueError, match="seen"):
            latent_diffusion.main(options.parse_latent(flags))
    assert [root for _, root, _ in looked] == ["elsewhere", "elsewhere", "typed"]
    assert {data for data, *_ in looked} == {"celeba"}


def test_gan_weight_zero_trains_no_discriminator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 6, (32, 32), "L")
    arguments = ["--data", "pictures", "--size", "16x16", "--gan-weight", "0", "--no-flip"]
    arguments += ["--batch", "2", "--channels", "8", "--steps", "4", "--name", "plain", *CPU]
    train_encoder.main(options.parse_encoder(arguments))
    model, facts = load_model(checkpoints_in("checkpoints/autoencoder")[0], "AutoencoderKL")
    assert model.config.image_channels == 1 and facts["size"] == [16, 16]
    assert not (tmp_path / "checkpoints" / "discriminator").exists()
    assert not any("disc" in name for name in load_state("checkpoints/autoencoder/plain.state"))
    assert not (tmp_path / "fig" / "autoencoder" / "confidences.png").exists()
    assert "loss_disc" not in read_metrics("fig/autoencoder/metrics.jsonl", "plain")[-1]


def test_the_discriminator_begins_at_the_step_that_is_announced(
    tmp_path, monkeypatch, capsys, no_figures
):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 6, (16, 16))
    arguments = ["--data", "pictures", "--size", "16x16", "--batch", "2", "--channels", "8", *CPU]
    for steps, begin in (("5", 4), ("6", 4)):  # steps 0, 1, .. of the loop are 1, 2, .. in words
        train_encoder.main(options.parse_encoder([*arguments, "--steps", steps, "--name", steps]))
        assert f"from step {begin} on" in capsys.readouterr().out
        records = read_metrics("fig/autoencoder/metrics.jsonl", steps)
        assert [r["step"] for r in records if "loss_disc" in r][0] == begin


def test_states_that_hold_an_idle_discriminator_are_gone_on_with(tmp_path, monkeypatch, no_figures):
    """Runs with --gan-weight 0 once kept one."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 6, (16, 16))
    arguments = ["--data", "pictures", "--size", "16x16", "--batch", "2", "--channels", "8", *CPU]
    for name, weight in (("plain", "0"), ("gan", "1")):
        more = ["--gan-weight", weight, "--steps", "2", "--name", name]
        train_encoder.main(options.parse_encoder([*arguments, *more]))
    plain, gan = (load_state(f"checkpoints/autoencoder/{name}.state") for name in ("plain", "gan"))
    plain |= {"disc": gan["disc"], "disc_optimizer": gan["disc_optimizer"]}
    plain["configs"]["disc"] = gan["configs"]["disc"]
    save_state("checkpoints/autoencoder/plain.state", plain)
    resume = ["--resume", "plain", "--steps", "3", *CPU]
    train_encoder.main(options.parse_encoder(resume))
    assert read_metrics("fig/autoencoder/metrics.jsonl", "plain")[-1]["step"] == 3
    plain["configs"]["model"]["latent_channels"] = 5
    save_state("checkpoints/autoencoder/plain.state", plain)
    with pytest.raises(ValueError, match="was begun with other networks"):
        train_encoder.main(options.parse_encoder([*resume[:3], "4", *CPU]))


def test_same_seed_same_losses_other_seed_others(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    common = ["--train", "--steps", "3", "--batch", "8", "--channels", "8", *CPU]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        mnist_diffusion.main(options.parse_mnist([*common, "--name", name, "--seed", seed]))
    a, b, c = ([r["loss"] for r in read_metrics("fig/mnist/metrics.jsonl", n)] for n in "abc")
    assert a == b and a != c


def test_prolonged_run_never_overwrites_a_checkpoint(tmp_path, monkeypatch, no_figures):
    """A run that ended within an epoch and goes on keeps the checkpoint of its first end."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", train=40)
    common = ["--train", "--batch", "8", "--channels", "8", *CPU]
    mnist_diffusion.main(options.parse_mnist([*common, "--steps", "3", "--name", "a"]))
    first = tmp_path / "checkpoints/mnist/a_epoch0001.safetensors"
    before = first.read_bytes()
    mnist_diffusion.main(options.parse_mnist(["--train", "--resume", "--steps", "5", *CPU]))
    assert first.read_bytes() == before
    _, facts = load_model(first.with_name("a_epoch0001_step5.safetensors"), "UNet")
    assert facts["step"] == 5 and facts["epoch"] == 1 and facts["data_root"] == "data"


def test_changed_data_are_noticed_on_resume(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 6, (16, 16))
    arguments = ["--data", "pictures", "--size", "16x16", "--gan-weight", "0", "--batch", "2"]
    arguments += ["--channels", "8", "--steps", "2", "--name", "a", *CPU]
    train_encoder.main(options.parse_encoder(arguments))
    write_images(tmp_path / "pictures", 7, (16, 16), seed=1)
    with pytest.raises(ValueError, match="the images are not those that the run a was begun with"):
        train_encoder.main(options.parse_encoder(["--resume", "--steps", "4", *CPU]))


def test_other_digits_are_noticed_on_resume(tmp_path, monkeypatch, no_figures):
    """Fashion-MNIST has as many images, under the same names."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    arguments = ["--steps", "2", "--batch", "4", "--channels", "8", "--name", "a", *CPU]
    mnist_diffusion.main(options.parse_mnist(["--train", *arguments]))
    raw = next(p for p in (tmp_path / "data").rglob("train-images*") if p.is_file())
    content = bytearray(gzip.decompress(raw.read_bytes()))
    content[-1] ^= 1
    raw.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="the images are not those"):
        mnist_diffusion.main(options.parse_mnist(["--train", "--resume", "--steps", "4", *CPU]))


def test_a_figure_that_cannot_be_written_does_not_stop_a_run(tmp_path, monkeypatch, capsys):
    """As a viewer that holds it open does, on Windows."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    write_images(tmp_path / "pictures", 4)
    for path in ("fig/mnist/losses.png", "fig/autoencoder/reconstructions.png"):
        (tmp_path / path).mkdir(parents=True)
    small = ["--steps", "2", "--batch", "4", "--channels", "8", "--name", "a", *CPU]
    mnist_diffusion.main(options.parse_mnist(["--train", *small]))
    train_encoder.main(options.parse_encoder(["--data", "pictures", "--size", "16x16", *small]))
    assert capsys.readouterr().out.count("figures not written: ") == 2
    assert (tmp_path / "checkpoints/mnist/a_epoch0001.safetensors").is_file()
    assert (tmp_path / "checkpoints/autoencoder/a_epoch0002.safetensors").is_file()


def test_states_of_other_scripts_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", train=16)
    arguments = ["--train", "--steps", "1", "--batch", "8", "--channels", "8", "--name", "a", *CPU]
    mnist_diffusion.main(options.parse_mnist(arguments))
    for name in ("samples", "predictions", "losses", "bands"):
        assert (tmp_path / "fig" / "mnist" / f"{name}.png").stat().st_size > 5000
    resume = options.parse_encoder(["--resume", "checkpoints/mnist/a.state"])
    with pytest.raises(ValueError, match="belongs to checkpoints/mnist/, not to checkpoints/auto"):
        train_encoder.main(resume)


def test_metrics_are_json_whatever_the_numbers(tmp_path):
    """In fp16 a step that is skipped has a gradient of infinite norm."""
    path = tmp_path / "fig" / "metrics.jsonl"
    append_record(
        path, {"run": "a", "step": 1, "norm": math.inf, "loss": 0.5, "band": [1.0, math.nan]}
    )
    append_record(path, {"note": "by hand"})
    append_record(path, {"run": "a", "step": 2, "norm": 2.0})
    keep_until(path, "a", 1)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    first, second = (json.loads(x, parse_constant=refuse) for x in path.read_text().splitlines())
    assert first == {"run": "a", "step": 1, "norm": None, "loss": 0.5, "band": [1.0, None]}
    assert second == {"note": "by hand"}


def test_infinite_loss_stops_the_run_before_its_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", train=16)
    add = Progress.add
    bad = torch.tensor(math.nan)
    patched = lambda self, **values: add(self, **{**values, "loss": bad})  # noqa: E731
    monkeypatch.setattr(Progress, "add", patched)
    arguments = ["--train", "--steps", "1", "--batch", "8", "--channels", "8", "--name", "a", *CPU]
    with pytest.raises(ValueError, match="loss is not finite at step 1: a smaller --lr"):
        mnist_diffusion.main(options.parse_mnist(arguments))
    assert not list((tmp_path / "checkpoints").rglob("*.s*"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, no_figures):
    """A bad step between two reports: neither checkpoint nor state is made of it."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", train=32)
    step = Optimizer.step
    monkeypatch.setattr(Run, "report_due", lambda self, done: False)
    bad = lambda self, loss, rate: step(self, loss * math.nan, rate)  # noqa: E731
    flags = ["--train", "--steps", "8", "--batch", "8", "--channels", "8", "--name", "a", *CPU]
    save = Run.save_state

    def then_fail(self, parts, done):
        save(self, parts, done)
        monkeypatch.setattr(Optimizer, "step", bad)

    monkeypatch.setattr(Run, "save_state", then_fail)
    with pytest.raises(ValueError, match=r"a_epoch0002\.safetensors is not saved: .* not finite"):
        mnist_diffusion.main(options.parse_mnist(flags))
    state = load_state("checkpoints/mnist/a.state")
    assert state["step"] == 4
    monkeypatch.setattr(Optimizer, "step", step)
    mnist_diffusion.main(options.parse_mnist(["--train", "--resume", *CPU]))
    assert Path("checkpoints/mnist/a_epoch0002.safetensors").is_file()


@pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT names no real data")
def test_real_digits_are_learnt(tmp_path, monkeypatch, no_figures):
    """60 steps on MNIST bring the validation loss from 1 to below 0.12."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--train", "--data-root", REAL_DATA, "--steps", "60", "--batch", "32"]
    arguments += ["--lr", "2e-3"]
    mnist_diffusion.main(options.parse_mnist([*arguments, "--name", "real", "--channels", "16"]))
    assert read_metrics("fig/mnist/metrics.jsonl", "real")[-1]["valid_raw"] < 0.12


@pytest.mark.parametrize(
    ("on_gpu", "num_train", "epochs"),
    [(False, 24_152, 7), (True, 162_770, 10), (False, 500, 340), (False, 10**7, 1)],
)
def test_default_length_suits_data_and_machine(on_gpu, num_train, epochs):
    assert options.default_epochs((170_000, 1_600_000), on_gpu, num_train) == epochs


def test_default_length_counts_only_what_is_shown(tmp_path, monkeypatch):
    """Of 127 images an epoch of batches of 64 shows 64."""
    args = options.parse_mnist(["--train", "--name", "a"])
    order = ShuffledOrder(127, 64, 0)
    monkeypatch.chdir(tmp_path)
    run = Run(args, cpu(), None, order, "mnist")
    assert run.steps * 64 == args.images[0]


def test_runs_begun_in_the_same_second_have_their_own_names(monkeypatch):
    clock = SimpleNamespace(strftime=lambda form: "20261125-174310")
    monkeypatch.setattr(options, "time", clock)
    monkeypatch.setattr(options, "os", SimpleNamespace(getpid=iter([7, 8]).__next__))
    names = [options.parse_mnist(["--train"]).name for _ in range(2)]
    assert names == ["20261125-174310-7", "20261125-174310-8"]


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


def test_default_size_suits_data_and_machine():
    assert options.default_size("celeba", on_gpu=True) == (208, 176)
    for data, on_gpu in (("celeba", False), ("synthetic", True), ("pictures", False)):
        assert options.default_size(data, on_gpu) == (64, 64)


@pytest.mark.parametrize("saved", [{"steps": 8, "epochs": None}, {"steps": None, "epochs": 3}])
def test_more_epochs_prolong_any_run(saved):
    """README: --train --resume --epochs 40."""
    args = options.resumed(options.parse_mnist(["--train", "--resume", "--epochs", "40"]), saved)
    assert (args.steps, args.epochs) == (None, 40)


def test_a_state_of_other_networks_is_refused(tmp_path, monkeypatch, no_figures):
    """Norms of other groups have weights of the same shapes: only the config tells."""
    write_mnist(tmp_path / "data", train=64, test=8)
    monkeypatch.chdir(tmp_path)
    flags = ["--train", "--name", "a", "--batch", "8", "--channels", "16", "--device", "cpu"]
    mnist_diffusion.main(options.parse_mnist([*flags, "--steps", "2"]))
    monkeypatch.setattr("training.denoiser.norm_groups", lambda width: width // 8)
    with pytest.raises(ValueError, match="begun with other networks"):
        mnist_diffusion.main(options.parse_mnist(["--train", "--resume", "--steps", "4"]))


def test_a_state_from_before_muon_goes_on_with_adamw_to_the_bit(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", train=64, test=8)
    common = ["--train", "--optimizer", "adamw", "--batch", "16", "--channels", "8", *CPU]
    mnist_diffusion.main(options.parse_mnist([*common, "--steps", "6", "--name", "whole"]))
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            mnist_diffusion.main(options.parse_mnist([*common, "--steps", "6", "--name", "old"]))
    path = Path("checkpoints/mnist/old.state")
    state = load_state(path)
    assert set(state["optimizer"]) == {"adamw", "scaler"}
    del state["settings"]["optimizer"]
    save_state(path, state)
    with pytest.raises(ValueError, match="--optimizer"):
        args = options.parse_mnist(["--train", "--resume", "old", "--optimizer", "muon", *CPU])
        mnist_diffusion.main(args)
    mnist_diffusion.main(options.parse_mnist(["--train", "--resume", "old", *CPU]))
    names = [(max(path.parent.glob(f"{n}_epoch*")).name, "UNet") for n in ("whole", "old")]
    assert_same_weights(path.parent, *names)


def test_runs_from_before_a_flag_go_on_without_it():
    args = options.parse_mnist(["--train", "--resume"])
    old = options.resumed(args, {"lr": 0.1})
    assert (old.min_snr, old.t_density, old.optimizer) == (0, "uniform", "adamw")
    saved = {"lr": 0.1, "min_snr": 5.0, "t_density": "lognormal", "optimizer": "muon"}
    new = options.resumed(args, saved)
    assert (new.min_snr, new.t_density, new.optimizer) == (5, "lognormal", "muon")
