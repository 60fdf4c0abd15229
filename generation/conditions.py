"""What is asked of a conditional denoiser: names become conditions c, with guidance."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import DamagedError, UserError, short
from data.images import ImageDataset
from data.labels import ATTRIBUTES, CLASSES, Labels, read_labels
from models.diffusion import Denoiser
from models.guidance import guided
from models.unet import UNet


@dataclass(frozen=True)
class Guidance:
    """weight, interval: as models/guidance.py has them."""

    weight: float = 1.0
    interval: Sequence[int] | None = None

    @property
    def label(self) -> str:
        """In words; empty where it is off."""
        at = f" at t {self.interval[0]} to {self.interval[1]}" if self.interval else ""
        return f", guidance {self.weight:g}{at}" if self.weight != 1 else ""


@dataclass(frozen=True)
class Asked:
    """What pictures shall show. name: in words. c: (n, ..) conditions as the network takes them; a
    picture's seed s has the one of s % n."""

    name: str
    c: torch.Tensor
    guidance: Guidance

    @property
    def label(self) -> str:
        """All of it in words."""
        return f"{self.name}{self.guidance.label}"

    def of_seeds(self, seeds: Sequence[Any]) -> torch.Tensor:
        """c of the pictures of these seeds; where there is but one, of any items."""
        n = len(self.c)
        return self.c[[seed % n if n > 1 else 0 for seed in seeds]]

    def of(self, model: UNet, items: Sequence[Any]) -> Denoiser:
        """The network asked for pictures of these seeds."""
        nothing, c = model.nothing(len(items)), self.of_seeds(items)
        return guided(model, c.to(nothing), nothing, self.guidance.weight, self.guidance.interval)


def conditions_of(path: str, facts: dict[str, Any], model: UNet) -> tuple[str, list[str]]:
    """(kind, names) of what can be asked of a denoiser; ("", []) where nothing can. Raises
    DamagedError where its facts are not of its network."""
    counts = {CLASSES: model.config.classes, ATTRIBUTES: model.config.attributes}
    kind = next((kind for kind, count in counts.items() if count), "")
    known = facts.get("condition") if kind else {"kind": "", "names": []}
    names = known.get("names") if type(known) is dict and known.get("kind") == kind else None
    if type(names) is not list or not all(type(name) is str for name in names):
        raise DamagedError(path, f"it does not say which {kind} can be asked for")
    if len(set(names)) != len(names) or len(names) != counts.get(kind, 0):
        raise DamagedError(path, f"the names of its {kind} are not as many as its network knows")
    return kind, names


def asked_for(
    path: str, facts: dict[str, Any], model: UNet, guidance: Guidance,
    label: str | None = None, attributes: str | None = None,
) -> list[Asked]:  # fmt: skip
    """What --label or --attributes ask of a denoiser, one of each row.

    Raises UserError where its training had no such conditions or names.
    """
    kind, names = conditions_of(path, facts, model)
    typed, wanted = ("--label", CLASSES) if label is not None else ("--attributes", ATTRIBUTES)
    if not kind:
        raise UserError(f"{path} was trained without --condition: it cannot be asked for anything")
    if kind != wanted:
        some = short(", ".join(names))
        raise UserError(f"{typed}: {path} knows {kind}, not {wanted}: {some}")
    if label is not None:
        found = _classes(label, names)
        return [Asked(names[i], torch.tensor([i]), guidance) for i in dict.fromkeys(found)]
    rows = {_row_name(row): _attributes(row, names) for row in str(attributes).split(";")}
    return [Asked(name, c, guidance) for name, c in rows.items()]


def all_asked(
    path: str, facts: dict[str, Any], model: UNet, guidance: Guidance,
    known: torch.Tensor | None = None,
) -> Asked | None:  # fmt: skip
    """Of an evaluation: all classes in turn, or the attributes `known` (N, A) of real images in
    turn; None of a denoiser without conditions. Raises UserError where that one is to be guided."""
    kind, names = conditions_of(path, facts, model)
    if kind == CLASSES:
        return Asked("all classes", torch.arange(len(names)), guidance)
    if kind == ATTRIBUTES and known is not None:
        return Asked("attributes of real images", known, guidance)
    if guidance != Guidance():
        raise UserError(f"--guidance: {path} was trained without --condition")
    return None


def labels_known(
    path: str, facts: dict[str, Any], model: UNet, images: Mapping[str, ImageDataset],
    root: str | Path,
) -> Labels | None:  # fmt: skip
    """The Labels of these images that a denoiser of attributes knows, read anew; None of any other.
    Raises UserError where their table is not there or another one."""
    kind, names = conditions_of(path, facts, model)
    if kind != ATTRIBUTES:
        return None
    source = str(facts["condition"].get("source"))
    labels = read_labels(source, images, root)
    if labels is None or list(labels.names) != names:
        raise UserError(f"{path} knows other attributes than {source} has now")
    return labels


def _classes(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of classes, of a name, or names with commas, or ranges A-B in their order."""
    if text in names:  # whatever is in it
        return [names.index(text)]
    found = []
    for part in (part.strip() for part in text.split(",")):
        ends = [(part[:i], part[i + 1 :]) for i, letter in enumerate(part) if letter == "-"]
        ranges = [(a, b) for a, b in ends if a in names and b in names]
        if part in names or not ranges:
            found.append(_find(part, names, CLASSES))
        else:
            first, last = map(names.index, ranges[0])
            if first > last:
                raise UserError(f"--label {short(part)} is an empty range")
            found += range(first, last + 1)
    return found


def _attributes(text: str, names: Sequence[str]) -> torch.Tensor:
    """(1, A) of names with commas between them; those after a - shall not be there."""
    c = torch.zeros(1, len(names))
    for part in filter(None, (part.strip() for part in text.split(","))):
        i = _find(part.lstrip("+-"), names, ATTRIBUTES)
        if c[0, i]:
            raise UserError(f"--attributes: {names[i]} is asked for twice")
        c[0, i] = -1 if part[0] == "-" else 1
    return c


def _row_name(text: str) -> str:
    return ",".join(filter(None, (part.strip() for part in text.split(",")))) or "anything"


def _find(name: str, names: Sequence[str], kind: str) -> int:
    """The number of a name; UserError that suggests the nearest."""
    if name in names:
        return names.index(name)
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lower, 1, 0.0)
    some = short(", ".join(names))
    raise UserError(
        f"no one was trained on {short(name)}; did you mean {short(lower[near[0]])}? {kind}: {some}"
    )


def folder_name(name: str) -> str:
    """A row's name as that of a folder, whatever a checkpoint says."""
    return re.sub(r"[^\w+,=-]", "_", name)[:100] or "_"
