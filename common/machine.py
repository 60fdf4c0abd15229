"""What there is of the machine for this process."""

import os


def cores() -> int:
    """CPU cores that this process may use (taskset, containers), else those that there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
