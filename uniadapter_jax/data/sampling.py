"""Which frames: at prepare time from a video's own frames, at load time from the stored ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

SAMPLINGS = ("fps", "uniform", "middle")


def per_second(
    begins: Float[np.ndarray, "f"], ends: Float[np.ndarray, "f"], fps: float, slack: float = 1e-6
) -> Int[np.ndarray, "k"]:
    """The frames on show at 0, 1/fps, 2/fps, ... seconds of the clip (CLIP4Clip's 1 fps list).

    Each is taken once, however long it stays, so a pause of years costs nothing. Before the first
    picture comes, that one counts as on show.

    Args:
      begins, ends: seconds of the clip at which a frame comes on show and goes; ascending.
      fps: frames to take per second.
      slack: seconds by which both may be rounded.
    """
    seen_at = np.ceil(np.maximum(begins - slack, 0.0) * fps) / fps
    chosen = seen_at < ends - slack
    chosen[:1] = True
    return np.flatnonzero(chosen)


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
