"""Images of any source as data sets of uint8 tensors of one size.

A source is a list of names with one data set per split: CelebA's aligned faces, a folder or zip of
images, or drawn faces. Item i is (i, image): (C, H, W) uint8, or a string that says why it cannot
be decoded.
"""

import functools
import hashlib
import os
import zlib
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


class FileDataset(Dataset):
    """Some images of an ImageFiles, resized to cover `size` = (H, W) and centre-cropped."""

    def __init__(self, files, names, size, channels, tally):
        self.files, self.names, self.size, self.channels = files, names, size, channels
        self.tally = tally  # of unreadable files, shared by all splits

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        name = self.names[i]  # an IndexError here ends iteration: it is no damaged file
        try:
            return i, fit(self.files.open(name), self.size, self.channels)
        except DAMAGED as error:
            return i, reason(error)  # load_batches reports it

    def __getitems__(self, indices):
        """A DataLoader's batch: without workers, it is decoded by threads on all cores."""
        if get_worker_info() is not None:
            return [self[i] for i in indices]
        cores = os.cpu_count() or 1
        share = -(-len(indices) // cores)
        parts = [indices[k : k + share] for k in range(0, len(indices), share)]
        decoded = _threads(cores).map(lambda part: [self[i] for i in part], parts)
        return [item for items in decoded for item in items]

    def stamp(self):
        """A hash of the names with their CRCs (in a zip) or sizes in bytes (in a folder, whose
        files would have to be read for more; only BMPs are)."""
        rows = [(name, self.files.stamps[name]) for name in self.names]
        return hashlib.sha256(repr([PREPARED, rows]).encode()).hexdigest()


@functools.cache
def _threads(count):
    """Threads that decode: Pillow lets others run meanwhile."""
    return ThreadPoolExecutor(count)


class SyntheticFaces(Dataset):
    """Drawn faces (data/synthetic.py); each is kept once drawn. Same interface as FileDataset."""

    channels = 3

    def __init__(self, numbers, size):
        self.numbers, self.size, self._drawn = numbers, size, {}
        self.names = [f"synthetic/{i:06d}" for i in numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        if i in self._drawn:
            return i, self._drawn[i]
        image = torch.from_numpy(draw_face(self.numbers[i], self.size)).permute(2, 0, 1)
        if len(self) * image.numel() <= KEEP_DRAWN:
            self._drawn[i] = image
        return i, image

    def stamp(self):
        """A hash of which faces these are, and of the drawing's own first pixels."""
        probe = draw_face(0, (64, 64)).tobytes()
        return hashlib.sha256(repr(self.names).encode() + probe).hexdigest()


def open_images(data, root, size):
    """{"train": Dataset, "valid": Dataset} (CelebA: "test" too) of `data` at size (H, W).

    data: "celeba" (looked for in root), "synthetic", or the path of a folder or zip. Raises
    UserError, saying what to do, when there is nothing to read.
    """
    if data == "synthetic":
        valid = [i for i in range(NUM_SYNTHETIC) if i % 20 == 0]
        train = [i for i in range(NUM_SYNTHETIC) if i % 20]
        return {"train": SyntheticFaces(train, size), "valid": SyntheticFaces(valid, size)}
    if data == "celeba":
        files, splits = find_celeba(Path(root))
        if not splits["valid"]:  # a part of CelebA that ends before its official ones
            splits |= split_by_hash(splits["train"])
        channels, tally = 3, BadFiles(len(files.stamps))
        first = _header(files, splits["train"][0])
        _warn_enlarged([] if isinstance(first, str) else [first], size)
    else:
        if not data or not Path(data).exists():  # "" would be the current folder
            raise UserError(f"--data {data or repr(data)}: no such folder or zip")
        files = ImageFiles(data)
        tally = BadFiles(len(files.stamps))
        names, channels = _scan(files, size, tally)
        splits = split_by_hash(names)
    return {k: FileDataset(files, v, size, channels, tally) for k, v in splits.items() if v}


def split_by_hash(names):
    """{"train": .., "valid": ..}: every name's own hash decides, so new files move no old ones.

    5 % go to validation; at least one, which is also trained on where it is the only image.
    """
    chosen = {n for n in names if zlib.crc32(n.encode(errors="surrogateescape")) % 20 == 0}
    valid = [n for n in names if n in chosen] or sorted(names)[:1]
    held_out = set(valid)
    return {"train": [n for n in names if n not in held_out] or valid, "valid": valid}


def _scan(files, size, tally):
    """Names whose headers can be read, and 1 channel if all are grey, else 3; reports the rest."""
    if files.left_out:
        kinds = ", ".join(f"{n} {s or 'without ending'}" for s, n in files.left_out.most_common(5))
        print(f"note: not read, by their endings: {kinds}")
    headers = {}
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
    _warn_enlarged(list(headers.values()), size)
    grey = all(mode[:1] in ("1", "L", "I") and mode != "LAB" for mode, _ in headers.values())
    return list(headers), 1 if grey else 3


def _header(files, name):
    """(mode, (width, height)) of an image, or why it cannot be read."""
    try:
        with files.open(name) as image:
            return image.mode, image.size
    except DAMAGED as error:
        return reason(error)


def _warn_enlarged(headers, size):
    small = sum(w < size[1] or h < size[0] for _, (w, h) in headers)
    if small:
        share = "the images" if len(headers) == 1 else f"{small} of {len(headers)} images"
        print(
            f"warning: {share} are smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )
