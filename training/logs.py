"""What --log asks for beside metrics.jsonl, which is always written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data.decoding import open_picture
from training.progress import dispensable


def check_log(kind: str) -> None:
    """Raise UserError where the package that a log needs is not installed."""
    if kind == "tensorboard":
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            what = "--log tensorboard needs a package that is not installed"
            raise UserError(f"{what}; pip install tensorboard") from None


class Log:
    """A log of this kind in a run's folder, which goes on after the step `start`. With "none", or
    once something could not be written, all of this does nothing."""

    def __init__(self, kind: str, folder: Path, start: int) -> None:
        self.folder, self._writer = folder, None
        if kind == "tensorboard":
            with dispensable("log"):
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def record(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record of metrics; a list's have their places beside its name."""

        def write(writer: Any) -> None:
            for key, value in record.items():
                named = {key: value}
                if isinstance(value, list):
                    named = {f"{key}/{i}": number for i, number in enumerate(value)}
                for name, number in named.items():
                    if name not in ("run", "step") and number is not None:
                        writer.add_scalar(name, number, record["step"])

        self._write(write)

    def figures(self, step: int) -> None:
        """The figures that are in the folder."""

        def write(writer: Any) -> None:
            for path in sorted(self.folder.glob("*.png")):
                with open_picture(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                writer.add_image(path.stem, pixels, step, dataformats="HWC")

        self._write(write)

    def close(self) -> None:
        self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[Any], None]) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with dispensable("log"):
                write(writer)
                writer.flush()
                self._writer = writer
