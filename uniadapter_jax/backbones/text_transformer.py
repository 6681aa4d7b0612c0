"""The text transformer of the two-tower families: words, positions, pre-LayerNorm layers."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, layers, scan
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
    ) -> Float[Array, "b c"]:
        rows = 0 if self.before is None else self.before.rows
        check_length(ids.shape[1] + rows, self.config.positions)
        ids = self.padded(ids, rows)
        x = self.token_embedding[...][ids].astype(dtype)
        x = at_place(self.before, x, x, scan.of_first_layer(shared))
        length = x.shape[1]
        x, states = layers.run_and_keep(
            self.blocks,
            x + self.position_embedding[...][:length].astype(dtype)[None],
            keep=self.side is not None,
            layers=self.config.text.layers,
            remat=self.remat,
            mask=functions.causal_mask(length) if self.CAUSAL else None,
            shared=shared,
            key=key,
        )
        features = self.projection(self.ln_final(self.state_of_text(x, ids, rows)))
        if states is None:
            return features
        mask = self.word_mask(ids, rows)
        read = functools.partial(self.state_of_text, ids=ids, rows=rows)
        return self.side(features, layers.States(states, mask, read))

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
