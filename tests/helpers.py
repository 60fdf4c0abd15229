"""What several tests need: small networks, random weights, running a script as a user does."""

import io
import os
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import latent_diffusion
import mnist_diffusion
import train_encoder
from command_line.parsers import parse_encoder, parse_latent, parse_mnist
from generation.pipeline import Pipeline
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.perceptual import PerceptualLoss
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.unet import UNet, UNetConfig
from training.checkpoint import load_model
from training.codec import PixelCodec
from training.progress import Progress
from training.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = os.environ.get("TEST_DATA_ROOT")
CPU = ["--device", "cpu", "--precision", "fp32"]
DISPLAYS = "DISPLAY", "WAYLAND_DISPLAY"
MEAN, STD = 0.7, 0.5  # of the Gaussian x0 whose denoiser is known exactly


def cpu(precision="fp32"):
    """The Runtime of a CPU."""
    return Runtime("cpu", precision)


def randomize(model, seed=0):
    """Fill every tensor with small random numbers: nothing may stay zero-initialised."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def small_unet(in_channels=1, channels=(8, 16, 16), blocks=1):
    return UNet(UNetConfig(in_channels, channels, blocks, 8, 0.0))


def small_autoencoder(image_channels=3, channels=(8, 16, 16)):
    return AutoencoderKL(AutoencoderConfig(image_channels, 3, channels, 1, 8))


def small_perceptual(seed=0):
    """A PerceptualLoss of two layers with random weights."""
    convs = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
    slices = [nn.Sequential(randomize(conv, seed), nn.Softplus()) for conv in convs]
    return PerceptualLoss(slices, [0.1, 0.0, -0.1], [0.5, 0.4, 0.6])


def scheduler(num_steps=1000, clip_x0=False, schedule="linear", prediction="eps"):
    return DDPMScheduler(SchedulerConfig(num_steps, schedule, prediction, clip_x0))


def small_pipeline(sampler="ddpm", steps=4, batch=64, eta=0.0, sigma_scale=1.0):
    """A Pipeline that makes pictures of (1, 8, 8) in memory."""
    settings = {"eta": eta, "sigma_scale": sigma_scale}
    model, s = randomize(small_unet(1)), scheduler(clip_x0=True)
    return Pipeline(cpu(), model, s, (1, 8, 8), PixelCodec(), sampler, steps, settings, batch)


def exact_denoiser(s):
    """E[eps | xt] for x0 ~ N(MEAN, STD^2): linear in xt."""

    def model(xt, t):
        alpha_bar = s.alpha_bar[t].view(-1, 1, 1, 1)
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (xt - alpha_bar.sqrt() * MEAN) / variance

    return model


def exact_v(s):
    """E[v | xt] for the same x0, as a network that predicts v would put it out."""

    def model(xt, t):
        alpha_bar = s.alpha_bar[t].view(-1, 1, 1, 1)
        eps_hat = exact_denoiser(s)(xt, t)
        x0_hat = (xt - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()
        return alpha_bar.sqrt() * eps_hat - (1 - alpha_bar).sqrt() * x0_hat

    return model


def run_digits(*flags, device="cpu"):
    """mnist_diffusion.py in fp32 with these flags beside --train."""
    _run(device, mnist_diffusion.main, parse_mnist, "--train", *flags)


def run_encoder(*flags, device="cpu"):
    """train_encoder.py in fp32 with these flags."""
    _run(device, train_encoder.main, parse_encoder, *flags)


def run_latent(*flags, device="cpu"):
    """latent_diffusion.py in fp32 with these flags beside --train."""
    _run(device, latent_diffusion.main, parse_latent, "--train", *flags)


def _run(device, main, parse, *flags):
    """main(arguments), which must leave them as they were."""
    machine = "--device", device, "--precision", "fp32"
    args = parse([str(flag) for flag in (*flags, *machine)])
    before = dict(vars(args))
    try:
        main(args)
    finally:
        assert vars(args) == before


def interrupt(monkeypatch, after):
    """Press Ctrl-C in the middle of a run's step `after`, counted from 1."""
    add = Progress.add

    def interrupted(progress, **values):
        if progress.done + 1 == after:
            signal.raise_signal(signal.SIGINT)
        add(progress, **values)

    monkeypatch.setattr(Progress, "add", interrupted)


def assert_same_weights(kind, *paths):
    """Two checkpoints of a kind of network hold the same, to the bit."""
    one, other = (load_model(path, kind)[0].state_dict() for path in paths)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def run_script(script, *arguments, cwd, check=True):
    """Run a script of the project in folder cwd, without a display; (status, stdout, stderr).

    In this process, because starting Python and torch anew takes seconds; run_process starts one.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        for name in DISPLAYS:
            patch.delenv(name, raising=False)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code
    if status == 130:  # Ctrl-C is meant for pytest
        raise KeyboardInterrupt
    if check:
        assert not status, err.getvalue()
    return status, out.getvalue(), err.getvalue()


def run_process(script, *arguments, cwd):
    """The same in a process of its own, as a user does."""
    env = {k: v for k, v in os.environ.items() if k not in DISPLAYS}
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def run_python(code, cwd):
    """Run a piece of Python in folder cwd, the project on its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def write_images(folder, n, size=(40, 48), mode="RGB", seed=0):
    """n smooth random pictures of (width, height) = size as PNG, named 00.png, 01.png, .."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / f"{i:02d}.png")
    return folder


def write_mnist(root, train=300, test=64, gz=True, labels=False):
    """Idx files of blob "digits" in root/MNIST/raw, as MNIST's own are laid out. labels: also what
    they are, by the place of the blob."""
    import gzip

    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, n in (("train-images-idx3-ubyte", train), ("t10k-images-idx3-ubyte", test)):
        y, x = np.mgrid[:28, :28]
        center = rng.uniform(8, 20, (n, 2, 1, 1))
        images = 255 * np.exp(-((x - center[:, 0]) ** 2 + (y - center[:, 1]) ** 2) / 20)
        if labels:
            what = (10 * (center[:, 0, 0, 0] - 8) / 12).astype(np.uint8)
            header = np.array([2049, n], ">u4").tobytes()
            (raw / name.replace("images-idx3", "labels-idx1")).write_bytes(header + what.tobytes())
        header = np.array([2051, n, 28, 28], ">u4").tobytes()
        content = header + images.astype(np.uint8).tobytes()
        if gz:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    return root


def tree(root):
    """{path: content} of all files in a folder."""
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
