"""What is found out about pictures before any is trained on."""

import os

import pytest
from helpers import write_images
from PIL import Image

from data.images import open_images


def test_a_few_with_colours_among_grey_ones_are_told(tmp_path, capsys):
    folder = write_images(tmp_path / "a", 6, mode="L")
    assert open_images(str(folder), None, (16, 16))["train"].channels == 1
    assert "colours" not in capsys.readouterr().out
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    assert open_images(str(folder), None, (16, 16))["train"].channels == 3
    assert "note: 1 of 7 images have colours, so all are read as RGB" in capsys.readouterr().out
    for dataset in open_images(str(folder), None, (16, 16), grey=True).values():
        assert dataset.channels == 1 and dataset[0][1].shape == (1, 16, 16)
    assert "colours" not in capsys.readouterr().out


def test_closed_folders_count_among_the_unreadable(tmp_path, capsys, monkeypatch):
    write_images(tmp_path / "a", 3)
    scandir = os.scandir

    def refuse(path):
        if "shut" in os.path.basename(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for i in range(11):
        (tmp_path / f"shut{i}").mkdir()
        if i < 10:
            assert open_images(str(tmp_path), None, (16, 16))
            said = capsys.readouterr().out
            assert all(f"read: shut{k} (Permission denied)" in said for k in range(i + 1))
    with pytest.raises(ValueError, match="11 of 14 images cannot be read"):
        open_images(str(tmp_path), None, (16, 16))
