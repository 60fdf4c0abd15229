"""Images of any source as uint8 tensors of one size, and the way to [-1, 1] and back.

A source is a list of names with one Dataset per split: CelebA's aligned faces, a folder or zip of
images, or drawn faces. Item i is (i, image): (C, H, W) uint8, or a string that says why it cannot
be decoded.
"""

import functools
import hashlib
import io
import os
import signal
import struct
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line
from data import download
from data.synthetic import draw_face

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
NUM_SYNTHETIC = 10_000  # drawn faces in --data synthetic
KEEP_DRAWN = 2**28  # bytes: drawn faces are kept in memory up to this
PREPARED = 1  # to be raised when fit() comes to make other pixels of the same file
CROP_ONLY = 1.1  # an image at most this much larger than needed is cropped, not resized
CELEBA_VALID, CELEBA_TEST = 162_771, 182_638  # first image of each split; train starts at 1
CELEBA_IMAGES = 202_599  # images
CELEBA_HELP = (
    "put img_align_celeba.zip (or its folder img_align_celeba/) into {root}/celeba/; it is linked "
    "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. --data synthetic needs no download"
)
# What PIL and zipfile raise for files that are damaged, no images, or dangerously large.
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    zipfile.BadZipFile, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip


def to_pixels(images):
    """uint8 -> float32 in [-1, 1]; the inverse of to_uint8."""
    return images.float() / 127.5 - 1


def to_display(x):
    """[-1, 1], where values outside are clamped -> [0, 1] for the eye."""
    return (x.float() / 2 + 0.5).clamp(0, 1)


def to_uint8(x):
    """[-1, 1], where values outside are clamped -> uint8; the inverse of to_pixels."""
    return (to_display(x) * 255).round().to(torch.uint8)


# ---- Images on disk -----------------------------------------------------------------------------


class ImageFiles:
    """The images in a folder or zip: sorted names, a size or CRC of each, their bytes.

    left_out: how many other files there are, by their names' endings. The zip is opened anew in
    every process: forked workers that shared one handle would move each other's position in it.
    """

    def __init__(self, path):
        self.path, self.is_zip, self._zip = Path(path), Path(path).is_file(), (None, None)
        try:
            found = self._list_zip() if self.is_zip else self._list_folder()
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path} is not a readable zip file ({error})") from None
        self.stamps, self.left_out = {}, Counter()
        for name, stamp in sorted(found, key=lambda item: item[0]):
            suffix = Path(name).suffix.lower()
            if any(part.startswith((".", "__MACOSX")) for part in Path(name).parts):
                continue
            if suffix in SUFFIXES:
                self.stamps[name] = stamp
            else:
                self.left_out[suffix] += 1

    def _list_zip(self):
        with zipfile.ZipFile(self.path) as file:
            return [(i.filename, i.CRC) for i in file.infolist() if not i.is_dir()]

    def _list_folder(self):
        """Links are followed too, but no folder is entered twice: they may form a ring."""
        found, seen = [], {os.path.realpath(self.path)}
        for place, folders, names in os.walk(self.path, followlinks=True):
            folders.sort()
            for folder in list(folders):
                real = os.path.realpath(Path(place, folder))
                if real in seen:
                    folders.remove(folder)
                seen.add(real)
            paths = [path for path in (Path(place, name) for name in names) if path.is_file()]
            found += [(p.relative_to(self.path).as_posix(), _stamp(p)) for p in paths]
        return found

    def __getstate__(self):
        return {**self.__dict__, "_zip": (None, None)}

    def open(self, name):
        """The PIL image of that name, its pixels not yet decoded."""
        if not self.is_zip:
            return Image.open(self.path / name)
        if self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return Image.open(io.BytesIO(self._zip[1].read(name)))


def _stamp(path):
    """What changes with an image's content, found without reading it: its size. BMPs of one shape
    have all the same size, so of a BMP it is the CRC."""
    if path.suffix.lower() == ".bmp" and os.access(path, os.R_OK):
        return zlib.crc32(path.read_bytes())
    return path.stat().st_size


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
            return i, _reason(error)  # load_batches reports it

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
        files, splits = _find_celeba(Path(root))
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


def _find_celeba(root):
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
    they end before the official validation split, some of the training images are it."""
    splits = {"train": [], "valid": [], "test": []}
    for name in numbered:
        number = int(Path(name).stem)
        split = "valid" if number < CELEBA_TEST else "test"
        splits["train" if number < CELEBA_VALID else split].append(name)
    if not splits["train"]:
        raise UserError(f"{place} has no image numbered below {CELEBA_VALID}")
    if not splits["valid"]:
        splits |= split_by_hash(splits["train"])
    if len(numbered) < CELEBA_IMAGES:
        print(f"note: {place} holds {len(numbered)} of CelebA's {CELEBA_IMAGES} images")
    return splits


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
        return _reason(error)


def _reason(error):
    """Why a file cannot be read, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged"
    return getattr(error, "strerror", None) or first_line(error)


def _warn_enlarged(headers, size):
    small = sum(w < size[1] or h < size[0] for _, (w, h) in headers)
    if small:
        share = "the images" if len(headers) == 1 else f"{small} of {len(headers)} images"
        print(
            f"warning: {share} are smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )


def fit(image, size, channels):
    """A PIL image of any mode and size -> uint8 tensor (channels, H, W), size = (H, W).

    Turned as its EXIF says, resized to cover (unless at most CROP_ONLY too large), then
    centre-cropped; transparency over white; 16 bits scaled to 8.
    """
    height, width = size
    image.draft(None, (2 * max(size), 2 * max(size)))  # huge JPEGs are decoded at a fraction
    image = _eight_bits(_upright(image))
    scale = min(image.width / width, image.height / height)  # source pixels per pixel
    if 1 <= scale <= CROP_ONLY:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    else:
        left = max(0, image.width - width * scale) / 2  # rounding must not make it negative
        top = max(0, image.height - height * scale) / 2
        box = (left, top, image.width - left, image.height - top)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1)


def _upright(image):
    """Turned as its EXIF says; where that is damaged, as it is stored."""
    image.load()  # what fails from here on is not the pixels
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image):
    """The same picture in mode L or RGB."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's plain "I" may hold 8
        values = np.asarray(image, dtype=np.float64)
        values = values if image.mode == "I" and values.max() < 256 else values / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


# ---- Batches ------------------------------------------------------------------------------------


class BadFiles:
    """Reports unreadable files by name; more than 10 of them and more than 1 % stop the run."""

    def __init__(self, total):
        self.total, self.names = total, set()

    def add(self, reasons):
        """reasons: {name: why it cannot be read}. Raises UserError when there are too many, or
        when nothing is left."""
        for name in sorted(set(reasons) - self.names):
            self.names.add(name)
            tqdm.write(f"skipped, cannot be read: {name} ({reasons[name]})")
        bad = len(self.names)
        if bad > max(10, self.total / 100) or bad == self.total:
            raise UserError(
                f"{bad} of {self.total} images cannot be read (named above); "
                "repair or remove them and start again"
            )


def load_batches(dataset, batches, workers, pin_memory=False):
    """For each list of indices in `batches`: (images (B, C, H, W) uint8, their indices, a list).

    Unreadable images are left out and reported to dataset.tally; B can be smaller, never 0. Raises
    UserError when they are more than the tally allows, or batches without end bring nothing.
    pin_memory: for images that go to a CUDA GPU as they are.
    Close it (contextlib.closing) when it is not read to its end: that ends the workers in order.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # else it would take a number from the run's own
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
    )
    in_vain = set()  # unreadable ones since the last readable one
    for images, good, bad in loader:
        if bad:
            dataset.tally.add({dataset.names[i]: reason for i, reason in bad.items()})
        if not good and len(in_vain) == len(dataset):
            raise UserError(f"none of the {len(dataset)} images can be read (named above)")
        in_vain = set() if good else in_vain.union(bad)
        if good:
            yield images, good


def _leave_signals_to_parent(worker):
    """Ctrl-C reaches all processes: the one that trains decides what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(items):
    good = [(i, image) for i, image in items if not isinstance(image, str)]
    bad = {i: reason for i, reason in items if isinstance(reason, str)}
    images = torch.stack([image for _, image in good]) if good else None
    return images, [i for i, _ in good], bad
