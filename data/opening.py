"""Files that users give: only regular ones are opened, and what may not be read is told apart from
what is not there."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError
from common.files import first_line


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
    return open(path, "rb", opener=_opener)


def _opener(path: str, flags: int) -> int:
    """What is open is looked at, not its name, which might come to mean something else."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError("not a regular file")


def may_not_be_read(path: str | Path, error: OSError) -> UserError:
    """The sentence for it."""
    why = error.strerror or first_line(error)
    return UserError(f"{path} cannot be read ({why}); allow it, or give another")
