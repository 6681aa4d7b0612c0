"""The processor cores that this process may use, and its share beside others of its run."""

from __future__ import annotations

import os

_processes = 1  # of this run, on this machine


def usable_cores() -> int:
    """The number of cores that this process may run on, at least 1.

    Linux knows it (taskset, containers with cpusets); on macOS it is the number of all cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(processes: int) -> None:
    """From now on so many processes of one run share the cores of this machine."""
    global _processes
    _processes = processes


def cores_of_process() -> int:
    """The share of this process in the cores that it may use, at least 1."""
    return max(1, usable_cores() // _processes)
