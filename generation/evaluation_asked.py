"""Whether pictures show what was asked for, as a classifier of real images reads them.

What is found is a table, {row: {column: number, or None where nothing can be said}}. N: images,
D: features, A: attributes.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from data.pixels import to_pixels
from generation.classifier import features
from generation.image_sets import PER_FEATURE
from generation.metrics import frechet_distance
from models.classifier import Classifier

Table = dict[str, dict[str, float | None]]
MOST_ROWS = 60  # that are printed


@torch.no_grad()
def measure_classes(
    classifier: Classifier, pictures: Iterable[torch.Tensor], asked: torch.Tensor,
    real: torch.Tensor, labels: torch.Tensor,
) -> Table:  # fmt: skip
    """For all classes, and for each: the share of pictures that are read as asked, the share of
    real images read as what they are, and the Frechet distance between them in the classifier's
    features.

    pictures: uint8 batches, N in all, of which class asked (N,) was asked for. real: (M, 1, 28, 28)
    uint8 with labels (M,).
    """
    described = [_described(classifier, part) for part in pictures]
    f, read = (torch.cat(parts) for parts in zip(*described, strict=True))
    real_f, real_read = _described(classifier, real)
    rows = {"all": (asked >= 0, labels >= 0)}
    rows |= {str(i): (asked == i, labels == i) for i in range(classifier.config.classes)}
    table: Table = {}
    for name, (mine, theirs) in rows.items():
        enough = min(mine.sum(), theirs.sum()) >= PER_FEATURE * f.shape[1]
        table[name] = {
            "read as asked": _share(read == asked, mine),
            "real images": _share(real_read == labels, theirs),
            "Frechet distance": frechet_distance(f[mine], real_f[theirs]) if enough else None,
        }
    return table


def _described(classifier: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) and classes (N,) of uint8 images."""
    parts = [to_pixels(part) for part in images.split(500)]
    read = torch.cat([classifier(part).argmax(dim=1) for part in parts])
    return features(classifier, torch.cat(parts)), read


@torch.no_grad()
def measure_attributes(
    classifier: Classifier, names: Sequence[str], pictures: Iterable[torch.Tensor],
    asked: torch.Tensor, real: Iterable[tuple[torch.Tensor, list[int]]], labels: torch.Tensor,
) -> Table:  # fmt: skip
    """For each attribute, and for each two: the share of pictures that are read as asked, and the
    share of real images read as what they are; of an attribute, also of those with it alone, and of
    those without it.

    pictures: uint8 batches, N in all, of which asked (N, A) in {-1, 0, 1} was asked for. real:
    batches with their indices among labels (M, A). Where any of these is 0, nothing is counted.
    """
    shown = torch.cat([_shown(classifier, part) for part in pictures])
    read = [(_shown(classifier, part), labels[good]) for part, good in real]
    real_shown, real_c = (torch.cat(parts) for parts in zip(*read, strict=True))
    sets = {"read as asked": (shown == (asked > 0), asked)}
    sets["real images"] = (real_shown == (real_c > 0), real_c)
    table: Table = {}
    for i, name in enumerate(names):
        table[name] = {}
        for column, (right, wanted) in sets.items():
            table[name] |= {
                column: _share(right[:, i], wanted[:, i] != 0),
                f"{column}, with it": _share(right[:, i], wanted[:, i] == 1),
                f"{column}, without": _share(right[:, i], wanted[:, i] == -1),
            }
    for i, j in combinations(range(len(names)), 2):
        table[f"{names[i]} and {names[j]}"] = {
            column: _share(right[:, i] & right[:, j], (wanted[:, i] != 0) & (wanted[:, j] != 0))
            for column, (right, wanted) in sets.items()
        }
    return table


def _shown(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Whether uint8 images show each attribute: (N, A) bool."""
    return torch.cat([classifier(to_pixels(part)) > 0 for part in images.split(500)])


def _share(right: torch.Tensor, counted: torch.Tensor) -> float | None:
    """Of those that are counted; None of none."""
    return right[counted].double().mean().item() if counted.any() else None


def print_table(table: Mapping[str, Mapping[str, Any]]) -> None:
    """What was found, a row of the table in each line; all but distances as per cent. Of more than
    MOST_ROWS, those with a number in each column: of forty attributes there are 780 pairs."""
    columns = list(next(iter(table.values())))
    whole = {row: numbers for row, numbers in table.items() if len(numbers) == len(columns)}
    shown = table if len(table) <= MOST_ROWS else whole
    width = 2 + max(map(len, shown))
    print("\nwhat was asked for, as a classifier reads it:")
    print(" " * width + "".join(f"{column:>{len(column) + 3}}" for column in columns))
    for row, numbers in shown.items():
        cells = []
        for column in columns:
            n, form = numbers.get(column, ""), ".4g" if "distance" in column else ".1%"
            text = "-" if n is None else n if n == "" else f"{n:{form}}"
            cells.append(f"{text:>{len(column) + 3}}")
        print(f"{row:<{width}}{''.join(cells)}".rstrip())
    if len(shown) < len(table):
        print(f"and {len(table) - len(shown)} rows of two at a time, which the record has")
