"""Values that are typed: argparse types that know their limits in words."""

import argparse
import re
from collections.abc import Callable
from contextlib import suppress

from common.choices import DENOISER_LEVELS, MOST_PIXELS, PICTURES


def integer(low: int, high: int, multiple: int = 1) -> Callable[[str], int]:
    """A whole number in [low, high], divisible by multiple."""
    limits = f"{low:,} to {high:,}" + f", a multiple of {multiple}" * (multiple > 1)

    def parse(text: str) -> int:
        whole = re.fullmatch(r"[+-]?\d+", text)
        if not whole or not low <= int(text) <= high or int(text) % multiple:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {limits}")
        return int(text)

    return _limited(parse, limits)


def number(
    low: float, high: float, open_low: bool = False, open_high: bool = False
) -> Callable[[str], float]:
    """A finite number in [low, high], the ends left out where open."""
    ends = f"{low:g} {'to below' if open_high else 'to'} {high:,.10g}"

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = float(text)
            above = low < value if open_low else low <= value
            if above and (value < high if open_high else value <= high):
                return value
        raise argparse.ArgumentTypeError(
            f"{text} is no number {'above' if open_low else 'from'} {ends}"
        )

    return _limited(parse, "above " * open_low + ends)


def size(text: str) -> tuple[int, int]:
    """HxW -> (H, W). Whether they divide is for the networks to say."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text} is no size; write HxW, as in 208x176")
    if int(match[1]) * int(match[2]) > MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"{text} has more than {MOST_PIXELS:,} pixels")
    return int(match[1]), int(match[2])


def levels(text: str) -> str:
    """Numbers of a denoiser's levels, in order, with commas between them."""
    known = map(str, range(DENOISER_LEVELS))
    if not text or text.split(",") != [level for level in known if level in text.split(",")]:
        what = f"levels from 0 to {DENOISER_LEVELS - 1} in order, as 1,2 is"
        raise argparse.ArgumentTypeError(f"{text} is no list of {what}")
    return text


def condition(text: str) -> str:
    """Where the labels of a training are: none, attributes, folders, or a table."""
    if text not in ("none", "attributes", "folders") and not text.lower().endswith(".csv"):
        raise argparse.ArgumentTypeError(f"{text} is not none, attributes, folders or a .csv file")
    return text


def run_name(text: str) -> str:
    """A name that is safe in a file's name, which has 255 bytes at most."""
    if not re.fullmatch(r"[\w.+-]{1,100}", text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text} is no name; use letters, digits, - _ + and .")
    if text == "newest" or text.lower().endswith((*PICTURES, ".gif", ".jsonl")):
        raise argparse.ArgumentTypeError(f"{text} means something else here; choose another name")
    if len(text.encode("utf-8", "surrogateescape")) > 100:
        raise argparse.ArgumentTypeError(f"{text} is too long; a name has 100 bytes at most")
    return text


def _limited(parse: Callable, limits: str) -> Callable:
    """parse, with its limits in words for the help."""
    setattr(parse, "limits", limits)  # noqa: B010 (a plain assignment is no attribute of a function to mypy)
    return parse
