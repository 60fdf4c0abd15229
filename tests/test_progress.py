"""The averages of a run, its reports, and the words for sizes and times."""

import json

import pytest
import torch

from training.progress import Progress, file_size
from training.records import read_metrics


def test_progress_averages_and_appends(tmp_path):
    path = tmp_path / "fig" / "metrics.jsonl"
    with Progress(path, "run", 0, 4, 8) as progress:
        for value in (1.0, 3.0):
            progress.add(loss=torch.tensor(value), band_loss=torch.tensor([value, 0.0]))
        progress.report(progress.means(), epoch=1)
        progress.add(loss=torch.tensor(7.0))
        progress.report(progress.means())
    first, second = read_metrics(path, "run")
    assert first["loss"] == 2 and first["band_loss"] == [2, 0] and first["step"] == 2
    assert second["loss"] == 7 and second["step"] == 3 and second["images_per_second"] > 0
    assert read_metrics(path, "other") == []


def test_a_resumed_progress_drops_later_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"run": "a", "step": s}) + "\n" for s in (1, 2, 3)))
    with Progress(path, "a", 1, 4, 8):
        pass
    assert [record["step"] for record in read_metrics(path, "a")] == [1]


def test_skipped_steps_are_counted_and_nothing_else_is(tmp_path):
    path = tmp_path / "m.jsonl"
    with Progress(path, "a", 0, 4, 8) as progress:
        progress.add(loss=torch.tensor(3.0))
        progress.add()
        progress.report(progress.means())
        progress.add(loss=torch.tensor(1.0))
        progress.report(progress.means())
    first, second = read_metrics(path, "a")
    assert first["loss"] == 3 and first["skipped_steps"] == 1 and first["step"] == 2
    assert second["loss"] == 1 and "skipped_steps" not in second


def test_metrics_that_cannot_be_written_are_told_and_no_more(tmp_path, capsys):
    (tmp_path / "m.jsonl").mkdir()
    with Progress(tmp_path / "m.jsonl", "a", 0, 4, 8) as progress:
        progress.add(loss=torch.tensor(3.0))
        progress.report(progress.means())
    assert "metrics not written: " in capsys.readouterr().out


def test_a_number_is_the_mean_over_the_steps_that_gave_it(tmp_path):
    """As the GAN's, which begin in the middle of a report."""
    with Progress(tmp_path / "m.jsonl", "a", 0, 4, 8) as progress:
        progress.add(loss=torch.tensor(1.0))
        progress.add(loss=torch.tensor(3.0), loss_gan=torch.tensor(8.0))
        assert progress.means() == {"loss": 2, "loss_gan": 8} and progress.means() == {}


@pytest.mark.parametrize(("size", "words"), [
    (7680, "0.00768 MB"), (999_499_999, "999 MB"), (999_500_000, "1 GB"), (5.03e9, "5.03 GB"),
    (2_345e9, "2,345 GB"),
])  # fmt: skip
def test_sizes_in_words(size, words):
    assert file_size(size) == words
