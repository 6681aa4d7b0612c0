"""Rules that choose frames: of a video when preparing, of the stored frames when loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

SAMPLINGS = ("fps", "uniform", "middle")


def per_second(
    begins: Float[np.ndarray, "f"], ends: Float[np.ndarray, "f"], fps: float, slack: float = 1e-6
) -> Int[np.ndarray, "k"]:
    """The frames visible at 0, 1/fps, 2/fps, ... seconds of the clip (CLIP4Clip's 1 fps list).

    Each is taken once, however long it is visible, so a pause of years costs nothing. The first
    frame also counts as visible before it begins.

    Args:
      begins, ends: seconds of the clip between which a frame is visible; ascending.
      fps: frames to take per second.
      slack: rounding error of both, in seconds.
    """
    seen_at = np.ceil(np.maximum(begins - slack, 0.0) * fps) / fps
    chosen = seen_at < ends - slack
    chosen[:1] = True
    return np.flatnonzero(chosen)


def uniform(count: int, num: int) -> Int[np.ndarray, "f"]:
    """Every floor(count / num)-th frame, as BLIP does; a clip shorter than `num` gives all."""
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
    """`num` random frames of `count`, in order; a shorter clip gives all."""
    return np.sort(rng.permutation(count)[:num])


_FIXED: Mapping[str, Callable[[int, int], Int[np.ndarray, "f"]]] = {
    "evenly": evenly,
    "uniform": uniform,
    "middle": middle,
}
LOADING = (*_FIXED, "random")  # rules for stored frames


def choose(
    name: str, count: int, num: int, rng: np.random.Generator | None = None
) -> Int[np.ndarray, "f"]:
    """At most `num` of `count` stored frames by a rule of `LOADING`.

    Without `rng`, as in evaluation, 'random' is 'evenly'.
    """
    if name == "random" and rng is not None:
        return random(count, num, rng)
    return _FIXED["evenly" if name == "random" else name](count, num)
