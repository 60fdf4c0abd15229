"""What there is of the machine for this process."""

import os
import time
from contextlib import suppress
from pathlib import Path

from common.launch import launched

WINDOW = 5.0  # seconds over which a load is measured: the system counts in hundredths of them


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


class Load:
    """How many cores other programs use, of those that this process may use."""

    def __init__(self) -> None:
        self._last = self._now()

    def others(self) -> float | None:
        """In cores, since the last answer. None: too little time has passed since then, or the
        system does not say it; Linux does."""
        at, busy, own = self._last
        if busy is None or time.monotonic() - at < WINDOW:
            return None
        self._last = now, busy_now, own_now = self._now()
        return max(0.0, (busy_now or 0) - busy - (own_now - own)) / (now - at)

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """(time, seconds for which the cores were busy, those of them that are ours)."""
        return time.monotonic(), _busy(), time.process_time()


def _busy() -> float | None:
    """Seconds of work of all cores of this process, since the machine was started. Work of less
    importance than ours steps back, and is left out."""
    with suppress(OSError, AttributeError, ValueError, IndexError):
        ours = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        lines = Path("/proc/stat").read_text().splitlines()
        rows = [line.split() for line in lines if line.split(" ", 1)[0] in ours]
        # user, nice, system, idle, iowait, irq, softirq, steal
        columns = (1, 3, 6, 7, 8) if os.nice(0) <= 0 else (1, 2, 3, 6, 7, 8)
        ticks = sum(int(row[i]) for row in rows for i in columns)
        return ticks / os.sysconf("SC_CLK_TCK")
    return None
