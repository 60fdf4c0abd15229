"""Files are finished or absent; folders that can be written to; the first line of an error."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.errors import UserError


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), flush it to the disk, then give it its name, all in one folder.

    The folder is made. Whatever interrupts this, path holds its old content or all of the new. What
    write raises is passed on, and so are OSErrors of a full or read-only disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Make it where it is missing; raises UserError where nothing could be written into it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = first_line(error)
        raise UserError(f"{path} cannot be made ({why}); make room, or go elsewhere") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written to; allow it, or go elsewhere")


def remove_leftovers(folder: str | Path) -> None:
    """Remove what write_atomic of a killed process left there more than a day ago. For folders that
    are the project's own: somebody else's file might have such a name."""
    for path in Path(folder).glob("*.[0-9]*.tmp"):
        with suppress(OSError):  # another process may be as quick
            if time.time() - path.stat().st_mtime > 86_400:
                path.unlink()


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
