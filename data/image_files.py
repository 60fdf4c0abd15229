"""The pictures that a folder, a zip or tars hold: listed and opened, not decoded."""

import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import is_there, open_regular, reading
from data.damage import Unreadable, named_damage
from data.decoding import open_picture
from data.tar_files import find_tars, list_files

UNCOMPRESSED = {".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}  # of one size if alike
SUFFIXES = UNCOMPRESSED | {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif"
}  # fmt: skip
# Folders, in lower case, of what systems keep beside pictures; hidden ones begin with a dot.
NOT_PICTURES = "__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"
MOST_BYTES = 2**28  # of one file, packed or not

Listed = Iterator[tuple[str, int, Any]]  # (name, stamp, where it is)


class ImageFiles:
    """The images in a folder, zip or tars: their names, a size or CRC of each, their bytes.

    path: of tars also several, as in "shards-{000..999}.tar". What lies in one has a name such as
    shards-007/KEY.jpg.

    stamps: {name: its size in bytes, or its CRC}, in the names' order, or as they lie in the tars.
    refused: {folder that may not be entered: why}. left_out: how many other files there are, by
    their names' endings; those without any are looked into. Hidden files are in none of these.
    depth: how many folders at the beginning of each name are the tar's; else None. Raises UserError
    where path is not there, may not be read, or is a file but no zip or tar.
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
        found: Any = self._list_tars()
        if not self._tars:
            listed = self._list_zip() if self.is_zip else self._list_folder()
            found = sorted(listed, key=lambda item: item[0])

        # Hidden files are not the user's pictures; others are read or counted, by their endings.
        self.stamps: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        self._places: dict[str, Any] = {}
        for name, stamp, place in found:
            parts, suffix = PurePosixPath(name).parts, PurePosixPath(name).suffix.lower()
            if any(map(_is_hidden, parts[self.depth :])):
                continue
            self._places[name] = place
            if suffix in SUFFIXES or not suffix and self._is_picture(name):
                # Uncompressed ones of one shape have all the same size. A zip knows CRCs.
                own = suffix in UNCOMPRESSED and stamp <= MOST_BYTES and not self.is_zip
                self.stamps[name] = self._crc(name) if own else stamp
            else:
                self.left_out[suffix] += 1
                del self._places[name]

    def _list_zip(self) -> Listed:
        """Some write backslashes between folders."""
        try:
            with reading(self.path):
                entries = self._zip().infolist()
        except UserError:
            raise
        except Exception as error:  # zipfile raises anything on bytes that it did not expect
            raise UserError(f"{self.path} is not a readable zip file ({error})") from None
        for entry in entries:
            if not (name := entry.filename.replace("\\", "/")).endswith("/"):
                yield name, entry.CRC, entry.filename

    def _list_tars(self) -> Listed:
        """Of two files of one name in a tar the last counts, as when it is unpacked."""
        for tar in tqdm(self._tars, "listing tars", delay=1, leave=False):
            label = "/".join(tar.parts[-(self.depth or 1) :]).removesuffix(".tar")
            for inside, start, size in list_files(tar):
                yield f"{label}/{inside}", size, (tar, start, size)

    def _list_folder(self) -> Listed:
        """Links are followed too, but no folder is entered twice: they may form a ring."""

        def refuse(error: OSError) -> None:
            if Path(error.filename) == self.path:
                raise error
            name = Path(error.filename).relative_to(self.path).as_posix()
            self.refused[name] = error.strerror or str(error)

        seen = set()
        with reading(self.path):
            for place, folders, names in os.walk(self.path, onerror=refuse, followlinks=True):
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = sorted(name for name in folders if not _is_hidden(name))
                prefix = Path(place).relative_to(self.path).as_posix()
                for name in names:
                    path = os.path.join(place, name)
                    size = 0
                    with suppress(OSError):  # what cannot be read is found when it is opened
                        size = os.path.getsize(path)
                    yield f"{prefix}/{name}".removeprefix("./"), size, path

    def _is_picture(self, name: str) -> bool:
        with suppress(Unreadable), self.open(name):
            return True
        return False

    def _crc(self, name: str) -> int:
        """0 where it cannot be read."""
        with suppress(OSError), self._opened(name) as file:
            return zlib.crc32(file.read())
        return 0

    def _zip(self) -> zipfile.ZipFile:
        """This process's own: forked ones that shared a file would move its position."""
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
        with ExitStack() as stack:
            with named_damage():
                file = stack.enter_context(self._opened(name))
                _check_size(file.seek(0, os.SEEK_END))
                file.seek(0)
            yield open_picture(file)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """Its bytes as a file."""
        place = self._places[name]
        if self._tars:
            path, start, size = place
            entry = tarfile.TarInfo(name)
            entry.offset_data, entry.size = start, size
            with tarfile.open(path, "r:") as tar:
                yield tar.extractfile(entry)  # type: ignore[misc]
        elif self.is_zip:  # no more than it says is unpacked
            info = self._zip().getinfo(place)
            _check_size(info.file_size)
            with self._zip().open(info) as file:
                yield BytesIO(file.read(info.file_size + 1))
        else:
            with open_regular(place) as file:
                yield file


def _is_hidden(part: str) -> bool:
    """Of a file's or folder's name; ".." can be in a zip."""
    return part.startswith(".") and part != ".." or part.lower() in NOT_PICTURES


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise Unreadable(f"{size / 1e9:.1f} GB are too many for a picture")
