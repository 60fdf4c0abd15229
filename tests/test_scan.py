"""What is found out about pictures before any is trained on."""

import os

import numpy as np
import pytest
from helpers import write_images
from PIL import Image

from data.damage import BadFiles
from data.image_files import ImageFiles
from data.images import open_images
from data.scan import in_threads, measure_whites, readable


def write_numbers(folder, *tops, kind=np.uint16):
    """TIFFs whose values run from 0 to each of these."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, top in enumerate(tops):
        values = np.linspace(0, top, 256).reshape(16, 16)
        Image.fromarray(
            values.round().astype(kind) if kind is np.uint16 else values.astype(kind)
        ).save(folder / f"{i:03d}.tif")
    return folder


def whites(folder):
    files = ImageFiles(folder)
    return measure_whites(files, readable(files, (16, 16), BadFiles(len(files.stamps))))


@pytest.mark.parametrize(
    "tops, white",
    [
        ((4095, 9, 300), 4095), ((4080,) * 3, 4095), ((1, 1), 1), ((200, 255), 255),
        ((256, 3), 1023), ((4096, 3), 16383), ((60_000, 3), 65535), ((0, 0), 1),
        ((3,) * 80 + (4000,), 4095), ((3,) * 80 + (20_000, 7), 65535),
    ],
)  # fmt: skip
def test_white_is_measured_over_the_whole_set(tmp_path, capsys, tops, white):
    """The lowest level that none of them exceeds, wherever the highest value is."""
    folder = write_numbers(tmp_path / "a", *tops)
    assert whites(folder) == {"I": white, "F": 1}
    assert ("white is" in capsys.readouterr().out) == (white != 65535)
    for dataset in open_images(str(folder), None, (16, 16)).values():
        for i, name in enumerate(dataset.names):
            expected = 255 * tops[int(name[:3])] / white
            assert abs(int(dataset[i][1].max()) - expected) <= 0.5


@pytest.mark.parametrize(
    "top, white", [(0.9, 1), (1.005, 1), (254, 255), (5000, 16383), (6e4, 65535)]
)
def test_white_of_floats(tmp_path, top, white):
    folder = write_numbers(tmp_path / "a", 0.1, top, kind=np.float32)
    assert whites(folder) == {"I": 65535, "F": white}
    (folder / "000.tif").write_bytes((folder / "000.tif").read_bytes()[:-300])
    assert whites(folder) == {"I": 65535, "F": white}  # a damaged one has no say


def test_floats_of_no_known_range_are_named(tmp_path, capsys):
    folder = write_numbers(tmp_path / "a", 1e9, 1.0, kind=np.float32)
    splits = open_images(str(folder), None, (16, 16))
    items = [dataset[i][1] for dataset in splits.values() for i in range(len(dataset))]
    assert sum("0 to 65535 is wanted" in str(item) for item in items) == 1


def test_the_stamp_changes_with_what_white_is(tmp_path):
    """A brighter picture among the others changes what is made of all."""
    folder = write_numbers(tmp_path / "a", *(4000,) * 60)
    before = open_images(str(folder), None, (16, 16))["valid"]
    write_numbers(tmp_path / "b", 50_000)
    os.rename(tmp_path / "b" / "000.tif", folder / "bright.tif")
    after = open_images(str(folder), None, (16, 16))["valid"]
    assert before.names == after.names and before.stamp() != after.stamp()


def test_pictures_without_contrast_are_warned_of(tmp_path, capsys):
    for i in range(20):
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) // 12).save(
            tmp_path / f"{i}.png"
        )
    open_images(str(tmp_path), None, (16, 16))
    said = capsys.readouterr().out
    assert "warning: 16 of 16 images looked at are all but uniform, with values from 0 to 2" in said


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_wholly_transparent_pictures_are_told(tmp_path, capsys, mode):
    write_images(tmp_path / "a", 6, mode=mode)
    open_images(str(tmp_path / "a"), None, (16, 16))
    assert "warning" not in capsys.readouterr().out
    for path in (tmp_path / "a").iterdir():
        clear = Image.open(path)
        clear.putalpha(0)
        clear.save(path)
    open_images(str(tmp_path / "a"), None, (16, 16))
    assert "warning: 5 of 5 images looked at are wholly transparent" in capsys.readouterr().out


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


def test_threads_keep_the_order():
    assert in_threads(lambda x: x * x, range(10)) == [x * x for x in range(10)]
