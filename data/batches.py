"""Batches of decoded images in a wanted order, read by worker processes or threads."""

import signal
from collections.abc import Generator, Iterable

import torch
from torch.utils.data import DataLoader

from common.errors import UserError
from data.images import ImageDataset, Item

LINGER = 20  # seconds for which a process that decodes images outlives a SIGTERM


def load_batches(
    dataset: ImageDataset, batches: Iterable[list[int]], workers: int, pin_memory: bool = False,
    empty: bool = False,
) -> Generator[tuple[torch.Tensor, list[int]], None, None]:  # fmt: skip
    """For each list of indices in `batches`: (images (B, C, H, W) uint8, their indices, a list).

    Unreadable images are left out and reported to dataset.tally; B can be smaller, and 0 only with
    empty, otherwise such a batch is passed over. Raises UserError when they are more than the tally
    allows, or batches without end bring nothing.
    workers: processes that read ahead; 0: threads of this one, which do not.
    pin_memory: for images that go to a CUDA GPU as they are.
    Close it (contextlib.closing) when it is not read to its end: that ends the workers in order.
    """
    # The loader's own generator: else it would take a number from the run's.
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
    )

    # Batches without a readable image are passed over, but not for ever.
    in_vain: set[int] = set()  # unreadable ones since the last readable one
    nothing = torch.empty(0, dataset.channels, *dataset.size, dtype=torch.uint8)
    for images, good, bad in loader:
        if bad:
            dataset.tally.add({dataset.names[i]: reason for i, reason in bad.items()})
        if not good and len(in_vain) == len(dataset):
            raise UserError(f"none of the {len(dataset)} images can be read (named above)")
        in_vain = set() if good else in_vain.union(bad)
        if good or empty:
            yield (images if good else nothing), good


def _leave_signals_to_parent(worker: int) -> None:
    """What asks for a stop reaches all processes of a group: the one that trains decides, and may
    need another batch before it does. The loader's own SIGTERM ends those that do not end."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))


def _collate(items: list[Item]) -> tuple[torch.Tensor | None, list[int], dict[int, str]]:
    """(images (B, C, H, W) or None, their indices, {index: why it cannot be read})."""
    good = [(i, image) for i, image in items if not isinstance(image, str)]
    bad = {i: reason for i, reason in items if isinstance(reason, str)}
    images = torch.stack([image for _, image in good]) if good else None
    return images, [i for i, _ in good], bad
