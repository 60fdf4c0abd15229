"""The checkpoints that come with the code still make the pictures that were stored with them."""

from pathlib import Path

import numpy as np
import pytest
from helpers import CPU, ROOT, run_script
from PIL import Image

from training.checkpoint import load_facts

SHIPPED = {
    "denoiser/faces64": "latent_diffusion.py",
    "mnist/digits": "mnist_diffusion.py",
}
FLAGS = ("--sampler", "dpm++", "--num-images", 6, *CPU)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoints_make_the_stored_pictures(name, tmp_path):
    """Run to store them anew: the command below with --out tests/shipped/NAME.png."""
    checkpoint = f"checkpoints/{name}.safetensors"
    out = tmp_path / "made.png"
    _, stdout, _ = run_script(SHIPPED[name], "--show", checkpoint, *FLAGS, "--out", out, cwd=ROOT)
    made, stored = (
        np.asarray(Image.open(path), dtype=int)
        for path in (out, Path(__file__).parent / "shipped" / f"{Path(name).name}.png")
    )
    assert made.shape == stored.shape
    assert np.abs(made - stored).mean() < 2  # of 255; other processors round otherwise
    assert stored.std() > 30  # it is no empty picture
    assert "terms:" in stdout


@pytest.mark.parametrize("path", [*SHIPPED, "autoencoder/faces64"])
def test_shipped_checkpoints_say_what_they_are(path):
    facts = load_facts(ROOT / "checkpoints" / f"{path}.safetensors")
    assert {"data", "seen", "time", "machine", "numbers", "terms"} <= facts["card"].keys()
    assert facts["data_root"] == "data"
