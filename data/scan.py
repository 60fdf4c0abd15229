"""What somebody's pictures are, found before any is trained on: from their headers, from all values
where these are no bytes, and from a look at a few."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from common.errors import UserError
from data.damage import BadFiles, Unreadable, named_damage
from data.decoding import WHITES, fit, foreign_profile, highest, is_clear, prepare
from data.image_files import SUFFIXES, ImageFiles
from data.order import fixed_sample

LEVELS = 1, 255, 1023, 4095, 16383, 65535  # what white can be in numbers of more than 8 bits
LOOKED_AT = 16  # pictures
LEAST_SPREAD = 24  # from a picture's darkest to its lightest value: less is as good as uniform

T = TypeVar("T")
U = TypeVar("U")


class Header(NamedTuple):
    """Of a picture file. size: (width, height). foreign: whether its colours are not sRGB's."""

    mode: str
    size: tuple[int, int]
    foreign: bool

    @property
    def grey(self) -> bool:
        return self.mode[:1] in ("1", "L", "I", "F") and self.mode != "LAB"


class Scan(NamedTuple):
    """headers: of the readable pictures, by name. whites: as fit() takes them."""

    headers: dict[str, Header]
    whites: dict[str, float]

    @property
    def channels(self) -> int:
        """1 if all are grey, else 3."""
        return 1 if all(header.grey for header in self.headers.values()) else 3


def scan(files: ImageFiles, size: tuple[int, int], grey: bool, tally: BadFiles) -> Scan:
    """What can be read of all files, at size (H, W); the rest is reported to the tally.

    grey: whether colours are not wanted. Raises UserError where nothing can be read.
    """
    # Say which files are not even tried: HEIC photographs, for example.
    if files.left_out:
        endings = files.left_out.most_common(5)
        counts = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in endings)
        print(f"note: not read, by their endings: {counts}")
    tally.add(files.refused)

    # Headers only: decoding all images would take minutes.
    headers: dict[str, Header] = {}
    for name in tqdm(files.stamps, desc="reading headers", unit="images", delay=1, leave=False):
        header = read_header(files, name, size)
        if isinstance(header, str):
            tally.add({name: header})
        else:
            headers[name] = header
    if not headers:
        raise UserError(
            f"no readable image in {files.path}; looked for {', '.join(sorted(SUFFIXES))}"
        )

    # One image with colour makes all of them RGB.
    warn_enlarged(headers.values(), size)
    colourful = sum(not header.grey for header in headers.values())
    if 0 < colourful < len(headers) and not grey:
        print(
            f"note: {colourful} of {len(headers)} images have colours, so all are read as RGB; a "
            "training with --grey reads all as grey"
        )
    return Scan(headers, _whites(files, headers))


def read_header(files: ImageFiles, name: str, size: tuple[int, int]) -> Header | str:
    """The Header of an image that fit() can decode to size (H, W), or why it cannot."""
    try:
        with files.open(name) as image:
            header = Header(image.mode, image.size, foreign_profile(image) is not None)
            prepare(image, size)
            return header
    except Unreadable as error:
        return str(error)


def warn_enlarged(headers: Iterable[Header], size: tuple[int, int]) -> None:
    """Say how many of these images are smaller than size = (H, W), if any."""
    small = [w < size[1] or h < size[0] for _, (w, h), _ in headers]
    if any(small):
        share = "the images" if len(small) == 1 else f"{sum(small)} of {len(small)} images"
        print(
            f"warning: {share} are smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )


def _whites(files: ImageFiles, headers: dict[str, Header]) -> dict[str, float]:
    """What white is in numbers of 16 bits ("I") and floats ("F"): the lowest of LEVELS that none of
    the pictures exceeds, because 12 bits may lie in 16, and nothing in the files says so."""
    whites = dict(WHITES)
    for kind in WHITES:
        names = [name for name, header in headers.items() if header.mode[:1] == kind]
        most, step = 0.0, 64
        bar = tqdm(range(0, len(names), step), "measuring white", delay=1, leave=False)
        for i in bar:
            found: list[float] = in_threads(partial(_highest, files), names[i : i + step])
            most = max(most, max(found))
            if kind == "I" and most > LEVELS[-2]:
                break  # it cannot become another level
        reached = most / 1.01 if kind == "F" else most  # floats may be a little above
        if names:
            whites[kind] = next((float(n) for n in LEVELS if reached <= n), float(LEVELS[-1]))
        if names and whites[kind] != WHITES[kind]:
            print(f"note: white is {whites[kind]:g} in images of mode {kind}: none exceeds it")
    return whites


def _highest(files: ImageFiles, name: str) -> float:
    try:
        with files.open(name) as image, named_damage():
            prepare(image, (1, 1))
            return highest(image)
    except Unreadable:
        return 0.0  # which is reported when it is decoded


def look(files: ImageFiles, names: Sequence[str], whites: dict[str, float]) -> None:
    """Warn where pictures, a fixed sample of them, come out as nothing that could be learnt."""
    clear, uniform, low, high = 0, 0, 255, 0
    sample = [names[i] for i in fixed_sample(len(names), LOOKED_AT).tolist()]
    for name in sample:
        try:
            with files.open(name) as image:
                pixels = fit(image, (64, 64), 3, whites)
                with named_damage():
                    clear += is_clear(image)
        except Unreadable:
            continue
        darkest, lightest = int(pixels.min()), int(pixels.max())
        if lightest - darkest < LEAST_SPREAD:
            uniform, low, high = uniform + 1, min(low, darkest), max(high, lightest)
    many = f"of {len(sample)} images looked at are"
    if clear:
        print(f"warning: {clear} {many} wholly transparent, and become white")
    if uniform:
        print(
            f"warning: {uniform} {many} all but uniform, with values from {low} to {high} of 255; "
            "nothing can be learnt from such"
        )


def cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def in_threads(function: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """[function(item) for each]: Pillow lets other threads run while it decodes."""
    return list(_pool(cores()).map(function, items))


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)
