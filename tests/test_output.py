"""What is put on the disk: folders that are gone on with, grids, records; and what is refused."""

import gc
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_pipeline
from PIL import Image

from common.choices import PICTURES
from common.errors import UserError
from generation.output import check_out, fill_folder, make_pictures, save_record
from generation.pipeline import Pipeline
from training import figures
from training.checkpoint import fingerprint


@pytest.mark.parametrize("ending", [*PICTURES, ".PNG"])
def test_the_ending_makes_a_grid_of_all_pictures(tmp_path, monkeypatch, ending):
    shown, grids = [], []
    monkeypatch.setattr(figures, "show_window", shown.append)
    monkeypatch.setattr(figures, "save_grid", lambda path, x: grids.append((path, x)))
    out = tmp_path / "new" / f"grid{ending}"
    make_pictures(small_pipeline(batch=2), range(5), out)
    ((path, x),) = grids
    assert path == out and x.shape == (5, 1, 8, 8) and shown == [out] and out.parent.is_dir()


def test_a_folder_is_gone_on_with(tmp_path, capsys):
    folder = tmp_path / "out"
    make_pictures(small_pipeline(batch=2), range(3, 7), folder)
    paths = sorted(folder.iterdir())
    assert [p.name for p in paths] == [f"seed{i:06d}.png" for i in (3, 4, 5, 6)]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}
    paths[1].unlink()
    make_pictures(small_pipeline(batch=4), range(3, 9), folder)
    assert "3 of 6 pictures are there already" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 6
    for i in (0, 2, 3):
        assert before[paths[i]][1] == paths[i].stat().st_mtime_ns  # not made again
    again = np.asarray(Image.open(paths[1]), dtype=int)
    (tmp_path / "first.png").write_bytes(before[paths[1]][0])
    assert abs(again - np.asarray(Image.open(tmp_path / "first.png"), dtype=int)).max() <= 1


def test_pictures_say_how_they_were_made(tmp_path):
    p = small_pipeline("ddim", eta=0.5)
    fill_folder(p, [9], tmp_path)
    text = Image.open(tmp_path / "seed000009.png").text
    assert text.pop("denoiser") == fingerprint(p.model)[:16]
    assert text == {
        "Software": "latent-diffusion",
        "seed": "9", "sampler": "ddim", "sampling_steps": "4", "eta": "0.5", "sigma_scale": "1.0",
        "precision": "fp32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sampler": "dpm++"}, "was made with sampler ddpm, not dpm++"),
        ({"sigma_scale": 0.9}, "was made with sigma_scale 1.0, not 0.9"),
        ({"steps": 5}, "was made with sampling_steps 4, not 5"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path, other, message):
    fill_folder(small_pipeline(), [0], tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        fill_folder(small_pipeline(**other), [0, 1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [
    lambda png: b"no picture", lambda png: png[:40], lambda png: png.replace(b"tEXt", b"t\x01Xt"),
])  # fmt: skip
def test_a_foreign_or_damaged_picture_in_the_folder_is_refused(tmp_path, damage):
    fill_folder(small_pipeline(), [0], tmp_path)
    path = tmp_path / "seed000000.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="was made with denoiser unknown, not .*another --out"):
        fill_folder(small_pipeline(), [0, 1], tmp_path)


def test_an_interrupted_folder_is_gone_on_with(tmp_path, monkeypatch):
    """Interrupted in the middle of a batch, in the middle of a file: only whole pictures stay."""
    save, calls = Image.Image.save, []

    def interrupted(image, file, *args, **kwargs):
        calls.append(file)
        if len(calls) == 4:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        save(image, file, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", interrupted)
        make_pictures(small_pipeline(batch=5), range(6), tmp_path / "out")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        f"seed{i:06d}.png" for i in range(3)
    ]
    make_pictures(small_pipeline(batch=5), range(6), tmp_path / "out")
    make_pictures(small_pipeline(batch=5), range(6), tmp_path / "at_once")
    for path in (tmp_path / "at_once").iterdir():
        one, other = (
            np.asarray(Image.open(p), dtype=int) for p in (path, tmp_path / "out" / path.name)
        )
        assert abs(one - other).max() <= 1


def test_memory_is_flat_over_pictures(tmp_path, monkeypatch):
    """However many batches went into the folder before, as many tensors are alive."""
    alive = []
    monkeypatch.setattr(
        figures, "save_image",
        lambda *_: alive.append(sum(type(o) is torch.Tensor for o in gc.get_objects())),
    )  # fmt: skip
    fill_folder(small_pipeline(batch=1), range(8), tmp_path)
    assert len(alive) == 8 and max(alive[2:]) == min(alive[2:]), alive


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/x.png", "--out .*file"),
        ("file/x", "--out .*file"),
        ("file", "is a file, not a folder; for a grid end it in .png or .jpg"),
        ("folder.png", "is a folder; for single pictures name it without an ending"),
    ],
)
def test_impossible_places_are_refused_before_anything_is_made(tmp_path, monkeypatch, out, message):
    monkeypatch.setattr(Pipeline, "sample", lambda *_: pytest.fail("sampled"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        make_pictures(small_pipeline(), range(2), tmp_path / out)


def test_impossible_steps_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="1001"):
        check_out(small_pipeline(steps=1001), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_records_are_lines_and_say_where_they_are(tmp_path, capsys):
    path = tmp_path / "new" / "evaluation.jsonl"
    for n in (1, 2):
        save_record(path, {"n": n})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"n": 1}, {"n": 2}]
    assert capsys.readouterr().out == f"\nadded to {path}\n" * 2


@pytest.mark.parametrize("ending", ["png", "jpg", "gif"])
def test_a_picture_that_was_not_made_here_is_not_written_over(tmp_path, ending):
    """Nor the .gif beside a film."""
    foreign = tmp_path / f"holiday.{ending}"
    Image.new("L", (4, 4)).save(foreign)
    out = foreign.with_suffix(".png") if ending == "gif" else foreign
    with pytest.raises(UserError, match=f"holiday.{ending} is there, and was not made here"):
        make_pictures(small_pipeline(), [1], out, film=ending == "gif")
    foreign.unlink()
    for seeds in ([1], [2]):
        make_pictures(small_pipeline(), seeds, out, film=ending == "gif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_no_pipe_is_waited_for(tmp_path):
    for name in ("a.png", "seed000001.png"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="a.png is there, and was not made here"):
        make_pictures(small_pipeline(), [1], tmp_path / "a.png")
    with pytest.raises(UserError, match="was made with denoiser unknown"):
        make_pictures(small_pipeline(), [1], tmp_path)


def test_pictures_in_fig_are_not_all_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fig" / "kind").mkdir(parents=True)
    for name in ("fig/../mine.png", "fig/holiday.png", "fig/kind/holiday.png"):
        Image.new("L", (4, 4)).save(name)
        with pytest.raises(UserError, match="was not made here"):
            make_pictures(small_pipeline(), [1], Path(name))
