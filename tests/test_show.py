"""What --show makes: folders that are gone on with, films, paths, neighbours."""

import gc
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers import CPU, randomize, scheduler, small_unet, write_mnist
from PIL import Image

import mnist_diffusion
from command_line import options
from data.mnist import mnist_images
from data.pixels import to_pixels, to_uint8
from generation import seeing
from generation.pipeline import Pipeline
from generation.seeing import TrainingSet, nearest
from training import figures
from training.checkpoint import save_model
from training.codec import PixelCodec
from training.runtime import Runtime

SHAPE = [1, 8, 8]


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Work in a folder with a denoiser of 8x8 digits and MNIST; show(flags) runs --show there."""
    facts = asdict(scheduler(clip_x0=True).config)
    facts = {"space": "pixels", "shape": SHAPE, "scheduler": facts}
    save_model(tmp_path / "d.safetensors", randomize(small_unet(1)), facts)
    monkeypatch.chdir(tmp_path)

    def show(*flags):
        flags = ("--show", "d.safetensors", "--sampling-steps", 4, *CPU, *flags)
        mnist_diffusion.main(options.parse_mnist([str(flag) for flag in flags]))

    return show


def pipeline(*flags):
    """A Pipeline of an 8x8 denoiser in memory, with these flags."""
    flags = ("--show", "d", *CPU, "--sampling-steps", 4, *flags)
    args = options.parse_mnist([str(flag) for flag in flags])
    model, s = randomize(small_unet(1)), scheduler(clip_x0=True)
    return Pipeline(args, Runtime(args), model, s, SHAPE, PixelCodec())


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 1000), ("ddim", 50), ("dpm++", 20)])
def test_samplers_take_the_steps_that_readme_says(sampler, steps):
    args = options.parse_mnist(["--show", "d", *CPU, "--sampler", sampler])
    assert Pipeline(args, None, None, scheduler(), SHAPE, None).steps == steps


def test_a_folder_is_gone_on_with(digits, tmp_path, capsys):
    digits("--num-images", 4, "--seed", 3, "--out", "out", "--batch", 2)
    paths = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in paths] == [f"seed{i:06d}.png" for i in (3, 4, 5, 6)]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}
    paths[1].unlink()
    digits("--num-images", 6, "--seed", 3, "--out", "out", "--batch", 4)
    assert "3 of 6 pictures are there already" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 6
    for i in (0, 2, 3):
        assert before[paths[i]][1] == paths[i].stat().st_mtime_ns  # not made again
    again = np.asarray(Image.open(paths[1]), dtype=int)
    (tmp_path / "first.png").write_bytes(before[paths[1]][0])
    assert abs(again - np.asarray(Image.open(tmp_path / "first.png"), dtype=int)).max() <= 1


def test_pictures_say_how_they_were_made(digits, tmp_path):
    digits("--num-images", 1, "--seed", 9, "--out", "out", "--sampler", "ddim", "--eta", 0.5)
    text = Image.open(tmp_path / "out/seed000009.png").text
    assert len(text.pop("denoiser")) == 16
    assert text == {
        "seed": "9", "sampler": "ddim", "sampling_steps": "4", "eta": "0.5", "sigma_scale": "1.0",
        "precision": "fp32",
    }  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), [
    (("--sampler", "dpm++"), "was made with sampler ddpm, not dpm++"),
    (("--sigma-scale", 0.9), "was made with sigma_scale 1.0, not 0.9"),
])  # fmt: skip
def test_a_folder_of_other_settings_is_refused(digits, tmp_path, flags, message):
    digits("--num-images", 1, "--out", "out")
    with pytest.raises(ValueError, match=re.escape(message)):
        digits("--num-images", 2, "--out", "out", *flags)
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("damage", [
    lambda png: b"no picture", lambda png: png[:40], lambda png: png.replace(b"tEXt", b"t\x01Xt"),
])  # fmt: skip
def test_a_foreign_or_damaged_picture_in_the_folder_is_refused(digits, tmp_path, damage):
    digits("--num-images", 1, "--out", "out")
    path = tmp_path / "out/seed000000.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="does not say how it was made; choose another --out"):
        digits("--num-images", 2, "--out", "out")


def test_an_interrupted_folder_is_gone_on_with(digits, tmp_path, monkeypatch):
    """Interrupted in the middle of a batch, in the middle of a file: only whole pictures stay."""
    save, calls = Image.Image.save, []

    def interrupted(image, file, *args, **kwargs):
        calls.append(file)
        if len(calls) == 4:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        save(image, file, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", interrupted)
        digits("--num-images", 6, "--out", "out", "--batch", 5)
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        f"seed{i:06d}.png" for i in range(3)
    ]
    digits("--num-images", 6, "--out", "out", "--batch", 5)
    digits("--num-images", 6, "--out", "at_once", "--batch", 5)
    for path in (tmp_path / "at_once").iterdir():
        one, other = (
            np.asarray(Image.open(p), dtype=int) for p in (path, tmp_path / "out" / path.name)
        )
        assert abs(one - other).max() <= 1


def test_memory_is_flat_over_pictures(digits, monkeypatch):
    """However many batches went into the folder before, as many tensors are alive."""
    alive = []
    monkeypatch.setattr(
        figures, "save_image",
        lambda *_: alive.append(sum(type(o) is torch.Tensor for o in gc.get_objects())),
    )  # fmt: skip
    digits("--num-images", 8, "--out", "out", "--batch", 1)
    assert len(alive) == 8 and max(alive[2:]) == min(alive[2:]), alive


@pytest.mark.parametrize(("out", "message"), [
    ("d.safetensors/x.png", "d.safetensors"), ("d.safetensors/x", "d.safetensors")])  # fmt: skip
def test_impossible_places_are_refused_before_anything_is_made(digits, monkeypatch, out, message):
    monkeypatch.setattr(Pipeline, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises((ValueError, OSError), match=message):
        digits("--out", out)


def test_decoding_is_done_in_slices():
    sizes = []

    class Codec(PixelCodec):
        def decode(self, x0):
            sizes.append(len(x0))
            return x0

    p = pipeline()
    images = Pipeline(p.args, p.runtime, p.model, p.scheduler, SHAPE, Codec()).decode(
        torch.randn(40, *SHAPE)
    )
    assert images.shape == (40, *SHAPE) and max(sizes) <= 16 and sum(sizes) == 40


@pytest.mark.parametrize("sampler", options.SAMPLING)
def test_film_ends_with_the_picture(sampler, tmp_path, monkeypatch):
    """Its frames begin with the seed's noise, and the last x0_hat is the picture of that seed."""
    shown = {}
    monkeypatch.setattr(figures, "save_animation", lambda path, x, columns: shown.update(frames=x))
    rows_of = figures.image_rows
    monkeypatch.setattr(
        figures, "image_rows",
        lambda path, rows, *more: (shown.update(rows=rows), rows_of(path, rows, *more)),
    )  # fmt: skip
    p = pipeline("--film", "--sampler", sampler, "--sampling-steps", 30, "--seed", 5)
    seeing.film(p, tmp_path / "film.png")
    ((_, images, _),) = p.batches([5])
    assert len(shown["frames"]) == 30 and shown["frames"][0].shape == (2, *SHAPE)
    torch.testing.assert_close(shown["frames"][-1][1:], images, rtol=0, atol=1e-5)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(shown["frames"][0][0], noise)
    assert list(shown["rows"]) == ["xt", "x0_hat"] and len(shown["rows"]["xt"]) == 10
    torch.testing.assert_close(shown["rows"]["x0_hat"][-1:], images, rtol=0, atol=1e-5)


def test_film_makes_a_strip_and_an_animation(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")  # frames are counted without the bar
    digits("--film", "--num-images", 2, "--sampling-steps", 60)
    assert Image.open(tmp_path / "fig/mnist/film.png").width > 1000
    with Image.open(tmp_path / "fig/mnist/film.gif") as animation:
        assert animation.n_frames == seeing.FRAMES and animation.info["loop"] == 0


def test_interpolation_goes_from_seed_to_seed(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "save_grid", lambda path, x, columns: shown.update(x=x))
    p = pipeline("--interpolate", 4, 11, "--batch", 4)
    seeing.interpolation(p, tmp_path / "i.png", *p.args.interpolate)
    ends = torch.cat([images for _, images, _ in p.batches([4, 11])])
    assert len(shown["x"]) == options.NUM_IMAGES["interpolate"][0]
    torch.testing.assert_close(shown["x"][[0, -1]], ends, rtol=0, atol=1e-4)


def test_neighbours_are_the_nearest(monkeypatch):
    monkeypatch.setattr(seeing, "CHUNK", 7)
    images = torch.randn(30, 2, 4, 4)
    x0 = torch.stack([images[17], images[3] + 0.1])
    distances, indices = nearest(x0, TrainingSet(lambda r: images[list(r)], 30), 4)
    want = (x0[:, None] - images[None]).square().mean(dim=(2, 3, 4)).sqrt()
    assert indices[:, 0].tolist() == [17, 3]
    torch.testing.assert_close(distances, want.sort(dim=1)[0][:, :4], rtol=1e-3, atol=1e-3)
    assert torch.equal(indices, want.argsort(dim=1)[:, :4])
    assert nearest(x0, TrainingSet(lambda r: images[list(r)], 2), 4)[1].shape == (2, 2)


def test_planted_copies_stand_under_their_samples(tmp_path, monkeypatch):
    """A training set that holds the samples themselves: each is its own nearest, at distance 0."""
    shown = {}
    monkeypatch.setattr(
        figures, "image_rows",
        lambda path, rows, title, captions: shown.update(rows=rows, captions=captions),
    )  # fmt: skip
    p = pipeline("--neighbours", "--num-images", 3, "--seed", 2, "--batch", 2)
    copies = torch.cat([x0 for _, _, x0 in p.batches([3, 2, 4])])
    training_set = torch.cat([torch.randn(20, *SHAPE), copies])
    seeing.neighbours(p, tmp_path / "n.png", TrainingSet(lambda r: training_set[list(r)], 23))
    assert shown["captions"]["sample"] == ["seed 2", "seed 3", "seed 4"]
    torch.testing.assert_close(shown["rows"]["nearest"], copies[[1, 0, 2]])
    torch.testing.assert_close(shown["rows"]["sample"], copies[[1, 0, 2]], rtol=0, atol=1e-4)
    assert shown["captions"]["nearest"] == ["0.000"] * 3
    assert list(shown["rows"]) == ["sample", "nearest", "nearest 2", "nearest 3", "nearest 4"]


@pytest.mark.parametrize("known, typed", [({}, ["--data-root", "elsewhere"]),
                                          ({"data_root": "elsewhere"}, [])])  # fmt: skip
def test_neighbours_of_digits_are_mnists(tmp_path, monkeypatch, known, typed):
    """--neighbours looks through the training digits of --data-root, or of the training's own."""
    shown = {}
    facts = asdict(scheduler(clip_x0=True).config)
    facts = {"space": "pixels", "shape": [1, 28, 28], "scheduler": facts, **known}
    save_model(tmp_path / "d.safetensors", randomize(small_unet(1)), facts)
    write_mnist(tmp_path / "elsewhere", train=40, test=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        figures, "image_rows", lambda path, rows, title, captions: shown.update(rows)
    )
    flags = ["--show", "d.safetensors", "--neighbours", "--sampler", "dpm++", *CPU]
    flags += ["--num-images", "2", "--sampling-steps", "2", *typed]
    mnist_diffusion.main(options.parse_mnist(flags))
    digits = to_pixels(mnist_images("elsewhere", "train"))
    errors = (shown["sample"][:, None] - digits[None]).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(shown["nearest"], digits[errors.argmin(dim=1)])


@pytest.mark.parametrize(("columns", "size"), [(3, 8), (5, 64)])
def test_pictures_in_a_grid_end_where_they_end(tmp_path, columns, size):
    """Enlarged, a picture of one colour stays so to its edge, and the lines between are white."""
    x = torch.linspace(-0.9, 0.9, 15).view(5, 3, 1, 1).expand(5, 3, size, size)
    figures.save_grid(tmp_path / "grid.png", x, columns)
    image = np.asarray(Image.open(tmp_path / "grid.png"))
    factor = image.shape[1] // (columns * (size + 2) + 2)
    assert image.shape == (factor * (-(-5 // columns) * (size + 2) + 2),
                           factor * (columns * (size + 2) + 2), 3) and factor > 1  # fmt: skip
    step, line, side = (factor * n for n in (size + 2, 2, size))
    for i in range(5):
        top, left = (line + step * k for k in divmod(i, columns))
        picture = image[top : top + side, left : left + side]
        assert (picture == to_uint8(x)[i, :, 0, 0].numpy()).all()
        assert (image[top - line : top] == 255).all()
        assert (image[:, left - line : left] == 255).all()
