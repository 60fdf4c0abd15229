"""MNIST's digits and labels, from the four original files."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from common.files import first_line, is_there, open_regular, reading
from data import download

PREFIX = {"train": "train", "test": "t10k"}  # of the files' names
MOST = 10**6  # digits in a file


def mnist_images(root: str | Path, split: str) -> torch.Tensor:
    """The digits of split "train" or "test": (60000 or 10000, 1, 28, 28) uint8.

    Reads the original files (.gz or unpacked, -idx or .idx in their names) in root/MNIST/raw,
    root/raw or root; downloads them to root through torchvision when they are not there. Raises
    UserError when that fails.
    """
    return _idx(root, f"{PREFIX[split]}-images", (28, 28)).unsqueeze(1)


def mnist_labels(root: str | Path, split: str) -> torch.Tensor:
    """What the digits of mnist_images(root, split) are: (60000 or 10000,) int64, 0 to 9.
    Raises UserError as they do."""
    return _idx(root, f"{PREFIX[split]}-labels", ()).long()


def _idx(root: str | Path, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The array of one of MNIST's files: (N, *shape) uint8."""
    # Where it may lie, packed or not; a download puts it into the first of these folders.
    root = Path(root)
    folders = [root / "MNIST" / "raw", root / "raw", root]
    names = [f"{name}{c}idx{1 + len(shape)}-ubyte{end}" for c in "-." for end in ("", ".gz")]
    found = _files(folders, names)
    if not found:
        download.try_torchvision("MNIST", root)
        found = _files(folders, names)
    if not found:
        raise UserError(
            f"no MNIST in {root} and the download failed; put the four original files "
            f"({names[1]} and so on) into {folders[0]}"
        )
    with reading(found[0]):
        try:
            return _read(found[0], shape)
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            why = first_line(error)
            raise UserError(f"{found[0]} is damaged ({why}); delete it and try again") from None


def _files(folders: list[Path], names: list[str]) -> list[Path]:
    """Those that are there. An archive may have made a folder of such a name."""
    paths = [folder / name for folder in folders for name in names]
    return [path for path in paths if is_there(path) and not path.is_dir()]


def _read(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """No more is unpacked than the header says, and no more than that of MOST digits."""
    with open_regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
        # 0, 0, the type (8: uint8), how many sizes follow, and these sizes.
        wanted = bytes([0, 0, 8, 1 + len(shape)])
        if file.read(4) != wanted:
            raise ValueError(f"its first bytes are not {wanted.hex(' ')}")
        sizes = np.frombuffer(file.read(4 * (1 + len(shape))), ">u4").astype(int).tolist()
        if tuple(sizes[1:]) != shape or not sizes or not 1 <= sizes[0] <= MOST:
            raise ValueError(f"its sizes are {sizes}, not {['1 or more', *shape]}")
        values = file.read(math.prod(sizes) + 1)
    if len(values) != math.prod(sizes):
        raise ValueError(f"{math.prod(sizes)} values should follow its header")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(sizes).copy())
