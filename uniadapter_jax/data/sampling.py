"""Which frames: at prepare time from a video's own frames, at load time from the stored ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

SAMPLINGS = ("fps", "uniform", "middle")


def per_second(times: np.ndarray, fps: float, period: float) -> Int[np.ndarray, "f"]:
    """The frames on show at 0, 1/fps, 2/fps, ... seconds of the clip (CLIP4Clip's 1 fps list).

    Args:
      times: seconds from the clip's beginning, ascending.
      fps: frames to take per second.
      period: seconds between two frames of the video; the one nearest to the wanted time is taken.
    """
    if not len(times):
        return np.zeros(0, int)
    wanted = np.arange(0, times[-1] + 0.5 * period, 1 / fps)
    first = np.searchsorted(times, wanted - 0.5 * period)
    return np.unique(np.minimum(first, len(times) - 1))


def uniform(count: int, num: int) -> Int[np.ndarray, "f"]:
    """Index i * floor(count / num), as BLIP takes them; a clip shorter than `num` gives all."""
    if count <= num:
        return np.arange(count)
    return np.arange(num) * (count // num)


def middle(count: int, num: int) -> Int[np.ndarray, "f"]:
    """The middle frame of each of `num` equal segments (Frozen, X-Pool)."""
    num = min(count, num)
    edges = np.linspace(0, count, num + 1).astype(int)
    return (edges[:-1] + edges[1:] - 1) // 2


def evenly(count: int, num: int) -> Int[np.ndarray, "f"]:
    """At most `num` of `count` stored frames, first and last included (slice_framepos 2)."""
    if count <= num:
        return np.arange(count)
    return np.linspace(0, count - 1, num, dtype=int)


def random(count: int, num: int, rng: np.random.Generator) -> Int[np.ndarray, "f"]:
    """`num` of `count` frames by chance, in their order; a shorter clip gives all."""
    return np.sort(rng.permutation(count)[:num])


_FIXED: Mapping[str, Callable[[int, int], Int[np.ndarray, "f"]]] = {
    "evenly": evenly,
    "uniform": uniform,
    "middle": middle,
}
LOADING = (*_FIXED, "random")  # of the stored frames


def choose(
    name: str, count: int, num: int, rng: np.random.Generator | None = None
) -> Int[np.ndarray, "f"]:
    """At most `num` of `count` stored frames by a rule of `LOADING`.

    Without `rng`, as in evaluation, 'random' is 'evenly'.
    """
    if name == "random" and rng is not None:
        return random(count, num, rng)
    return _FIXED["evenly" if name == "random" else name](count, num)
