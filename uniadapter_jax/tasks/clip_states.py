"""Clips as BLIP's text transformer sees them: the tokens of all frames, one frame after another.

A picture is a clip of one frame. The states of T frames of s tokens are T s tokens, frame by frame,
the CLS of each in front (UniAdapter's released code for several frames).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.common.randomness import frame_keys
from uniadapter_jax.common.types import Array, Bool, Float
from uniadapter_jax.tasks.frame_weights import token_mask


class ClipStates(NamedTuple):
    """The vision tower's view of m clips."""

    states: Float[Array, "m t d"]  # t = f s
    frame_mask: Bool[Array, "m f"]

    @property
    def tokens(self) -> int:
        """Tokens of one frame, s."""
        return self.states.shape[1] // self.frame_mask.shape[1]

    @property
    def cls(self) -> Float[Array, "m f d"]:
        """The states of the frames' CLS tokens."""
        return self.states[:, :: self.tokens]

    @property
    def mask(self) -> Bool[Array, "m t"] | None:
        """`Memory.mask`; None for pictures, which have all of their one frame."""
        if self.frame_mask.shape[1] == 1:
            return None
        return token_mask(self.frame_mask, self.tokens)


def encode_clips(
    model: BLIP,
    frames: Array,
    frame_mask: Bool[Array, "m f"],
    *,
    key: Array | None = None,
) -> ClipStates:
    """Frames "m f H W 3" (uint8, or normalised floats); each frame is encoded alone.

    `key` is one for all clips, or a key per clip.
    """
    m, f = frames.shape[:2]
    if key is not None and key.ndim:
        key = frame_keys(key, f).reshape(-1)
    states = model.encode_images(frames.reshape(m * f, *frames.shape[2:]), key=key)
    return ClipStates(states.reshape(m, -1, states.shape[-1]), frame_mask)


def clip_features(model: BLIP, clips: ClipStates) -> Float[Array, "m c"]:
    """Unit vectors: the projection of the mean over a clip's frames of their CLS states."""
    cls = clips.cls.astype(jnp.float32)
    weight = clips.frame_mask.astype(jnp.float32)[..., None]
    mean = (cls * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)
    return model.image_features(mean)


def frame_features(model: BLIP, clips: ClipStates) -> Float[Array, "m f c"]:
    """Unit vectors of single frames."""
    return model.image_features(clips.cls)
