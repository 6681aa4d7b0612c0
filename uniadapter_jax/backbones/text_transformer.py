"""The text transformer of the two-tower families: words, positions, pre-LayerNorm layers."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, layers, prefix, scan
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng, at_place, random
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree


class TextTransformer(nnx.Module):
    """Token ids to joint embeddings: projection(ln_final(the state of one position)).

    Which position that is, and whether it sees what follows, differs by family.

    Args:
      config: with `vocab_size`, `positions`, `embed`, and `text`, a `TowerConfig`.

    A module at the place `before` is called with the word embeddings ahead of their positions, and
    may put rows among them; its attribute `rows` says how many. One at the place `side` is called
    with the features, and with the `layers.States` of all layers.

    Attributes:
      FIRST_WORD: the position of the first word, behind what begins every text.
    """

    AHEAD = ("token_embedding", "position_embedding")  # what acts ahead of the layers
    CAUSAL: ClassVar[bool]
    FIRST_WORD: ClassVar[int]
    before: Any
    side: Any

    def __init__(self, config: Any, remat: str, *, projection_bias: bool, rng: Rng):
        width = config.text.width
        self.token_embedding = random(rng, 0.02, config.vocab_size, width)
        self.position_embedding = random(rng, 0.01, config.positions, width)
        self.blocks = layers.Block(config.text, rng=rng)
        self.before = nnx.data(None)
        self.side = nnx.data(None)
        self.ln_final = LayerNorm(width, eps=config.text.eps)
        self.projection = Linear(
            width, config.embed, use_bias=projection_bias, std=width**-0.5, rng=rng
        )
        self.config = config
        self.remat = remat

    def __call__(
        self,
        ids: Int[Array, "b l"],
        *,
        dtype: jnp.dtype,
        shared: PyTree | None = None,
        key: Array | None = None,
        known: Array | None = None,
    ) -> Float[Array, "b c"]:
        """Features of texts; `known` is what the method of that name gave for them."""
        rows = 0 if self.before is None else self.before.rows
        check_length(ids.shape[1] + rows, self.config.positions)
        ids = self.padded(ids, rows)
        options: dict[str, Any] = {
            "keep": self.side is not None,
            "layers": self.config.text.layers,
            "remat": self.remat,
            "mask": self._mask(ids.shape[1] + rows),
            "shared": shared,
            "key": key,
        }
        if known is None:
            x = self.ahead_of_layers(ids, dtype, shared)
            x, states = layers.run_and_keep(self.blocks, x, **options)
        else:
            x, states = prefix.enter(self.blocks, known.astype(dtype), **options)
        read = functools.partial(self.state_of_text, ids=ids, rows=rows)
        # What was known may be what the head reads.
        features = self.projection(self.ln_final(x if x.ndim == 2 else read(x)))
        if states is None:
            return features
        return self.side(features, layers.States(states, self.word_mask(ids, rows), read))

    def known(self, ids: Int[Array, "b l"], dtype: jnp.dtype) -> Float[Array, "b ..."]:
        """What is frozen ahead of all that a method does; see `prefix`."""
        ids = self.padded(ids, 0)
        return prefix.known(
            self.blocks,
            self.ahead_of_layers(ids, dtype, None),
            keep=self.side is not None,
            layers_=self.config.text.layers,
            mask=self._mask(ids.shape[1]),
            read=functools.partial(self.state_of_text, ids=ids, rows=0),
        )

    def _mask(self, length: int) -> Bool[Array, "m m"] | None:
        return functions.causal_mask(length) if self.CAUSAL else None

    def ahead_of_layers(
        self, ids: Int[Array, "b l"], dtype: jnp.dtype, shared: PyTree | None
    ) -> Float[Array, "b m d"]:
        """What enters the first layer, of texts as the family reads them."""
        x = self.token_embedding[...][ids].astype(dtype)
        x = at_place(self.before, x, x, scan.of_first_layer(shared))
        return x + self.position_embedding[...][: x.shape[1]].astype(dtype)[None]

    def padded(self, ids: Int[Array, "b l"], rows: int) -> Int[Array, "b l"]:
        """Texts as the family reads them, which `rows` of a method will join; by default as is."""
        return ids

    def word_mask(self, ids: Int[Array, "b l"], rows: int) -> Bool[Array, "b m"] | None:
        """False behind the end of each text, which `rows` of a method joined; None: all count."""
        return None

    def state_of_text(
        self, x: Float[Array, "b m d"], ids: Int[Array, "b l"], rows: int
    ) -> Float[Array, "b d"]:
        """The state of the position that stands for the text; a method put `rows` among them."""
        raise NotImplementedError  # each family has its own


def check_length(length: int, positions: int) -> None:
    """Raises `UserError` if texts have more tokens than the backbone has positions."""
    if length > positions:
        raise UserError(f"texts of {length} tokens, but this backbone has {positions} positions")
