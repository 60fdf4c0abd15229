"""Images of any source as data sets of uint8 tensors of one size, one data set per split.

A source is CelebA's aligned faces, a folder, zip or tars of images, or drawn faces.
"""

import hashlib
import os
import zlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from common.errors import UserError
from common.machine import cores
from data.celeba import find_celeba
from data.damage import BadFiles, Unreadable
from data.decoding import PREPARED, fit, foreign_profile
from data.image_files import SUFFIXES, ImageFiles
from data.order import fixed_sample
from data.synthetic import draw_face

NUM_SYNTHETIC = 10_000  # drawn faces in --data synthetic
KEEP_DRAWN = 2**28  # bytes: drawn faces are kept in memory up to this

LOOKED_AT = 16  # pictures
LEAST_CONTRAST = 24  # from a picture's darkest to its lightest value: less is as good as uniform

_threads = ThreadPoolExecutor(cores())

Item = tuple[int, torch.Tensor | str]  # (i, image (C, H, W) uint8, or why it cannot be decoded)


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


@dataclass(eq=False)
class FileDataset(ImageDataset):
    """Some images of an ImageFiles, resized to cover `size` = (H, W) and centre-cropped.

    tally: shared by all splits. foreign: whether any of the pictures brings a colour profile other
    than sRGB's.
    """

    files: ImageFiles
    names: list[str]
    size: tuple[int, int]
    channels: int
    tally: BadFiles
    foreign: bool = False

    def __getitem__(self, i: int) -> Item:
        name = self.names[i]  # an IndexError here ends iteration: it is no damaged file
        try:
            with self.files.open(name) as image:
                return i, fit(image, self.size, self.channels)
        except Unreadable as error:
            return i, str(error)  # load_batches reports it

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A DataLoader's batch: without workers, it is decoded by threads on all cores."""
        if get_worker_info() is not None:
            return [self[i] for i in indices]
        return list(_threads.map(self.__getitem__, indices))  # others run while Pillow decodes

    def stamp(self) -> str:
        """A hash of the names with their CRCs (in a zip) or sizes in bytes (in a folder or tars,
        whose files would have to be read for more; only uncompressed ones are), and of whether
        colours are converted."""
        parts: list[object] = [PREPARED, [(name, self.files.stamps[name]) for name in self.names]]
        parts += ["profiles"] * self.foreign
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class SyntheticFaces(ImageDataset):
    """The drawn faces (data/synthetic.py) of these numbers; each is kept once drawn."""

    def __init__(self, numbers: Sequence[int], size: tuple[int, int], channels: int = 3) -> None:
        self.numbers, self.size, self.channels = numbers, size, channels
        self.names = [f"synthetic/{i:06d}" for i in numbers]
        self.tally = BadFiles(len(self.names))  # which stays empty
        self._drawn: dict[int, torch.Tensor] = {}

    def __getitem__(self, i: int) -> Item:
        if i in self._drawn:
            return i, self._drawn[i]
        drawn = Image.fromarray(draw_face(self.numbers[i], self.size))
        image = fit(drawn, self.size, self.channels)
        if len(self) * image.numel() <= KEEP_DRAWN:
            self._drawn[i] = image
        return i, image

    def stamp(self) -> str:
        """A hash of which faces these are, and of the drawing's own first pixels."""
        probe = draw_face(0, (64, 64)).tobytes()
        return hashlib.sha256(repr(self.names).encode() + probe).hexdigest()


def open_images(
    data: str, root: str | Path | None, size: tuple[int, int], grey: bool = False
) -> dict[str, ImageDataset]:
    """{"train": data set, "valid": data set} (CelebA: "test" too) of `data` at size (H, W).

    data: "celeba" (looked for in root), "synthetic", or what ImageFiles takes, whose files'
    headers are all read. grey: of 1 channel, whatever they are. Raises UserError, saying what to
    do, when there is nothing to read.
    """
    # Drawn faces: every twentieth is for validation.
    channels = 1 if grey else 3
    if data == "synthetic":
        everyone = range(NUM_SYNTHETIC)
        numbers = {"train": [i for i in everyone if i % 20], "valid": everyone[::20]}
        return {k: SyntheticFaces(v, size, channels) for k, v in numbers.items()}

    # CelebA has splits of its own, and one header speaks for all. A part of it may end before the
    # official validation images: some training images take their place.
    foreign = False
    if data == "celeba":
        files, splits = find_celeba(Path(root or "."))
        if not splits["valid"]:
            splits |= split_by_hash(splits["train"])
        tally = BadFiles(len(files.stamps) + len(files.refused))
        tally.add(files.refused)
        with suppress(Unreadable), files.open(splits["train"][0]) as image:
            _warn_enlarged([image.size], size)

    # Anybody's images: they may be of any size, grey or damaged.
    else:
        if not data:  # which would be the current folder
            raise UserError("--data '': no such folder, zip or tar")
        files = ImageFiles(data)
        tally = BadFiles(len(files.stamps) + len(files.refused))
        headers = _readable(files, size, tally)
        splits = split_by_hash(list(headers), files.depth)
        channels = 1 if grey else _num_channels(headers.values())
        foreign = any(header.foreign for header in headers.values())
    found: dict[str, ImageDataset] = {
        k: FileDataset(files, v, size, channels, tally, foreign) for k, v in splits.items() if v
    }
    _warn_uniform(found["train"])
    return found


def split_by_hash(names: list[str], depth: int | None = None) -> dict[str, list[str]]:
    """{"train": .., "valid": ..}: every name's own hash decides, so new files move no old ones.

    The folders that all names begin with are left out of it: they are no more than the place where
    a set lies. depth: how many these are, where that is known: of tars only the tar's own name, so
    that it does not matter which others are given. 5 % go to validation; at least one, which is
    also trained on where it is the only image.
    """
    shared = depth or len(os.path.commonprefix([name.split("/")[:-1] for name in names]))
    own = {n: "/".join(n.split("/")[shared:]).encode(errors="surrogateescape") for n in names}
    chosen = {name for name in names if zlib.crc32(own[name]) % 20 == 0}
    valid = [n for n in names if n in chosen] or sorted(names)[:1]
    held_out = set(valid)
    return {"train": [n for n in names if n not in held_out] or valid, "valid": valid}


# ---- What somebody's pictures are, found in their headers ----------------------------------------


class _Header(NamedTuple):
    """Of a picture file. size: (width, height). foreign: whether its colours are not sRGB's."""

    mode: str
    size: tuple[int, int]
    foreign: bool


def _readable(files: ImageFiles, size: tuple[int, int], tally: BadFiles) -> dict[str, _Header]:
    """{name: _Header} of all files that can be read; the rest goes to the tally. Says how many are
    smaller than size (H, W). Raises UserError where there are none."""
    # Say which files are not even tried: HEIC photographs, for example.
    if files.left_out:
        endings = files.left_out.most_common(5)
        counts = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in endings)
        print(f"note: not read, by their endings: {counts}")
    tally.add(files.refused)

    # Headers only: decoding all images would take minutes.
    headers: dict[str, _Header] = {}
    for name in tqdm(files.stamps, desc="reading headers", unit="images", delay=1, leave=False):
        try:
            with files.open(name) as image:
                headers[name] = _Header(image.mode, image.size, foreign_profile(image) is not None)
        except Unreadable as error:
            tally.add({name: str(error)})
    if not headers:
        raise UserError(
            f"no readable image in {files.path}; looked for {', '.join(sorted(SUFFIXES))}"
        )
    _warn_enlarged([header.size for header in headers.values()], size)
    return headers


def _num_channels(headers: Collection[_Header]) -> int:
    """1 if all are grey, else 3, which is said where it is because of some."""
    grey = "1", "L", "LA", "La", "I", "F"  # and the kinds of I, such as I;16
    colourful = sum(header.mode.split(";")[0] not in grey for header in headers)
    if 0 < colourful < len(headers):
        print(
            f"note: {colourful} of {len(headers)} images have colours, so all are read as RGB; a "
            "training with --grey reads all as grey"
        )
    return 3 if colourful else 1


def _warn_uniform(images: ImageDataset) -> None:
    """Say it where pictures, a fixed sample of them, come out with next to no contrast: those of 12
    bits in files of 16 are all but black, and wholly transparent ones are white."""
    sample = [images[i][1] for i in fixed_sample(len(images), LOOKED_AT).tolist()]
    ends = [(int(x.min()), int(x.max())) for x in sample if isinstance(x, torch.Tensor)]
    flat = [(low, high) for low, high in ends if high - low < LEAST_CONTRAST]
    if flat:
        low, high = min(low for low, _ in flat), max(high for _, high in flat)
        print(
            f"warning: {len(flat)} of {len(ends)} images looked at are all but uniform, with "
            f"values from {low} to {high} of 255; nothing can be learnt from such"
        )


def _warn_enlarged(sizes: Collection[tuple[int, int]], size: tuple[int, int]) -> None:
    """Say how many images of these sizes (width, height) are smaller than size = (H, W), if any."""
    small = sum(width < size[1] or height < size[0] for width, height in sizes)
    if small:
        share = f"{small} of {len(sizes)} images are" if len(sizes) > 1 else "the images are"
        print(
            f"warning: {share} smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )
