"""What is put on the disk: pictures in a grid, in a folder that is gone on with, or in a figure;
records."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.choices import PICTURES
from common.errors import UserError
from common.files import make_folder, open_regular, remove_leftovers
from common.launch import is_first
from data.damage import Unreadable
from data.decoding import open_picture
from data.pixels import to_pixels, to_uint8
from generation import seeing
from generation.conditions import Asked, folder_name
from generation.pipeline import Pipeline
from generation.seeing import TrainingSet
from models.samplers import Draw
from training import distributed, figures
from training.checkpoint import fingerprint
from training.records import append_record


def make_pictures(
    pipeline: Pipeline, seeds: Sequence[int], out: Path, *, asked: Sequence[Asked] = (),
    film: bool = False, interpolate: tuple[int, int] | None = None,
    neighbours: TrainingSet | None = None,
) -> None:  # fmt: skip
    """A picture of each seed: in a grid where out ends in one of PICTURES, else in a folder.

    asked: what they shall show; of several, a row of a figure each, or a folder in the folder.

    At most one of these makes a figure instead: film, how they come out of noise; interpolate,
    two other seeds, a path of as many pictures from one to the other; neighbours, each above the
    training images nearest to it. Raises UserError when out cannot be written to, or the steps are
    not in 1 .. T, before anything is made.
    """
    # A figure is made by one process; so is a grid, of what all have made.
    figure = film or interpolate is not None or neighbours is not None
    if len(asked) > 1 and (figure or _is_grid(out) and out.suffix.lower() != ".png"):
        raise UserError("several rows are a figure of their own, or a folder: --out is a .png then")
    if not is_first() and figure:
        return
    if len(asked) == 1:
        pipeline = replace(pipeline, asked=asked[0])

    # Say what will be made, when it can be.
    check_out(pipeline, out, [out, out.with_suffix(".gif")] if film else [out])
    print(f"{pipeline.label}, on {pipeline.runtime}", flush=True)
    began = time.monotonic()

    # Make it.
    if film:
        seeing.film(pipeline, seeds, out)
    elif interpolate is not None:
        seeing.interpolation(pipeline, *interpolate, len(seeds), out)
    elif neighbours is not None:
        seeing.neighbours(pipeline, seeds, neighbours, out)
    elif len(asked) > 1:
        _make_rows(pipeline, seeds, out, asked)
    elif _is_grid(out):
        images = _everyones(pipeline, seeds)
        if is_first():
            figures.save_grid(out, images)
    else:
        fill_folder(pipeline, seeds, out)

    # Say where it is, and show it where that is possible.
    print(f"saved {out} in {time.monotonic() - began:.1f} s")
    if is_first() and _is_grid(out):
        figures.show_window(out)


def _make_rows(pipeline: Pipeline, seeds: Sequence[int], out: Path, asked: Sequence[Asked]) -> None:
    """A row of a figure for each of what is asked, or a folder in the folder out."""
    if not _is_grid(out):
        for row in asked:
            fill_folder(replace(pipeline, asked=row), seeds, out / folder_name(row.name))
        return
    n, guidance = len(asked), asked[0].guidance
    together = Asked("", torch.cat([row.c for row in asked]), guidance)
    images = _everyones(
        replace(pipeline, asked=together), range(n * len(seeds)),
        lambda items: pipeline.noise([seeds[i // n] for i in items]),
    )  # fmt: skip
    if is_first():
        rows = {row.name: to_pixels(images[i::n]) for i, row in enumerate(asked)}
        figures.image_rows(out, rows, f"{pipeline.label}{guidance.label}")


def _everyones(
    pipeline: Pipeline, items: Sequence[int], noise: Callable[[list[int]], Draw] | None = None
) -> torch.Tensor:
    """The pictures of these items (N, C, H, W) uint8, of which each process makes its share."""
    made = [(i, to_uint8(x)) for i, x, _ in pipeline.batches(items, noise, divided=True)]
    batches = sorted(sum(distributed.everyones(made), []), key=lambda batch: batch[0][0])
    return torch.cat([images for _, images in batches])


def check_out(pipeline: Pipeline, out: Path, made: Sequence[Path] = ()) -> None:
    """Make the folder that out needs; UserError where it cannot be made or written to, where one of
    the files to be made is there and is somebody else's, or where the pipeline's steps are not in
    1 .. T."""
    pipeline.scheduler.timesteps(pipeline.steps)
    as_grid = _is_grid(out)
    if not as_grid and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder; for a grid end it in .png or .jpg")
    if as_grid and out.is_dir():
        raise UserError(f"--out {out} is a folder; for single pictures name it without an ending")
    for path in made:
        if path.exists() and not path.is_dir() and not figures.made_here(path):
            raise UserError(f"--out: {path} is there, and was not made here; choose another name")
    folder = out.parent if as_grid else out
    try:
        make_folder(folder)
        remove_leftovers(folder)
    except UserError as error:
        raise UserError(f"--out {out}: {error}") from None


def _is_grid(out: Path) -> bool:
    return out.suffix.lower() in PICTURES


def picture_path(folder: Path, seed: int) -> Path:
    """Where fill_folder puts the picture of a seed."""
    return folder / f"seed{seed:06d}.png"


def fill_folder(pipeline: Pipeline, seeds: Sequence[int], folder: Path) -> None:
    """seedNNNNNN.png for each seed, its settings in its text; those that are there are kept. All
    processes call this, and each makes its share.

    Raises UserError when a picture that is there was made with other settings.
    """
    # What each picture says of its making; those that are there must say the same.
    made = {
        "denoiser": fingerprint(pipeline.model)[:16],
        "sampler": pipeline.sampler,
        "sampling_steps": pipeline.steps,
        **pipeline.used,
        "precision": pipeline.runtime.precision,
    }
    if pipeline.model.config.classes or pipeline.model.config.attributes:
        made["asked"] = pipeline.asked.label if pipeline.asked else "anything"
    text = {key: str(value) for key, value in made.items()}
    make_folder(folder)
    there = set(folder.glob("seed*.png"))
    for path in sorted(there):
        _check_made_alike(path, text)

    # Only what is missing is made; a picture is there as a whole or not at all.
    paths = {seed: picture_path(folder, seed) for seed in seeds}
    missing = distributed.firsts([seed for seed, path in paths.items() if path not in there])
    if len(missing) < len(paths):
        print(f"{len(paths) - len(missing)} of {len(paths)} pictures are there already")
    for batch, images, _ in pipeline.batches(missing, divided=True):
        for seed, image in zip(batch, images, strict=True):
            figures.save_image(paths[seed], figures.single_image(image), text | {"seed": str(seed)})
    distributed.total(0)  # until all have made theirs


def _check_made_alike(path: Path, text: dict[str, str]) -> None:
    """Raise UserError unless the PNG's text says that it was made with these settings."""
    try:
        with open_regular(path) as file, open_picture(file) as image:
            found = image.info  # the pixels are not decoded
    except (OSError, Unreadable):
        found = {}
    for key, value in text.items():
        if (other := found.get(key, "unknown")) != value:
            raise UserError(
                f"{path} was made with {key} {other}, not {value}; choose another --out"
            )


def save_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of JSON lines, and say so."""
    append_record(path, record)
    print(f"\nadded to {path}")
