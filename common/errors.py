"""The errors that are meant for whoever uses the project, and how they quote what others wrote."""

import reprlib
from pathlib import Path


class UserError(ValueError):
    """Something that a user asked for or gave does not work: what is wrong, what was got, what to
    do. The scripts print it in one line (command_line/entry.py); other errors are faults of the
    program and keep their traceback."""


class AbsentError(UserError):
    """There is no such file."""


class UnreadableError(UserError):
    """A file may not be read, or the machine fails to: it may well be whole."""


class DamagedError(UserError):
    """A file of the project's own does not hold what was written into it."""

    def __init__(self, path: str | Path, why: object) -> None:
        super().__init__(f"{path} is damaged ({short(why, 300)}); copy it anew, or make it again")


class PeerLostError(RuntimeError):
    """Another process of this training has ended, or cannot be reached."""


def short(value: object, most: int = 100) -> str:
    """A foreign value in a message: one printable line of at most `most` characters."""
    text = (value if isinstance(value, str) else reprlib.repr(value))[: most + 1]
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= most else text[: most - 3] + "..."
