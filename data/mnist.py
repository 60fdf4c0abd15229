"""MNIST's digits and labels, from the four original files."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from data import download

PREFIX = {"train": "train", "test": "t10k"}  # of the files' names


def mnist_images(root: str | Path, split: str) -> torch.Tensor:
    """The digits of split "train" or "test": (60000 or 10000, 1, 28, 28) uint8.

    Reads the original files (.gz or unpacked) in root/MNIST/raw, root/raw or root; downloads them
    to root through torchvision when they are not there. Raises UserError when that fails.
    """
    return _idx(root, f"{PREFIX[split]}-images-idx3-ubyte").unsqueeze(1)


def mnist_labels(root: str | Path, split: str) -> torch.Tensor:
    """What the digits of mnist_images(root, split) are: (60000 or 10000,) int64, 0 to 9.
    Raises UserError as they do."""
    return _idx(root, f"{PREFIX[split]}-labels-idx1-ubyte").long()


def _idx(root: str | Path, name: str) -> torch.Tensor:
    """The array of one of MNIST's files: (N, ...) uint8."""
    # Where it may lie, packed or not; a download puts it into the first of these folders.
    root = Path(root)
    folders = [root / "MNIST" / "raw", root / "raw", root]
    found = [f / n for f in folders for n in (name, f"{name}.gz") if (f / n).is_file()]
    if not found:
        download.try_torchvision("MNIST", root)
        found = [p for p in (folders[0] / name, folders[0] / f"{name}.gz") if p.is_file()]
    if not found:
        raise UserError(
            f"no MNIST in {root} and the download failed; put the four original files "
            f"({name}.gz and so on) into {folders[0]}"
        )

    # The header says how many sizes there are and which; the rest is one byte per value.
    try:
        raw = found[0].read_bytes()
        raw = gzip.decompress(raw) if found[0].suffix == ".gz" else raw
        dimensions = raw[3]  # the header: 0, 0, the type (8: uint8), how many sizes follow
        sizes = np.frombuffer(raw, ">u4", count=dimensions, offset=4).astype(int)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (EOFError, IndexError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise UserError(f"{found[0]} is damaged ({error}); delete it and try again") from None
    return torch.from_numpy(values.copy())
