"""Several processes that train as one, started by torchrun; alone, all of this does nothing.

Each has its share of a batch's places. Whatever they have to agree on goes through here. All of
them must make the same calls in the same order. Raises PeerLostError where another one has ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from common import launch
from common.errors import PeerLostError, UserError, short
from common.files import first_line
from common.launch import launched

Value = TypeVar("Value")
PATIENCE = timedelta(hours=2)  # the longest wait for another process, which may train a classifier


def start(device: str) -> None:
    """Meet the other processes, where there are any. Called first of all that is done here.
    device: --device."""
    here = launched()
    if here.size == 1 or dist.is_initialized():
        return
    on_gpus = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpus and here.local_rank >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise UserError(f"{here.local_size} processes, but {there} GPUs; one each is needed")
    if on_gpus:
        torch.cuda.set_device(here.local_rank)
    with _reaching():
        store = next(dist.rendezvous("env://", timeout=PATIENCE))[0]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=store, rank=here.rank, world_size=here.size, timeout=PATIENCE,
        )  # fmt: skip

    def tells_errors() -> bool:
        with suppress(Exception):  # the store may have gone with the others
            return store.add("errors", 1) == 1
        return here.rank == 0

    launch.tells_errors.append(tells_errors)


def leave() -> None:
    """Take leave of the others, when all is done. Where one has failed this would wait for it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return launched().size


def share(n: int) -> range:
    """Those of n places in a batch that are this process's; n is a multiple of their number."""
    here = launched()
    return range(here.rank * n // here.size, (here.rank + 1) * n // here.size)


def mine(items: Sequence[Value]) -> list[Value]:
    """Every so manieth of items, beginning with the rank's."""
    here = launched()
    return list(items[here.rank :: here.size])


def check_batch(batch: int, parts: int) -> None:
    """Raise UserError unless a batch can be divided among all processes, in so many parts each."""
    size = count()
    each = size * parts
    if batch % each:
        nearest = " or ".join(str(n * each) for n in (batch // each, batch // each + 1) if n)
        what = f"{size} processes of {parts} parts each"
        raise UserError(f"--batch {batch} cannot be divided among {what}; pass {nearest}")


def check_alike(**about: object) -> None:
    """Raise UserError where the processes differ in any of these: they would wait for ever, or
    learn different things."""
    for name, value in about.items():
        found = everyones(value)
        if any(other != value for other in found):
            values = ", ".join(dict.fromkeys(short(other) for other in found))
            raise UserError(f"the processes differ in their {name}: {values}; make them alike")


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Put in each of these the mean of all processes' ones. All on one device, float32."""
    size = launched().size
    if size == 1 or not tensors:
        return
    # In the order of memory, which all processes share: sooner copied than in that of indices.
    views = [(t.permute(0, 2, 3, 1) if _channels_last(t) else t).view(-1) for t in tensors]
    flat = torch.cat(views)
    if flat.is_cuda:
        total(0)  # a process that is gone is missed here: a GPU would wait for it
    with _reaching():
        dist.all_reduce(flat)
    flat /= size
    torch._foreach_copy_(views, list(flat.split([view.numel() for view in views])))


def _channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def total(value: float) -> float:
    """The sum of all processes' values."""
    return _reduced(value, dist.ReduceOp.SUM)


def most(value: float) -> float:
    """The greatest of all processes' values."""
    return _reduced(value, dist.ReduceOp.MAX)


def everyones(value: Value) -> list[Value]:
    """The values of all processes, by rank: anything that can be pickled."""
    values = [value] * launched().size
    if len(values) > 1:
        with _reaching():
            dist.all_gather_object(values, value)
    return values


def firsts(value: Value) -> Value:
    """Rank 0's value, of which the others bring any: anything that can be pickled."""
    values = [value]
    if launched().size > 1:
        with _reaching():
            dist.broadcast_object_list(values)
    return values[0]


def _reduced(value: float, how: dist.ReduceOp.RedOpType) -> float:
    if launched().size == 1:
        return value
    reduced = torch.tensor([value], dtype=torch.float64)
    with _reaching():
        dist.all_reduce(reduced, how)
    return reduced.item()


@contextmanager
def _reaching() -> Iterator[None]:
    """Around what needs the others: one that is missed is a PeerLostError."""
    try:
        yield
    except RuntimeError as error:
        why = short(first_line(error))
        raise PeerLostError(f"another process has ended or cannot be reached ({why})") from error
