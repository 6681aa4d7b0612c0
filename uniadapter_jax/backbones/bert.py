"""BLIP's text transformer: a post-LayerNorm BERT whose layers can also attend to a medium.

One set of weights serves three modes (Li et al., 2022): alone (no cross-attention), in fusion with
the states of a picture, and, with a causal mask, as a decoder. A layer computes

    h = ln_attn(x + attention(x))
    c = ln_cross(h + cross-attention(h, memory))      c = h where there is no memory
    y = beside_fusion(beside_text(ln_out(c + fc2(gelu(fc1(c)))), h), c)

Each sub-layer (attn, cross, mlp) has the places of `layers.Block`: `after_...` and `beside_...` of
what is added before LayerNorm, and `prompts` ahead of the layer's own words. The two above are
further places; `beside_fusion` acts only where there is a memory, `beside_text` there, too, unless
it has `in_fusion` False. Two more are at the transformer,
for all layers at once: `cross_key` and `cross_value` are called once with the memory's raw states
"m t e" and return what is added to the keys, respectively values, of every layer's cross-attention,
"m t d".

Several texts may look at one medium: their queries stand side by side, and its keys and values are
made once per layer and are never repeated. `attend_to` makes them for all layers beforehand, for
texts that come one batch, or one word (`step`), after another.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.attention import Attention, KeysValues
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng, at_place, random
from uniadapter_jax.backbones.memory import Attended, Memory, Seen
from uniadapter_jax.backbones.text_transformer import check_length
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import fold_name
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree

# What is added to the scores of padding: BERT's numbers, not minus infinity, so that a row of
# nothing but padding stays finite.
_UNSEEN, _UNSEEN_CROSS = -1e4, -1e9


class AttentionLayer(Attention):
    """ln(x + out(attention)), with dropout of the weights and of what is added."""

    def __init__(
        self,
        config: TowerConfig,
        name: str,
        attended: int,
        dropout: float,
        std: float,
        *,
        rng: Rng,
    ):
        stack = (config.layers,)
        super().__init__(
            config.width, config.heads, attended=attended, stack=stack, std=std, rng=rng
        )
        self.ln = LayerNorm(config.width, eps=config.eps, stack=stack)
        self.name = name
        self.dropout = dropout

    def add(
        self,
        x: Float[Array, "b l d"],
        seen: KeysValues,
        layer: scan.LayerInputs,
        *,
        bias: Float[Array, "..."] | None,
        factor: Float[Array, "q p t"] | None = None,
        after: Any,
        beside: Any,
    ) -> Float[Array, "b l d"]:
        """The sub-layer; after, beside: the modules at its places, before and after dropout."""
        key = layer.key_of(f"{self.name}.weights")
        z = self(x, seen, layer, bias=bias, factor=factor, rate=self.dropout, key=key)
        z = at_place(after, z, x, layer)
        z = functions.dropout(z, self.dropout, layer.key_of(f"{self.name}.out"))
        return self.ln(x + at_place(beside, z, x, layer))


class BertLayer(scan.Stack):
    """A layer as in the module's docstring; `config.layers` of them stacked."""

    SUBLAYERS = ("attn", "cross", "mlp")
    prompts: Any
    after_attn: Any
    beside_attn: Any
    after_cross: Any
    beside_cross: Any
    after_mlp: Any
    beside_mlp: Any
    beside_text: Any
    beside_fusion: Any

    def __init__(self, config: TowerConfig, attended: int, dropout: float, std: float, *, rng: Rng):
        stack, width = (config.layers,), config.width
        self.attn = AttentionLayer(config, "attn", width, dropout, std, rng=rng)
        self.cross = AttentionLayer(config, "cross", attended, dropout, std, rng=rng)
        self.fc1 = Linear(width, config.hidden, stack=stack, std=std, rng=rng)
        self.fc2 = Linear(config.hidden, width, stack=stack, std=std, rng=rng)
        self.ln_out = LayerNorm(width, eps=config.eps, stack=stack)
        for place in (
            *("prompts", "after_attn", "beside_attn", "after_cross", "beside_cross"),
            *("after_mlp", "beside_mlp", "beside_text", "beside_fusion"),
        ):
            setattr(self, place, nnx.data(None))
        self.activation = config.activation
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "b l d"],
        bias: Float[Array, "b 1 #l l"] | None,
        seen: Seen | None,
        layer: scan.LayerInputs,
        made: KeysValues | None = None,
    ) -> Float[Array, "b l d"]:
        """`made` are the keys and values of what is seen, where there are any already."""
        if seen is not None and made is None:
            made = self.attend_to(seen, layer)
        return self.combine(x, self.attn.keys_and_values(x, layer), made, bias, seen, layer)

    def attend_to(self, seen: Seen, layer: scan.LayerInputs) -> KeysValues:
        """Keys and values of what is seen, for cross-attention."""
        added = seen.added if self.adapted else (None, None)
        return self.cross.keys_and_values(seen.memory.states, layer, added)

    def combine(
        self,
        x: Float[Array, "b l d"],
        words: KeysValues,
        made: KeysValues | None,
        bias: Float[Array, "..."] | None,
        seen: Seen | None,
        layer: scan.LayerInputs,
    ) -> Float[Array, "b l d"]:
        """The layer with given keys and values: of the texts themselves, and of what they see."""
        if self.prompts is not None:
            words, bias = self.attn.with_prompts(self.prompts(layer), words, bias, layer)
        places = {"after": self.after_attn, "beside": self.beside_attn}
        h = self.attn.add(x, words, layer, bias=bias, **places)
        c = h
        if seen is not None and made is not None:
            made = seen.memory.made_of_groups(made, self.cross.fused is not None)
            places = {"after": self.after_cross, "beside": self.beside_cross}
            factor = seen.memory.factor
            c = self.cross.add(h, made, layer, bias=seen.bias, factor=factor, **places)
        z = self.fc2(functions.ACTIVATIONS[self.activation](self.fc1(c, layer)), layer)
        z = at_place(self.after_mlp, z, c, layer)
        z = functions.dropout(z, self.dropout, layer.key_of("mlp.out"))
        y = self.ln_out(c + at_place(self.beside_mlp, z, c, layer))
        if seen is None or getattr(self.beside_text, "in_fusion", True):
            y = at_place(self.beside_text, y, h, layer)
        return y if seen is None else at_place(self.beside_fusion, y, c, layer)


class Bert(nnx.Module):
    """Token ids to the states of the last layer.

    Args:
      attended: width of the states that cross-attention reads.
      dropout: the rate of all of BERT's dropouts, in use only where a key is passed.
      std: of initial weights.
    """

    # What acts ahead of the layers.
    AHEAD = ("token_embedding", "position_embedding", "ln_embed")

    def __init__(
        self,
        config: TowerConfig,
        *,
        vocab_size: int,
        positions: int,
        attended: int,
        remat: str,
        dropout: float,
        std: float,
        rng: Rng,
    ):
        self.token_embedding = random(rng, std, vocab_size, config.width)
        self.position_embedding = random(rng, std, positions, config.width)
        self.ln_embed = LayerNorm(config.width, eps=config.eps)
        self.blocks = BertLayer(config, attended, dropout, std, rng=rng)
        self.cross_key = nnx.data(None)
        self.cross_value = nnx.data(None)
        self.config = config
        self.remat = remat
        self.dropout = dropout

    def __call__(
        self,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"] | None,
        *,
        dtype: jnp.dtype,
        memory: Memory | Attended | None = None,
        causal: bool = False,
        shared: PyTree | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b l d"]:
        """Rows are grouped as in `Memory`: row g * p + j is text j of group g.

        Args:
          mask: False where a text has padding; None if none has.
          memory: what cross-attention reads, possibly made already (`attend_to`); None leaves it
            out.
          causal: whether a word sees only itself and what stands before it.
          key: for dropout; None is deterministic.

        Raises:
          UserError: texts are longer than there are positions, or do not fill the groups.
        """
        length = ids.shape[1]
        check_length(length, self.position_embedding.shape[0])
        made, seen = memory if isinstance(memory, Attended) else (None, self._seen(memory))
        _check_groups(seen, ids.shape[0])
        bias = _self_bias(mask, length, causal)
        x = self._embed(ids, self.position_embedding[...][:length], dtype)
        if key is not None:
            x = functions.dropout(x, self.dropout, fold_name(key, "embedding"))

        def call(
            block: BertLayer, x: Array, layer: scan.LayerInputs, made: KeysValues | None
        ) -> tuple[Array, None]:
            return block(x, bias, seen, layer, made), None

        return scan.collect_layers(
            call,
            self.blocks,
            x,
            made,
            self.config.layers,
            remat=self.remat,
            shared=shared,
            key=key,
        )[0]

    def attend_to(self, memory: Memory, *, shared: PyTree | None = None) -> Attended:
        """A memory with its keys and values, for many calls that attend to it; no dropout."""
        seen = self._seen(memory)
        assert seen is not None

        def call(
            block: BertLayer, x: Array, layer: scan.LayerInputs, own: None
        ) -> tuple[Array, KeysValues]:
            return x, block.attend_to(seen, layer)

        start = jnp.zeros((), jnp.float32)
        _, made = scan.collect_layers(
            call, self.blocks, start, None, self.config.layers, shared=shared
        )
        return Attended(made, seen)

    def no_past(self, rows: int, length: int, *, dtype: jnp.dtype) -> KeysValues:
        """Room for the keys and values of texts that `step` will make, of at most `length` tokens.

        Raises:
          UserError: there are fewer positions.
        """
        check_length(length, self.position_embedding.shape[0])
        config = self.config
        width = config.width // config.heads
        empty = jnp.zeros((config.layers, rows, config.heads, length, width), dtype)
        return KeysValues(empty, empty)

    def step(
        self,
        ids: Int[Array, " b"],
        at: Int[Array, ""],
        past: KeysValues,
        attended: Attended,
        *,
        dtype: jnp.dtype,
        shared: PyTree | None = None,
    ) -> tuple[Float[Array, "b d"], KeysValues]:
        """The states of the words at position `at` of causal texts, and the past with them in it.

        `past` holds what earlier steps made of the words before; no text has padding.
        """
        _check_groups(attended.seen, len(ids))
        position = self.position_embedding[...][at][None]
        x = self._embed(ids[:, None], position, dtype)
        length = past.keys.shape[3]
        bias = jnp.where(jnp.arange(length) <= at, 0.0, _UNSEEN)[None, None, None]

        def call(
            block: BertLayer,
            x: Array,
            layer: scan.LayerInputs,
            own: tuple[KeysValues, KeysValues],
        ) -> tuple[Array, KeysValues]:
            past, made = own
            new = block.attn.keys_and_values(x, layer)
            put = jax.lax.dynamic_update_slice_in_dim
            past = KeysValues(*(put(old, y, at, 2) for old, y in zip(past, new, strict=True)))
            return block.combine(x, past, made, bias, attended.seen, layer), past

        x, past = scan.collect_layers(
            call, self.blocks, x, (past, attended.made), self.config.layers, shared=shared
        )
        return x[:, 0], past

    def _embed(self, ids: Array, positions: Array, dtype: jnp.dtype) -> Float[Array, "b l d"]:
        x = self.token_embedding[...][ids].astype(dtype)
        return self.ln_embed(x + positions.astype(dtype)[None])

    def _seen(self, memory: Memory | None) -> Seen | None:
        if memory is None:
            return None
        keys = None if self.cross_key is None else self.cross_key(memory.states)
        values = None if self.cross_value is None else self.cross_value(memory.states)
        bias = None
        if memory.mask is not None:
            bias = jnp.where(memory.of_groups(memory.mask), 0.0, _UNSEEN_CROSS)[:, None, None]
        return Seen(memory, (keys, values), bias)


def _check_groups(seen: Seen | None, rows: int) -> None:
    if seen is None:
        return
    groups = seen.memory.groups
    if not groups or rows % groups:
        raise UserError(f"{rows} texts do not fill {groups} groups that attend to one medium")


def _self_bias(
    mask: Bool[Array, "b l"] | None, length: int, causal: bool
) -> Float[Array, "#b 1 #l l"] | None:
    if mask is None and not causal:
        return None
    allowed = jnp.ones((1, 1, 1, length), bool) if mask is None else mask[:, None, None]
    if causal:
        allowed = allowed & functions.causal_mask(length)[None, None]
    return jnp.where(allowed, 0.0, _UNSEEN)


class LanguageHead(nnx.Module):
    """States to scores of the next word; the last product is with the word embeddings."""

    def __init__(self, config: TowerConfig, vocab_size: int, *, std: float, rng: Rng):
        self.dense = Linear(config.width, config.width, std=std, rng=rng)
        self.ln_head = LayerNorm(config.width, eps=config.eps)
        self.bias = nnx.Param(jnp.zeros(vocab_size))
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "... d"], embedding: Float[Array, "v d"]
    ) -> Float[Array, "... v"]:
        x = self.ln_head(functions.ACTIVATIONS[self.activation](self.dense(x)))
        scores = jnp.einsum(
            "...d,vd->...v", x, embedding.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return scores + functions.along_last(self.bias[...].astype(jnp.float32), scores)
