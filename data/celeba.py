"""CelebA's aligned faces (Liu et al. 2015): where they lie, and their official splits."""

from pathlib import Path

from common.errors import UserError
from data import download
from data.image_files import ImageFiles

CELEBA_VALID, CELEBA_TEST = 162_771, 182_638  # first image of each split; train starts at 1
CELEBA_IMAGES = 202_599  # images
CELEBA_HELP = (
    "put img_align_celeba.zip (or its folder img_align_celeba/) into {root}/celeba/; it is linked "
    "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. --data synthetic needs no download"
)


def find_celeba(root):
    """CelebA's files and its official splits by image number; downloaded if not there."""
    places = [
        root / folder / name
        for folder in ("celeba", ".")
        for name in ("img_align_celeba", "img_align_celeba.zip")
    ]
    places += [root / "celeba"] + [root] * root.name.startswith("img_align_celeba")
    for attempt in range(2):
        for place in places:
            files = ImageFiles(place) if place.exists() else None
            numbered = [n for n in files.stamps if Path(n).stem.isdigit()] if files else []
            if numbered:
                return files, _celeba_splits(numbered, place)
        if attempt == 0:
            download.try_torchvision("CelebA", root)
    raise UserError(f"no CelebA in {root}: " + CELEBA_HELP.format(root=root))


def _celeba_splits(numbered, place):
    """{"train": .., "valid": .., "test": ..} of the files named by numbers that place holds; where
    they end before the official validation split, "valid" is empty."""
    splits = {"train": [], "valid": [], "test": []}
    for name in numbered:
        number = int(Path(name).stem)
        split = "valid" if number < CELEBA_TEST else "test"
        splits["train" if number < CELEBA_VALID else split].append(name)
    if not splits["train"]:
        raise UserError(f"{place} has no image numbered below {CELEBA_VALID}")
    if len(numbered) < CELEBA_IMAGES:
        print(f"note: {place} holds {len(numbered)} of CelebA's {CELEBA_IMAGES} images")
    return splits
