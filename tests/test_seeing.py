"""Films, paths and neighbours: what they show is what the seeds make."""

import pytest
import torch
from helpers import small_pipeline
from PIL import Image

from common.choices import SAMPLERS
from generation import seeing
from generation.output import make_pictures
from generation.seeing import TrainingSet, nearest
from training import figures

SHAPE = 1, 8, 8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_film_ends_with_the_picture(sampler, tmp_path, monkeypatch):
    """Its frames begin with the seed's noise, and the last x0_hat is the picture of that seed."""
    shown = {}
    monkeypatch.setattr(figures, "save_animation", lambda path, x, columns: shown.update(frames=x))
    rows_of = figures.image_rows
    monkeypatch.setattr(
        figures, "image_rows",
        lambda path, rows, *rest: (shown.update(rows=rows), rows_of(path, rows, *rest)),
    )  # fmt: skip
    p = small_pipeline(sampler, 30)
    seeing.film(p, [5], tmp_path / "film.png")
    ((_, images, _),) = p.batches([5])
    assert len(shown["frames"]) == 30 and shown["frames"][0].shape == (2, *SHAPE)
    torch.testing.assert_close(shown["frames"][-1][1:], images, rtol=0, atol=1e-5)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(shown["frames"][0][0], noise)
    assert list(shown["rows"]) == ["xt", "x0_hat"] and len(shown["rows"]["xt"]) == 10
    torch.testing.assert_close(shown["rows"]["x0_hat"][-1:], images, rtol=0, atol=1e-5)


def test_film_makes_a_strip_and_an_animation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")  # frames are counted without the bar
    make_pictures(small_pipeline(steps=60), range(2), tmp_path / "film.png", film=True)
    assert Image.open(tmp_path / "film.png").width > 1000
    with Image.open(tmp_path / "film.gif") as animation:
        assert animation.n_frames == seeing.FRAMES and animation.info["loop"] == 0
    assert f"saved {tmp_path / 'film.gif'}" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_interpolation_goes_from_seed_to_seed(sampler, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "save_grid", lambda path, x, columns: shown.update(x=x))
    p = small_pipeline(sampler, batch=4)
    make_pictures(p, range(9), tmp_path / "i.png", interpolate=(4, 11))
    ends = torch.cat([images for _, images, _ in p.batches([4, 11])])
    assert len(shown["x"]) == 9
    torch.testing.assert_close(shown["x"][[0, -1]], ends, rtol=0, atol=1e-4)
    assert (shown["x"][4] - shown["x"][0]).abs().max() > 0.05


def test_neighbours_are_the_nearest(monkeypatch):
    monkeypatch.setattr(seeing, "CHUNK", 7)
    images = torch.randn(30, 2, 4, 4)
    x0 = torch.stack([images[17], images[3] + 0.1])
    distances, indices = nearest(x0, TrainingSet(lambda r: images[list(r)], 30), 4)
    want = (x0[:, None] - images[None]).square().mean(dim=(2, 3, 4)).sqrt()
    assert indices[:, 0].tolist() == [17, 3]
    torch.testing.assert_close(distances, want.sort(dim=1)[0][:, :4], rtol=1e-3, atol=1e-3)
    assert torch.equal(indices, want.argsort(dim=1)[:, :4])
    assert nearest(x0, TrainingSet(lambda r: images[list(r)], 2), 4)[1].shape == (2, 2)


def test_planted_copies_stand_under_their_samples(tmp_path, monkeypatch):
    """A training set that holds the samples themselves: each is its own nearest, at distance 0."""
    shown = {}
    monkeypatch.setattr(
        figures, "image_rows",
        lambda path, rows, title, captions: shown.update(rows=rows, captions=captions),
    )  # fmt: skip
    p = small_pipeline(batch=2)
    copies = torch.cat([x0 for _, _, x0 in p.batches([3, 2, 4])])
    training_set = torch.cat([torch.randn(20, *SHAPE), copies])
    others = TrainingSet(lambda r: training_set[list(r)], 23)
    make_pictures(p, range(2, 5), tmp_path / "n.png", neighbours=others)
    assert shown["captions"]["sample"] == ["seed 2", "seed 3", "seed 4"]
    torch.testing.assert_close(shown["rows"]["nearest"], copies[[1, 0, 2]])
    torch.testing.assert_close(shown["rows"]["sample"], copies[[1, 0, 2]], rtol=0, atol=1e-4)
    assert shown["captions"]["nearest"] == ["0.000"] * 3
    assert list(shown["rows"]) == ["sample", "nearest", "nearest 2", "nearest 3", "nearest 4"]
