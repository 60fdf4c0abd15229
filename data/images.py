"""Images of any source as data sets of uint8 tensors of one size, one data set per split.

A source is CelebA's aligned faces, a folder or zip of images, or drawn faces.
"""

import functools
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from common.errors import UserError
from data.celeba import find_celeba
from data.damage import DAMAGED, BadFiles, reason
from data.decoding import PREPARED, fit
from data.image_files import SUFFIXES, ImageFiles
from data.synthetic import draw_face

NUM_SYNTHETIC = 10_000  # drawn faces in --data synthetic
KEEP_DRAWN = 2**28  # bytes: drawn faces are kept in memory up to this

Item = tuple[int, torch.Tensor | str]  # (i, image (C, H, W) uint8, or why it cannot be decoded)
Header = tuple[str, tuple[int, int]]  # (mode, (width, height)) of a picture file


class ImageDataset(Dataset):
    """What all data sets of images have. Item i is (i, image), the image (C, H, W) uint8, or a
    string that says why it cannot be decoded.

    names: of the images, in order. size: (H, W). channels: C, 1 or 3. tally: of unreadable files.
    """

    names: list[str]
    size: tuple[int, int]
    channels: int
    tally: BadFiles

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Item:
        raise NotImplementedError

    def stamp(self) -> str:
        """A hash that changes with the images and not with the place where they lie."""
        raise NotImplementedError


class FileDataset(ImageDataset):
    """Some images of an ImageFiles, resized to cover `size` = (H, W) and centre-cropped.

    tally: shared by all splits.
    """

    def __init__(
        self,
        files: ImageFiles,
        names: list[str],
        size: tuple[int, int],
        channels: int,
        tally: BadFiles,
    ) -> None:
        self.files, self.names, self.size, self.channels = files, names, size, channels
        self.tally = tally

    def __getitem__(self, i: int) -> Item:
        name = self.names[i]  # an IndexError here ends iteration: it is no damaged file
        try:
            return i, fit(self.files.open(name), self.size, self.channels)
        except DAMAGED as error:
            return i, reason(error)  # load_batches reports it

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A DataLoader's batch: without workers, it is decoded by threads on all cores."""
        if get_worker_info() is not None:
            return [self[i] for i in indices]
        cores = os.cpu_count() or 1
        share = -(-len(indices) // cores)
        parts = [indices[k : k + share] for k in range(0, len(indices), share)]
        decoded = _threads(cores).map(lambda part: [self[i] for i in part], parts)
        return [item for items in decoded for item in items]

    def stamp(self) -> str:
        """A hash of the names with their CRCs (in a zip) or sizes in bytes (in a folder, whose
        files would have to be read for more; only BMPs are)."""
        rows = [(name, self.files.stamps[name]) for name in self.names]
        return hashlib.sha256(repr([PREPARED, rows]).encode()).hexdigest()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets others run meanwhile."""
    return ThreadPoolExecutor(count)


class SyntheticFaces(ImageDataset):
    """The drawn faces (data/synthetic.py) of these numbers; each is kept once drawn."""

    channels = 3

    def __init__(self, numbers: Sequence[int], size: tuple[int, int]) -> None:
        self.numbers, self.size = numbers, size
        self.names = [f"synthetic/{i:06d}" for i in numbers]
        self.tally = BadFiles(len(self.names))  # which stays empty
        self._drawn: dict[int, torch.Tensor] = {}

    def __getitem__(self, i: int) -> Item:
        if i in self._drawn:
            return i, self._drawn[i]
        image = torch.from_numpy(draw_face(self.numbers[i], self.size)).permute(2, 0, 1)
        if len(self) * image.numel() <= KEEP_DRAWN:
            self._drawn[i] = image
        return i, image

    def stamp(self) -> str:
        """A hash of which faces these are, and of the drawing's own first pixels."""
        probe = draw_face(0, (64, 64)).tobytes()
        return hashlib.sha256(repr(self.names).encode() + probe).hexdigest()


def open_images(
    data: str, root: str | Path | None, size: tuple[int, int]
) -> dict[str, ImageDataset]:
    """{"train": data set, "valid": data set} (CelebA: "test" too) of `data` at size (H, W).

    data: "celeba" (looked for in root), "synthetic", or the path of a folder or zip, whose files'
    headers are all read. Raises UserError, saying what to do, when there is nothing to read.
    """
    # Drawn faces: every twentieth is for validation.
    if data == "synthetic":
        valid = [i for i in range(NUM_SYNTHETIC) if i % 20 == 0]
        train = [i for i in range(NUM_SYNTHETIC) if i % 20]
        return {"train": SyntheticFaces(train, size), "valid": SyntheticFaces(valid, size)}

    # CelebA has splits of its own, and one header speaks for all. A part of it may end before the
    # official validation images: some training images take their place.
    if data == "celeba":
        files, splits = find_celeba(Path(root or "."))
        if not splits["valid"]:
            splits |= split_by_hash(splits["train"])
        channels, tally = 3, BadFiles(len(files.stamps))
        first = _header(files, splits["train"][0])
        _warn_enlarged([] if isinstance(first, str) else [first], size)

    # Anybody's images: they may be of any size, grey or damaged.
    else:
        if not data or not Path(data).exists():  # "" would be the current folder
            raise UserError(f"--data {data or repr(data)}: no such folder or zip")
        files = ImageFiles(data)
        tally = BadFiles(len(files.stamps))
        names, channels = _scan(files, size, tally)
        splits = split_by_hash(names)
    return {k: FileDataset(files, v, size, channels, tally) for k, v in splits.items() if v}


def split_by_hash(names: list[str]) -> dict[str, list[str]]:
    """{"train": .., "valid": ..}: every name's own hash decides, so new files move no old ones.

    5 % go to validation; at least one, which is also trained on where it is the only image.
    """
    chosen = {n for n in names if zlib.crc32(n.encode(errors="surrogateescape")) % 20 == 0}
    valid = [n for n in names if n in chosen] or sorted(names)[:1]
    held_out = set(valid)
    return {"train": [n for n in names if n not in held_out] or valid, "valid": valid}


def _scan(files: ImageFiles, size: tuple[int, int], tally: BadFiles) -> tuple[list[str], int]:
    """Names whose headers can be read, and 1 channel if all are grey, else 3; reports the rest."""
    # Say which files are not even tried: HEIC photographs, for example.
    if files.left_out:
        endings = files.left_out.most_common(5)
        counts = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in endings)
        print(f"note: not read, by their endings: {counts}")

    # Headers only: decoding all images would take minutes.
    headers: dict[str, Header] = {}
    for name in tqdm(files.stamps, desc="reading headers", unit="images", delay=1, leave=False):
        header = _header(files, name)
        if isinstance(header, str):
            tally.add({name: header})
        else:
            headers[name] = header
    if not headers:
        raise UserError(
            f"no readable image in {files.path}; looked for {', '.join(sorted(SUFFIXES))}"
        )

    # One image with colour makes all of them RGB.
    _warn_enlarged(headers.values(), size)
    grey = all(mode[:1] in ("1", "L", "I") and mode != "LAB" for mode, _ in headers.values())
    return list(headers), 1 if grey else 3


def _header(files: ImageFiles, name: str) -> Header | str:
    """(mode, (width, height)) of an image, or why it cannot be read."""
    try:
        with files.open(name) as image:
            return image.mode, image.size
    except DAMAGED as error:
        return reason(error)


def _warn_enlarged(headers: Iterable[Header], size: tuple[int, int]) -> None:
    """Say how many of these images are smaller than size = (H, W), if any."""
    small = [w < size[1] or h < size[0] for _, (w, h) in headers]
    if any(small):
        share = "the images" if len(small) == 1 else f"{sum(small)} of {len(small)} images"
        print(
            f"warning: {share} are smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )
