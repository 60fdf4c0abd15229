"""The pictures that a folder or a zip holds: listed and opened, not decoded."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from common.errors import UserError
from common.files import is_there, open_regular, reading
from data.damage import Unreadable, named_damage
from data.decoding import open_picture

UNCOMPRESSED = {".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}  # of one size if alike
SUFFIXES = UNCOMPRESSED | {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif"
}  # fmt: skip
# Folders, in lower case, of what systems keep beside pictures; hidden ones begin with a dot.
NOT_PICTURES = "__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"
MOST_BYTES = 2**28  # of one file, packed or not


class ImageFiles:
    """The images in a folder or zip: sorted names, a size or CRC of each, their bytes.

    stamps: {name: its size in bytes, or its CRC}, in the names' order. refused: {folder that may
    not be entered: why}. left_out: how many other files there are, by their names' endings; those
    without any are looked into. Hidden files are in none of these. Raises UserError where path is
    not there, may not be read, or is a file but no zip. The zip is opened anew in every process:
    forked workers that shared one handle would move each other's position in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_there(path):
            raise UserError(f"{path}: no such folder or zip")
        self.is_zip = not self.path.is_dir()
        self.refused: dict[str, str] = {}
        self._zips: dict[int, zipfile.ZipFile] = {}  # by process, only this one's
        self._inside: dict[str, str] = {}  # names as the zip has them, where not with slashes
        found = self._list_zip() if self.is_zip else self._list_folder()

        # Hidden files are not the user's pictures; others are read or counted, by their endings.
        self.stamps: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        for name, stamp in sorted(found, key=lambda item: item[0]):
            suffix = PurePosixPath(name).suffix.lower()
            if any(map(_is_hidden, PurePosixPath(name).parts)):
                continue
            if suffix in SUFFIXES or not suffix and self._is_picture(name):
                self.stamps[name] = stamp
            else:
                self.left_out[suffix] += 1

    def _list_zip(self) -> list[tuple[str, int]]:
        """Some write backslashes between folders."""
        try:
            with reading(self.path):
                entries = self._zip().infolist()
        except UserError:
            raise
        except Exception as error:  # zipfile raises anything on bytes that it did not expect
            raise UserError(f"{self.path} is not a readable zip file ({error})") from None
        entries = [i for i in entries if not i.filename.endswith(("/", "\\"))]
        names = {i.filename: i.filename.replace("\\", "/") for i in entries}
        self._inside = {new: old for old, new in names.items() if new != old}
        return [(names[i.filename], i.CRC) for i in entries]

    def _list_folder(self) -> list[tuple[str, int]]:
        """Links are followed too, but no folder is entered twice: they may form a ring."""
        found: list[tuple[str, int]] = []
        seen, waiting = {_identity(self.path)}, [""]
        while waiting:
            place, folders = waiting.pop(), []
            try:
                with os.scandir(os.path.join(self.path, place)) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not place:
                    with reading(self.path):
                        raise
                self.refused[place] = error.strerror or str(error)
                continue
            for entry in inside:
                name = f"{place}/{entry.name}".lstrip("/")
                try:
                    if _is_hidden(entry.name):
                        continue
                    if not entry.is_dir():
                        found.append((name, _stamp(Path(entry.path))))
                    elif (folder := _identity(entry.path)) not in seen:
                        seen.add(folder)
                        folders.append(name)
                except OSError as error:
                    self.refused[name] = error.strerror or str(error)
            waiting += reversed(folders)
        return found

    def _is_picture(self, name: str) -> bool:
        with suppress(Unreadable), self.open(name):
            return True
        return False

    def _zip(self) -> zipfile.ZipFile:
        """This process's own."""
        process = os.getpid()
        if process not in self._zips:
            self._zips = {process: zipfile.ZipFile(open_regular(self.path))}
        return self._zips[process]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zips": {}}

    @contextmanager
    def open(self, name: str) -> Iterator[Image.Image]:
        """The PIL image of that name, its pixels not yet decoded, while the file is open. Raises
        Unreadable."""
        with named_damage():
            file = self._unpacked(name) if self.is_zip else open_regular(self.path / name)
        with file:
            with named_damage():
                _check_size(file.seek(0, os.SEEK_END))
                file.seek(0)
            yield open_picture(file)

    def _unpacked(self, name: str) -> BinaryIO:
        """The bytes of a zip's entry; no more than it says are unpacked."""
        entry = self._zip().getinfo(self._inside.get(name, name))
        _check_size(entry.file_size)
        with self._zip().open(entry) as file:
            return BytesIO(file.read(entry.file_size + 1))


def _is_hidden(part: str) -> bool:
    """Of a file's or folder's name; ".." can be in a zip."""
    return part.startswith(".") and part != ".." or part.lower() in NOT_PICTURES


def _identity(folder: str | Path) -> tuple[int, int]:
    """What tells it from others, under whatever name."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise Unreadable(f"{size / 1e9:.1f} GB are too many for a picture")


def _stamp(path: Path) -> int:
    """What changes with an image's content, found without reading it: its size. Uncompressed ones
    of one shape have all the same size, so of these it is the CRC. 0 where it cannot be read."""
    try:
        size = path.stat().st_size
        if path.suffix.lower() not in UNCOMPRESSED or size > MOST_BYTES:
            return size
        crc = 0
        with open_regular(path) as file:
            while block := file.read(2**20):
                crc = zlib.crc32(block, crc)
        return crc
    except OSError:
        return 0
