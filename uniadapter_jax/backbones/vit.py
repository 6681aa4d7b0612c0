"""The vision transformer of all families: patches, positions, pre-LayerNorm layers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import layers, merging, prefix, scan
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng, at_place, random
from uniadapter_jax.backbones.pixels import picture_patches
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, PyTree

_NEEDED = "the method adds rows to pictures, or reads the states of all layers"


class ViT(nnx.Module):
    """Pictures to what the family's `head` makes of the states of all tokens.

    Args:
      config: with sizes and normalisation of pictures, and `vision`, a `TowerConfig`.
      std: of the initial class token and positions.
      class_token: whether a token that belongs to no patch stands first.
      ln_pre: whether there is a LayerNorm ahead of the layers.
      drop_path: stochastic depth of the last layer; it rises linearly from 0.

    A module at the place `before` is called with the tokens ahead of `ln_pre`, with their
    positions; rows that it puts behind them go through all layers and are not seen by the head.
    One at the place `side` is called with what the head made, and with the `layers.States`.
    """

    side: Any
    merge: int = 0  # tokens of a picture that every layer merges
    # What acts ahead of the layers.
    AHEAD = ("patch_embedding", "class_embedding", "position_embedding", "ln_pre")

    def __init__(
        self,
        config: Any,
        remat: str,
        *,
        std: float,
        class_token: bool = True,
        patch_bias: bool = True,
        ln_pre: bool = False,
        drop_path: float = 0.0,
        rng: Rng,
    ):
        width, pixels = config.vision.width, 3 * config.patch_size**2
        self.patch_embedding = Linear(pixels, width, use_bias=patch_bias, std=0.02, rng=rng)
        self.class_embedding = nnx.data(random(rng, std, width) if class_token else None)
        self.position_embedding = random(rng, std, class_token + config.patches, width)
        self.ln_pre = nnx.data(LayerNorm(width, eps=config.vision.eps) if ln_pre else None)
        self.blocks = layers.Block(config.vision, rng=rng)
        self.before = nnx.data(None)
        self.side = nnx.data(None)
        self.config = config
        self.remat = remat
        self.drop_path = drop_path

    def __call__(
        self,
        pixels: Array | None,
        *,
        dtype: jnp.dtype,
        shared: PyTree | None = None,
        key: Array | None = None,
        known: Array | None = None,
        frame_mask: Bool[Array, "c f"] | None = None,
    ) -> Float[Array, "b ..."]:
        """Pictures "b H W 3", uint8 or normalised floats, or what `known` gave for them.

        `frame_mask` is read where `joins_frames`: of clips, whose frames the pictures are, False
        at frames that a clip does not have. Without it every picture is a clip of its own.
        """
        options: dict[str, Any] = {
            "keep": self.side is not None,
            "layers": self.config.vision.layers,
            "remat": self.remat,
            "shared": shared,
            "key": key,
            "drop_path": self.drop_path,
        }
        if known is None:
            assert pixels is not None
            x, rows = self.ahead_of_layers(pixels, dtype, shared)
            if self.joins_frames:
                return self.head(self.joined(x, frame_mask, entered=False), key)
            if self.merge:
                if self.before is not None or self.side is not None:
                    raise UserError(f"{self.merge} tokens of a layer cannot be merged: {_NEEDED}")
                del options["keep"], options["drop_path"]
                return self.head(merging.run(self.blocks, x, self.merge, **options), key)
            x, states = layers.run_and_keep(self.blocks, x, **options)
            x = x if self.before is None else x[:, :rows]
        elif self.joins_frames:
            return self.head(self.joined(known.astype(dtype), frame_mask, entered=True), key)
        else:
            x, states = prefix.enter(self.blocks, known.astype(dtype), **options)
        made = self.head(x, key)
        return made if states is None else self.side(made, layers.States(states, None, self.read))

    @property
    def joins_frames(self) -> bool:
        """Whether the frames of a clip are read together: `frame_mask` says which there are."""
        return False

    def joined(
        self, x: Float[Array, "b s d"], frame_mask: Bool[Array, "c f"] | None, *, entered: bool
    ) -> Float[Array, "b t d"]:
        """What `head` reads where `joins_frames`; `entered`: from the layers above a cut on."""
        raise NotImplementedError  # where frames are joined

    def known(self, pixels: Array, dtype: jnp.dtype) -> Float[Array, "b ..."]:
        """What is frozen ahead of all that a method does; see `prefix`."""
        return prefix.known(
            self.blocks,
            self.ahead_of_layers(pixels, dtype, None)[0],
            keep=self.side is not None,
            layers_=self.config.vision.layers,
            mask=None,
            read=self.read_by_head,
        )

    def ahead_of_layers(
        self, pixels: Array, dtype: jnp.dtype, shared: PyTree | None
    ) -> tuple[Float[Array, "b s d"], int]:
        """What enters the first layer, a class token first; the number of rows that are its own."""
        x = self.patch_embedding(picture_patches(pixels, self.config, dtype))
        if self.class_embedding is not None:
            cls = self.class_embedding[...].astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, cls.size)), x], axis=1)
        x = x + self.position_embedding[...].astype(x.dtype)[None]
        rows = x.shape[1]
        x = at_place(self.before, x, x, scan.of_first_layer(shared))
        return (x if self.ln_pre is None else self.ln_pre(x)), rows

    def read(self, x: Float[Array, "b s d"]) -> Float[Array, "b d"]:
        """The states that stand for a picture: of its class token, or the mean of its patches."""
        return x.mean(1) if self.class_embedding is None else x[:, 0]

    def read_by_head(self, x: Float[Array, "b s d"]) -> Float[Array, "b t d"]:
        """The states that `head` reads; by default all."""
        return x

    def head(self, x: Float[Array, "b s d"], key: Array | None) -> Float[Array, "b ..."]:
        """The family's result from the states after the last layer."""
        raise NotImplementedError  # each family has its own
