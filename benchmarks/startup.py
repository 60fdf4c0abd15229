"""How long a user waits for help, and for a training's first step."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.pipeline import CELEBA
from benchmarks.report import ROOT, python
from data.synthetic import draw_face
from training.figures import save_image

SCRIPTS = {
    "mnist_diffusion.py": ["--train", "--data-root", "."],
    "train_encoder.py": ["--data", "pictures", "--name", "first"],
    "latent_diffusion.py": [
        "--train", "--encoder", "checkpoints/autoencoder/first_epoch0001.safetensors",
    ],
}  # fmt: skip
# Runs a script until its first step of an optimizer is done, and then says how long that took.
UNTIL_FIRST_STEP = """
import os, runpy, sys, time
began = {began}
sys.argv = {argv!r}
from benchmarks import report
from training import optimizer
step = optimizer.Optimizer.step
def first(self, loss, rate):
    step(self, loss, rate)
    report.synchronize()
    print(time.time() - began, flush=True)
    os._exit(0)
optimizer.Optimizer.step = first
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def startup(report, runtime):
    """Seconds until --help has answered, and until the first training step is done."""
    for script in SCRIPTS:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, ROOT / script, "--help"], capture_output=True, check=True
            )
            times.append(time.perf_counter() - began)
        report.add(f"{script} --help", statistics.median(times), "s", "<= 0.5")
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder))
        for i in range(300):
            path = Path(folder, "pictures", f"{i:03d}.jpg")
            save_image(path, Image.fromarray(draw_face(i, CELEBA)))
        for script, arguments in SCRIPTS.items():
            machine = "--device", runtime.device.type, "--precision", runtime.precision
            argv = [str(ROOT / script), *arguments, *machine, "--compile", "off"]
            if script == "latent_diffusion.py":  # an autoencoder, and its latents cached
                steps = "--steps", "1", "--gan-weight", "0"
                encoder = [str(ROOT / "train_encoder.py"), *SCRIPTS["train_encoder.py"], *steps]
                encoder += machine
                for command in (encoder, [*argv, "--steps", "1"]):
                    subprocess.run([sys.executable, *command], cwd=folder, check=True,
                                   capture_output=True)  # fmt: skip
            times = []
            for _ in range(3):
                code = UNTIL_FIRST_STEP.format(began=time.time(), argv=argv)
                times.append(float(python(code, cwd=folder)))
            report.add(f"{script}, start to first step", statistics.median(times), "s", "<= 5")


def write_digits(root):
    """MNIST's training and test files, of random pixels."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train-images-idx3-ubyte", 60_000), ("t10k-images-idx3-ubyte", 10_000)):
        header = np.array([2051, n, 28, 28], ">u4").tobytes()
        (folder / name).write_bytes(header + rng.integers(0, 256, n * 784, np.uint8).tobytes())
