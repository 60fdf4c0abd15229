"""Files that users give: only regular ones are opened, and what may not be read is told apart from
what is not there."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; UserError where that may not be known."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise may_not_be_read(path, error) from None
    return True


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading; OSError for all else, such as pipes and devices, which could wait
    for ever."""

    def opener(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # what is open, whatever the name means now
            return descriptor
        os.close(descriptor)
        raise OSError("not a regular file")

    return open(path, "rb", opener=opener)


def may_not_be_read(path: str | Path, error: OSError) -> UserError:
    """The sentence for it."""
    return UserError(
        f"{path} cannot be read ({error.strerror or error}); allow it, or give another"
    )
