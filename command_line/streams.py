"""Standard output and error that can break without breaking the program."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

# Escape sequences in a file's name or metadata are shown, not obeyed.
CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}

_loud: list[Any] = []  # the stream that hush has put aside


class Guarded:
    """A text stream whose failures are nobody's: what was to be said goes nowhere from then on.

    A pipe whose reader has gone, a full disk, a terminal that was closed. plain: control characters
    are written as backslash escapes; not for progress bars, which need theirs.
    """

    def __init__(self, stream: TextIO, plain: bool) -> None:
        self._stream, self._plain = stream, plain

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text.translate(CONTROLS) if self._plain else text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, do: Callable, *words: str) -> None:
        try:
            do(*words)
        except RuntimeError:
            pass  # a signal's handler speaks in the middle of another word
        except (OSError, ValueError):
            # Its descriptor leads nowhere from now on, so that Python's own flush succeeds too.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Put Guarded in the place of sys.stdout and sys.stderr, closed or not."""
    for number in range(3):  # closed by the shell, as in 2>&-: no other file may take its number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, plain in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):  # names of files may be no text in any encoding
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream, plain))


def hush() -> None:
    """From now on, nothing but errors is said: another process speaks for all."""
    _loud.append(sys.stderr)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def speak() -> None:
    """Before an error is told: the end of hush."""
    if _loud:
        sys.stdout = sys.stderr = _loud.pop()
