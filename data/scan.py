"""What somebody's pictures are, found before any is trained on: from their headers, from all values
where these are no bytes, and from a look at a few."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.machine import cores
from data.damage import BadFiles, Unreadable, named_damage
from data.decoding import WHITES, fit, foreign_profile, is_transparent, prepare
from data.image_files import SUFFIXES, ImageFiles
from data.order import fixed_sample

LEVELS = 1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0  # what white can be, beyond 8 bits
LOOKED_AT = 16  # pictures
LEAST_SPREAD = 24  # from a picture's darkest to its lightest value: less is as good as uniform

_threads = ThreadPoolExecutor(cores())


class Header(NamedTuple):
    """Of a picture file. size: (width, height). foreign: whether its colours are not sRGB's."""

    mode: str
    size: tuple[int, int]
    foreign: bool


def readable(files: ImageFiles, size: tuple[int, int], tally: BadFiles) -> dict[str, Header]:
    """{name: Header} of all files that can be read at size (H, W); reports the rest to the tally.
    Raises UserError where there are none."""
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

    warn_enlarged(headers.values(), size)
    return headers


def num_channels(headers: Collection[Header]) -> int:
    """1 if all are grey, else 3, which is said where it is because of some."""
    colourful = sum(
        header.mode[:1] not in ("1", "L", "I", "F") or header.mode == "LAB" for header in headers
    )
    if 0 < colourful < len(headers):
        print(
            f"note: {colourful} of {len(headers)} images have colours, so all are read as RGB; a "
            "training with --grey reads all as grey"
        )
    return 3 if colourful else 1


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


def measure_whites(files: ImageFiles, headers: Mapping[str, Header]) -> dict[str, float]:
    """What white is in numbers of 16 bits ("I") and floats ("F"): the lowest of LEVELS that none of
    the pictures exceeds, because 12 bits may lie in 16, and nothing in the files says so."""
    whites = dict(WHITES)
    for kind in WHITES:
        names = [name for name, header in headers.items() if header.mode[:1] == kind]
        most = 0.0
        for i in tqdm(range(0, len(names), 64), "measuring white", delay=1, leave=False):
            most = max(most, *in_threads(partial(_highest, files), names[i : i + 64]))
            if kind == "I" and most > LEVELS[-2]:
                break  # it cannot become another level
        if names:
            whites[kind] = white_of(kind, most)
        if whites[kind] != WHITES[kind]:
            print(f"note: white is {whites[kind]:g} in images of mode {kind}: none exceeds it")
    return whites


def white_of(kind: str, most: float) -> float:
    """The lowest of LEVELS that the highest value, of "I" or "F", does not exceed."""
    most /= 1.01 if kind == "F" else 1  # floats may be a little above
    return next((level for level in LEVELS if most <= level), LEVELS[-1])


def _highest(files: ImageFiles, name: str) -> float:
    """The highest finite value; 0 where it cannot be decoded, which is reported when it is."""
    try:
        with files.open(name) as image, named_damage():
            prepare(image, (1, 1))
            values = np.asarray(image)
            return float(values.max(initial=0, where=np.isfinite(values)))
    except Unreadable:
        return 0.0


def look(files: ImageFiles, names: Sequence[str], whites: dict[str, float]) -> None:
    """Warn where pictures, a fixed sample of them, come out as nothing that could be learnt."""
    clear, uniform, low, high = 0, 0, 255, 0
    sample = [names[i] for i in fixed_sample(len(names), LOOKED_AT).tolist()]
    for name in sample:
        try:
            with files.open(name) as image:
                pixels = fit(image, (64, 64), 3, whites)
                alpha = image.convert("RGBA").getchannel("A") if is_transparent(image) else None
        except Unreadable:
            continue
        clear += alpha is not None and not alpha.getbbox()
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


def in_threads(function: Callable[[Any], Any], items: Iterable) -> list:
    """[function(item) for each]: Pillow lets other threads run while it decodes."""
    return list(_threads.map(function, items))
