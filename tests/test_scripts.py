"""The three commands as a user runs them: what they leave, and what bad input gets."""

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    ROOT,
    randomize,
    run_process,
    run_script,
    scheduler,
    small_autoencoder,
    small_unet,
    write_images,
    write_mnist,
)
from PIL import Image

from data.pixels import to_uint8
from generation.pipeline import load_denoiser
from models.diffusion import epsilon
from models.samplers import picture_noise, sample
from training.checkpoint import load_model, save_model
from training.first_stage import encoder_id

SCHEDULER = asdict(scheduler(clip_x0=True).config)
FEW = ("--num-images", 3, "--sampling-steps", 4, *CPU)
PIXELS = {"space": "pixels", "shape": [1, 28, 28], "scheduler": SCHEDULER}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which someone has checkpoints: digits, two autoencoders, one denoiser."""
    folder = tmp_path_factory.mktemp("trained")
    digits = randomize(small_unet(1))
    save_model(folder / "digits.safetensors", digits, PIXELS)
    for i in range(2):
        autoencoder = randomize(small_autoencoder(), i)
        facts = {"data": "pictures", "data_root": "data", "size": [16, 32]}
        save_model(folder / f"checkpoints/autoencoder/{i}.safetensors", autoencoder, facts)
    facts = {
        "space": "latents",
        "shape": [3, 4, 8],
        "size": [16, 32],
        "scheduler": {**SCHEDULER, "clip_x0": False},
        "latent_stats": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
        "autoencoder_id": encoder_id(randomize(small_autoencoder(), 1)),
    }
    save_model(folder / "faces.safetensors", randomize(small_unet(3)), facts)
    write_mnist(folder / "data", train=40, test=8)
    write_images(folder / "pictures", 4, (32, 16))
    return folder


def refused(script, *arguments, cwd):
    """The one line that a script gives for bad input; checks status 2 and that nothing was made."""
    before = {p: p.stat().st_mtime_ns for p in cwd.rglob("*")}
    status, _, stderr = run_script(script, *arguments, cwd=cwd, check=False)
    assert status == 2, (status, stderr)
    lines = [line for line in stderr.splitlines() if not line.startswith("skipped")]
    assert len(lines) == 1 and lines[0].startswith(f"{script}: error: "), stderr
    assert {p: p.stat().st_mtime_ns for p in cwd.rglob("*")} == before
    return lines[0]


# ---- What works ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "arguments", "status"), [
    ("mnist_diffusion.py", ("--show", "digits.safetensors", *FEW), 0),
    ("latent_diffusion.py", ("--show", "digits.safetensors"), 2),
])  # fmt: skip
def test_a_process_of_its_own_says_the_same(trained, script, arguments, status):
    """The other tests run scripts within this process; a user does not."""
    own = run_process(script, *arguments, cwd=trained)
    within = run_script(script, *arguments, cwd=trained, check=False)
    assert own[0] == within[0] == status
    assert own[1].split(" in ")[0] == within[1].split(" in ")[0]  # "saved .. in 0.1 s"
    if status:
        assert own[2] == within[2] and own[2].count("\n") == 1


def test_show_pixels_as_grid_and_folder(trained):
    arguments = ("--show", "digits.safetensors", *FEW)
    _, stdout, _ = run_script("mnist_diffusion.py", *arguments, cwd=trained)
    assert "saved fig/mnist/generated.png" in stdout
    assert Image.open(trained / "fig/mnist/generated.png").width >= 500
    run_script("mnist_diffusion.py", *arguments, "--seed", 5, "--out", "single", cwd=trained)
    names = sorted(p.name for p in (trained / "single").iterdir())
    assert names == ["seed000005.png", "seed000006.png", "seed000007.png"]
    # Picture i of seed s is picture 0 of seed s + i, in a batch of any size.
    more = ("--seed", 6, "--batch", 1, "--out", "again")
    run_script("mnist_diffusion.py", *arguments, *more, cwd=trained)
    one, other = (
        np.asarray(Image.open(trained / folder / "seed000006.png"), dtype=int)
        for folder in ("single", "again")
    )
    assert one.shape == (28, 28) and one.std() > 1 and abs(one - other).max() <= 1


def test_show_latents_with_and_without_encoder(trained):
    arguments = ("--show", "faces.safetensors", *FEW)
    named = ("--encoder", "checkpoints/autoencoder/1.safetensors", "--out", "named.png")
    run_script("latent_diffusion.py", *arguments, *named, cwd=trained)
    run_script("latent_diffusion.py", *arguments, "--out", "found.png", cwd=trained)
    assert (trained / "named.png").read_bytes() == (trained / "found.png").read_bytes()
    run_script(
        "latent_diffusion.py", *arguments, "--out", "low.jpg", "--sigma-scale", 0.5, cwd=trained
    )
    assert Image.open(trained / "low.jpg").format == "JPEG"
    low = np.asarray(Image.open(trained / "low.jpg").convert("RGB"), dtype=int)
    full = np.asarray(Image.open(trained / "found.png").convert("RGB"), dtype=int)
    assert abs(low - full).mean() > 0.1


def test_show_decodes_unwhitened_samples(trained):
    flags = ("--show", "faces.safetensors", *FEW, "--out", "unwhitened")
    run_script("latent_diffusion.py", *flags, cwd=trained)
    model, s, _ = load_denoiser(trained / "faces.safetensors", "latents")
    z = sample(epsilon(model, s), s, picture_noise([0, 1, 2], (3, 4, 8), "cpu"), "ddpm", 4)
    std, mean = (torch.tensor(v)[:, None, None] for v in ([1.0, 2, 3], [0.1, 0.2, 0.3]))
    autoencoder = randomize(small_autoencoder(), 1)
    with torch.no_grad():
        want, other = (to_uint8(autoencoder.decode(v)).int() for v in (z * std + mean, z))
    for seed, picture in enumerate(want):
        path = trained / "unwhitened" / f"seed{seed:06d}.png"
        got = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).int()
        assert (got - picture).abs().max() <= 1
    assert (want - other).abs().max() > 5  # else this shows nothing


@pytest.fixture
def documented(trained, tmp_path, monkeypatch):
    """run(word): the piece of Python in the documentation that has this word in it, in a folder
    with the files that it names."""
    for source, name in (
        ("checkpoints/autoencoder/1", "autoencoder/AAA"),
        ("faces", "denoiser/DDD"),
    ):
        path = tmp_path / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        shutil.copy(trained / f"{source}.safetensors", path)
    Image.open(trained / "pictures" / "00.png").save(tmp_path / "face.jpg")
    monkeypatch.chdir(tmp_path)
    documents = [path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    pieces = re.findall(r"```python\n(.*?)```", "".join(documents), re.DOTALL)

    def run(word):
        (piece,) = [piece for piece in pieces if word in piece]
        scope = {}
        exec(compile(piece, word, "exec"), scope)
        return scope

    return run


def test_documentation_encodes_samples_and_decodes(documented):
    scope = documented("picture_noise")
    assert scope["x0"].shape == (1, 3, 4, 8) and scope["x"].abs().max() <= 1
    drawn = scope["stats"].unwhiten(scope["x0"])  # within 6 standard deviations of the mean
    std = (0.5 * scope["posterior"].logvar).exp()
    assert ((drawn - scope["posterior"].mean).abs() < 6 * std).all()
    assert scope["pictures"].shape == (2, 3, 16, 32) and scope["pictures"].dtype == torch.uint8
    assert not torch.equal(*scope["pictures"])


def test_documentation_loads_a_denoiser_into_diffusers(documented):
    pytest.importorskip("diffusers")
    theirs = documented("UNet2DModel")["unet"].eval()
    ours = load_denoiser("checkpoints/denoiser/DDD.safetensors", "latents")[0]
    x, t = torch.randn(2, 3, 4, 8), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, t).sample, ours(x, t), rtol=0, atol=1e-6)


def test_training_on_pictures_end_to_end(tmp_path, monkeypatch):
    """The README's four steps, as small as they go: checkpoints, cache and figures appear."""
    monkeypatch.setattr("training.denoiser.PREVIEW_STEPS", 5)
    cpu = ("--device", "cpu", "--precision", "fp32", "--compile", "off")
    tiny = ("--channels", 8, "--batch", 2, "--steps", 2, "--name", "t", *cpu)
    size = ("--data", "pictures", "--size", "32x16")
    write_images(tmp_path / "pictures", 8, (16, 32))
    status, stdout, stderr = run_process("train_encoder.py", *size, *tiny, cwd=tmp_path)
    assert status == 0, stderr
    assert all(word in stdout for word in ("machine:", "data:", "training:", "network:"))
    encoder = ("--encoder", "checkpoints/autoencoder/t_epoch0001.safetensors")
    train = ("--train", *encoder, *tiny, "--blocks", 1)
    _, stdout, _ = run_script("latent_diffusion.py", *train, cwd=tmp_path)
    assert re.search(r"encoding 8 images of pictures into \S+: [\d.]+ MB", stdout)
    show = ("--show", "checkpoints/denoiser/t_epoch0001.safetensors", *encoder, *FEW)
    run_script("latent_diffusion.py", *show, cwd=tmp_path)
    run_script("latent_diffusion.py", *show, "--neighbours", "--sampler", "dpm++", cwd=tmp_path)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*") if p.is_file()}
    assert {
        "checkpoints/autoencoder/t_epoch0001.safetensors",
        "checkpoints/autoencoder/t.state",
        "checkpoints/discriminator/t_epoch0001.safetensors",
        "checkpoints/denoiser/t_epoch0001.safetensors",
        "fig/autoencoder/reconstructions.png",
        "fig/autoencoder/confidences.png",
        "fig/autoencoder/latents.png",
        "fig/autoencoder/losses.png",
        "fig/denoiser/samples.png",
        "fig/denoiser/predictions.png",
        "fig/denoiser/losses.png",
        "fig/denoiser/bands.png",
        "fig/denoiser/generated.png",
        "fig/denoiser/neighbours.png",
        "fig/denoiser/t/metrics.jsonl",
        "fig/denoiser/t/losses.png",
    } <= left
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("fig/*/*.png"))
    assert not [name for name in left if name.endswith(".tmp")]
    assert len([name for name in left if name.endswith("manifest.json")]) == 1
    message = refused("train_encoder.py", *size, *tiny, cwd=tmp_path)
    assert "--name t is taken" in message


@pytest.mark.parametrize(("name", "whole_group"), [("SIGINT", False), ("SIGTERM", True)])
def test_a_stop_ends_the_workers_and_saves_the_state(tmp_path, name, whole_group):
    """Ctrl-C, and what timeout, SLURM, systemd and docker send, to the processes that decode too:
    128 and the signal as status, no traceback, a state and a checkpoint."""
    write_images(tmp_path / "pictures", 12, (16, 16))
    arguments = ["--data", "pictures", "--size", "16x16", "--channels", "8", "--batch", "2"]
    arguments += ["--steps", "4000", "--workers", "2", "--device", "cpu", "--compile", "off"]
    command = [sys.executable, str(ROOT / "train_encoder.py"), *arguments, "--name", "a"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "fig/autoencoder/a/metrics.jsonl").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"no step after two minutes: {process.communicate()[1]}")
            time.sleep(0.1)
        send, number = os.killpg if whole_group else os.kill, getattr(signal, name)
        asked = time.monotonic()
        send(process.pid, number)
        _, stderr = process.communicate(timeout=60)
        assert time.monotonic() - asked < 10
    assert process.returncode == 128 + number and "Traceback" not in stderr, stderr
    folder = tmp_path / "checkpoints/autoencoder"
    assert sorted(p.name for p in folder.iterdir()) == ["a.state"]


# ---- What bad input gets ------------------------------------------------------------------------

SHOW = ("--show", "digits.safetensors")
ENCODER = ("--encoder", "checkpoints/autoencoder/1.safetensors")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("mnist_diffusion.py", (), "one of the arguments --train --show --evaluate is required"),
        ("mnist_diffusion.py", ("--train", *SHOW), "not allowed with argument"),
        ("mnist_diffusion.py", (*SHOW, "--epochs", 3), "--epochs does not go with --show"),
        ("mnist_diffusion.py", ("--train", "--num-images", 3), "does not go with --train"),
        ("mnist_diffusion.py", ("--train", "--epochs", 0), "0 is no whole number from 1"),
        ("mnist_diffusion.py", ("--train", "--epochs", "many"), "many is no whole number"),
        ("mnist_diffusion.py", ("--train", "--lr", "nan"), "nan is no number above 0 to 1"),
        ("mnist_diffusion.py", ("--train", "--lr", 0), "0 is no number above 0 to 1"),
        ("mnist_diffusion.py", ("--train", "--ema", 1), "1 is no number from 0 to below 1"),
        ("mnist_diffusion.py", ("--train", "--steps", 1, "--epochs", 1), "not allowed with"),
        ("mnist_diffusion.py", ("--train", "--name", "a/b"), "a/b is no name"),
        ("mnist_diffusion.py", ("--train", "--batch", 1.5), "1.5 is no whole number"),
        ("mnist_diffusion.py", ("--train", "--precision", "fp8"), "invalid choice"),
        ("mnist_diffusion.py", ("--train", "--unknown"), "unrecognized arguments"),
        ("mnist_diffusion.py", ("--train", "--resume"), "no .state file in checkpoints/mnist"),
        ("mnist_diffusion.py", ("--train", "--resume", "no"), "no .state file in checkpoints/"),
        ("mnist_diffusion.py", ("--train", "--channels", 12), "12 is no whole number"),
        ("mnist_diffusion.py", ("--train", "--device", "nonsense"), "--device nonsense cannot"),
        ("mnist_diffusion.py", ("--show", ""), "no checkpoint"),
        ("mnist_diffusion.py", ("--show", "no.safetensors"), "no checkpoint no.safetensors"),
        ("mnist_diffusion.py", ("--show", "faces.safetensors"), "show it with latent_diffusion.py"),
        ("mnist_diffusion.py", (*SHOW, "--sampling-steps", 1001), "must be 1 to 1000"),
        ("mnist_diffusion.py", (*SHOW, "--sampling-steps", 0), "0 is no whole number"),
        ("mnist_diffusion.py", (*SHOW, "--sampler", "euler"), "invalid choice: 'euler'"),
        ("mnist_diffusion.py", (*SHOW, "--eta", 0.5), "--eta is for --sampler ddim"),
        ("mnist_diffusion.py", (*SHOW, "--sampler", "dpm++", "--eta", 1), "does nothing in dpm++"),
        ("mnist_diffusion.py", (*SHOW, "--sampler", "ddim", "--eta", 2), "2 is no number from 0"),
        ("mnist_diffusion.py", (*SHOW, "--sampler", "dpm++", "--sigma-scale", 0.9),
         "scales the noise of each step, but dpm++ adds none"),
        ("mnist_diffusion.py", (*SHOW, "--sampler", "ddim", "--sigma-scale", 0.9),
         "but ddim adds none"),
        ("mnist_diffusion.py", (*SHOW, "--interpolate", 1, "b"), "b is no whole number"),
        ("mnist_diffusion.py", (*SHOW, "--interpolate", 1), "expected 2 arguments"),
        ("mnist_diffusion.py", (*SHOW, "--interpolate", 1, 2, "--num-images", 1), "2 or more"),
        ("mnist_diffusion.py", (*SHOW, "--interpolate", 1, 2, "--seed", 3), "--seed does not go"),
        ("mnist_diffusion.py", (*SHOW, "--film", "--num-images", 9), "at most 8 pictures"),
        ("mnist_diffusion.py", (*SHOW, "--neighbours", "--num-images", 101), "at most 100"),
        ("mnist_diffusion.py", ("--evaluate", "a", "--num-images", 1), "2 or more"),
        ("mnist_diffusion.py", (*SHOW, "--film", "--neighbours"), "not allowed with"),
        ("mnist_diffusion.py", (*SHOW, "--film", "--batch", 2), "--batch does not go with --film"),
        ("mnist_diffusion.py", (*SHOW, "--film", "--out", "folder"), "--film makes a .png"),
        ("mnist_diffusion.py", ("--train", "--film"), "--film does not go with --train"),
        ("mnist_diffusion.py", (*SHOW, "--data-root", "data"), "--data-root does not go with"),
        ("latent_diffusion.py", ("--show", "faces.safetensors", "--neighbours"),
         "--neighbours needs the latents that faces.safetensors was trained on"),
        ("mnist_diffusion.py", (*SHOW, "--sigma-scale", -1), "-1 is no number from 0 to 10"),
        ("mnist_diffusion.py", (*SHOW, "--seed", "x"), "x is no whole number"),
        ("mnist_diffusion.py", (*SHOW, "--out", "digits.safetensors"), "is a file, not a folder"),
        ("latent_diffusion.py", ("--train",), "--train needs --encoder"),
        ("latent_diffusion.py", ("--show", "digits.safetensors"), "show it with mnist_diffusion"),
        ("latent_diffusion.py", ("--train", "--encoder", "faces.safetensors"),
         "holds a UNet, but a AutoencoderKL is needed"),
        ("latent_diffusion.py", ("--train", *ENCODER, "--size", "20x32"), "that works is 16x32"),
        ("latent_diffusion.py", ("--train", *ENCODER, "--data", "nowhere"), "no such folder"),
        ("train_encoder.py", ("--data", "nowhere"), "nowhere: no such folder, zip or tar"),
        ("train_encoder.py", ("--data", "checkpoints/autoencoder"), "no readable image"),
        ("train_encoder.py", ("--data", "digits.safetensors"), "not a readable zip"),
        ("train_encoder.py", ("--data", "pictures", "--size", "30x40"), "that works is 32x"),
        ("train_encoder.py", ("--data", "pictures", "--size", "big"), "big is no size; write HxW"),
        ("train_encoder.py", ("--gan-weight", -1), "-1 is no number from 0"),
        ("train_encoder.py", ("--data", "pictures", "--channels", 12), "12 is no whole number"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(trained, script, arguments, message):
    assert message in refused(script, *arguments, cwd=trained)


def test_wrong_encoder_is_refused_with_both_names(trained):
    wrong = ("--encoder", "checkpoints/autoencoder/0.safetensors")
    message = refused("latent_diffusion.py", "--show", "faces.safetensors", *wrong, cwd=trained)
    for i in range(2):
        assert encoder_id(randomize(small_autoencoder(), i))[:8] in message
    assert "pass the matching --encoder" in message


def test_missing_encoder_is_asked_for(trained, tmp_path):
    show = ("--show", trained / "faces.safetensors")
    message = refused("latent_diffusion.py", *show, cwd=tmp_path)
    assert "not in checkpoints/autoencoder; pass it as --encoder" in message


@pytest.mark.parametrize(("damage", "message"), [
    (lambda b: b[:-7], "truncated"),
    (lambda b: b"no safetensors", "truncated or no safetensors"),
    (lambda b: b.replace(b'"version":"1"', b'"version":"2"'), "version 2 of the format"),
])  # fmt: skip
def test_damaged_checkpoints(trained, tmp_path, damage, message):
    content = (trained / "digits.safetensors").read_bytes()
    assert struct.unpack("<Q", content[:8])[0] < len(content)
    (tmp_path / "d.safetensors").write_bytes(damage(content))
    assert message in refused("mnist_diffusion.py", "--show", "d.safetensors", cwd=tmp_path)


@pytest.mark.parametrize(("script", "arguments", "message"), [
    ("mnist_diffusion.py", ["--train"], "train-images-idx3-ubyte.gz and so on"),
    ("train_encoder.py", [], "put img_align_celeba.zip"),
])  # fmt: skip
def test_empty_data_roots_say_what_to_put_where(tmp_path, downloads, script, arguments, message):
    """Where the download fails, after one try, one line says what to do; nothing is left behind."""
    assert message in refused(script, *arguments, "--data-root", "empty", cwd=tmp_path)
    assert len(downloads) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("script", "arguments", "blocked"), [
    ("mnist_diffusion.py", ["--train"], "checkpoints/mnist"),
    ("mnist_diffusion.py", ["--train"], "fig/mnist"),
    ("train_encoder.py", ["--data", "pictures", "--size", "16x16"], "checkpoints/discriminator"),
])  # fmt: skip
def test_a_run_that_cannot_save_does_not_begin(tmp_path, script, arguments, blocked):
    write_mnist(tmp_path / "data", train=16)
    write_images(tmp_path / "pictures", 4)
    (tmp_path / blocked).parent.mkdir()
    (tmp_path / blocked).write_text("a file")
    arguments += ["--device", "cpu"]
    status, out, err = run_script(script, *arguments, cwd=tmp_path, check=False)
    assert status == 2 and re.match(rf"{script}: error: {blocked}\S* cannot be made \(", err)
    assert len(err.splitlines()) == 1 and "machine:" not in out


def test_facts_that_do_not_fit_together_are_refused_before_anything_is_made(trained):
    """Digits of another size; latents that the autoencoder does not make."""
    model, facts = load_model(trained / "digits.safetensors", "UNet")
    save_model(trained / "wide.safetensors", model, {**facts, "shape": [1, 32, 32]})
    message = refused("mnist_diffusion.py", "--show", "wide.safetensors", cwd=trained)
    assert "wide.safetensors makes pictures of [1, 32, 32], but digits are [1, 28, 28]" in message
    model, facts = load_model(trained / "faces.safetensors", "UNet")
    save_model(trained / "wide.safetensors", model, {**facts, "shape": [3, 8, 8]})
    message = refused("latent_diffusion.py", "--show", "wide.safetensors", *ENCODER, cwd=trained)
    assert "wide.safetensors makes latents of [3, 8, 8], but" in message
