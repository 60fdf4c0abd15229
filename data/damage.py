"""Picture files that cannot be read: why in few words, and how many are too many."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line


class Unreadable(ValueError):
    """A picture that is damaged, none, too large, or may not be read; says why in a few words."""


@contextmanager
def named_damage() -> Iterator[None]:
    """Whatever is raised within becomes an Unreadable: for calls of decoders, which raise anything
    on bytes that they did not expect."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        if isinstance(error, Image.UnidentifiedImageError):
            raise Unreadable("not an image, or damaged") from error
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from error


class BadFiles:
    """Reports unreadable files by name, each once; too many of them stop the run: more than 10 and
    above 1 % of all `total` files. reasons: {name: why}, of those reported."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.reasons: dict[str, str] = {}

    def add_all(self, reasons: Iterable[Mapping[str, str]]) -> None:
        """What several processes have found."""
        self.add({name: why for found in reasons for name, why in found.items()})

    def add(self, reasons: Mapping[str, str]) -> None:
        """reasons: {name: why it cannot be read}. Raises UserError when there are too many, or
        when nothing is left."""
        for name in sorted(reasons.keys() - self.reasons):
            self.reasons[name] = reasons[name]
            tqdm.write(f"skipped, cannot be read: {name} ({reasons[name]})")
        bad = len(self.reasons)
        if bad > max(10, self.total / 100) or 0 < bad == self.total:
            raise UserError(
                f"{bad} of {self.total} images cannot be read (named above); "
                "repair or remove them and start again"
            )
