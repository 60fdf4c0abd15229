"""Files are finished or absent; folders that can be written to; reading what may be anything."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from common.errors import AbsentError, UnreadableError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r".*\.\d+(-\w+)?\.tmp", re.DOTALL)  # of write_atomic, now and earlier
DAY = 86_400  # seconds


# ---- Writing ------------------------------------------------------------------------------------


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), flush it to the disk, then give it its name, all in one folder.

    The folder is made. Whatever interrupts this, path holds its old content or all of the new, with
    the rights that the umask gives. What write raises is passed on, and so are OSErrors of a full
    or read-only disk; they name path.
    """
    path = Path(path)
    # Unique in all containers that share a disk, as the number of a process is not.
    name = f"{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):  # it has its name, or its folder could not be made
            temporary.unlink()


def make_folder(path: str | Path) -> None:
    """Make it where it is missing; raises UserError where nothing could be written into it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = first_line(error)
        raise UserError(f"{path} cannot be made ({why}); make room, or go elsewhere") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written to; allow it, or go elsewhere")


def write_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary folder), then give it its name, which no folder may have that holds
    anything.

    Whatever interrupts this, path is the whole folder or absent. OSErrors and what write raises are
    passed on.
    """
    path = Path(path).resolve()
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(".tmp", f".{path.name}.", path.parent) as beside:
        new = Path(beside, "new")
        new.mkdir()
        write(new)
        new.rename(path)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left of write_atomic, after a day. For folders that are the
    project's own: somebody else's file might have such a name."""
    with suppress(OSError):  # a folder that may not be read, a file that another removes
        for path in Path(folder).iterdir():
            if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def lock(path: str | Path, why: str) -> IO:
    """An open file that one process at a time holds, until it is closed or the process ends.

    A record lock: processes that a holder starts do not hold it. Nothing is locked on file systems
    without locks, nor on Windows. Raises UserError, with `why`, where another process holds it.
    """
    file = open(path, "a")  # noqa: SIM115 (held until it is closed)
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise UserError(why) from None
    return file


# ---- Reading ------------------------------------------------------------------------------------


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around what reads a file: OSErrors become AbsentErrors and UnreadableErrors that name it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise AbsentError(f"there is no file {path}; make it, or give another") from None
    except PermissionError:
        raise UnreadableError(f"{path} may not be read; ask its owner to allow it") from None
    except OSError as error:
        why = error.strerror or first_line(error)
        raise UnreadableError(f"{path} cannot be read ({why}); try again, or from a copy") from None


def open_regular(path: str | Path, buffering: int = -1) -> Any:
    """A file opened for reading bytes; OSError for what might never end, a pipe or a device."""

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # waits for no pipe
        mode = os.fstat(descriptor).st_mode  # of what is open, whatever the name means by now
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
        raise (IsADirectoryError if stat.S_ISDIR(mode) else OSError)("not a regular file")

    return open(path, "rb", buffering, opener=opener)


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; UnreadableError where that may not be known."""
    try:
        with reading(path):
            os.stat(path)
    except AbsentError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """What it says. Raises ValueError where it is no JSON, or of a depth that no program can
    follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def json_digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
