"""--log tensorboard: what it writes, how it goes on, and what happens without its package."""

import sys
from pathlib import Path

import pytest
from helpers import interrupt, run_digits, run_encoder, run_script, write_images, write_mnist

from training import denoiser
from training.logs import Log
from training.records import read_metrics

SMALL = ("--batch", 8, "--channels", 8, "--name", "a")
LOGGED = (*SMALL, "--log", "tensorboard")


@pytest.fixture
def digits(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data", train=64, test=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(denoiser, "PREVIEW_STEPS", 2)


def events(folder):
    """What TensorBoard reads in a folder: ({tag: [(step, value)]}, {tag: [steps of pictures]})."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(folder)).Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, {tag: [e.step for e in found.Images(tag)] for tag in tags["images"]}


def test_scalars_and_figures_are_those_on_disk(digits):
    pytest.importorskip("tensorboard")
    run_digits("--steps", 4, *LOGGED)
    scalars, images = events("fig/mnist/a")
    records = read_metrics("fig/mnist/a/metrics.jsonl", "a")
    for key in ("loss", "valid_ema", "gradient_norm", "images_per_second"):
        wanted = [(r["step"], pytest.approx(r[key])) for r in records if r.get(key) is not None]
        assert scalars[key] == wanted and wanted
    bands = [r["band_loss"][3] for r in records]
    assert [v for _, v in scalars["band_loss/3"]] == pytest.approx([b for b in bands if b])
    assert images == {p.stem: [4] for p in Path("fig/mnist/a").glob("*.png")} and len(images) == 4


def test_a_resumed_run_goes_on_in_the_same_log(digits, no_figures):
    """Steps that are done again are there once. --resume remembers --log; --log none ends it."""
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=4)
        run_digits("--steps", 8, *LOGGED)
    log = Log("tensorboard", Path("fig/mnist/a"), 4)  # of a run that was killed after its state
    for step in (5, 6):
        log.record({"step": step, "loss": 77.0})
    log.close()
    run_digits("--resume")
    scalars, _ = events("fig/mnist/a")
    records = read_metrics("fig/mnist/a/metrics.jsonl", "a")
    assert scalars["loss"] == [(r["step"], pytest.approx(r["loss"])) for r in records]
    assert len(records) == 8
    run_digits("--resume", "--steps", 9, "--log", "none")
    scalars, _ = events("fig/mnist/a")
    assert scalars["loss"][-1][0] == 8


def test_all_trainings_have_it(tmp_path, monkeypatch, no_figures):
    """The latents' has the digits' loop, and its flags are of the same group."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 8, (16, 16))
    run_encoder("--data", "pictures", "--size", "16x16", "--steps", 2, *LOGGED)
    scalars, _ = events("fig/autoencoder/a")
    assert len(scalars["loss_rec"]) == 2


def test_without_it_nothing_of_it_is_imported(digits, no_figures, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import would fail
    run_digits("--steps", 2, *SMALL)
    assert not list(Path("fig/mnist/a").glob("events*"))


@pytest.mark.parametrize("script", [
    ("mnist_diffusion.py", "--train"), ("train_encoder.py",),
    ("latent_diffusion.py", "--train", "--encoder", "a.safetensors"),
])  # fmt: skip
def test_a_package_that_is_missing_is_one_sentence_before_all_else(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, out, err = run_script(*script, "--log", "tensorboard", cwd=tmp_path, check=False)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "--log tensorboard needs a package" in err and "pip install tensorboard" in err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_another_log_is_refused(tmp_path):
    words = ("mnist_diffusion.py", "--train", "--log", "wandb")
    status, _, err = run_script(*words, cwd=tmp_path, check=False)
    assert status == 2 and "argument --log: invalid choice: 'wandb'" in err


def test_a_log_that_cannot_be_written_is_told_once(digits, no_figures, monkeypatch, capsys):
    """And stops no run."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    run_digits("--steps", 3, *LOGGED)
    assert capsys.readouterr().out.count("log not written: OSError") == 1
    assert len(read_metrics("fig/mnist/a/metrics.jsonl", "a")) == 3
    assert Path("checkpoints/mnist/a_epoch0001.safetensors").is_file()

    monkeypatch.setattr(SummaryWriter, "__init__", full)
    run_digits("--resume", "--steps", 4)
    assert capsys.readouterr().out.count("log not written: OSError") == 1
