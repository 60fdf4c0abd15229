"""Labels of images: tables as they are distributed, tables of one's own, sub-folders, digits."""

import pytest
import torch
from helpers import tree, write_images, write_mnist
from PIL import Image

from data.images import open_images
from data.labels import CELEBA_TABLE, SIGNS, digit_labels, in_cache, read_labels

SIZE = (16, 16)
NAMES = "Bangs Eyeglasses No_Beard Smiling"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Twelve of them, of which one is for validation, in pictures/."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 12, SIZE)
    return tmp_path


def opened(path="pictures"):
    return open_images(path, "data", SIZE)


def by_name(labels, images):
    """{name of the image: its values}, of all splits."""
    return {
        name: values.tolist() for split, dataset in images.items()
        for name, values in zip(dataset.names, labels.of[split], strict=True)
    }  # fmt: skip


# ---- CelebA's own table -------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["pictures", ".", "data", "data/celeba"])
@pytest.mark.parametrize("counted", [True, False])
def test_celebas_table_is_found_and_read_by_numbers(pictures, place, counted):
    """As distributed: a count, names, rows with any blanks; here of .jpg where images are .png."""
    rows = [f"{i:02d}.jpg  1 -1  {(-1) ** i}    1" for i in range(11)]
    (pictures / place).mkdir(parents=True, exist_ok=True)
    text = "\n".join([*["11"] * counted, NAMES, *rows, ""])
    (pictures / place / CELEBA_TABLE).write_text(text)
    images = opened()
    labels = read_labels("attributes", images, "data")
    assert (labels.kind, labels.names) == ("attributes", tuple(NAMES.split()))
    assert labels.of["train"].dtype == torch.int8
    found = by_name(labels, images)
    assert found.pop("11.png") == [0, 0, 0, 0]  # it has no row: unknown
    assert found == {f"{i:02d}.png": [1, -1, (-1) ** i, 1] for i in range(11)}


def test_missing_rows_are_told(pictures, capsys):
    (pictures / "data").mkdir()
    (pictures / "data" / CELEBA_TABLE).write_text(f"1\n{NAMES}\n03.jpg 1 1 1 1\n")
    read_labels("attributes", opened(), "data")
    assert "has rows for 1 of 12 images; the others count as unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{NAMES}\n03.jpg 1 1 1\n", "line 2: 3 values, but 4 columns have names"),
        (f"1\n{NAMES}\n03.jpg 1 1 1 0\n", "line 3: an attribute is only 1 .* not 0"),
        (f"{NAMES}\n03.jpg 1 1 1 1\n03.jpg 1 1 1 1\n", "line 3: 03.jpg has a row already"),
        (f"{NAMES}\n99.jpg 1 1 1 1\n", "has no row of any image: it names 99.jpg"),
        ("03.jpg 1 1 1 1\n", "it has no line of names"),
        ("", "it has no line of names"),
        ("Hat Hat\n03.jpg 1 1\n", "the name 'Hat' of a column is empty, there twice"),
        ("-Hat Cap\n03.jpg 1 1\n", "the name '-Hat' of a column"),
    ],
)
def test_a_bad_table_is_one_sentence(pictures, text, message):
    (pictures / CELEBA_TABLE).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels("attributes", opened(), "data")


def test_a_missing_table_is_one_sentence(pictures):
    with pytest.raises(ValueError, match="no list_attr_celeba.txt beside the images, nor in data"):
        read_labels("attributes", opened(), "data")


def test_what_is_no_text_is_one_sentence(pictures):
    (pictures / "a.csv").write_bytes(b"name,label\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_labels("a.csv", opened(), "data")
    with pytest.raises(ValueError, match="b.csv"):
        read_labels("b.csv", opened(), "data")


# ---- Tables of one's own ------------------------------------------------------------------------


def test_one_column_is_of_classes(pictures):
    """Numbers in their order; quotes, blanks, a byte-order mark and folders are no matter."""
    rows = [f'"./pictures/{i:02d}.png", {(i * 5) % 11 if i else ""}' for i in range(12)]
    (pictures / "a.csv").write_text("\ufeffname,label\n" + "\n".join(rows), encoding="utf-8")
    (pictures / "more").mkdir()
    (pictures / "pictures").rename(pictures / "more" / "pictures")
    images = opened("more")
    labels = read_labels("a.csv", images, "data")
    assert labels.kind == "classes" and labels.names == tuple(sorted(labels.names, key=int))
    found = by_name(labels, images)
    for i in range(12):
        (number,) = [v for k, v in found.items() if k.endswith(f"{i:02d}.png")]
        held_out = str((i * 5) % 11) not in labels.names
        unknown = i == 0 or held_out
        want = len(labels.names) if unknown else labels.names.index(str((i * 5) % 11))
        assert number == want


def test_more_columns_are_of_attributes(pictures):
    rows = [f"{i:02d},{list(SIGNS)[i % 3]},-1" for i in range(12)]
    (pictures / "a.csv").write_text("image,Hat,Red cap\n" + "\n".join(rows))
    images = opened()
    labels = read_labels("a.csv", images, "data")
    assert (labels.kind, labels.names) == ("attributes", ("Hat", "Red cap"))
    want = {f"{i:02d}.png": [list(SIGNS.values())[i % 3], -1] for i in range(12)}
    assert by_name(labels, images) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\n00.png\n", "does not begin with a line such as name,label"),
        ("name,label\n00.png,a,b\n", "line 2: 2 values, but 1 columns have names"),
        ("name,label\n00.png,a\n01.png,a\n", "1 classes are found, but 2 to 99,999"),
        ("name,a,b\n00.png,yes,no\n", "line 2: an attribute is only 1 .* not yes"),
    ],
)
def test_a_bad_csv_is_one_sentence(pictures, text, message):
    (pictures / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels("a.csv", opened(), "data")


# ---- Folders, drawings, digits ------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "all/of/it/"])
def test_folders_are_classes(tmp_path, above):
    for number, name in enumerate(("dog", "cat")):
        write_images(tmp_path / "p" / above / name / "deep", 10, SIZE, seed=number)
    Image.new("RGB", SIZE, "red").save(tmp_path / "p" / above / "loose.png")
    images = open_images(str(tmp_path / "p"), None, SIZE)
    labels = read_labels("folders", images, "data")
    assert (labels.kind, labels.names) == ("classes", ("cat", "dog"))
    for name, value in by_name(labels, images).items():
        assert value == (2 if "loose" in name else ["cat", "dog"].index(name.split("/")[-3]))


def test_pictures_in_no_folders_are_refused(pictures):
    with pytest.raises(ValueError, match="folders: 0 classes are found"):
        read_labels("folders", opened(), "data")


def test_drawn_faces_say_what_they_show(monkeypatch):
    monkeypatch.setattr("data.images.NUM_SYNTHETIC", 60)
    images = open_images("synthetic", None, SIZE)
    labels = read_labels("attributes", images, "data")
    assert labels.kind == "attributes" and "Eyeglasses" in labels.names
    values = torch.cat([labels.of[split] for split in images])
    assert set(values.unique().tolist()) == {-1, 1}
    assert (values == 1).any(dim=0).all() and (values == -1).any(dim=0).all()


def test_labels_that_are_no_digits_are_refused(tmp_path):
    write_mnist(tmp_path, train=40, test=8, labels=True)
    labels = digit_labels(tmp_path, {"train": 40, "test": 8})
    assert labels.names == tuple("0123456789") and len(labels.of["test"]) == 8
    with pytest.raises(ValueError, match="are not of its digits"):
        digit_labels(tmp_path, {"train": 41, "test": 8})


def test_none_is_nothing(pictures):
    before = tree(pictures)
    assert read_labels("none", opened(), "data") is None
    assert tree(pictures) == before


# ---- Beside the cache ---------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_unreadable_images_have_no_latents_and_no_labels(pictures, mirror):
    """A cache leaves them out, and so does what belongs to it; mirror images come last."""
    folder = pictures / "more"
    for name in ("a", "b"):
        write_images(folder / name, 15, SIZE, seed=ord(name))
    images = open_images(str(folder), None, SIZE)
    labels = read_labels("folders", images, "data")
    bad = images["train"].names[3]
    content = (folder / bad).read_bytes()
    (folder / bad).write_bytes(content[: len(content) // 2])  # found when it is decoded
    whole, n = labels.of["train"], len(images["train"])
    counts = {"train": (1 + mirror) * (n - 1), "valid": len(images["valid"])}
    found = in_cache(labels, images, counts, mirror, 0)
    left = torch.cat([whole[:3], whole[4:]])
    assert torch.equal(found["train"], left.repeat(1 + mirror))
    assert torch.equal(found["valid"], labels.of["valid"])
    counts["train"] = (1 + mirror) * n
    assert torch.equal(
        in_cache(labels, images, counts, mirror, 0)["train"], whole.repeat(1 + mirror)
    )
    counts["train"] = (1 + mirror) * (n - 2)
    with pytest.raises(ValueError, match=f"{n - 1} images can be read, but {n - 2} were"):
        in_cache(labels, images, counts, mirror, 0)


def test_other_labels_have_another_digest(pictures):
    (pictures / "a.csv").write_text("name,a,b\n00,1,1\n01,-1,1\n")
    (pictures / "b.csv").write_text("name,a,b\n00,1,1\n01,-1,-1\n")
    (pictures / "c.csv").write_text("name,a,c\n00,1,1\n01,-1,1\n")
    digests = [read_labels(f"{name}.csv", opened(), "data").digest() for name in "aabc"]
    assert digests[0] == digests[1] and len(set(digests)) == 3
