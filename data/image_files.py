"""The pictures that a folder or a zip holds: listed and opened, not decoded."""

import io
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from PIL import Image

from common.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}  # of the files that are read, in lower case


class ImageFiles:
    """The images in a folder or zip: sorted names, a size or CRC of each, their bytes.

    stamps: {name: its size in bytes, or its CRC}, in the names' order. left_out: how many other
    files there are, by their names' endings. Hidden files are in neither. Raises UserError where
    path is a file but no zip. The zip is opened anew in every process: forked workers that shared
    one handle would move each other's position in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_zip = self.path.is_file()
        self._zips: dict[int, zipfile.ZipFile] = {}  # by process, only this one's
        try:
            found = self._list_zip() if self.is_zip else self._list_folder()
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path} is not a readable zip file ({error})") from None

        # Hidden files are not the user's pictures; others are read or counted, by their endings.
        self.stamps: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        for name, stamp in sorted(found, key=lambda item: item[0]):
            suffix = Path(name).suffix.lower()
            if any(part.startswith((".", "__MACOSX")) for part in Path(name).parts):
                continue
            if suffix in SUFFIXES:
                self.stamps[name] = stamp
            else:
                self.left_out[suffix] += 1

    def _list_zip(self) -> list[tuple[str, int]]:
        with zipfile.ZipFile(self.path) as file:
            return [(i.filename, i.CRC) for i in file.infolist() if not i.is_dir()]

    def _list_folder(self) -> list[tuple[str, int]]:
        """Links are followed too, but no folder is entered twice: they may form a ring."""
        found: list[tuple[str, int]] = []
        seen = {os.path.realpath(self.path)}
        for place, folders, names in os.walk(self.path, followlinks=True):
            folders.sort()
            for folder in list(folders):
                real = os.path.realpath(Path(place, folder))
                if real in seen:
                    folders.remove(folder)
                seen.add(real)
            paths = [path for path in (Path(place, name) for name in names) if path.is_file()]
            found += [(p.relative_to(self.path).as_posix(), _stamp(p)) for p in paths]
        return found

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zips": {}}

    def open(self, name: str) -> Image.Image:
        """The PIL image of that name, its pixels not yet decoded; what it raises is in DAMAGED."""
        if not self.is_zip:
            return Image.open(self.path / name)
        process = os.getpid()
        if process not in self._zips:
            self._zips = {process: zipfile.ZipFile(self.path)}
        return Image.open(io.BytesIO(self._zips[process].read(name)))


def _stamp(path: Path) -> int:
    """What changes with an image's content, found without reading it: its size. BMPs of one shape
    have all the same size, so of a BMP it is the CRC."""
    if path.suffix.lower() == ".bmp" and os.access(path, os.R_OK):
        return zlib.crc32(path.read_bytes())
    return path.stat().st_size
