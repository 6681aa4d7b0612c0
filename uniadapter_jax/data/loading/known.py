"""Rows of a training batch from a prefix cache, in place of decoded frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uniadapter_jax.data.prefix_cache import DTYPES, PrefixCache


@dataclasses.dataclass
class KnownFrames:
    """What `FrameReader` is for pixels, for what is known of frames; picklable.

    Attributes:
      frames: of a row; a clip with fewer is padded.
    """

    cache: PrefixCache
    frames: int

    @property
    def row_bytes(self) -> int:
        return self.frames * self.cache.frames.row_bytes

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """ "known_frames" [b f ...] and "frame_mask" bool [b f], all zeros."""
        table = self.cache.frames
        known = np.zeros((rows, self.frames, *table.shape), DTYPES[table.dtype])
        return {"known_frames": known, "frame_mask": np.zeros((rows, self.frames), bool)}

    def fill(self, batch: dict[str, np.ndarray], items: Sequence[int], rngs: Any = None) -> None:
        """Copies what is known of clip items[j] into row j; nothing is drawn."""
        table = self.cache.frames
        for row, item in enumerate(items):
            rows = table.read(item)
            batch["known_frames"][row, : len(rows)] = rows
            batch["frame_mask"][row, : len(rows)] = True


def known_texts(
    cache: PrefixCache, clips: Int[np.ndarray, " n"], captions: Int[np.ndarray, " n"]
) -> np.ndarray:
    """What is known "n ..." of these captions of these clips."""
    groups = cache.clip_captions[clips] + captions
    known = np.empty((groups.size, *cache.text.shape), DTYPES[cache.text.dtype])
    for row, group in zip(known, groups.ravel().tolist(), strict=True):
        row[...] = cache.text.read(group)[0]
    return known.reshape(*groups.shape, *cache.text.shape)
