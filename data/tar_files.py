"""Uncompressed tars, as of WebDataset: which are meant, and what lies where in them."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.files import first_line, is_there, open_regular, reading

ENDINGS = ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"
RANGE = re.compile(r"\{(\d{1,7})\.\.(\d{1,7})\}")


def find_tars(path: str | Path) -> tuple[list[Path], int]:
    """(the tars that are meant, in order; how many of the last parts of a path tell it from the
    others'). No tars where path is a folder, another file, or nothing. Raises UserError for an
    empty range, and where tars of it are missing."""
    parts = Path(path).parts
    first = next((i for i, part in enumerate(parts) if RANGE.search(part)), None)
    if first is None or is_there(path):
        is_tar = str(path).lower().endswith(ENDINGS) and is_there(path) and not os.path.isdir(path)
        return [Path(path)] * is_tar, 1
    tars = [Path(name) for name in expand(str(path))]
    missing = [tar for tar in tars if not is_there(tar)]
    if missing or not tars:
        which = f"{missing[0]} ({len(missing)} of {len(tars)} tars)" if missing else path
        raise UserError(f"there is no {which}; bring them, or give another range")
    return tars, len(parts) - first


def expand(pattern: str) -> list[str]:
    """As bash does: {a..b} becomes each number from a to b; the first range is the slowest. Where
    a or b begins with 0, all have as many digits as the longer."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    padded = any(number != str(int(number)) for number in found.groups())
    width = max(map(len, found.groups())) if padded else 1
    numbers = range(int(found[1]), int(found[2]) + 1)
    one = (pattern[: found.start()] + f"{i:0{width}}" + pattern[found.end() :] for i in numbers)
    return [name for first in one for name in expand(first)]


def list_files(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, where its content begins, size in bytes) of each regular file in a tar, in order.

    Only headers are read. What else there is, such as links and sparse files, is passed over.
    Raises UserError where it is compressed or damaged, or has no end: a tar ends with zeros.
    """
    try:
        with reading(path), open_regular(path) as file, tarfile.open(None, "r:", file) as tar:
            while entry := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # they are not asked for again
                if entry.size < 0:
                    raise tarfile.ReadError("a negative size")
                if entry.isreg() and not entry.issparse():
                    yield entry.name.removeprefix("./"), entry.offset_data, entry.size
            file.seek(tar.offset)  # tarfile also stops where it finds no header
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end")
    except (UserError, OSError):
        raise
    except Exception as error:  # tarfile raises anything on bytes that it did not expect
        raise UserError(
            f"{path} is compressed, damaged, ends too early or is no tar ({first_line(error)}); "
            "unpack it to a plain .tar, or copy it anew"
        ) from None
