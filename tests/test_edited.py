"""Editing a picture of one's own from end to end: how it is read, what is kept, what is written."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, randomize, run_script, scheduler, small_autoencoder, small_unet
from PIL import Image

from common.errors import UserError
from data.images import open_images
from data.own_picture import read_mask, read_own
from data.pixels import to_pixels, to_uint8
from generation.editing import FEATHER
from training.checkpoint import fingerprint, save_model
from training.fidelity import psnr

DIGITS, FACES = "mnist_diffusion.py", "latent_diffusion.py"
SIZE = {DIGITS: (28, 28), FACES: (32, 64)}  # (H, W)
FEW = ("--sampling-steps", 4, *CPU)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a denoiser for each script, and an autoencoder: random ones."""
    folder = tmp_path_factory.mktemp("trained")
    facts = asdict(scheduler(clip_x0=True).config)
    digits = {"space": "pixels", "shape": [1, 28, 28], "scheduler": facts}
    save_model(folder / f"{DIGITS}.safetensors", randomize(small_unet(1)), digits)
    autoencoder = randomize(small_autoencoder())
    known = {"data": "pictures", "data_root": "data", "size": [32, 64]}
    save_model(folder / "checkpoints/autoencoder/a.safetensors", autoencoder, known)
    faces = {
        "space": "latents", "shape": [3, 8, 16], "size": [32, 64],
        "scheduler": {**facts, "clip_x0": False},
        "latent_stats": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
        "autoencoder_id": fingerprint(autoencoder),
    }  # fmt: skip
    save_model(folder / f"{FACES}.safetensors", randomize(small_unet(3)), faces)
    return folder


def picture(path, width, height, mode="RGB", seed=0, **how):
    """A smooth random picture, written to path and read again: (h, w) or (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path, **how)
    return np.asarray(Image.open(path))


def mask(path, width, height, box):
    """A mask, white in box: left, top, right, bottom."""
    white = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    white[top:bottom, left:right] = 255
    Image.fromarray(white).save(path)
    return white > 0


def edit(folder, script, *flags):
    return run_script(script, "--show", f"{script}.safetensors", *flags, cwd=folder)[1]


def read(path):
    return np.asarray(Image.open(path))


def decibels(before, after):
    """PSNR of two arrays of pixels."""
    x, x_hat = (to_pixels(torch.from_numpy(a.copy())).view(1, 1, 1, -1) for a in (before, after))
    return psnr(x, x_hat).item()


# ---- What comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("script", [DIGITS, FACES])
def test_known_pixels_stay_and_masked_ones_do_not(trained, script):
    """At the network's size and at the picture's own, of which a part is not even seen."""
    (height, width), mode = SIZE[script], {DIGITS: "L", FACES: "RGB"}[script]
    for name, scale in (("small", 1), ("large", 3)):
        h, w = scale * height + 8 * (scale > 1), scale * width
        before = picture(trained / "p.png", w, h, mode)
        white = mask(trained / "m.png", w, h, (w // 4, h // 4, w // 2, h // 2))
        seam, kept = FEATHER * (w > 28), np.ones((h, w), bool)  # digits need no seam at their size
        kept[h // 4 - seam : h // 2 + seam, w // 4 - seam : w // 2 + seam] = False
        flags = ("--inpaint", "p.png", "--mask", "m.png", "--num-images", 2, "--resampling", 2)
        edit(trained, script, *flags, *FEW, "--seed", 6, "--out", name)
        for seed in (6, 7):
            after = read(trained / name / f"seed{seed:06d}_pasted.png")
            assert after.shape == before.shape
            assert (after[kept] == before[kept]).all()
            assert abs(after[white].astype(int) - before[white]).mean() > 5
        made = [read(trained / name / f"seed{seed:06d}.png") for seed in (6, 7)]
        assert made[0].shape[:2] == (height, width) and (made[0] != made[1]).any()
        if scale == 1:
            assert abs(made[1].astype(int) - after).max() <= 1
    assert Image.open(trained / f"fig/{'mnist' if mode == 'L' else 'denoiser'}/inpaint.png")


@pytest.mark.parametrize("script", [DIGITS, FACES])
def test_what_lies_under_the_mask_does_not_matter(trained, script):
    h, w = 90, 180
    before = picture(trained / "p.png", w, h)
    white = mask(trained / "m.png", w, h, (50, 20, 130, 60))
    painted = before.copy()
    painted[white] = (255, 0, 255)
    Image.fromarray(painted).save(trained / "q.png")
    flags = ("--mask", "m.png", "--num-images", 1, "--resampling", 2, *FEW)
    for name in ("p", "q"):
        edit(trained, script, "--inpaint", f"{name}.png", *flags, "--out", name)
    for name in ("seed000000.png", "seed000000_pasted.png"):
        assert (read(trained / "p" / name) == read(trained / "q" / name)).all()


@pytest.mark.parametrize("script", [DIGITS, FACES])
def test_a_full_mask_and_strength_1_give_plain_samples(trained, script):
    height, width = SIZE[script]
    picture(trained / "p.png", 2 * width, 2 * height)
    mask(trained / "m.png", 2 * width, 2 * height, (0, 0, 2 * width, 2 * height))
    many = ("--num-images", 2, "--seed", 3, *FEW)
    edits = {
        "plain": [],
        "inpainted": ["--inpaint", "p.png", "--mask", "m.png"],
        "varied": ["--vary", "p.png", "--strength", 1],
    }
    for name, flags in edits.items():
        edit(trained, script, *many, *flags, "--out", f"{script}-{name}/")
    for name in ("seed000003.png", "seed000004.png"):
        plain = read(trained / f"{script}-plain" / name)
        assert (read(trained / f"{script}-inpainted" / name) == plain).all()
        assert (read(trained / f"{script}-varied" / f"strength1_{name}") == plain).all()


def test_strength_towards_0_is_the_reconstruction(trained):
    before = picture(trained / "p.png", 64, 32)
    out = edit(trained, FACES, "--reconstruct", "p.png", "--out", "rec", *CPU)
    flags = ("--vary", "p.png", "--num-images", 1, "--strength", 0.0001, 0.9, "--out", "var")
    edit(trained, FACES, *flags, *FEW)
    after = read(trained / "rec/result.png")
    assert (read(trained / "var/strength0.0001_seed000000.png") == after).all()
    assert (read(trained / "var/strength0.9_seed000000.png") != after).any()
    told = float(out.split("PSNR of the reconstruction: ")[1].split(" dB")[0])
    assert told == pytest.approx(decibels(before, after), abs=0.05)


@pytest.mark.parametrize("script", [DIGITS, FACES])
def test_inversion_tells_how_near_it_comes_back(trained, script):
    height, width = SIZE[script]
    picture(trained / "p.png", width, height, seed=1)
    picture(trained / "q.png", width, height, seed=2)
    steps = ("--sampling-steps", 10, *CPU)
    one = edit(trained, script, "--invert", "p.png", "--out", "one", *steps)
    two = edit(
        trained, script, "--invert", "p.png", "q.png", "--num-images", 3, "--out", "two", *steps
    )
    there = [line for line in (*one.splitlines(), *two.splitlines()) if "there and back" in line]
    assert there[0].count("dB") == 1 and there[1].count("dB") == 2
    assert there[1].startswith(there[0])
    assert sorted(p.name for p in (trained / "two").iterdir()) == ["0.png", "1.png", "2.png"]
    assert (read(trained / "one/result.png") == read(trained / "two/0.png")).mean() > 0.99
    if script == DIGITS:
        before = np.asarray(Image.open(trained / "p.png").convert("L"))
        told = float(there[0].split(": ")[1].split(" dB")[0])
        assert told == pytest.approx(decibels(before, read(trained / "one/result.png")), abs=0.2)


def test_a_second_edit_replaces_the_first_but_nothing_else(trained):
    picture(trained / "p.png", 28, 28)
    flags = ("--vary", "p.png", "--strength", 0.5, "--num-images", 1, *FEW)
    edit(trained, DIGITS, *flags, "--out", "again")
    edit(trained, DIGITS, *flags, "--out", "again", "--sampler", "ddim")
    picture(trained / "again/strength0.5_seed000000.png", 9, 9)
    assert "was not made here" in refused(trained, DIGITS, *flags, "--out", "again")


# ---- How it is read -----------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "ending", "how"), [
    ("RGB", "png", {}), ("RGB", "jpg", {"quality": 95}), ("L", "png", {}), ("RGBA", "png", {}),
    ("P", "png", {}), ("CMYK", "jpg", {}), ("1", "png", {}), ("I;16", "png", {}), ("I", "tif", {}),
    ("RGB", "webp", {"exif": True}), ("RGB", "jpg", {"exif": True}),
])  # fmt: skip
def test_a_picture_is_read_as_training_images_are(tmp_path, mode, ending, how):
    """Whatever its mode, size, colours and orientation."""
    if "exif" in how:
        exif = Image.Exif()
        exif[274] = 6  # on its side
        how = {"exif": exif}
    path = tmp_path / "pictures" / f"p.{ending}"
    path.parent.mkdir()
    picture(path, 150, 100, mode, **how)
    own = read_own(path, (32, 48), 3)
    _, trained_on = open_images(str(path.parent), None, (32, 48))["train"][0]
    if trained_on.shape[0] == 1:  # of a set of grey pictures
        trained_on = trained_on.expand(3, -1, -1)
    upright = (150, 100) if "exif" in how else (100, 150)
    assert own.pixels.shape == (3, *upright)
    difference = (to_uint8(own.seen())[0].int() - trained_on.int()).abs()
    assert difference.max() <= (3 if ending == "jpg" else 1)


def test_what_is_pasted_lies_where_it_was_seen(tmp_path):
    """What is not seen stays, and what is not changed comes back: nearly, from a smaller copy."""
    for width, height in ((300, 100), (64, 32), (65, 33), (20, 90)):
        picture(tmp_path / "p.png", width, height)
        own = read_own(tmp_path / "p.png", (32, 64), 3)
        whole = to_pixels(own.pixels)[None]
        left, top, right, bottom = own.box
        other = own.pasted(own.seen()[0], 0 * whole, torch.ones(1, 1, height, width))
        seen = torch.zeros(height, width, dtype=torch.bool)
        seen[top:bottom, left:right] = True
        assert (other[:, ~seen] == 0).all() and (bottom - top) * 64 == pytest.approx(
            (right - left) * 32, abs=64
        )
        error = (other - whole[0])[:, seen].abs()
        assert error.max() < 0.25 and error.mean() < 0.02
        if (width, height) in ((64, 32), (65, 33)):
            assert error.max() == 0


@pytest.mark.parametrize("size", [(150, 100), (75, 50), (300, 200), (76, 50)])
def test_a_mask_of_the_same_shape_is_resized_with_a_note(tmp_path, size, capsys):
    picture(tmp_path / "p.png", 150, 100)
    width, height = size
    mask(tmp_path / "m.png", width, height, (0, 0, width // 2, height))
    own = read_own(tmp_path / "p.png", (32, 48), 3)
    white = read_mask(tmp_path / "m.png", own, "p.png")
    assert white.shape == (1, 1, 100, 150) and white.float().mean() == pytest.approx(0.5, abs=0.01)
    note = f"m.png, {width} x {height}, is resized to 150 x 100, as p.png is"
    assert (note in capsys.readouterr().out) == (size != (150, 100))


# ---- What is refused ----------------------------------------------------------------------------


def refused(folder, script, *flags):
    """The one line that it says, with status 2."""
    words = ("--show", f"{script}.safetensors", *flags)
    status, _, stderr = run_script(script, *words, cwd=folder, check=False)
    assert status == 2 and stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.parametrize(("image", "path", "message"), [
    ("p.png", "other.png", "the mask other.png is 40 x 40, but p.png is 80 x 40, which is of "),
    ("p.png", "black.png", "the mask black.png has no white where p.png is seen"),
    ("wide.png", "unseen.png", "the mask unseen.png has no white where wide.png is seen"),
    ("p.png", "text.png", "text.png cannot be read: not an image, or damaged"),
    ("p.png", "none.png", "none.png cannot be read: No such file or directory"),
    ("text.png", "m.png", "text.png cannot be read: not an image, or damaged"),
    (".", "m.png", ". cannot be read: not a regular file"),
])  # fmt: skip
def test_pictures_and_masks_that_do_not_do_are_named(tmp_path, monkeypatch, image, path, message):
    monkeypatch.chdir(tmp_path)
    picture("p.png", 80, 40)
    picture("wide.png", 400, 40)
    mask("m.png", 80, 40, (0, 0, 9, 9))
    mask("other.png", 40, 40, (0, 0, 9, 9))
    mask("black.png", 80, 40, (0, 0, 0, 0))
    mask("unseen.png", 400, 40, (0, 0, 9, 40))
    Path("text.png").write_text("no picture")
    with pytest.raises(UserError) as error:
        read_mask(path, read_own(image, (28, 28), 1), image)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_bad_input_is_refused_before_anything_is_written(trained):
    picture(trained / "p.png", 80, 40)
    mask(trained / "black.png", 80, 40, (0, 0, 0, 0))
    before = sorted(trained.rglob("*"))
    for flags in (
        ["--inpaint", "p.png", "--mask", "black.png"],
        ["--vary", "none.png", "--out", "new"],
        ["--invert", "p.png", "none.png", "--out", "new/x.png"],
    ):
        refused(trained, DIGITS, *flags, *CPU)
    assert sorted(trained.rglob("*")) == before
