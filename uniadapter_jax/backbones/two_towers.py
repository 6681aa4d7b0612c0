"""Two towers with a joint embedding: what CLIP and its relatives have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.backbones import layers, scan
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.backbones.linear import Rng, at_place
from uniadapter_jax.common.randomness import frame_keys, row_keys
from uniadapter_jax.common.types import Array, Bool, Float, Int


class TwoTowersConfig(Protocol):
    """The config of such a model, as counts of work read it.

    Attributes:
      pooling_reads: linear layers of the vision tower's head that multiply every token; all else
        outside the layers of a tower multiplies one row for each picture or text.
    """

    pooling_reads: ClassVar[tuple[str, ...]]

    @property
    def vision(self) -> TowerConfig: ...

    @property
    def text(self) -> TowerConfig: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def patches(self) -> int: ...

    def tokens(self, tower: str, words: int) -> int:
        """Tokens of a picture, or of a text whose row has so many words, in that tower."""


class TwoTowers(layers.Backbone):
    """Pictures and texts to raw features, each by a tower of its own.

    A family says how both are made, and where its temperature and bias start.

    Attributes:
      logit_scale: the logarithm of the temperature's inverse.
      logit_bias: what is added to every logit of a sigmoid loss; None in a model without one.
      after_vision, after_text: places for what becomes of the features of a tower.
    """

    logit_scale: nnx.Param
    logit_bias: Any
    after_vision: Any
    after_text: Any
    VISION: ClassVar[Any]
    TEXT: ClassVar[Any]
    INITIAL_SCALE: ClassVar[float]
    INITIAL_BIAS: ClassVar[float | None] = None

    def __init__(
        self,
        config: Any,
        *,
        rng: Rng,
        dtype: str = "float32",
        remat: str = "none",
        frame_chunks: int = 0,
        merge: int = 0,
    ):
        super().__init__(config, dtype)
        bias = self.INITIAL_BIAS
        self.logit_scale = nnx.Param(jnp.asarray(self.INITIAL_SCALE, jnp.float32))
        self.logit_bias = nnx.data(
            None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))
        )
        self.after_vision = nnx.data(None)
        self.after_text = nnx.data(None)
        self.text = self.TEXT(config, remat, rng=rng)
        self.vision = self.VISION(config, remat, rng=rng)
        self.vision.merge = merge
        self.frame_chunks = frame_chunks or fastest_chunks(config.vision.width)

    def towers(self) -> tuple[layers.Tower, ...]:
        """Both, as methods find them."""
        return (
            layers.Tower.of("vision", self.vision, self.config.vision),
            layers.Tower.of("text", self.text, self.config.text),
        )

    def encode_images(
        self,
        pixels: Array | None,
        *,
        key: Array | None = None,
        known: Array | None = None,
        frame_mask: Bool[Array, "c f"] | None = None,
    ) -> Float[Array, "b c"]:
        """Pictures "b H W 3", uint8 (normalised here) or normalised floats, to raw features.

        Or from what `known_frames` gave for such pictures, which are not read then. `frame_mask`
        is of clips whose frames they are; see `ViT`.
        """
        shared = self.shared("vision", self.config.vision.layers)
        of_clips = {"frame_mask": frame_mask, "known": known}
        features = self.vision(pixels, dtype=self.dtype, shared=shared, key=key, **of_clips)
        features = features.astype(jnp.float32)
        return at_place(self.after_vision, features, features, scan.LayerInputs(key=key))

    def encode_frames(
        self,
        frames: Array | None,
        *,
        mask: Bool[Array, "b f"] | None = None,
        key: Array | None = None,
        known: Array | None = None,
    ) -> Float[Array, "b f c"]:
        """Frames of clips "b f H W 3" to raw features; every frame is encoded alone.

        The tower runs over `frame_chunks` groups of frames one after another. `key` is one for
        all clips, or a key per clip. `known` is what `known_frames` gave, in place of frames.
        Where a method joins frames, all of a clip are encoded together, but for those where `mask`
        is False, whose features mean nothing; else it is not read.
        """
        rows = frames if known is None else known
        assert rows is not None
        b, f = rows.shape[:2]
        keys = None
        if key is not None:
            keys = frame_keys(key if key.ndim else row_keys(key, jnp.arange(b)), f)

        def part(here: slice) -> Array:
            some = rows[:, here].reshape(-1, *rows.shape[2:])
            pixels, states = (some, None) if known is None else (None, some)
            of_some = None if keys is None else keys[:, here].reshape(-1)
            return self.encode_images(pixels, key=of_some, known=states, frame_mask=present)

        present = None
        if self.vision.joins_frames:
            present = jnp.ones((b, f), bool) if mask is None else mask
        return self._in_groups(part, b, f)

    def _in_groups(self, part: Callable[[slice], Array], clips: int, frames: int) -> Array:
        """ "b f ..." of what is made of some frames of every clip, group by group."""
        out, groups = [], 1 if self.vision.joins_frames else min(self.frame_chunks, frames)
        for group in np.array_split(np.arange(frames), groups):
            made = part(slice(group[0], group[-1] + 1))
            out.append(made.reshape(clips, len(group), *made.shape[1:]))
        return jnp.concatenate(out, axis=1)

    def encode_text(
        self, ids: Int[Array, "b l"], *, key: Array | None = None, known: Array | None = None
    ) -> Float[Array, "b c"]:
        """Token ids to raw features; `known` is what `known_text` gave for them."""
        shared = self.shared("text", self.config.text.layers)
        features = self.text(ids, dtype=self.dtype, shared=shared, key=key, known=known)
        features = features.astype(jnp.float32)
        return at_place(self.after_text, features, features, scan.LayerInputs(key=key))

    def known_frames(self, frames: Array) -> Float[Array, "b f ..."]:
        """What is frozen of the vision tower ahead of all that a method does; see `prefix`."""
        b, f = frames.shape[:2]

        def part(here: slice) -> Array:
            return self.vision.known(frames[:, here].reshape(-1, *frames.shape[2:]), self.dtype)

        return self._in_groups(part, b, f)

    def known_text(self, ids: Int[Array, "b l"]) -> Float[Array, "b ..."]:
        """What is frozen of the text tower, likewise."""
        return self.text.known(ids, self.dtype)


def fastest_chunks(width: int, platform: str | None = None) -> int:
    """Groups of frames; a CPU keeps a part of a wide tower's activations in cache.

    A narrow tower fits whole, and every part is compiled anew (`benchmarks/train_step.py`).
    `platform` is by default the one that this process computes on.
    """
    return 4 if (platform or jax.default_backend()) == "cpu" and width >= 512 else 1
