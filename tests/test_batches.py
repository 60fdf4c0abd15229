"""Batches: bad files left out, the same from threads and workers."""

import itertools

import pytest
import torch
from helpers import write_images
from pictures import bad_files, noise_zip, zipped

from data.batches import load_batches
from data.damage import BadFiles
from data.image_files import ImageFiles
from data.images import FileDataset, open_images


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_skipped(tmp_path, capsys, as_zip, workers):
    folder = write_images(tmp_path / "a", 40)
    bad = bad_files(folder)
    path = zipped(folder, tmp_path / "a.zip") if as_zip else folder
    splits = open_images(str(path), None, (16, 16))
    seen = []
    for dataset in splits.values():
        n = len(dataset)
        batches = [list(range(i, min(i + 4, n))) for i in range(0, n, 4)]
        for _ in range(2):  # the second time reports nothing new
            seen = []
            for x, indices in load_batches(dataset, batches, workers):
                assert 0 < len(x) == len(indices) <= 4
                for row, i in zip(x, indices, strict=True):
                    assert torch.equal(row, dataset[i][1])
                seen += [dataset.names[i] for i in indices]
            assert set(seen) == set(dataset.names) - set(bad)
    out = capsys.readouterr().out
    for name in bad:
        assert out.count(name) == 1, name


def test_stops_when_none_is_left(tmp_path):
    tmp_path.joinpath("a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        open_images(str(tmp_path), None, (16, 16))
    bad_files(tmp_path)
    tmp_path.joinpath("a.jpg").unlink()
    dataset = FileDataset(
        ImageFiles(tmp_path), ["short.png", "short.jpg"], (16, 16), 3, BadFiles(2)
    )
    with pytest.raises(ValueError, match="2 of 2 images cannot be read"):
        list(load_batches(dataset, [[0], [1]], 0))


def test_batches_without_end_that_bring_nothing_stop(tmp_path):
    """Where the tally, of all splits, still allows it."""
    bad_files(tmp_path)
    names = ["short.png", "short.jpg"]
    dataset = FileDataset(ImageFiles(tmp_path), names, (16, 16), 3, BadFiles(9))
    assert list(load_batches(dataset, [[0], [1]], 0)) == []
    with pytest.raises(ValueError, match="none of the 2 images can be read"):
        next(load_batches(dataset, itertools.cycle([[0], [1]]), 0))
    write_images(tmp_path, 1)
    dataset = FileDataset(ImageFiles(tmp_path), [*names, "00.png"], (16, 16), 3, BadFiles(9))
    batches = load_batches(dataset, itertools.cycle([[0], [0], [1], [1], [0], [2]]), 0)
    assert [next(batches)[1] for _ in range(3)] == [[2]] * 3


def test_workers_read_a_zip_that_the_parent_has_open(tmp_path):
    dataset = open_images(str(noise_zip(tmp_path / "a.zip", 100)), None, (96, 96))["train"]
    dataset[0]  # opened here, before the workers are forked
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[i : i + 3] for i in range(0, len(order), 3)]
    results = []
    for workers in (0, 2):
        results.append(list(load_batches(dataset, batches, workers)))
        assert not dataset.tally.reasons
    for wanted, (x, i), (y, j) in zip(batches, *results, strict=True):
        assert i == j == wanted and torch.equal(x, y) and x.dtype == torch.uint8


def test_loading_takes_no_random_number_of_the_run(tmp_path):
    dataset = open_images(str(write_images(tmp_path / "a", 8)), None, (16, 16))["train"]
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(load_batches(dataset, [[0, 1], [2]], workers))
        assert torch.equal(torch.get_rng_state(), before)
