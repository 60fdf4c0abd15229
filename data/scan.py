"""What somebody's pictures are, found in their headers before any is trained on."""

from collections.abc import Collection
from typing import NamedTuple

from tqdm import tqdm

from common.errors import UserError
from data.damage import BadFiles, Unreadable
from data.decoding import foreign_profile
from data.image_files import SUFFIXES, ImageFiles


class Header(NamedTuple):
    """Of a picture file. size: (width, height). foreign: whether its colours are not sRGB's."""

    mode: str
    size: tuple[int, int]
    foreign: bool


def readable(files: ImageFiles, size: tuple[int, int], tally: BadFiles) -> dict[str, Header]:
    """{name: Header} of all files that can be read; reports the rest to the tally, and how many are
    smaller than size (H, W). Raises UserError where there are none."""
    # Say which files are not even tried: HEIC photographs, for example.
    if files.left_out:
        endings = files.left_out.most_common(5)
        counts = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in endings)
        print(f"note: not read, by their endings: {counts}")
    tally.add(files.refused)

    # Headers only: decoding all images would take minutes.
    headers: dict[str, Header] = {}
    for name in tqdm(files.stamps, desc="reading headers", unit="images", delay=1, leave=False):
        try:
            with files.open(name) as image:
                headers[name] = Header(image.mode, image.size, foreign_profile(image) is not None)
        except Unreadable as error:
            tally.add({name: str(error)})
    if not headers:
        raise UserError(
            f"no readable image in {files.path}; looked for {', '.join(sorted(SUFFIXES))}"
        )
    warn_enlarged([header.size for header in headers.values()], size)
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


def warn_enlarged(sizes: Collection[tuple[int, int]], size: tuple[int, int]) -> None:
    """Say how many images of these sizes (width, height) are smaller than size = (H, W), if any."""
    small = sum(width < size[1] or height < size[0] for width, height in sizes)
    if small:
        share = f"{small} of {len(sizes)} images are" if len(sizes) > 1 else "the images are"
        print(
            f"warning: {share} smaller than {size[0]}x{size[1]} (height x width) and are "
            "enlarged; a smaller --size keeps them sharp"
        )
