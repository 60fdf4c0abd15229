"""How an autoencoder learns: GAN by fractions of the run, its loss on detail, with and without."""

import math
from pathlib import Path

import pytest
import torch
from helpers import cpu, randomize, run_encoder, small_autoencoder, write_images

from data.damage import BadFiles
from data.images import ImageDataset
from models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    generator_loss,
    with_low_frequencies,
)
from models.draws import Draws, Purpose
from training.autoencoder import (
    AutoencoderLearner,
    GanPhase,
    adaptive_pulls,
    discriminate_both,
    fixed_images,
    flipped,
    gan_phase,
)
from training.checkpoint import checkpoints_in, load_model, load_state
from training.records import read_metrics

SMALL = ("--size", "16x16", "--batch", 2, "--channels", 8)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Work in a folder with pictures/ of two colours, black and white."""
    write_images(tmp_path / "pictures", 6, (16, 16), "L")
    monkeypatch.chdir(tmp_path)


def test_gan_phases_are_fractions_of_the_run():
    for steps in (20, 1000, 12345):
        phases = [gan_phase(step, steps) for step in range(steps)]
        trains, ramps = zip(*((p.disc_learns, p.ramp) for p in phases), strict=True)
        assert not any(trains[: steps // 2]) and all(trains[math.ceil(steps / 2) :])
        assert max(ramps[: int(0.55 * steps)]) == 0
        assert min(ramps[math.ceil(0.651 * steps) :]) == 1 and ramps == tuple(sorted(ramps))
    for step, share in ((575, 0.25), (600, 0.5), (625, 0.75)):
        assert gan_phase(step, 1000).ramp == pytest.approx(share)


@pytest.mark.parametrize("residual", [1e-3, 10.0])
def test_adaptive_loss_is_a_scaled_generator_loss(residual):
    """Its gradient is weight * that of generator_loss on detail, weight = min(1, |l2| / |GAN|)."""
    discriminate = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)))
    x = torch.randn(2, 3, 16, 24)
    x_hat = (x + residual * torch.randn_like(x)).requires_grad_()
    (got,), metrics = adaptive_pulls(discriminate, [x], [x_hat], [1.0], cpu(), 1.0)
    detail = with_low_frequencies(x_hat, x)
    (gan,) = torch.autograd.grad(generator_loss(discriminate(detail)), x_hat)
    (rec,) = torch.autograd.grad((x_hat - x).square().mean(), x_hat)
    weight = min(1.0, (rec.norm() / gan.norm()).item())
    assert metrics["adaptive_weight"].item() == pytest.approx(weight, rel=1e-4)
    torch.testing.assert_close(got, weight * gan, rtol=1e-4, atol=1e-9)
    assert got.norm() <= rec.norm() * 1.001
    assert got.sum(dim=(2, 3)).abs().max() < 1e-4 * got.abs().sum()  # no shift of colours
    # The generator's step does not train it; in parts it is the same, and so it is scaled.
    assert all(p.grad is None for p in discriminate.parameters())
    halves = x.split(1), x_hat.split(1), [0.5, 0.5]
    parts, again = adaptive_pulls(discriminate, *halves, cpu(), 1024.0)
    torch.testing.assert_close(torch.cat(parts), got, rtol=1e-3, atol=1e-9)
    for key, value in metrics.items():
        torch.testing.assert_close(again[key], value, rtol=1e-3, atol=1e-9)


def test_the_discriminator_judges_detail():
    disc = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)))
    x, x_hat = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        real, fake = discriminate_both(disc, x, x_hat, cpu())
        torch.testing.assert_close(real, disc(x))
        torch.testing.assert_close(fake, disc(with_low_frequencies(x_hat, x)))
        assert (fake - disc(x_hat)).abs().max() > 1e-3


def test_about_half_are_mirrored():
    x = torch.arange(1000 * 12).view(1000, 1, 3, 4)
    turned = flipped(x, Draws(0, 0, range(1000)).uniform(Purpose.FLIP))
    same, mirrored = ((turned == y).all(dim=(1, 2, 3)) for y in (x, x.flip(3)))
    assert 400 < mirrored.sum() < 600 and (same ^ mirrored).all()


def learner(gan_weight, disc=True):
    """An AutoencoderLearner with random weights, at a low rate."""
    made = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)), 1) if disc else None
    return AutoencoderLearner(
        randomize(small_autoencoder()), made, cpu(), optimizer="adamw", lr=1e-4, ema=0.9,
        kl_weight=0.5, gan_weight=gan_weight,
    )  # fmt: skip


@pytest.mark.parametrize("phase", [GanPhase(False, 0.0), GanPhase(True, 0.0), GanPhase(True, 0.5)])
def test_a_step_moves_what_learns_in_its_phase(phase):
    """The autoencoder and its average always, the discriminator from its start on; the GAN term is
    met from the ramp on; and all gradients are gone afterwards."""
    one = learner(2.0)
    before = {name: [p.clone() for p in one.parts[name].parameters()]
              for name in ("model", "ema", "disc")}  # fmt: skip
    metrics = one.step(torch.randn(2, 3, 16, 16), 1.0, Draws(0, 0, range(2)), phase, 2)
    moved = {
        name: not all(map(torch.equal, weights, one.parts[name].parameters()))
        for name, weights in before.items()
    }
    assert moved == {"model": True, "ema": True, "disc": phase.disc_learns}
    assert ("loss_disc" in metrics) == phase.disc_learns
    assert ("adaptive_weight" in metrics) == (phase.ramp > 0)
    assert all(p.grad is None for p in (*one.model.parameters(), *one.disc.parameters()))


def test_without_gan_weight_the_step_is_that_of_no_discriminator():
    """Whatever the phase, to the bit."""
    x, weights = torch.randn(2, 3, 16, 16), []
    for disc in (True, False):
        one = learner(0.0, disc)
        torch.manual_seed(0)
        one.step(x, 1.0, Draws(0, 0, range(len(x))), GanPhase(True, 1.0), len(x))
        weights.append(list(one.model.parameters()))
    assert all(map(torch.equal, *weights))


def test_gan_weight_zero_trains_no_discriminator(pictures):
    more = ("--gan-weight", 0, "--no-flip", "--steps", 4, "--name", "plain")
    run_encoder("--data", "pictures", *SMALL, *more)
    model, facts = load_model(checkpoints_in("checkpoints/autoencoder")[0], "AutoencoderKL")
    assert model.config.image_channels == 1 and facts["size"] == [16, 16]
    assert not Path("checkpoints/discriminator").exists()
    assert not any("disc" in name for name in load_state("checkpoints/autoencoder/plain.state"))
    assert not Path("fig/autoencoder/confidences.png").exists()
    assert "loss_disc" not in read_metrics("fig/autoencoder/plain/metrics.jsonl", "plain")[-1]


def test_the_discriminator_begins_at_the_step_that_is_announced(pictures, capsys, no_figures):
    for steps, begin in (("5", 4), ("6", 4)):  # steps 0, 1, .. of the loop are 1, 2, .. in words
        run_encoder("--data", "pictures", *SMALL, "--steps", steps, "--name", steps)
        assert f"from step {begin} on" in capsys.readouterr().out
        records = read_metrics(f"fig/autoencoder/{steps}/metrics.jsonl", steps)
        assert [r["step"] for r in records if "loss_disc" in r][0] == begin


class Halves(ImageDataset):
    """12,000 images: black ones, then white ones."""

    size, channels, names = (8, 8), 3, [str(i) for i in range(12_000)]
    tally = BadFiles(len(names))

    def __getitem__(self, i):
        return i, torch.full((3, 8, 8), 255 * (i >= 6000), dtype=torch.uint8)


def test_a_run_is_watched_on_images_of_the_whole_set():
    """Sorted names begin with one class only; the first few are drawn."""
    images = {"train": Halves(), "valid": Halves()}
    watched = fixed_images(images)
    assert len(watched) == 256 and abs(watched.mean()) < 0.2
    assert 0 < (watched[:8, 0, 0, 0] > 0).sum() < 8
    assert torch.equal(watched, fixed_images(images))
