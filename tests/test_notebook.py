"""The notebook: stored clean, and executed from its first cell to its last, with short settings."""

import json
import re
import shutil
from dataclasses import asdict

import pytest
from helpers import (
    ROOT,
    randomize,
    scheduler,
    small_autoencoder,
    small_unet,
    write_images,
    write_mnist,
)
from test_architecture import ALLOWED

from training.checkpoint import save_model
from training.first_stage import encoder_id

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SHIPPED = "autoencoder/faces64", "denoiser/faces64", "mnist/digits"


def cells(kind):
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.fixture
def clone(tmp_path):
    """A copy of the code with the shipped checkpoints, or tiny ones where they are missing."""
    folder = tmp_path / "clone"
    for room in (*ALLOWED, "notebooks"):
        shutil.copytree(ROOT / room, folder / room, ignore=lambda path, names: [
            name for name in names if not name.endswith((".py", ".ipynb"))])  # fmt: skip
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    for name in SHIPPED:
        path = folder / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path.relative_to(folder)).is_file():
            shutil.copy(ROOT / path.relative_to(folder), path)
        else:
            write_stand_in(path)
    write_mnist(folder / "data", train=40, test=8)
    write_images(folder / "my flowers", 12, (40, 48))
    return folder


def write_stand_in(path):
    coder, known = randomize(small_autoencoder()), {"data": "celeba", "data_root": "data"}
    noise = asdict(scheduler(prediction="v", schedule="cosine").config)
    latents = {
        **known, "space": "latents", "shape": [3, 4, 4], "size": [16, 16], "scheduler": noise,
        "latent_stats": {"mean": [0.0] * 3, "std": [1.0] * 3}, "autoencoder_id": encoder_id(coder),
    }  # fmt: skip
    pixels = asdict(scheduler(clip_x0=True).config)
    made = {
        "autoencoder": (coder, {**known, "size": [16, 16]}),
        "denoiser": (randomize(small_unet(3)), latents),
        "mnist": (
            randomize(small_unet(1)),
            {"space": "pixels", "shape": [1, 28, 28], "scheduler": pixels},
        ),
    }
    save_model(path, *made[path.parent.name])


def test_it_is_stored_without_outputs():
    """And each piece of code has words before it that say what it is for."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells("code"))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds == ["markdown", "markdown", *["code", "markdown"] * (len(cells("code")))]
    lines = [line.rstrip("\n") for cell in notebook["cells"] for line in cell["source"]]
    assert max(map(len, lines)) <= 100
    assert not re.search(r"(^|[\"' ])/\w+/", "\n".join(lines))  # no place of one machine


def test_the_files_that_it_names_are_there():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    named = re.findall(r"`([\w/-]+\.md)`", text)
    assert named and all((ROOT / path).is_file() for path in named)


@pytest.mark.slow  # 23 s on one core: nine commands, two trainings among them
def test_every_cell_runs(clone, monkeypatch, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("QUICKSTART", "short")
    monkeypatch.setenv("QUICKSTART_PICTURES", "my flowers")
    notebook = nbformat.read(clone / "notebooks" / NOTEBOOK.name, as_version=4)
    nbformat.validate(notebook)
    settings = {"timeout": 900, "resources": {"metadata": {"path": str(clone / "notebooks")}}}
    nbclient.NotebookClient(notebook, **settings).execute()

    # What came out: no complaint, a picture wherever one is shown.
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        said = "".join(output.get("text", "") for output in outputs)
        assert "error" not in said.lower(), said
        pictures = [o for o in outputs if {"image/png", "image/gif"} & {*o.get("data", {})}]
        assert len(pictures) == cell.source.count("display(") * (cell.cell_type == "code")
    assert not (clone / "latent-diffusion").exists()
    for kind in ("mnist", "denoiser"):  # they were trained, and from what the notebook says
        assert list((clone / "checkpoints" / kind).glob("*_epoch*.safetensors"))
