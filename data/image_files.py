"""The pictures that a folder, a zip or tars hold: listed and opened, not decoded."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import is_there, open_regular, reading
from data.damage import Unreadable, named_damage
from data.decoding import open_picture
from data.tar_files import Part, find_tars, list_files

UNCOMPRESSED = {".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}  # of one size if alike
SUFFIXES = UNCOMPRESSED | {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif"
}  # fmt: skip
# Folders, in lower case, of what systems keep beside pictures; hidden ones begin with a dot.
NOT_PICTURES = "__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"
MOST_BYTES = 2**28  # of one file, packed or not
OPEN_TARS = 100  # at a time; some systems allow 256 open files


class ImageFiles:
    """The images in a folder, zip or tars: their names, a size or CRC of each, their bytes.

    path: of tars also several, as in "shards-{000..999}.tar". What lies in one has a name such as
    shards-007/KEY.jpg.

    stamps: {name: its size in bytes, or its CRC}, in the names' order, or as they lie in the tars.
    refused: {folder that may not be entered: why}. left_out: how many other files there are, by
    their names' endings; those without any are looked into. Hidden files are in none of these.
    depth: how many folders at the beginning of each name are the tar's; else None. Raises UserError
    where path is not there, may not be read, or is a file but no zip or tar.

    The zip is opened anew in every process: forked workers that shared one handle would move each
    other's position in it. Of tars nobody uses the position.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tars, depth = find_tars(path)
        self.depth = depth if self._tars else None
        if not self._tars and not is_there(path):
            raise UserError(f"{path}: no such folder, zip or tar")
        self.is_zip = not self._tars and not self.path.is_dir()
        self.refused: dict[str, str] = {}
        self._zips: dict[int, zipfile.ZipFile] = {}  # by process, only this one's
        self._inside: dict[str, str] = {}  # names as the zip has them, where not with slashes
        self._parts: dict[str, tuple[int, int, int]] = {}  # (number of the tar, start, size)
        self._open_tars: dict[int, FileIO] = {}  # by number
        found: Iterable[tuple[str, int]] = self._list_tars()
        if not self._tars:
            found = self._list_zip() if self.is_zip else self._list_folder()
            found = sorted(found, key=lambda item: item[0])

        # Hidden files are not the user's pictures; others are read or counted, by their endings.
        self.stamps: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        for name, stamp in found:
            place = PurePosixPath(name)
            suffix = place.suffix.lower()
            if any(map(_is_hidden, place.parts[self.depth :])):
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

    def _list_tars(self) -> Iterator[tuple[str, int]]:
        """Of two files of one name in a tar the last counts, as when it is unpacked. _parts keeps
        those of which stamps has the name when the next is asked for."""
        for i, tar in enumerate(tqdm(self._tars, "listing tars", delay=1, leave=False)):
            label = "/".join(tar.parts[-(self.depth or 1) :]).removesuffix(".tar")
            for inside, start, size in list_files(tar):
                name = f"{label}/{inside}"
                self.stamps.pop(name, None)
                self._parts[name] = i, start, size
                small = size <= MOST_BYTES and inside.lower().endswith(tuple(UNCOMPRESSED))
                yield name, _crc(self._opened(name)) if small else size
                if name not in self.stamps:
                    del self._parts[name]

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
        return {**self.__dict__, "_zips": {}, "_open_tars": {}}

    @contextmanager
    def open(self, name: str) -> Iterator[Image.Image]:
        """The PIL image of that name, its pixels not yet decoded, while the file is open. Raises
        Unreadable."""
        with named_damage():
            file = self._opened(name)
        with file:
            with named_damage():
                _check_size(file.seek(0, os.SEEK_END))
                file.seek(0)
            yield open_picture(file)

    def _opened(self, name: str) -> BinaryIO:
        """Its bytes as a file."""
        if self.is_zip:
            return self._unpacked(name)
        if not self._tars:
            return open_regular(self.path / name)
        i, start, size = self._parts[name]
        tar = self._open_tars.get(i)
        if tar is None:
            if len(self._open_tars) >= OPEN_TARS:
                self._open_tars.clear()  # each is closed when no part of it is open
            tar = self._open_tars[i] = open_regular(self._tars[i], 0)
        return BufferedReader(Part(tar, start, size))

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
        return _crc(open_regular(path))
    except OSError:
        return 0


def _crc(opened: BinaryIO) -> int:
    crc = 0
    with opened as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc
