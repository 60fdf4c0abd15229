"""What a device must not change. TEST_DEVICE=cuda python3 -m pytest -m device runs all of it on a
GPU, against the CPU; without it, the device is the CPU as well, in its favourite order of memory.
"""

import math
from functools import partial

import pytest
import torch
from helpers import (
    assert_same_weights,
    interrupt,
    randomize,
    run_digits,
    run_encoder,
    run_latent,
    scheduler,
    small_autoencoder,
    small_unet,
    write_images,
    write_mnist,
)
from torch import nn

from data.caching import cache_latents
from data.latents import LatentDataset, LatentStats
from data.order import ShuffledOrder
from generation.pipeline import Pipeline
from models.diffusion import Objective, epsilon, timestep_density, timesteps_of
from models.discriminator import DiscriminatorConfig, PatchDiscriminator, with_low_frequencies
from models.draws import Draws, Purpose, philox
from models.samplers import SAMPLERS, picture_noise, sample
from training import codec
from training.autoencoder import AutoencoderLearner, GanPhase, flipped
from training.checkpoint import load_model, load_state, save_model, save_state
from training.codec import SLICE, LatentCodec
from training.denoiser import DenoiserLearner
from training.ema import EMA
from training.muon import orthogonalised
from training.optimizer import Optimizer
from training.records import read_metrics
from training.runtime import Runtime

STATS = LatentStats((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
GAN = GanPhase(disc_learns=True, ramp=1.0)


def close(got, want, atol=1e-4):
    torch.testing.assert_close(got.detach().cpu().contiguous(), want.detach(), rtol=1e-3, atol=atol)


def gradients(loss, model):
    """Of all weights, in one vector on the CPU."""
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.cpu().contiguous().flatten() for g in found])


def weights(model):
    return torch.cat([p.detach().cpu().contiguous().flatten() for p in model.parameters()])


def denoiser_learner(device, precision="fp32", optimizer="adamw", prediction="v"):
    settings = {"optimizer": optimizer, "lr": 1e-2, "ema": 0.5}
    return DenoiserLearner(
        randomize(small_unet(3)), scheduler(prediction=prediction), Runtime(device, precision),
        **settings, t_density="lognormal", min_snr=5.0,
    )  # fmt: skip


def autoencoder_learner(device, precision="fp32", optimizer="muon"):
    disc = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)), 1)
    return AutoencoderLearner(
        randomize(small_autoencoder()), disc, Runtime(device, precision), optimizer=optimizer,
        lr=1e-3, ema=0.9, kl_weight=1e-4, gan_weight=2.0,
    )  # fmt: skip


# ---- Random numbers -----------------------------------------------------------------------------


def test_philox_gives_the_same_bits(device):
    """Products of 64 bits wrap around there too."""
    generator = torch.Generator().manual_seed(0)
    counter = list(torch.randint(2**32, (4, 1000), generator=generator))
    found = philox([word.to(device) for word in counter], (2**32 - 1, 0xA4093822))
    assert all(map(torch.equal, (w.cpu() for w in found), philox(counter, (2**32 - 1, 0xA4093822))))


@pytest.mark.parametrize("step", [0, 2**33 + 1])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_draws_are_those_of_a_cpu(device, purpose, step):
    """Uniforms to the bit; a logarithm and a cosine may differ in their last bits."""
    here, there = Draws(2**32 + 5, step, [3, 0, 9]), Draws(2**32 + 5, step, [3, 0, 9], device)
    assert torch.equal(there.uniform(purpose).cpu(), here.uniform(purpose))
    close(there.normal(purpose, (3, 7, 5)), here.normal(purpose, (3, 7, 5)), atol=1e-5)
    assert there.normal(purpose, (2,)).device.type == torch.device(device).type


@pytest.mark.parametrize("name", ["uniform", "lognormal"])
def test_timesteps_are_those_of_a_cpu(device, name):
    s, places = scheduler(), range(100_000)
    t = timesteps_of(
        Objective(s, name, 5.0, device).cumulative,
        Draws(0, 0, places, device).uniform(Purpose.TIMESTEP),
    )
    summed = timestep_density(s, name).float().cumsum(0)
    assert torch.equal(t.cpu(), timesteps_of(summed, Draws(0, 0, places).uniform(Purpose.TIMESTEP)))


def test_the_noise_of_pictures_is_that_of_a_cpu(device):
    here, there = (picture_noise([7, 8], (3, 4, 4), where) for where in ("cpu", device))
    for _ in range(2):
        assert torch.equal(there().cpu(), here())


def test_masks_of_dropout_are_drawn_again(device):
    draws, masks = Draws(1, 2, range(3), device), []
    for _ in range(2):
        draws.seed_torch()
        masks.append(torch.rand(3, device=device))
    assert torch.equal(*masks)


def test_the_same_images_are_mirrored(device):
    x = torch.arange(24 * 12).view(24, 1, 3, 4).to(torch.uint8)
    here, there = (
        flipped(x.to(where), Draws(0, 5, range(24), where).uniform(Purpose.FLIP))
        for where in ("cpu", device)
    )
    assert torch.equal(there.cpu(), here)


# ---- Networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [((8, 16, 16), (8, 12)), ((32, 32), (6, 10))])
def test_a_unet_has_the_same_outputs_and_gradients(device, channels, size):
    runtime, model = Runtime(device, "fp32"), randomize(small_unet(3, channels))
    x, t = torch.randn(4, 3, *size), torch.tensor([0, 17, 500, 999])
    out = model(x, t)
    grad = gradients(out.square().mean(), model)
    placed = runtime.place(model)
    there = placed(runtime.send(x), t.to(runtime.device))
    close(there, out)
    assert (gradients(there.square().mean(), placed) - grad).norm() < 1e-3 * grad.norm()


def test_an_autoencoder_has_the_same_outputs_and_gradients(device):
    runtime, model = Runtime(device, "fp32"), randomize(small_autoencoder())
    x, noise = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 4, 6)
    x_hat, posterior = model(x, noise)
    grad = gradients((x_hat - x).square().mean() + posterior.kl().mean(), model)
    placed, sent = runtime.place(model), runtime.send(x)
    there, theirs = placed(sent, noise.to(runtime.device))
    close(there, x_hat)
    close(theirs.moments(), posterior.moments())
    loss = (there - sent).square().mean() + theirs.kl().mean()
    assert (gradients(loss, placed) - grad).norm() < 1e-3 * grad.norm()


def test_a_discriminator_has_the_same_outputs_and_gradients(device):
    runtime = Runtime(device, "fp32")
    disc = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)))
    x, x_hat = torch.randn(2, 2, 3, 16, 24)
    out = disc(with_low_frequencies(x_hat, x))
    grad = gradients(out.mean(), disc)
    placed = runtime.place(disc)
    there = placed(with_low_frequencies(runtime.send(x_hat), runtime.send(x)))
    close(there, out)
    assert (gradients(there.mean(), placed) - grad).norm() < 1e-3 * grad.norm()


def test_bf16_gives_the_fp32_loss_and_gradient(device):
    """Within 2 % and 5 %, as on a CPU."""
    model = randomize(small_unet(3))
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8) * 100
    found = []
    for precision in ("fp32", "bf16"):
        runtime = Runtime(device, precision)
        placed = runtime.place(model)
        with runtime.autocast():
            out = placed(runtime.send(x), t.to(runtime.device))
        assert out.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        loss = (out.float() - 1).square().mean()
        found.append((loss.item(), gradients(loss, placed)))
    (loss, grad), (loss16, grad16) = found
    assert loss16 == pytest.approx(loss, rel=0.02)
    assert (grad16 - grad).norm() < 0.05 * grad.norm()


def test_a_traced_network_gives_the_same_gradient(device, monkeypatch):
    """As torch.compile traces it; not made into code, which takes a minute and a compiler."""
    if device == "cpu":
        pytest.skip("test_runtime.py traces all networks on a CPU")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    runtime, x, t = Runtime(device, "fp32"), torch.randn(4, 3, 8, 8), torch.arange(4) * 100
    model = runtime.place(randomize(small_unet(3, channels=(8, 8))))
    x, t, found = runtime.send(x), t.to(runtime.device), []
    for choice in ("off", "on"):
        runtime.decide_compile(choice, steps=1)
        found.append(gradients((runtime.compiled(model)(x, t) - 1).square().mean(), model))
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm()
    assert not any("_orig_mod" in key for key in model.state_dict())


def test_fp32_is_no_tf32(device):
    """A GPU's convolutions of 24 bits: 1e-5, where TF32 would err by 1e-3."""
    runtime, conv = Runtime(device, "fp32"), nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(4, 64, 16, 16)
    want = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    error = runtime.place(conv)(runtime.send(x)).detach().cpu().double() - want
    assert error.norm() < 1e-5 * want.norm()


def test_what_is_sent_keeps_its_values_and_is_in_order(device):
    for shape, dtype in (((2, 3, 4, 5), torch.float32), ((4, 1, 6, 2), torch.uint8)):
        x = (100 * torch.rand(shape)).to(dtype)
        runtime = Runtime(device)
        for source in (x, x.flip(3).flip(3), x.repeat(2, 1, 1, 1)[::2][: len(x)]):
            sent = runtime.send(source)
            assert torch.equal(sent.cpu(), source) and sent.device.type == runtime.device.type
            assert sent.is_contiguous(memory_format=runtime.memory_format)


# ---- Samplers, codec, latents -------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_those_of_a_cpu(device, sampler, prediction):
    s, model, made = scheduler(prediction=prediction), randomize(small_unet(3)), []
    for where in ("cpu", device):
        runtime = Runtime(where, "fp32")
        denoise = epsilon(runtime.place(model), s)
        draw = picture_noise(range(3), (3, 8, 8), runtime.device)
        made.append(sample(denoise, s, draw, sampler, 10))
    close(made[1], made[0].cpu(), atol=1e-3 * made[0].abs().max().item())


def test_a_picture_does_not_depend_on_its_batch(device):
    runtime, s = Runtime(device, "fp32"), scheduler()
    code = LatentCodec(runtime.place(randomize(small_autoencoder())), STATS, runtime)
    made = []
    for batch in (2, 5):
        pipeline = Pipeline(
            runtime, runtime.place(randomize(small_unet(3))), s, (3, 4, 4), code,
            "ddpm", 4, {"sigma_scale": 1.0, "eta": 0.0}, batch,
        )  # fmt: skip
        made.append(torch.cat([images for _, images, _ in pipeline.batches(range(5))]))
    assert made[0].shape == (5, 3, 16, 16) and made[0].device.type == "cpu"
    close(made[1], made[0], atol=1e-3 * made[0].abs().max().item())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_codec_gives_float32_where_it_says(device, precision):
    runtime = Runtime(device, precision)
    code = LatentCodec(runtime.place(randomize(small_autoencoder())), STATS, runtime)
    x = torch.randn(SLICE + 3, 3, 8, 8)
    x0, features = code.encode(x), code.features(x)
    images, (posterior, x_hat) = code.decode(x0), codec.reconstruct(code.autoencoder, runtime, x)
    assert {t.dtype for t in (x0, features, images, x_hat, posterior.logvar)} == {torch.float32}
    assert {t.device.type for t in (images, x_hat, posterior.mean)} == {"cpu"}
    assert {t.device.type for t in (x0, features)} == {runtime.device.type}
    close(images, x_hat, atol=1e-4 if precision == "fp32" else 0.05)


def test_whitening_is_undone(device):
    z = torch.randn(2, 3, 4, 4, device=device)
    close(STATS.unwhiten(STATS.whiten(z)), z.cpu(), atol=1e-5)


def test_latents_are_cached_and_drawn_as_on_a_cpu(device, tmp_path):
    """Encoded on either; drawn with the noise of their places."""
    images, drawn = Images(), []
    for where in ("cpu", device):
        runtime = Runtime(where, "fp32")
        model, folder = runtime.place(randomize(small_autoencoder())), tmp_path / f"on {where}"
        encode = partial(codec.encode, model, runtime)
        both = {"train": images, "valid": images}
        cache_latents(lambda x, e=encode: e(x).moments(), both, (3, 4, 4), folder, True, 0)
        draws = Draws(0, 0, range(12), runtime.device)
        noise = partial(draws.normal, Purpose.POSTERIOR)
        latents = LatentDataset(folder, "train")
        drawn.append(latents.draw(torch.arange(12).flip(0), runtime.device, noise))
    assert drawn[1].device.type == torch.device(device).type and drawn[1].dtype == torch.float32
    close(drawn[1], drawn[0].cpu(), atol=1e-2)


class Images:
    """Six random images in memory, as a data set."""

    channels, size, names = 3, (16, 16), list(range(6))

    def __len__(self):
        return 6

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return i, torch.randint(256, (3, 16, 16), generator=generator).to(torch.uint8)


# ---- Steps of a training ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_denoiser_learns_the_same(device, optimizer):
    """Three steps, then weights and their average."""
    x0, ends = torch.randn(4, 3, 8, 8), []
    for where in ("cpu", device):
        one = denoiser_learner(where, optimizer=optimizer)
        before = weights(one.model)
        for step in range(3):
            draws = Draws(1, step, range(4), one.runtime.device)
            metrics = one.step(one.runtime.send(x0), 0.5, draws)
            assert all(value.isfinite().all() for value in metrics.values())
        ends.append((weights(one.model), weights(one.ema.model)))
    way = (ends[0][0] - before).norm()
    assert way > 0 and (ends[1][0] - ends[0][0]).norm() < 0.02 * way
    assert (ends[1][1] - ends[0][1]).norm() < 0.02 * way


def test_an_autoencoder_and_its_discriminator_learn_the_same(device):
    x, ends, before = torch.randn(2, 3, 16, 16), [], {}
    for where in ("cpu", device):
        one = autoencoder_learner(where)
        before = {name: weights(one.parts[name]) for name in ("model", "disc")}
        for step in range(2):
            draws = Draws(1, step, range(2), one.runtime.device)
            metrics = one.step(one.runtime.send(x), 1.0, draws, GAN, len(x))
            assert "adaptive_weight" in metrics and "loss_disc" in metrics
        ends.append({name: weights(one.parts[name]) for name in before})
    for name, start in before.items():
        way = (ends[0][name] - start).norm()
        assert way > 0 and (ends[1][name] - ends[0][name]).norm() < 0.05 * way


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("make", [denoiser_learner, autoencoder_learner])
def test_lower_precisions_learn(device, make, precision):
    """Finite metrics, no step skipped but those in which fp16 looks for its scale, less loss."""
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("a CPU takes 10 s for convolutions in fp16")
    one, x, losses = make(device, precision, optimizer="adamw"), torch.randn(4, 3, 16, 16), []
    x = one.runtime.send(x)
    for step in range(24):
        draws = Draws(1, 0, range(4), one.runtime.device)
        more = () if make is denoiser_learner else (GanPhase(step > 4, 0.1 * (step > 8)), len(x))
        metrics = one.step(x, 0.3, draws, *more)
        losses += [metrics.get("loss", metrics.get("loss_rec")).item()] if metrics else []
    assert len(losses) >= (24 if precision == "bf16" else 8)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]


@pytest.mark.parametrize("infinite", ["bias", "weight"])
def test_an_infinite_gradient_moves_no_weight_in_fp16(device, infinite):
    runtime = Runtime(device, "fp16")
    model = runtime.place(nn.Linear(8, 8))
    optimizer, before = Optimizer(model, "muon", 0.1, runtime), weights(model)
    scale = optimizer.scaler.get_scale()
    named = model.named_parameters()
    loss = sum((p * (math.inf if name == infinite else 1)).sum() for name, p in named)
    optimizer.backward(loss)
    assert optimizer.step(1.0) is None and optimizer.skipped == 1
    assert torch.equal(weights(model), before) and optimizer.scaler.get_scale() < scale
    optimizer.backward(sum(p.sum() for p in model.parameters()))
    assert optimizer.step(1.0).isfinite()
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("shape", [(3, 8, 40), (1, 24, 6)])
def test_newton_and_schulz_orthogonalise(device, shape):
    """In float32 within autocast too: singular values between 0.68 and 1.21."""
    n, r, c = shape
    k = min(r, c)
    u, v = torch.linalg.qr(torch.randn(n, r, k)).Q, torch.linalg.qr(torch.randn(n, c, k)).Q
    x = (30 * (u * torch.logspace(0, -2.3, k)) @ v.mT).to(device)
    with Runtime(device, "bf16").autocast():
        out = orthogonalised(x)
    assert out.dtype == torch.float32 and out.device.type == torch.device(device).type
    values = (u.mT @ out.cpu() @ v).diagonal(dim1=1, dim2=2)
    assert values.min() > 0.68 and values.max() < 1.21


def test_an_average_follows_on_its_device(device):
    runtime = Runtime(device)
    model, target = (runtime.place(randomize(small_unet(), seed)) for seed in (0, 1))
    ema = EMA(model, 0.75)
    ema.update(target, 10**6)
    close(weights(ema.model), 0.75 * weights(model) + 0.25 * weights(target), atol=1e-6)


# ---- From one device to another -----------------------------------------------------------------


@pytest.mark.parametrize("way", [("cpu", None), (None, "cpu"), (None, None)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_goes_on_on_the_other_device(device, tmp_path, optimizer, way):
    """Saved on one and loaded on the other, as --resume does; then the same step."""
    x0, (first, then) = torch.randn(4, 3, 8, 8), (where or device for where in way)

    def step(learner, number):
        draws = Draws(1, number, range(4), learner.runtime.device)
        learner.step(learner.runtime.send(x0), 0.5, draws)

    one, other = (
        denoiser_learner(first, "fp32", optimizer),
        denoiser_learner(then, "fp32", optimizer),
    )
    start = weights(one.model)
    step(one, 0)
    save_state(tmp_path / "a.state", {name: p.state_dict() for name, p in one.parts.items()})
    for name, state in load_state(tmp_path / "a.state").items():
        other.parts[name].load_state_dict(state)
    assert torch.equal(weights(other.model), weights(one.model))
    step(one, 1)
    step(other, 1)
    way = (weights(one.model) - start).norm()
    assert (weights(other.model) - weights(one.model)).norm() < 0.02 * way


def test_a_checkpoint_is_that_of_a_cpu(device, tmp_path):
    runtime, model = Runtime(device), randomize(small_unet())
    save_model(tmp_path / "a.safetensors", model, {})
    loaded = runtime.place(load_model(tmp_path / "a.safetensors", "UNet")[0])
    save_model(tmp_path / "b.safetensors", loaded, {})
    assert_same_weights("UNet", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch, no_figures):
    """Work in a folder with digits and pictures."""
    write_mnist(tmp_path / "data", train=64, test=8)
    write_images(tmp_path / "pictures", 8, (16, 16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["mnist", "autoencoder", "denoiser"])
def test_a_run_resumes_where_it_was(device, folder, monkeypatch, kind):
    """To the bit on a CPU. On a GPU sums are made in any order: to a hundredth."""
    facts = {"data": "pictures", "data_root": "data", "size": [16, 16]}
    save_model("a.safetensors", randomize(small_autoencoder()), facts)
    run, flags, key = {
        "mnist": (run_digits, ("--batch", 16), "loss"),
        "autoencoder": (run_encoder, ("--data", "pictures", "--size", "16x16", "--batch", 2),
                        "loss_rec"),
        "denoiser": (run_latent, ("--encoder", "a.safetensors", "--batch", 4), "loss"),
    }[kind]  # fmt: skip
    flags = *flags, "--steps", 8, "--channels", 8
    run(*flags, "--name", "whole", device=device)
    with monkeypatch.context() as patch:
        interrupt(patch, after=6)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, "--name", "parts", device=device)
    run("--resume", "parts", device=device)
    whole, parts = (
        [r[key] for r in read_metrics(f"fig/{kind}/{name}/metrics.jsonl", name)]
        for name in ("whole", "parts")
    )
    assert len(whole) == 8 and whole == (parts if device == "cpu" else pytest.approx(parts, 0.01))


def test_the_order_of_images_is_that_of_a_cpu(device, folder):
    """A run's losses on two devices are of the same images, noise and t."""
    losses = []
    for where in ("cpu", device):
        name = f"on-{torch.device(where).type}-{len(losses)}"
        run_digits("--steps", 4, "--batch", 16, "--channels", 8, "--name", name, device=where)
        losses.append([r["loss"] for r in read_metrics(f"fig/mnist/{name}/metrics.jsonl", name)])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert ShuffledOrder(64, 16, 0).indices(0).device.type == "cpu"
