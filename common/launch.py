"""Which of the processes this is that torchrun has started; without torchrun there is one."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError

NEEDED = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"


@dataclass(frozen=True)
class Launch:
    """rank: number of this process among all `size` of them; local_rank, local_size: the same among
    those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __str__(self) -> str:
        """What a process puts before its words: nothing where there is one."""
        return f"rank {self.rank}: " if self.size > 1 else ""


def launched() -> Launch:
    """As the environment has it. UserError where it has a part of what torchrun sets."""
    size = os.environ.get("WORLD_SIZE", "")
    if size in ("", "0", "1"):
        return Launch()
    numbers = [os.environ.get(name, "") for name in NEEDED]
    if not all(map(str.isdecimal, numbers)) or not os.environ.get("MASTER_ADDR"):
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(NEEDED)} are not all numbers, or there is no "
            "MASTER_ADDR; start several processes with torchrun, or unset WORLD_SIZE"
        )
    return Launch(*map(int, numbers[:4]))


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files and speaks."""
    return launched().rank == 0


# Whether this process may tell an error: the first in which one happens. Processes that have met
# agree about it (training/distributed.py); until then, one of each machine may.
tells_errors: list[Callable[[], bool]] = [lambda: launched().local_rank == 0]
