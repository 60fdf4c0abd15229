"""Picture files that cannot be read: what they raise, why in few words, how many are too many."""

import struct
import zipfile
import zlib
from collections.abc import Mapping

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line

# What PIL and zipfile raise for files that are damaged, no images, or dangerously large.
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    zipfile.BadZipFile, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged"
    return getattr(error, "strerror", None) or first_line(error)


class BadFiles:
    """Reports unreadable files by name, each once; too many of them stop the run: more than 10 and
    above 1 % of all `total` files. names: of those reported."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.names: set[str] = set()

    def add(self, reasons: Mapping[str, str]) -> None:
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
