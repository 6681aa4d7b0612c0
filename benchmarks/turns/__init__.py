"""Another process that takes turns with this one, so that neither works while the other is timed.

The other process calls `answer`; this one holds it as `Other`. Both sides count the seconds of one
piece of work on the clock and, of all threads of the process, by the processor.
"""

from __future__ import annotations

import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from subprocess import PIPE
from typing import Any

from uniadapter_jax.common import children

Seconds = tuple[float, float]  # on the clock, and of all threads of the process

_MARK = "turn:"  # begins the lines of `answer`, as the work may print, too


def timed(work: Callable[[], Any]) -> Seconds:
    """The seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(work: Callable[[], Any], **facts: Any) -> None:
    """Does the work for every line of the input, and prints its seconds and the peak memory.

    facts: known before, for `Other.facts`.
    """
    print(_MARK, json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(_MARK, json.dumps([*timed(work), peak_bytes()]), flush=True)


class Other:
    """The other process: `command` calls `answer`."""

    def __init__(self, command: Sequence[str]) -> None:
        self.running = children.started(list(command), stdin=PIPE, stdout=PIPE, text=True)
        self.process = self.running.__enter__()
        self.peak = 0
        self.facts: dict[str, Any] = self._said()

    def _said(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        raise SystemExit("the reference's process ended; see above")

    def turn(self) -> Seconds:
        """Lets the other work once; its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu, self.peak = self._said()
        return wall, cpu

    def end(self) -> None:
        """Ends the other process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.running.__exit__(None, None, None)


def saved_bytes(content: Any) -> int:
    """Bytes of the file that torch.save would write."""
    import torch

    counting = _Counting()
    torch.save(content, counting)
    return counting.size


class _Counting(io.RawIOBase):
    """A file that only counts."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def summary(name: str, turns: Sequence[Seconds]) -> dict[str, Any]:
    """Medians; `threads` is how many were at work on the average."""
    wall, cpu = zip(*turns, strict=True)
    return {
        f"{name}_seconds": statistics.median(wall),
        f"{name}_seconds_min_max": [min(wall), max(wall)],
        f"{name}_cpu_seconds": statistics.median(cpu),
        f"{name}_threads": statistics.median(c / w for w, c in turns),
    }


def against(ours: Sequence[Seconds], theirs: Sequence[Seconds], other: Other) -> dict[str, Any]:
    """What stands beside the reference: medians of the ratios of neighbouring turns."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        **summary("reference", theirs),
        "reference_peak_rss_gb": other.peak / 1e9,
        **{f"reference_{name}": value for name, value in other.facts.items()},
        "ratio": statistics.median(a[0] / b[0] for a, b in pairs),
        "cpu_ratio": statistics.median(a[1] / b[1] for a, b in pairs),
    }
