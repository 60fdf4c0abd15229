"""Which of the processes this is that torchrun has started; without torchrun there is one."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError

NEEDED = "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Launch:
    """rank: number of this process among all `size` of them; local_rank, local_size: the same among
    those of this machine. restarts, restartable: how often torchrun has begun anew, and whether it
    may. job: its --rdzv_id, or nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    job: str = ""
    restartable: bool = False

    def __str__(self) -> str:
        """What a process puts before its words: nothing where there is one."""
        return f"rank {self.rank}: " if self.size > 1 else ""


def launched() -> Launch:
    """As the environment has it. UserError where it has a part of what torchrun sets."""
    size = os.environ.get("WORLD_SIZE", "") or "1"
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    job, restarts = "" if job == "none" else job, os.environ.get(RESTARTS, "0")
    alone = size in ("0", "1")
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing and not alone:
        raise UserError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set; start several processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    numbers = ["0", "0", "1"] if alone else [os.environ[name] for name in NEEDED[:3]]
    if not all(map(str.isdecimal, [size, restarts, *numbers])):
        names = ", ".join((*NEEDED[:3], RESTARTS))
        raise UserError(f"WORLD_SIZE, {names} must be numbers, as torchrun has them")
    rank, local_rank, local_size = map(int, numbers)
    may = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    return Launch(rank, max(1, int(size)), local_rank, local_size, int(restarts), job, may)


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files and speaks."""
    return launched().rank == 0


def _is_first_here() -> bool:
    return launched().local_rank == 0


# Whether this process may tell an error: the first in which one happens. Processes that have met
# agree about it (training/distributed.py); until then, one of each machine may.
tells_errors: list[Callable[[], bool]] = [_is_first_here]
