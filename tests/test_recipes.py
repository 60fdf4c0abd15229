"""What the scripts make of the parts: what is minimised and at which rate, what is validated on,
saved, decoded and compared. Against sums made here, because a run always agrees with itself."""

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    randomize,
    run_digits,
    run_encoder,
    run_latent,
    small_autoencoder,
    write_images,
    write_mnist,
)

import latent_diffusion
from command_line.flags import TRAIN, Resuming
from command_line.parsers import parse_encoder, parse_latent, parse_mnist
from common.errors import UserError
from data import images
from data.images import open_images
from data.latents import LatentDataset
from data.mnist import mnist_images
from data.order import fixed_sample
from data.pixels import to_pixels
from models.draws import Draws, Purpose
from training import autoencoder, denoiser
from training.checkpoint import load_model, load_state, save_model
from training.ema import EMA
from training.optimizer import LrSchedule, Optimizer
from training.progress import Progress
from training.records import read_metrics

STEPS = 10
OF_ALL = ("--channels", 8, "--steps", STEPS, "--name", "a")


@pytest.fixture
def folder(tmp_path, monkeypatch, no_figures):
    """Work in a folder with MNIST in data/ and pictures/, of which two are for validation."""
    write_mnist(tmp_path / "data", train=40, test=30)
    write_images(tmp_path / "pictures", 40, (16, 16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(*flags):
    """A run of STEPS steps, named a."""
    run_digits(*OF_ALL, "--batch", 8, *flags)


def encoder(*flags):
    """The same of an autoencoder, on the pictures."""
    run_encoder("--data", "pictures", "--size", "16x16", "--batch", 4, *OF_ALL, *flags)


def latent(*flags):
    """The same of a denoiser of latents, by an autoencoder that was not trained."""
    facts = {"data": "pictures", "data_root": "data", "size": [16, 16]}
    save_model("checkpoints/autoencoder/a.safetensors", untrained(), facts)
    coder = ("--encoder", "checkpoints/autoencoder/a.safetensors")
    run_latent(*coder, "--batch", 4, *OF_ALL, *flags)


RECIPES = {"mnist": digits, "autoencoder": encoder, "denoiser": latent}


def newest(kind):
    """The checkpoint of a run's last epoch."""
    return max(Path("checkpoints", kind).glob("a_epoch*.safetensors"))


def untrained():
    """An autoencoder whose pictures depend on its latents by far more than by rounding."""
    model = randomize(small_autoencoder())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model


@pytest.fixture
def optimized(monkeypatch):
    """(loss, rate) of each call of Optimizer.step."""
    seen, step = [], Optimizer.step

    def spy(self, rate):
        seen.append((self.loss.item(), rate))
        return step(self, rate)

    monkeypatch.setattr(Optimizer, "step", spy)
    return seen


# ---- What is minimised --------------------------------------------------------------------------


def test_the_autoencoder_minimises_l2_kl_and_gan(folder, monkeypatch, optimized):
    """l2 + W KL + V GAN at the run's rate, and the discriminator's hinge loss at the full rate."""

    def pulls(discriminate, x, x_hat, *others):
        return [torch.ones_like(made) * 5 / made.sum() for made in x_hat], {}

    monkeypatch.setattr(autoencoder, "adaptive_pulls", pulls)

    def satisfied(discriminate, x, x_hat, runtime):
        nothing = 0 * discriminate(x)
        return nothing + 3, nothing - 2  # original, fake: the other way round the hinge loss is 7/2

    monkeypatch.setattr(autoencoder, "discriminate_both", satisfied)
    encoder("--kl-weight", 0.5, "--gan-weight", 2)
    losses, rates = [], []
    for step, record in enumerate(read_metrics("fig/autoencoder/a/metrics.jsonl", "a")):
        assert record["step"] == step + 1
        losses.append(record["loss_rec"] + 0.5 * record["loss_kl"] + 5 * record["gan_weight"])
        rates.append(LrSchedule.whole("cosine", STEPS).factor(step))
        if step >= STEPS / 2:
            losses.append(0.0)
            rates.append(1.0)
    assert len(losses) == STEPS * 1.5 and record["gan_weight"] == 2
    assert [loss for loss, _ in optimized] == pytest.approx(losses, rel=1e-5)
    assert [rate for _, rate in optimized] == pytest.approx(rates)


def test_an_autoencoder_learns(folder, monkeypatch):
    """More than the mean picture, for which no latents are needed."""
    monkeypatch.setattr(images, "NUM_SYNTHETIC", 200)
    flags = ["--data", "synthetic", "--batch", 8, "--channels", 16, "--steps", 60, "--lr", 3e-3]
    encoder(*flags, "--gan-weight", 0)
    records = read_metrics("fig/autoencoder/a/metrics.jsonl", "a")
    x = to_pixels(torch.stack([x for _, x in open_images("synthetic", None, (16, 16))["train"]]))
    mean_picture = (x - x.mean(dim=0)).square().mean().item()
    assert sum(record["loss_rec"] for record in records[-10:]) / 10 < 0.8 * mean_picture


@pytest.mark.parametrize("flip", [True, False])
def test_pictures_are_mirrored_unless_told_otherwise(folder, monkeypatch, flip):
    seen = []
    monkeypatch.setattr(autoencoder, "flipped", lambda x, _: seen.append(len(x)) or x)
    encoder("--gan-weight", 0, *["--no-flip"][flip:])
    assert seen == [4] * STEPS * flip


@pytest.mark.parametrize("kind", ["mnist", "denoiser"])
def test_the_denoiser_takes_its_flags(folder, monkeypatch, optimized, kind):
    made = []

    class Objective(denoiser.Objective):
        def __init__(self, scheduler, density, gamma, device):
            made.append((density, gamma))
            super().__init__(scheduler, density, gamma, device)

    monkeypatch.setattr(denoiser, "Objective", Objective)
    density = {"mnist": "uniform", "denoiser": "lognormal"}[kind]  # not the default
    other = ("--schedule", "scaled_linear", "--prediction", {"mnist": "v", "denoiser": "eps"}[kind])
    RECIPES[kind]("--dropout", 0.3, "--min-snr", 2, "--t-density", density, *other)
    assert made == [(density, 2.0)]
    model, facts = load_model(newest(kind), "UNet")
    assert model.config.dropout == 0.3
    rate = LrSchedule.whole("cosine", STEPS).factor
    assert [used for _, used in optimized] == [rate(step) for step in range(STEPS)]
    schedule = {"num_steps": 1000, "schedule": "scaled_linear", "prediction": other[-1]}
    assert facts["scheduler"] == {**schedule, "clip_x0": kind == "mnist"}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_script_takes_its_optimizer(folder, kind, optimizer):
    RECIPES[kind]("--optimizer", optimizer)
    state = load_state(f"checkpoints/{kind}/a.state")
    assert ("muon" in state["optimizer"]) == (optimizer == "muon")
    assert "muon" not in state.get("disc_optimizer", {})
    assert ("disc_optimizer" in state) == (kind == "autoencoder")


@pytest.mark.parametrize("kind", RECIPES)
def test_every_script_takes_its_attention_and_goes_on_with_it(folder, kind):
    """States and checkpoints have it; a run that goes on keeps it."""
    flags, other = {"autoencoder": (["--attention"], [])}.get(
        kind, (["--attention", "1,2"], ["--attention", "2"])
    )
    RECIPES[kind](*flags)
    again = {"mnist": run_digits, "autoencoder": run_encoder, "denoiser": run_latent}[kind]
    if other:
        with pytest.raises(UserError, match="--attention: the run to resume has 1,2; leave it out"):
            again("--resume", *other)
    again("--resume", "--steps", STEPS + 2)
    model = load_model(newest(kind), "UNet" if other else "AutoencoderKL")[0]
    assert model.config.attention_levels == (1, 2) if other else model.config.attention
    state = load_state(f"checkpoints/{kind}/a.state")
    assert state["settings"]["attention"] == ("1,2" if other else True) and state["step"] == 12
    trained = [w for k, w in state["model"].items() if "to_out.0.weight" in k]
    assert trained and all(w.abs().max() > 0 for w in trained)  # they begin at 0
    shown = load_model(f"checkpoints/{kind}/a.state", type(model).__name__)[0]
    assert shown.config == model.config


def test_the_loss_of_a_band_is_the_mean_of_its_losses(folder, monkeypatch):
    added, add = [], Progress.add

    def spy(self, **values):
        added.append(values)
        add(self, **values)

    monkeypatch.setattr(Progress, "add", spy)
    digits()
    records = read_metrics("fig/mnist/a/metrics.jsonl", "a")
    assert len(records) == len(added) == STEPS
    for record, values in zip(records, added, strict=True):
        pairs = zip(values["band_sum"].tolist(), values["band_count"].tolist(), strict=True)
        want = [total / count if count else None for total, count in pairs]
        assert record["band_loss"] == pytest.approx(want)
        assert any(mean not in (None, 1) for mean in want)


# ---- What a run keeps of its arguments ----------------------------------------------------------


@pytest.mark.parametrize(("kind", "parse", "start"), [
    ("mnist", parse_mnist, ["--train"]), ("autoencoder", parse_encoder, []),
    ("denoiser", parse_latent, ["--train", "--encoder", "e"]),
])  # fmt: skip
def test_a_state_keeps_the_settings_of_its_training(folder, kind, parse, start):
    """Those flags that are not forgotten, no other, as they were typed; and what was found for
    those that were not typed, so that nothing changes where a run goes on."""
    RECIPES[kind]("--lr", 0.25, "--steps", 1)
    state = load_state(f"checkpoints/{kind}/a.state")
    flags = parse(start).flags.values()
    kept = {f.name for f in flags if TRAIN in f.modes and f.resuming is not Resuming.FORGOTTEN}
    assert set(state["settings"]) == kept
    expected = {"lr": 0.25, "steps": 1, "epochs": None, "channels": 8, "name": "a", "seed": 0}
    if kind != "mnist":
        expected |= {"data": "pictures", "size": [16, 16]}
    assert {name: state["settings"][name] for name in expected} == expected


# ---- What is averaged and saved -----------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
def test_checkpoints_hold_the_average(folder, monkeypatch, kind):
    seen, update = [], EMA.update

    def spy(self, model, updates):
        seen.append((self.decay, updates))
        update(self, model, updates)

    monkeypatch.setattr(EMA, "update", spy)
    RECIPES[kind]("--ema", 0.5)
    assert seen == [(0.5, step) for step in range(STEPS)]
    saved = load_model(newest(kind), {"autoencoder": "AutoencoderKL"}.get(kind, "UNet"))[0]
    saved = saved.state_dict()
    state = load_state(f"checkpoints/{kind}/a.state")
    assert all(torch.equal(saved[name], weights) for name, weights in state["ema"].items())
    assert not all(torch.equal(saved[name], weights) for name, weights in state["model"].items())


# ---- What is validated on, decoded, compared ----------------------------------------------------


@pytest.fixture
def handed(monkeypatch):
    """The DenoiserData that a script hands to its training, which does not take place."""
    found = []
    monkeypatch.setattr(denoiser, "train", lambda run, learner, data, facts: found.append(data))
    return found


def test_digits_are_validated_on_the_test_set(folder, monkeypatch, handed):
    monkeypatch.setattr("mnist_diffusion.NUM_VALID", 20)
    digits()
    (data,) = handed
    assert torch.equal(data.valid, to_pixels(mnist_images("data", "test")[:20]))
    train = to_pixels(mnist_images("data", "train"))
    assert data.num_train == len(train)
    assert torch.equal(data.draw(torch.tensor([3, 1]), Draws(0, 0, range(2))), train[[3, 1]])
    assert torch.equal(data.codec.decode(data.valid), data.valid)


def posterior_noise(n):
    """Of the first step of seed 0, for n places."""
    return partial(Draws(0, 0, range(n)).normal, Purpose.POSTERIOR)


def test_latents_are_validated_on_held_out_images_and_decoded_unwhitened(folder, handed):
    latent()
    (data,) = handed
    autoencoder = untrained()
    (cache,) = Path("encoded_img").iterdir()
    train, valid = (LatentDataset(cache, split) for split in ("train", "valid"))
    splits = open_images("pictures", None, (16, 16))
    assert data.num_train == len(train) == len(splits["train"])
    assert len(data.valid) == len(valid) == len(splits["valid"])
    assert torch.equal(
        data.valid, valid.draw(fixed_sample(len(valid), 256), noise=posterior_noise(len(valid)))
    )
    for split, cached in (("train", train), ("valid", valid)):  # what is cached is the posterior
        x = to_pixels(torch.stack([image for _, image in splits[split]]))
        with torch.no_grad():
            posterior = autoencoder.encode(x)
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        torch.testing.assert_close(cached.moments(range(len(x))).float(), moments,
                                   rtol=1e-2, atol=1e-3)  # fmt: skip
    drawn = data.draw(torch.arange(5), Draws(0, 0, range(5)))
    assert torch.equal(drawn, train.draw(range(5), noise=posterior_noise(5)))
    z = torch.randn(2, 3, 4, 4)
    std, mean = (torch.tensor(v)[:, None, None] for v in (train.stats.std, train.stats.mean))
    with torch.no_grad():
        want = autoencoder.decode(z * std + mean)
        torch.testing.assert_close(data.codec.decode(z), want)
        assert (want - autoencoder.decode(z)).abs().max() > 1e-2  # else this shows nothing


def test_autoencoders_are_validated_on_held_out_images(folder, monkeypatch):
    seen, validate = [], autoencoder.validate
    monkeypatch.setattr(
        autoencoder, "validate", lambda *a, **models: seen.append(a[1]) or validate(*a, **models)
    )
    encoder("--gan-weight", 0)
    held_out = open_images("pictures", None, (16, 16))["valid"]
    held_out = [held_out[i][1] for i in fixed_sample(len(held_out), 256).tolist()]
    assert torch.equal(seen[0], to_pixels(torch.stack(held_out)))


def compared(monkeypatch):
    """The Pipeline and the Reference that --evaluate of the newest denoiser is of."""
    calls = []
    monkeypatch.setattr(latent_diffusion, "evaluate_denoiser", lambda *args: calls.append(args))
    monkeypatch.setattr(latent_diffusion, "publish", lambda *args: None)
    flags = ["--evaluate", str(newest("denoiser")), *CPU]
    latent_diffusion.main(parse_latent(flags))
    ((pipeline, _, _, reference, _),) = calls
    return pipeline, reference


def test_faces_are_compared_with_images_that_were_not_trained_on(folder, monkeypatch):
    latent()
    pipeline, reference = compared(monkeypatch)
    codec, test, train = pipeline.codec, reference.test, reference.train
    splits = open_images("pictures", None, (16, 16))
    assert (test.name, test.size) == ("pictures's validation images", len(splits["valid"]))
    assert (train.name, train.size) == ("pictures's training images", len(splits["train"]))
    (images,) = test.batches(test.size)
    known = {tuple(image.flatten().tolist()) for _, image in splits["valid"]}
    assert {tuple(image.flatten().tolist()) for image in images} == known
    # Distances to training images are between whitened means, of samples and of the cache alike.
    x = to_pixels(torch.stack([splits["train"][i][1] for i in range(3)]))
    with torch.no_grad():
        torch.testing.assert_close(
            codec.encode(x), reference.training_set.x0(range(3)), rtol=1e-2, atol=1e-2
        )
        autoencoder = untrained()
        stats = LatentDataset(next(Path("encoded_img").iterdir()), "train").stats
        z = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(codec.decode(z), autoencoder.decode(stats.unwhiten(z)))
        want = autoencoder.decode(autoencoder.encode(x).mean)
        torch.testing.assert_close(codec.decode(codec.encode(x)), want, rtol=1e-4, atol=1e-5)
    assert not pipeline.scheduler.config.clip_x0


def test_celeba_is_compared_with_its_test_split(folder, monkeypatch):
    pictures = write_images(folder / "celeba" / "img_align_celeba", 9, (16, 16))
    numbers = [1, 2, 3, 4, 162_771, 162_772, 182_638, 182_639, 182_640]
    for i, number in enumerate(numbers):
        (pictures / f"{i:02d}.png").rename(pictures / f"{number:06d}.png")
    latent("--data", "celeba", "--data-root", ".")
    _, reference = compared(monkeypatch)
    test, train = reference.test, reference.train
    assert (test.name, test.size) == ("celeba's test images", 3)
    assert (train.name, train.size) == ("celeba's training images", 4)
