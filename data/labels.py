"""What the images of a data set show, classes or attributes: of MNIST's labels, of tables, of
sub-folders, of the faces that are drawn here.

Labels are no part of the cache of latents, which serves with and without them: a training reads
them anew, and finds those of an image by its name. N: images, A: attributes.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from common.errors import UserError, short
from common.files import is_there, open_regular, reading
from data.batches import load_batches
from data.images import FileDataset, ImageDataset, SyntheticFaces
from data.mnist import mnist_labels
from data.synthetic import face_attributes

CLASSES, ATTRIBUTES = "classes", "attributes"  # kinds, as fields of models/unet.py's config
CELEBA_TABLE = "list_attr_celeba.txt"
MOST_NAMES = 99_999
SIGNS = {"1": 1, "-1": -1, "": 0}  # how a table says that an attribute is there, is not, is unknown


@dataclass(frozen=True)
class Labels:
    """kind: CLASSES or ATTRIBUTES. names: of them. of: {split: values}, of the images in order:
    numbers of classes (N,) int64, where len(names) is unknown; or (N, A) int8 in {-1, 0, 1}, where
    0 is unknown. source: --condition."""

    kind: str
    names: tuple[str, ...]
    of: Mapping[str, torch.Tensor]
    source: str = "labels"

    def digest(self) -> str:
        """A hash that changes with all of it."""
        values = {split: v.numpy().tobytes() for split, v in sorted(self.of.items())}
        content = repr((self.kind, self.names, values)).encode("utf-8", "surrogateescape")
        return hashlib.sha256(content).hexdigest()


def digit_labels(root: str | Path, images: Mapping[str, int]) -> Labels:
    """What MNIST's digits are. images: {"train" or "test": how many there are}. Raises UserError
    where labels are no digits, or not as many."""
    of = {split: mnist_labels(root, split) for split in images}
    if any(len(v) != images[split] or v.max() > 9 for split, v in of.items()):
        raise UserError(f"labels in {root} are not of its digits; put MNIST's four files there")
    return Labels(CLASSES, tuple("0123456789"), of)


def read_labels(
    condition: str, images: Mapping[str, ImageDataset], root: str | Path
) -> Labels | None:
    """The labels of these data sets, {split: data set}, as --condition has them: "attributes",
    "folders", or the path of a table. root: of the data, where CelebA's own table may lie.

    Raises UserError when a table is missing, damaged, or of other images, and where there are fewer
    than two classes.
    """
    if condition == "none":
        return None
    if condition == "folders":
        labels = _of_folders(images)
    elif condition == "attributes" and all(isinstance(d, SyntheticFaces) for d in images.values()):
        labels = _of_drawn(images)
    elif condition == "attributes":
        path = _find_table(images, root)
        labels = _of_table(path, *_celeba_rows(path), images)
    else:
        labels = _of_table(Path(condition), *_csv_rows(Path(condition)), images)
    if not 1 + (labels.kind == CLASSES) <= len(labels.names) <= MOST_NAMES:
        few = f"--condition {condition}: {len(labels.names)} {labels.kind} are found"
        raise UserError(f"{few}, but 2 to {MOST_NAMES:,} can be learnt")
    return replace(labels, source=condition)


def in_cache(
    labels: Labels, images: Mapping[str, ImageDataset], counts: Mapping[str, int], mirror: bool,
    workers: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """{split: values} of the cached latents, of which there are `counts`: first the images', then,
    with mirror, those of the training images' mirror images. Images that cannot be read have none.

    Raises UserError where others can be read than when the latents were cached.
    """
    result = {}
    for split, dataset in images.items():
        values, count = labels.of[split], counts[split]
        copies = 1 + (mirror and split == "train")
        if count != copies * len(values):  # which are unreadable is seen where they are decoded
            parts = [part.tolist() for part in torch.arange(len(dataset)).split(100)]
            batches = tqdm(parts, "matching labels", delay=1, leave=False)
            read = load_batches(dataset, batches, workers, empty=True)
            values = values[[i for _, good in read for i in good]]
        if count != copies * len(values):
            raise UserError(
                f"{len(values)} images can be read, but {count // copies} were when their latents "
                "were cached; delete their folder in encoded_img, and they are cached anew"
            )
        result[split] = values.repeat(copies, *[1] * (values.ndim - 1))
    return result


# ---- Where they come from -----------------------------------------------------------------------


def _of_drawn(images: Mapping[str, ImageDataset]) -> Labels:
    """The attributes of drawn faces."""
    shown = {
        split: [face_attributes(i) for i in tqdm(d.numbers, "attributes", delay=1, leave=False)]
        for split, d in images.items() if isinstance(d, SyntheticFaces)
    }  # fmt: skip
    names = tuple(face_attributes(0))
    of = {k: torch.tensor([[2 * f[n] - 1 for n in names] for f in v]) for k, v in shown.items()}
    return Labels(ATTRIBUTES, names, {split: v.to(torch.int8) for split, v in of.items()})


def _of_folders(images: Mapping[str, ImageDataset]) -> Labels:
    """Classes of the highest folders in which the images differ; images beside them have none."""
    everyone = [name for dataset in images.values() for name in dataset.names]
    depths = [d.files.depth for d in images.values() if isinstance(d, FileDataset)]
    shared = max((d or 0 for d in depths), default=0)
    shared = shared or len(os.path.commonprefix([n.split("/")[:-1] for n in everyone]))

    def folder(name: str) -> str | None:
        inside = name.split("/")[shared:]
        return inside[0] if len(inside) > 1 else None

    return _classes({split: map(folder, d.names) for split, d in images.items()})


def _classes(found: Mapping[str, Iterable[str | None]]) -> Labels:
    """Labels of {split: names of classes}, of which the training split's can be asked for."""
    listed = {split: list(names) for split, names in found.items()}
    names = tuple(sorted({n for n in listed["train"] if n}, key=lambda n: (len(n), n)
                         if n.isdecimal() else (10**6, n)))  # fmt: skip
    numbers = {name: i for i, name in enumerate(names)}
    of = {k: torch.tensor([numbers.get(n or "", len(names)) for n in v]) for k, v in listed.items()}
    return Labels(CLASSES, names, of)


# ---- Tables -------------------------------------------------------------------------------------


def _find_table(images: Mapping[str, ImageDataset], root: str | Path) -> Path:
    """CelebA's, beside the images or in the data's root."""
    places = [Path(root, "celeba"), Path(root)]
    for dataset in images.values():
        if isinstance(dataset, FileDataset):
            places = [dataset.files.path.parent, dataset.files.path, *places]
    for place in places:
        if place.is_dir() and is_there(place / CELEBA_TABLE):
            return place / CELEBA_TABLE
    raise UserError(
        f"no {CELEBA_TABLE} beside the images, nor in {root}; it is distributed with CelebA, and "
        "for other images --condition takes FILE.csv"
    )


def _celeba_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """(names of attributes, rows with their lines' numbers) of the table as it is distributed: a
    line with the number of images, one of names, then a line for each image; blanks between."""
    lines = [(i, line.split()) for i, line in enumerate(_text(path).splitlines(), 1)]
    lines = [(i, cells) for i, cells in lines if cells]
    if lines and len(lines[0][1]) == 1 and lines[0][1][0].isdecimal():
        lines = lines[1:]
    if not lines or not set(SIGNS).isdisjoint(lines[0][1]):
        raise UserError(f"{path} is no table of attributes: it has no line of names")
    return lines[0][1], iter(lines[1:])


def _csv_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """(names of columns but for the first, rows with their lines' numbers) of a .csv file."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        rows = [(reader.line_num, [c.strip() for c in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows or len(rows[0][1]) < 2:
        raise UserError(f"{path} does not begin with a line such as name,label")
    return rows[0][1][1:], iter(rows[1:])


def _text(path: Path) -> str:
    with reading(path), open_regular(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 (byte {error.start}); save it as such"
        ) from None


def _of_table(
    path: Path, columns: Sequence[str], rows: Iterable[tuple[int, list[str]]],
    images: Mapping[str, ImageDataset],
) -> Labels:  # fmt: skip
    """One column: classes, whatever is written. More: attributes, as SIGNS has them. An image
    without a row is unknown."""
    of_attributes = path.suffix == ".txt" or len(columns) > 1
    for i, name in enumerate(columns):  # by which they will be asked for
        if not name or name in columns[:i] or name[0] == "-" or set(name) & set(",;"):
            what = "empty, there twice, begins with - or has a comma or semicolon in it"
            raise UserError(f"{path}: the name {short(name)!r} of a column is {what}")
    known: dict[str, list[str]] = {}
    for line, (name, *cells) in rows:
        name = name.replace("\\", "/").removeprefix("./")
        if len(cells) != len(columns):
            what = f"{len(cells)} values, but {len(columns)} columns have names"
            raise UserError(f"{path}, line {line}: {what}")
        if bad := [cell for cell in cells if of_attributes and cell not in SIGNS]:
            what = "only 1 (with it), -1 (without) or nothing (unknown)"
            raise UserError(f"{path}, line {line}: an attribute is {what}, not {short(bad[0])}")
        if name in known:
            raise UserError(f"{path}, line {line}: {short(name)} has a row already")
        known[name] = cells

    # Each image's row.
    stems = {os.path.splitext(name)[0]: cells for name, cells in known.items()}
    nothing = [""] * len(columns)
    rows_of = {k: [_find(name, known, stems) for name in d.names] for k, d in images.items()}
    total = sum(map(len, rows_of.values()))
    found = total - sum(rows.count(None) for rows in rows_of.values())
    if not found:
        first, image = short(next(iter(known), "none")), short(images["train"].names[0])
        raise UserError(f"{path} has no row of any image: it names {first}, but not {image}")
    if found < total:
        print(f"note: {path} has rows for {found} of {total} images; the others count as unknown")
    if not of_attributes:
        return _classes({k: ((row or nothing)[0] or None for row in v) for k, v in rows_of.items()})
    of = {
        split: torch.tensor(
            [[SIGNS[cell] for cell in row or nothing] for row in v], dtype=torch.int8
        )
        for split, v in rows_of.items()
    }
    return Labels(ATTRIBUTES, tuple(columns), of)


def _find(
    name: str, known: Mapping[str, list[str]], stems: Mapping[str, list[str]]
) -> list[str] | None:
    """The row of an image: of its name, or of it without the folders, or without the ending too:
    000001.jpg of a table is img_align_celeba/000001.webp."""
    for table, tail in ((known, name), (stems, os.path.splitext(name)[0])):
        while tail:
            if tail in table:
                return table[tail]
            tail = tail.partition("/")[2]
    return None
