"""Similarity of all texts with all clips, in blocks of fixed size on the device.

Memory is bounded by the block, not by the set: no array texts x clips x frames x width exists, and
texts x clips x frames exists for one block only. The result itself lives on the host.

Equal texts, and equal clips, have equal scores to the bit: they are scored once. By place in a
block a product may differ in its last bits.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.distinct import digest, distinct, distinct_rows
from uniadapter_jax.common.types import Array, Bool, Float
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES

# texts, clips: 12 frames of one float32 block are 12 MB, small enough for a core's cache share
# and large enough that products run at full speed.
BLOCK = (1024, 256)


def score(
    text_features: Any,
    frame_features: Any,
    mask: Any,
    *,
    similarity: str,
    temperature: float,
    block: tuple[int, int] = BLOCK,
) -> np.ndarray:
    """Cosines, float32 "n m", of texts "n c" and clips "m f c" with frame mask "m f".

    Arrays of NumPy or JAX, all addressable from this process. The last block is padded, so one
    program serves all (one per `block`, width, frames, dtype and similarity).
    """
    texts, frames, masks = (np.asarray(x) for x in (text_features, frame_features, mask))
    axes_fit = (texts.ndim, frames.ndim) == (2, 3)
    if not axes_fit or texts.shape[1] != frames.shape[2] or masks.shape != frames.shape[:2]:
        raise ValueError(
            f"texts {texts.shape}, frames {frames.shape} and mask {masks.shape} are not "
            "(n, c), (m, f, c) and (m, f)"
        )
    same_texts = distinct_rows(texts)
    same_clips = distinct(
        digest(there, clip[there]) for clip, there in zip(frames, masks, strict=True)
    )
    scores = _score(
        same_texts.take(texts),
        same_clips.take(frames),
        same_clips.take(masks),
        similarity,
        float(temperature),
        block,
    )
    return same_clips.spread(same_texts.spread(scores), axis=1)


def cosines(text: Any, clips: Any) -> Float[np.ndarray, "n m"]:
    """Products of unit vectors "n c" and "m c", equal for equal rows."""
    texts, media = np.asarray(text), np.asarray(clips)
    same_texts, same_clips = distinct_rows(texts), distinct_rows(media)
    scores = same_texts.take(texts) @ same_clips.take(media).T
    return same_clips.spread(same_texts.spread(scores), axis=1)


def _score(
    texts: np.ndarray,
    frames: np.ndarray,
    masks: np.ndarray,
    similarity: str,
    temperature: float,
    block: tuple[int, int],
) -> np.ndarray:
    scores = np.empty((len(texts), len(frames)), np.float32)
    if not scores.size:
        return scores
    rows, columns = (min(b, n) for b, n in zip(block, scores.shape, strict=True))
    # Texts stay on the device for the whole run: one width per text, 20 MB for 10,000.
    on_device = [
        jnp.asarray(_padded(texts[start : start + rows], rows))
        for start in range(0, len(texts), rows)
    ]
    for left in range(0, len(frames), columns):
        right = left + columns
        clips = _summarise(
            _padded(frames[left:right], columns), _padded(masks[left:right], columns), similarity
        )
        for i, part in enumerate(on_device):
            found = _compare(part, clips, similarity, temperature)
            target = scores[i * rows : (i + 1) * rows, left:right]
            target[...] = np.asarray(found)[: target.shape[0], : target.shape[1]]
    return scores


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    """`x` with zero rows up to `size`; a clip of zeros under a False mask scores 0."""
    if len(x) == size:
        return x
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])


@functools.partial(jax.jit, static_argnames="similarity")
def _summarise(frames: Float[Array, "m f c"], mask: Bool[Array, "m f"], similarity: str) -> Any:
    return SIMILARITIES[similarity].summarise(frames, mask)


@functools.partial(jax.jit, static_argnames=("similarity", "temperature"))
def _compare(
    text: Float[Array, "n c"], clips: Any, similarity: str, temperature: float
) -> Float[Array, "n m"]:
    return SIMILARITIES[similarity].compare(text, clips, temperature)
