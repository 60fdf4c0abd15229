"""--show from end to end: where pictures go, and which training images they are compared with."""

from dataclasses import asdict

import pytest
import torch
from helpers import CPU, randomize, scheduler, small_unet, write_mnist
from PIL import Image

import mnist_diffusion
from command_line import parsers
from data.mnist import mnist_images
from data.pixels import to_pixels
from training import figures
from training.checkpoint import save_model


def save_denoiser(path, **known):
    """A denoiser of digits, untrained, that knows these facts too."""
    facts = asdict(scheduler(clip_x0=True).config)
    facts = {"space": "pixels", "shape": [1, 28, 28], "scheduler": facts, **known}
    save_model(path, randomize(small_unet(1)), facts)


def show(*flags):
    flags = ("--show", "d.safetensors", "--sampling-steps", 2, *CPU, *flags)
    mnist_diffusion.main(parsers.parse_mnist([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ([], ["generated.png"]),
        (["--film"], ["film.gif", "film.png"]),
        (["--interpolate", 1, 2], ["interpolate.png"]),
    ],
)
def test_every_mode_has_its_own_file(tmp_path, monkeypatch, flags, made):
    save_denoiser(tmp_path / "d.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "show_window", lambda path: None)
    show("--num-images", 2, *flags)
    assert sorted(p.name for p in (tmp_path / "fig/mnist").iterdir()) == made


def test_flags_reach_the_pictures(tmp_path, monkeypatch):
    save_denoiser(tmp_path / "d.safetensors")
    monkeypatch.chdir(tmp_path)
    show("--num-images", 2, "--seed", 9, "--out", "out", "--sampler", "ddim", "--eta", 0.5)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["seed000009.png", "seed000010.png"]
    text = Image.open(tmp_path / "out/seed000009.png").text
    assert (text["sampler"], text["eta"], text["sampling_steps"]) == ("ddim", "0.5", "2")


@pytest.mark.parametrize(
    ("known", "typed"),
    [({}, ["--data-root", "elsewhere"]), ({"data_root": "elsewhere"}, [])],
)
def test_neighbours_of_digits_are_mnists(tmp_path, monkeypatch, known, typed):
    """--neighbours looks through the training digits of --data-root, or of the training's own."""
    shown = {}
    save_denoiser(tmp_path / "d.safetensors", **known)
    write_mnist(tmp_path / "elsewhere", train=40, test=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        figures, "image_rows", lambda path, rows, title, captions: shown.update(rows)
    )
    show("--neighbours", "--sampler", "dpm++", "--num-images", 2, *typed)
    digits = to_pixels(mnist_images("elsewhere", "train"))
    errors = (shown["sample"][:, None] - digits[None]).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(shown["nearest"], digits[errors.argmin(dim=1)])
