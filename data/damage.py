"""Picture files that cannot be read: what they raise, why in few words, how many are too many."""

import struct
import zipfile
import zlib

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line

# What PIL and zipfile raise for files that are damaged, no images, or dangerously large.
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    zipfile.BadZipFile, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip


def reason(error):
    """Why a file cannot be read, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged"
    return getattr(error, "strerror", None) or first_line(error)


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
