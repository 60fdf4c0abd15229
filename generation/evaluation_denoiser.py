"""How good a denoiser's samples are: measured, then told, kept and drawn.

The floor of a distance is what real images, as many as there are samples, have to the test images:
no sample can be expected to be nearer. The record of an evaluation, as evaluation.jsonl keeps it:

    denoiser, denoiser_id   the checkpoint's name and its fingerprint
    label, protocol         the sampler, and all that was done, in words
    counts                  samples, test images, training images
    real                    names of the test images and of the training images
    spaces                  {space: compare_features of samples, reconstructions and floor}
    colours                 compare_colours of samples and test images
    nearest                 compare_nearest of both; only where there is a training set
    asked                   the table of evaluation_asked.py; only where something was asked for
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.pixels import to_pixels, to_uint8
from generation.evaluation_asked import print_table
from generation.image_sets import (
    Description,
    RealImages,
    Space,
    compare_colours,
    compare_features,
    compare_nearest,
    describe,
    read_pictures,
    too_few,
)
from generation.output import check_out, fill_folder, picture_path, save_record
from generation.pipeline import Pipeline
from generation.seeing import TrainingSet
from training import figures
from training.checkpoint import fingerprint
from training.progress import dispensable, told
from training.records import read_records

MOST_REAL = 10_000  # test images compared with, at most
LABELS = 18, 24  # least width of a table's names: of distances, of all else


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, and where.

    train: of which the floor is made. training_set: None where it is not at hand.
    """

    test: RealImages
    train: RealImages
    spaces: Sequence[Space]
    training_set: TrainingSet | None


# ---- Measure ------------------------------------------------------------------------------------


def evaluate_denoiser(
    pipeline: Pipeline,
    seeds: range,
    folder: Path,
    reference: Reference,
    checkpoint: str,
) -> dict[str, Any]:
    """Sample and compare: a record that JSON can hold.

    Samples are PNGs in folder; those there are kept. Where there is an autoencoder, its
    reconstructions of the test images are compared too: that distance is its share of the samples'.
    Raises UserError as check_out and fill_folder do.
    """
    # Samples: what would stop or spoil the evaluation is said before they are made.
    check_out(pipeline, folder, [folder / "trade.png"])
    test, train, spaces, codec = reference.test, reference.train, reference.spaces, pipeline.codec
    count, against = len(seeds), min(test.size, MOST_REAL)
    planned = {"samples": count, "test images": against, "training images": min(train.size, count)}
    _warn_of_too_few(spaces, planned, test)
    fill_folder(pipeline, seeds, folder)
    paths = [picture_path(folder, seed) for seed in seeds]
    samples = describe(read_pictures(paths), spaces, "samples", count, codec.encode)

    # What they are compared with: real images, and the floor.
    real = describe(test.batches(against), spaces, "test images", against, codec.encode)
    floor = describe(train.batches(count), spaces, "training images", count)
    compared = {"samples": samples}
    if not codec.lossless:
        compared["reconstructions"] = _reconstructions(pipeline, reference, against)
    compared["floor"] = floor

    # The numbers.
    clipped = "x0 clipped" if pipeline.scheduler.config.clip_x0 else "x0 not clipped"
    record: dict[str, Any] = {
        "denoiser": checkpoint,
        "denoiser_id": fingerprint(pipeline.model)[:16],
        "label": pipeline.label,
        "counts": [count, len(real), len(floor)],
        "real": [test.name, train.name],
        "protocol": f"{count} samples, seeds {seeds[0]} to {seeds[-1]}, {pipeline.label}, "
        f"{clipped}, averaged weights, {pipeline.runtime.precision}; "
        f"against {len(real)} of {test.name}; floor: {len(floor)} of {train.name}",
        "spaces": {},
    }
    for space in spaces:
        features = {name: d.features[space.name] for name, d in compared.items()}
        record["spaces"][space.name] = compare_features(features, real.features[space.name])
    record["colours"] = compare_colours({"samples": samples, test.name: real})
    if reference.training_set is not None:
        sets = {"samples": samples, "test images": real}
        record["nearest"] = compare_nearest(sets, reference.training_set)
    return record


def _reconstructions(pipeline: Pipeline, reference: Reference, n: int) -> Description:
    """The autoencoder's reconstructions of n test images, from the posterior's mean."""
    codec = pipeline.codec
    latents = (codec.encode(to_pixels(images)) for images in reference.test.batches(n))
    batches = (to_uint8(codec.decode(x0)) for x0 in latents)
    return describe(batches, reference.spaces, "reconstructions", n)


def _warn_of_too_few(spaces: Sequence[Space], counts: Mapping[str, int], test: RealImages) -> None:
    """Say which distances there cannot be, before samples are made: that may take hours."""
    for images in test.batches(1):  # none, where it cannot be read
        for space in spaces:
            with torch.no_grad():
                size = space.features(to_pixels(images)).shape[1]
            if text := too_few(size, counts):
                print(f"there will be no distance in the {space.name}: {text}", flush=True)


# ---- Tell, keep, draw ---------------------------------------------------------------------------


def publish(folder: Path, record: Mapping[str, Any]) -> None:
    """Print a record, and keep it in its folder of samples: evaluation.jsonl, trade.png."""
    print_evaluation(record)
    save_record(folder / "evaluation.jsonl", record)
    with dispensable("trade.png"):  # made of records of other folders too
        draw_trade(folder, record)


def print_evaluation(record: Mapping[str, Any]) -> None:
    """A record of evaluate_denoiser, as tables."""
    print(told("protocol", record["protocol"]))

    # A table of distances per space, or why there is none.
    for space, distances in record["spaces"].items():
        width = _width(distances, LABELS[0])
        print(f"\n{space}:\n{'':<{width}}{'Frechet distance':>18}{'precision':>12}{'recall':>10}")
        if "too few" in distances:
            print(f"  no number: {distances['too few']}")
            continue
        for name, d in distances.items():
            numbers = f"{d['frechet']:>18.4g}{d['precision']:>12.3f}{d['recall']:>10.3f}"
            print(f"{name:<{width}}{numbers}")

    # What was asked for.
    if "asked" in record:
        print_table(record["asked"])

    # Colours.
    print("\ncolours, per channel, 0 to 255: mean; spread of the images' means; contrast in them:")
    width = _width(record["colours"], LABELS[1])
    for name, numbers in record["colours"].items():
        parts = (numbers[key] for key in ("mean", "spread", "contrast"))
        print(f"  {name:<{width}}" + ";  ".join(" ".join(map(str, part)) for part in parts))

    # Copies.
    if "nearest" not in record:
        print("distances to the nearest training images: the training set is not at hand")
        return
    print("\ndistance to the nearest training image (root mean square): least, 5 %, median:")
    width = _width(record["nearest"], LABELS[1])
    for name, d in record["nearest"].items():
        numbers = f"{d['least']:.3f}  {d['5 %']:.3f}  {d['median']:.3f}"
        print(f"  {name:<{width}}{numbers}   ({d['images']} images)")


def _width(names: Iterable[str], least: int) -> int:
    """Of a column that holds the longest of these names, and two spaces."""
    return max(least, 2 + max(map(len, names)))


def draw_trade(folder: Path, record: Mapping[str, Any]) -> None:
    """trade.png: this evaluation among those of the same denoiser, as many samples and the same
    real images, with other settings, beside it; of equal settings the newest."""
    # The evaluations of the folders beside this one, oldest first.
    found: dict[str, Mapping[str, Any]] = {}
    paths = folder.parent.glob("*/evaluation.jsonl")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        for other in read_records(path):
            if all(other.get(key) == record[key] for key in ("denoiser_id", "counts", "real")):
                found[other["label"]] = other
    found[record["label"]] = record

    # A point for each in every space that has numbers, and one for the floor.
    spaces: dict[str, list[tuple[str, float, float, float]]] = {}
    points = [(label, "samples", r) for label, r in sorted(found.items())]
    for label, name, r in [*points, ("floor", "floor", record)]:
        for space, distances in r["spaces"].items():
            if name in distances:
                d = distances[name]
                point = label, d["precision"], d["recall"], d["frechet"]
                spaces.setdefault(space, []).append(point)
    if spaces:
        figures.trade(folder / "trade.png", spaces)
        print(f"saved {folder / 'trade.png'}")
