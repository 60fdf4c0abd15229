"""The checkpoints of a run: their names, what is not written over, which of them stay."""

from pathlib import Path

import pytest
from helpers import randomize, small_unet

from training.checkpoint import load_facts
from training.series import Series


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def series(**other):
    return Series("a", {"kind": randomize(small_unet())}, {"data": "d"}, **other)


def names():
    return sorted(
        path.name.removesuffix(".safetensors") for path in Path("checkpoints").rglob("a*")
    )


def test_a_checkpoint_says_whose_and_when(tmp_path):
    series().save(5, 2, 0.25)
    facts = {"data": "d", "run": "a", "step": 5, "epoch": 2, "valid_loss": 0.25}
    assert load_facts("checkpoints/kind/a_epoch0002.safetensors") == facts


def test_one_that_is_there_is_not_made_again_and_of_another_step_not_written_over():
    """A killed run comes to the same step again; a prolonged one to the same epoch."""
    series().save(5, 2, None)
    path = Path("checkpoints/kind/a_epoch0002.safetensors")
    before = path.stat().st_mtime_ns
    series().save(5, 2, None)
    assert path.stat().st_mtime_ns == before and names() == ["a_epoch0002"]
    series().save(6, 2, None)
    assert path.stat().st_mtime_ns == before and names() == ["a_epoch0002", "a_epoch0002_step6"]
    path.write_bytes(b"damaged")
    series().save(5, 2, None)
    assert path.read_bytes() == b"damaged" and "a_epoch0002_step5" in names()


def test_the_newest_and_the_best_stay():
    """Not those of other runs, whose names begin alike."""
    other = Series("a_epoch0", {"kind": randomize(small_unet())}, {}, keep=1)
    other.save(1, 1, 0.0)
    kept = series(keep=2)
    for step, loss in enumerate([0.9, 0.1, 0.5, None, 0.4], start=1):
        kept.save(step, step, loss)
    assert names() == ["a_epoch0002", "a_epoch0004", "a_epoch0005", "a_epoch0_epoch0001"]
    series().save(6, 6, 0.05)
    assert len(names()) == 5


def test_names_have_the_step_where_epochs_do_not_tell_them_apart():
    numbered = series(numbered=True)
    for step in (10, 20):
        numbered.save(step, 1, None)
    assert names() == ["a_epoch0001_step10", "a_epoch0001_step20"]
