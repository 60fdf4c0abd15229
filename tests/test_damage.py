"""Damaged files: what is said of them, and when they are too many."""

import numpy as np
import pytest
import torch
from helpers import write_images
from pictures import EXIF_ORIENTATION, encoded, ramp
from PIL import Image

from data.damage import BadFiles
from data.image_files import ImageFiles
from data.images import FileDataset, open_images


def test_why_a_file_cannot_be_read_is_said(tmp_path):
    folder = write_images(tmp_path, 2, (64, 64))
    raw = (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(raw[: len(raw) // 2])
    (folder / "01.png").write_text("no picture")
    dataset = FileDataset(ImageFiles(folder), ["00.png", "01.png"], (16, 16), 3, None)
    assert "truncated" in dataset[0][1]
    assert dataset[1] == (1, "not an image, or damaged")
    (folder / "01.png").unlink()
    assert dataset[1] == (1, "No such file or directory")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_damage_raises_anything_else(tmp_path):
    """Bytes changed anywhere, the EXIF block among them: an image, or why there is none."""
    picture, rng = ramp(40, 30), np.random.default_rng(0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION], exif[270], exif[282] = 6, "a description", 72.0
    names = []
    for form in ("JPEG", "PNG", "WEBP", "BMP"):
        raw = encoded(picture, form)
        for i in range(150):
            damaged = np.frombuffer(raw, np.uint8).copy()
            where = rng.integers(0, rng.choice([40, len(raw)]), rng.choice([1, 4, 16]))
            damaged[where] = rng.integers(0, 256, len(where))
            names.append(f"{i}.{form.lower()}")
            (tmp_path / names[-1]).write_bytes(damaged[: rng.choice([len(raw), where.max()])])
    for i in range(300):
        damaged = np.frombuffer(exif.tobytes(), np.uint8).copy()
        damaged[rng.integers(6, len(damaged), 3)] = rng.integers(0, 14, 3)
        names.append(f"exif{i}.png")
        picture.save(tmp_path / names[-1], exif=damaged.tobytes())
    dataset = FileDataset(ImageFiles(tmp_path), names, (16, 16), 3, BadFiles(len(names)))
    wrong = []
    for i, name in enumerate(names):
        try:
            image = dataset[i][1]
        except Exception as error:
            wrong.append((name, repr(error)))
        else:
            if isinstance(image, str):
                assert image and "\n" not in image
            else:
                assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    assert not wrong


@pytest.mark.parametrize("total, allowed", [(12, 10), (30, 10), (1000, 10), (1099, 10), (2000, 20)])
def test_stops_above_ten_files_and_one_percent(total, allowed, capsys):
    names = [f"{i}.png" for i in range(total)]
    tally = BadFiles(total)
    tally.add(dict.fromkeys(names[:allowed], "damaged"))
    tally.add(dict.fromkeys(names[:allowed], "damaged"))  # the same files again are no new ones
    with pytest.raises(ValueError, match=f"{allowed + 1} of {total} images cannot be read"):
        tally.add({names[allowed]: "damaged"})
    assert len(capsys.readouterr().out.splitlines()) == allowed + 1


@pytest.mark.parametrize("bad, stops", [(10, False), (11, True)])
def test_stops_while_reading_headers(tmp_path, bad, stops):
    write_images(tmp_path, 30)
    for i in range(bad):
        (tmp_path / f"bad{i}.png").write_text("no picture")
    if stops:
        with pytest.raises(ValueError, match="cannot be read"):
            open_images(str(tmp_path), None, (16, 16))
    else:
        assert sum(len(d) for d in open_images(str(tmp_path), None, (16, 16)).values()) == 30
