"""CelebA's aligned faces (Liu et al. 2015): where they lie, and their official splits."""

from pathlib import Path

from common.errors import UserError
from common.files import is_there
from data import download
from data.image_files import ImageFiles

# Files are named by numbers from 1 on, and the splits follow one another.
FIRST_VALID, FIRST_TEST = 162_771, 182_638  # first image of these splits
NUM_IMAGES = 202_599
HELP = (
    "put img_align_celeba.zip (or its folder img_align_celeba/) into {root}/celeba/; it is linked "
    "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. --data synthetic needs no download"
)


def find_celeba(root: str | Path) -> tuple[ImageFiles, dict[str, list[str]]]:
    """CelebA's files in root, and {"train": names, "valid": .., "test": ..}; downloaded if missing.

    "valid" and "test" are empty where only a part of CelebA is there that ends before them. Raises
    UserError when there is no CelebA, or none of its training images.
    """
    # A folder comes before a zip, torchvision's layout before looser ones.
    root = Path(root)
    places = [
        root / folder / name
        for folder in ("celeba", ".")
        for name in ("img_align_celeba", "img_align_celeba.zip")
    ]
    places += [root / "celeba"] + [root] * root.name.startswith("img_align_celeba")

    # The first place that holds numbered pictures is it; a download is tried once.
    for attempt in range(2):
        for place in places:
            files = ImageFiles(place) if is_there(place) else None
            numbered = [n for n in files.stamps if _number(n) is not None] if files else []
            if files and numbered:
                return files, _official_splits(numbered, place)
        if attempt == 0:
            download.try_torchvision("CelebA", root)
    raise UserError(f"no CelebA in {root}: " + HELP.format(root=root))


def _number(name: str) -> int | None:
    """By which a file is named, if it is."""
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() and len(stem) < 10 else None


def _official_splits(numbered: list[str], place: Path) -> dict[str, list[str]]:
    """The splits of the files named by numbers that place holds."""
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in numbered:
        number = _number(name) or 0
        split = "valid" if number < FIRST_TEST else "test"
        splits["train" if number < FIRST_VALID else split].append(name)
    if not splits["train"]:
        raise UserError(f"{place} has no image numbered below {FIRST_VALID}")
    if len(numbered) < NUM_IMAGES:
        print(f"note: {place} holds {len(numbered)} of CelebA's {NUM_IMAGES} images")
    return splits
