"""What there is of the machine for this process."""

import os

from common.launch import launched


def cores() -> int:
    """CPU cores that this process may use (taskset, containers), else those that there are; its
    share of them where torchrun has started several."""
    there = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        there = len(os.sched_getaffinity(0))
    return max(1, there // launched().local_size)


def share_cores() -> None:
    """Before torch is imported: its threads are the cores of this process. torchrun sets one thread
    for each process, however many cores there are; another number is the user's, and stays."""
    if launched().size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        os.environ["OMP_NUM_THREADS"] = str(cores())
