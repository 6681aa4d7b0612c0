"""Weights of a clip's frames for UniAdapter's cross-attention, and which frames are absent.

The tokens of all frames of a clip stand one behind the other, frame by frame, CLS first in each.
Frame-aware attention (arXiv 2302.06605, section 3.3) scales what a text scores with the tokens of
frame t by how much the frame is about the text:

    w_t = <text, frame_t> of unit vectors           f_t = T exp(w_t / 4) / sum_t' exp(w_t' / 4)

T counts the frames that the clip has. A frame's CLS keeps the factor 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import Precision

from uniadapter_jax.common.types import Array, Bool, Float

TEMPERATURE = 4.0  # as released: the square root of 16


def frame_factor(
    text_features: Float[Array, "... p c"],
    frame_features: Float[Array, "... f c"],
    frame_mask: Bool[Array, "... f"],
    tokens: int,
) -> Float[Array, "... p t"]:
    """`Memory.factor` of p texts with one clip each row: float32, t = f * tokens, no gradient.

    Args:
      text_features, frame_features: unit vectors, of texts and of single frames.
      frame_mask: False where a clip has no such frame; its tokens get 0, its features are unread.
      tokens: of one frame, CLS included.
    """
    text, frames = (
        jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (text_features, frame_features)
    )
    dots = jnp.einsum("...pc,...fc->...pf", text, frames, precision=Precision.HIGHEST)
    present = frame_mask[..., None, :]
    # Not minus infinity: a clip without any frame stays finite.
    weights = jax.nn.softmax(jnp.where(present, dots / TEMPERATURE, -1e9), axis=-1)
    factor = jnp.where(present, weights, 0.0) * present.sum(-1, keepdims=True, dtype=jnp.float32)
    patches = jnp.broadcast_to(factor[..., None], (*factor.shape, tokens - 1))
    cls = jnp.broadcast_to(present[..., None].astype(jnp.float32), (*factor.shape, 1))
    return jnp.concatenate([cls, patches], axis=-1).reshape(*factor.shape[:-1], -1)


def token_mask(frame_mask: Bool[Array, "... f"], tokens: int) -> Bool[Array, "... t"]:
    """`Memory.mask` of clips: False on the tokens of absent frames."""
    return jnp.repeat(frame_mask, tokens, axis=-1)
