"""Peak memory of this process."""

import pathlib
import re


def peak_mb() -> float:
    """The most that was resident; ru_maxrss begins with that of the process that started this."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
