"""When the frames of a video are on show, on the clock that players show.

The clock is 0 where the file begins: at its earliest stream, sound included, as mpv, VLC and
`ffmpeg -ss` count. A frame is on show from its own time until that of the next one; the last one
for its duration, or until the file ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from uniadapter_jax.data.media.kinds import DecodeError

JUMP_BACK = 0.1  # seconds by which stamps may go back before that counts as another recording
JUMP_AHEAD = 10.0  # or ahead, in formats that are cut and joined byte by byte; ffmpeg's own figure
JUMP_STEPS = 20  # and so many usual distances, so that slides stay apart
JOINABLE = ("mpegts", "mpeg")
_ROUNDING = 1e-6  # seconds; of floating point


@dataclasses.dataclass(frozen=True)
class Times:
    """The frames of a clip, in order of display.

    Attributes:
      stamps: what finds a frame again: its time stamp, or its place in a full decode.
      seconds: when a frame comes on show, counted from the clip's beginning; below 0 for one that
        is on show already when the clip begins.
      ends: when it goes off show.
      slack: seconds by which stamps are rounded.
    """

    stamps: Int[np.ndarray, "f"]
    seconds: Float[np.ndarray, "f"]
    ends: Float[np.ndarray, "f"]
    slack: float

    def within(self, start: float | None, end: float | None, file_end: float) -> Times:
        """The frames on show from `start` until before `end`; seconds then count from `start`.

        Args:
          start, end: seconds on the file's clock; None is all of it.
          file_end: when the last stream ends, which the last frame stays on show for.

        Raises:
          DecodeError: nothing is on show there.
        """
        first, last = 0, len(self.stamps)
        if start is not None:
            gone = np.append(self.seconds[1:], max(self.ends[-1], file_end)) if last else self.ends
            first = int(np.searchsorted(gone - self.slack, start, side="right"))
        if end is not None:
            last = int(np.searchsorted(self.seconds, end - self.slack))
        if first >= last:
            if start is not None and len(self.stamps) and start >= gone[-1] - self.slack:
                told = f"begins at {start:g} s, and the file ends at {gone[-1]:.2f}"
                raise DecodeError("no_frames", told)
            raise DecodeError("no_frames", "no frame between start and end")
        begin = start or 0.0
        ends = self.ends[first:last]
        return Times(
            self.stamps[first:last],
            self.seconds[first:last] - begin,
            (ends if end is None else np.minimum(ends, end)) - begin,
            self.slack,
        )

    def take(self, indices: Int[np.ndarray, "k"]) -> Times:
        return Times(self.stamps[indices], self.seconds[indices], self.ends[indices], self.slack)


Choose = Callable[[Times], Int[np.ndarray, "k"]]  # frames of a clip -> indices, ascending


def times_of(
    stamps: Int[np.ndarray, "f"],
    ticks: Int[np.ndarray, "f"],
    tick: float,
    origin: float | None,
    last_end: float,
) -> Times:
    """Times on the file's clock.

    Args:
      stamps: what finds the frames.
      ticks: their times in units of the stream, ascending.
      tick: seconds of such a unit.
      origin: seconds at which the file's clock is 0; None or later than the first frame: there.
      last_end: seconds at which the last frame goes off show, at least as the stream counts.
    """
    seconds = ticks * tick
    zero = seconds[0] if origin is None else min(origin, seconds[0])
    ends = np.append(seconds[1:], max(last_end, seconds[-1]))
    slack = min(0.5 * tick, 0.0005) + _ROUNDING
    return Times(stamps, seconds - zero, ends - zero, slack)


def is_joined(stamps: Int[np.ndarray, "f"], tick: float, format_name: str) -> bool:
    """Whether ascending stamps jump ahead as where two recordings were joined."""
    return format_name in JOINABLE and bool(np.any(np.diff(stamps) > _leap(stamps, tick)))


def in_a_row(
    stamps: Sequence[int], tick: float, period: float, format_name: str
) -> Int[np.ndarray, "f"]:
    """Stamps in order of display made ascending: a joined recording goes on where one ended."""
    ticks = np.asarray(stamps, np.int64)
    if not len(ticks):
        return ticks
    steps = np.diff(ticks)
    jump = steps < -JUMP_BACK / tick
    if format_name in JOINABLE:
        jump |= steps > _leap(ticks, tick)
    steps[jump] = max(1, round(period / tick))
    return np.maximum.accumulate(np.concatenate([ticks[:1], ticks[0] + np.cumsum(steps)]))


def _leap(stamps: Int[np.ndarray, "f"], tick: float) -> float:
    usual = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
    return max(JUMP_AHEAD / tick, JUMP_STEPS * usual)
