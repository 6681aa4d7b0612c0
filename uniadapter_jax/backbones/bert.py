"""BLIP's text transformer: a post-LayerNorm BERT whose layers can also attend to a medium.

One set of weights serves three modes (Li et al., 2022): alone (no cross-attention), in fusion with
the states of a picture, and, with a causal mask, as a decoder. A layer computes

    h = ln_attn(x + attention(x))
    c = ln_cross(h + cross-attention(h, memory))      c = h where there is no memory
    y = ln_out(c + fc2(gelu(fc1(c)))) + beside_text(h) + beside_fusion(c)

The last two are places as those of `layers` (a function of h, of c; the latter acts only where
there is a memory). Two more are at the transformer, for all layers at once: `cross_key` and
`cross_value` are called once with the memory's raw states "m t e" and return what is added to the
keys, respectively values, of every layer's cross-attention, "m t d".

Several texts may look at one medium: their queries stand side by side, and its keys and values are
made once per layer and are never repeated. `attend_to` makes them for all layers beforehand, for
texts that come one batch, or one word (`step`), after another.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import layers
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.errors import UserError
from uniadapter_jax.randomness import fold_name, normal
from uniadapter_jax.types import Array, Bool, Float, Int, PyTree, Shaped

# What is added to the scores of padding: BERT's numbers, not minus infinity, so that a row of
# nothing but padding stays finite.
_UNSEEN, _UNSEEN_CROSS = -1e4, -1e9


class Memory(NamedTuple):
    """What texts attend to: m media, for q groups of p texts.

    states: hidden states of the media, e.g. a picture's patches or the words of a question.
    mask: False where a medium has padding; None if it has none.
    medium: the medium of each group; None if there are as many of both, in the same order. With
      two axes, "parts q", media and groups are cut into equal parts, and it counts within a part:
      a device that holds one needs nothing of the others. Groups
      that share a medium through `medium` share the making of its keys and values, but each gets
      a copy of them; texts of one group share the arrays.
    factor: multiplies the scores (query times key) of a text with each token, before the mask
      (frame-aware attention); None is 1 everywhere.
    """

    states: Float[Array, "m t e"]
    mask: Bool[Array, "m t"] | None = None
    medium: Int[Array, "*parts q"] | None = None
    factor: Float[Array, "q p t"] | None = None

    def of_groups(self, media: Shaped[Array, "m ..."]) -> Shaped[Array, "q ..."]:
        """What groups attend to, from something that media have."""
        if self.medium is None:
            return media
        if self.medium.ndim == 1:
            return media[self.medium]
        cut = media.reshape(len(self.medium), -1, *media.shape[1:])
        taken = jax.vmap(lambda part, rows: part[rows])(cut, self.medium)
        return taken.reshape(-1, *media.shape[1:])


class _Seen(NamedTuple):
    """A `Memory` as all layers use it."""

    memory: Memory
    keys: Array | None  # added to keys, "m t d"
    values: Array | None  # added to values, "m t d"
    bias: Array | None  # added to scores, "q 1 1 t"


class KeysValues(NamedTuple):
    """What there is to attend to; of one layer, or of all with a leading axis "z"."""

    keys: Float[Array, "*z m h t k"]
    values: Float[Array, "*z m h t k"]


class Attended(NamedTuple):
    """A `Memory` of which all layers' keys and values are made."""

    made: KeysValues
    seen: _Seen

    @property
    def memory(self) -> Memory:
        """What it was made of."""
        return self.seen.memory


def attend(
    q: Float[Array, "q h p l k"],
    k: Float[Array, "q h t k"],
    v: Float[Array, "q h t k"],
    *,
    bias: Float[Array, "..."] | None = None,
    factor: Float[Array, "q p t"] | None = None,
    rate: float = 0.0,
    key: Array | None = None,
) -> Float[Array, "q h p l k"]:
    """softmax(factor * q k^T / sqrt(width of a head) + bias) v for p texts of one memory each.

    Scores and softmax are float32. `bias` has the shape "q p l t", each of its axes either whole
    or of size one; `rate` is the dropout of attention's weights where there is a `key`.
    """
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("qhplk,qhtk->qhplt", q, k, preferred_element_type=jnp.float32)
    if factor is not None:
        scores = scores * factor.astype(jnp.float32)[:, None, :, None]
    if bias is not None:
        scores = scores + bias[:, None]
    weights = layers.dropout(jax.nn.softmax(scores, axis=-1), rate, key).astype(v.dtype)
    z = jnp.einsum("qhplt,qhtk->qhplk", weights, v, preferred_element_type=jnp.float32)
    return z.astype(v.dtype)


class Attention(nnx.Module):
    """ln(x + out(attention)); keys and values come from states of the width `attended`."""

    def __init__(
        self,
        config: TowerConfig,
        attended: int,
        name: str,
        dropout: float,
        std: float,
        rng: layers.Rng,
    ):
        stack, width = (config.layers,), config.width
        self.q = layers.Linear(width, width, stack=stack, std=std, rng=rng)
        self.k = layers.Linear(attended, width, stack=stack, std=std, rng=rng)
        self.v = layers.Linear(attended, width, stack=stack, std=std, rng=rng)
        self.out = layers.Linear(width, width, stack=stack, std=std, rng=rng)
        self.ln = layers.LayerNorm(width, eps=config.eps, stack=stack)
        self.heads = config.heads
        self.name = name
        self.dropout = dropout

    def keys_and_values(
        self, states: Float[Array, "m t e"], layer: layers.LayerInputs, seen: _Seen | None = None
    ) -> KeysValues:
        """What there is to attend to, once per row of `states`."""
        k, v = self.k(states, layer), self.v(states, layer)
        if seen is not None and seen.keys is not None:
            k = k + seen.keys
        if seen is not None and seen.values is not None:
            v = v + seen.values
        k, v = (y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2) for y in (k, v))
        return KeysValues(k, v)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        k: Float[Array, "q h t k"],
        v: Float[Array, "q h t k"],
        layer: layers.LayerInputs,
        *,
        bias: Float[Array, "..."] | None,
        factor: Float[Array, "q p t"] | None = None,
    ) -> Float[Array, "b l d"]:
        """Rows of `x` are grouped: the first b / q of them attend to the first row of `k`."""
        grouped = (k.shape[0], -1, x.shape[1], self.heads, k.shape[-1])
        q = self.q(x, layer).reshape(grouped).transpose(0, 3, 1, 2, 4)
        weights_key = layer.key_of(f"{self.name}.weights")
        z = attend(q, k, v, bias=bias, factor=factor, rate=self.dropout, key=weights_key)
        z = self.out(z.transpose(0, 2, 3, 1, 4).reshape(x.shape), layer)
        return self.ln(x + layers.dropout(z, self.dropout, layer.key_of(f"{self.name}.out")))


class BertLayer(layers.Stack):
    """A layer as in the module's docstring; `config.layers` of them stacked."""

    def __init__(
        self, config: TowerConfig, attended: int, dropout: float, std: float, *, rng: layers.Rng
    ):
        stack, width = (config.layers,), config.width
        self.attn = Attention(config, width, "attn", dropout, std, rng)
        self.cross = Attention(config, attended, "cross", dropout, std, rng)
        self.fc1 = layers.Linear(width, config.hidden, stack=stack, std=std, rng=rng)
        self.fc2 = layers.Linear(config.hidden, width, stack=stack, std=std, rng=rng)
        self.ln_out = layers.LayerNorm(width, eps=config.eps, stack=stack)
        self.beside_text = nnx.data(None)
        self.beside_fusion = nnx.data(None)
        self.activation = config.activation
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "b l d"],
        bias: Float[Array, "b 1 #l l"] | None,
        seen: _Seen | None,
        layer: layers.LayerInputs,
        made: KeysValues | None = None,
    ) -> Float[Array, "b l d"]:
        """`made` are the keys and values of what is seen, where there are any already."""
        if seen is not None and made is None:
            made = self.cross.keys_and_values(seen.memory.states, layer, seen)
        return self.combine(x, self.attn.keys_and_values(x, layer), made, bias, seen, layer)

    def combine(
        self,
        x: Float[Array, "b l d"],
        own: KeysValues,
        made: KeysValues | None,
        bias: Float[Array, "..."] | None,
        seen: _Seen | None,
        layer: layers.LayerInputs,
    ) -> Float[Array, "b l d"]:
        """The layer with given keys and values: of the texts themselves, and of what they see."""
        h = self.attn(x, *own, layer, bias=bias)
        c = h
        if seen is not None and made is not None:
            k, v = (seen.memory.of_groups(y) for y in made)
            c = self.cross(h, k, v, layer, bias=seen.bias, factor=seen.memory.factor)
        z = self.fc2(layers.ACTIVATIONS[self.activation](self.fc1(c, layer)), layer)
        y = self.ln_out(c + layers.dropout(z, self.dropout, layer.key_of("mlp.out")))
        if self.beside_text is not None:
            y = y + self.beside_text(h, layer)
        if self.beside_fusion is not None and seen is not None:
            y = y + self.beside_fusion(c, layer)
        return y


class Bert(nnx.Module):
    """Token ids to the states of the last layer.

    Args:
      attended: width of the states that cross-attention reads.
      dropout: the rate of all of BERT's dropouts, in use only where a key is passed.
      std: of initial weights.
    """

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
        rng: layers.Rng,
    ):
        self.token_embedding = nnx.Param(normal(rng, std, vocab_size, config.width))
        self.position_embedding = nnx.Param(normal(rng, std, positions, config.width))
        self.ln_embed = layers.LayerNorm(config.width, eps=config.eps)
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
        self._check_length(length)
        made, seen = memory if isinstance(memory, Attended) else (None, self._seen(memory))
        _check_groups(seen, ids.shape[0])
        bias = _self_bias(mask, length, causal)
        x = self._embed(ids, self.position_embedding[...][:length], dtype)
        if key is not None:
            x = layers.dropout(x, self.dropout, fold_name(key, "embedding"))

        def call(
            block: BertLayer, x: Array, layer: layers.LayerInputs, made: KeysValues | None
        ) -> tuple[Array, None]:
            return block(x, bias, seen, layer, made), None

        return layers.collect_layers(
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
            block: BertLayer, x: Array, layer: layers.LayerInputs, own: None
        ) -> tuple[Array, KeysValues]:
            return x, block.cross.keys_and_values(memory.states, layer, seen)

        start = jnp.zeros((), jnp.float32)
        _, made = layers.collect_layers(
            call, self.blocks, start, None, self.config.layers, shared=shared
        )
        return Attended(made, seen)

    def no_past(self, rows: int, length: int, *, dtype: jnp.dtype) -> KeysValues:
        """Room for the keys and values of texts that `step` will make, of at most `length` tokens.

        Raises:
          UserError: there are fewer positions.
        """
        self._check_length(length)
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
            layer: layers.LayerInputs,
            own: tuple[KeysValues, KeysValues],
        ) -> tuple[Array, KeysValues]:
            past, made = own
            new = block.attn.keys_and_values(x, layer)
            put = jax.lax.dynamic_update_slice_in_dim
            past = KeysValues(*(put(old, y, at, 2) for old, y in zip(past, new, strict=True)))
            return block.combine(x, past, made, bias, attended.seen, layer), past

        x, past = layers.collect_layers(
            call, self.blocks, x, (past, attended.made), self.config.layers, shared=shared
        )
        return x[:, 0], past

    def _embed(self, ids: Array, positions: Array, dtype: jnp.dtype) -> Float[Array, "b l d"]:
        x = self.token_embedding[...][ids].astype(dtype)
        return self.ln_embed(x + positions.astype(dtype)[None])

    def _check_length(self, length: int) -> None:
        positions = self.position_embedding.shape[0]
        if length > positions:
            raise UserError(
                f"texts of {length} tokens, but this backbone has {positions} positions"
            )

    def _seen(self, memory: Memory | None) -> _Seen | None:
        if memory is None:
            return None
        keys = None if self.cross_key is None else self.cross_key(memory.states)
        values = None if self.cross_value is None else self.cross_value(memory.states)
        bias = None
        if memory.mask is not None:
            bias = jnp.where(memory.of_groups(memory.mask), 0.0, _UNSEEN_CROSS)[:, None, None]
        return _Seen(memory, keys, values, bias)


def _check_groups(seen: _Seen | None, rows: int) -> None:
    if seen is None:
        return
    states, medium = seen.memory.states, seen.memory.medium
    groups = states.shape[0] if medium is None else medium.size
    if not groups or rows % groups:
        raise UserError(f"{rows} texts do not fill {groups} groups that attend to one medium")


def _self_bias(
    mask: Bool[Array, "b l"] | None, length: int, causal: bool
) -> Float[Array, "#b 1 #l l"] | None:
    if mask is None and not causal:
        return None
    allowed = jnp.ones((1, 1, 1, length), bool) if mask is None else mask[:, None, None]
    if causal:
        allowed = allowed & layers.causal_mask(length)[None, None]
    return jnp.where(allowed, 0.0, _UNSEEN)


class LanguageHead(nnx.Module):
    """States to scores of the next word; the last product is with the word embeddings."""

    def __init__(self, config: TowerConfig, vocab_size: int, *, std: float, rng: layers.Rng):
        self.dense = layers.Linear(config.width, config.width, std=std, rng=rng)
        self.ln_head = layers.LayerNorm(config.width, eps=config.eps)
        self.bias = nnx.Param(jnp.zeros(vocab_size))
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "... d"], embedding: Float[Array, "v d"]
    ) -> Float[Array, "... v"]:
        x = self.ln_head(layers.ACTIVATIONS[self.activation](self.dense(x)))
        scores = jnp.einsum(
            "...d,vd->...v", x, embedding.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return scores + layers.along_last(self.bias[...].astype(jnp.float32), scores)
