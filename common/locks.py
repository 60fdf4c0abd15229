"""A lock that the system releases when its holder ends, however that comes."""

import atexit
import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Held by one process at a time, from its construction to release() or the process's end.

    path: a file of this name is there while it is held. A record lock: processes that a holder
    starts do not hold it. Nothing is locked on file systems without locks, nor on Windows. Raises
    UserError, with `why`, where another process holds it.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self._file: IO | None = None
        while fcntl is not None and self._file is None:
            file = open(path, "a", opener=_at_once)  # noqa: SIM115 (held until release)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(why) from None
                return
            # Its last holder may have removed it between the two calls.
            if _is_at(path, file):
                self._file = file
                atexit.register(self.release)
            else:
                file.close()

    def release(self) -> None:
        """Give it up and remove its file; nothing where it is given up."""
        if self._file is not None:
            with suppress(OSError):  # its folder may be gone
                self.path.unlink()
            self._file.close()
            self._file = None


def _at_once(path: str, flags: int) -> int:
    """Without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _is_at(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
