"""What an evaluation needs of its texts and clips: batches of cut texts, and masks of frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from uniadapter_jax.adapters.base import Method
from uniadapter_jax.common.types import Bool, Int
from uniadapter_jax.data.records import Records

LENGTHS = 8  # texts are cut to the next multiple of this
FEW_BATCHES = 4  # for so few, compiling another program costs more than it saves


def frame_masks(records: Records, frames: int) -> Bool[np.ndarray, "m f"]:
    """Which of a row's frames are real, for every clip; each rule takes the first, up to all."""
    return np.arange(frames) < np.asarray(records.frame_counts)[:, None]


def used_lengths(method: Method, backbone: Any, ids: Int[np.ndarray, "n l"]) -> np.ndarray:
    """How many of each text's ids its features depend on; `backbone` is the config of one."""
    if method.reads_padding:
        return np.full(len(ids), ids.shape[1])
    return backbone.used_lengths(ids)


def text_batches(
    used: Int[np.ndarray, " n"], longest: int, size: int
) -> Iterator[tuple[Int[np.ndarray, " b"], int]]:
    """(rows, length) of batches of at most `size` texts, cut to what their texts need.

    A length is a program. One serves where there are few batches; where there are many, those of
    shorter texts are cut to two thirds of it, or one.

    Args:
      used: tokens of each text that have a say in its features.
      longest: tokens that all texts are padded to.
    """
    whole = min(_rounded(int(used.max())), longest)
    lengths = np.array([whole])
    if len(used) > FEW_BATCHES * size:
        lengths = np.array([*(min(_rounded(-(-whole * i // 3)), whole) for i in (1, 2)), whole])
    needed = lengths[np.searchsorted(lengths, used)]
    order = np.argsort(needed, kind="stable")
    for start in range(0, len(used), size):
        rows = order[start : start + size]
        yield rows, int(needed[rows[-1]])


def _rounded(length: int) -> int:
    return -(-length // LENGTHS) * LENGTHS
