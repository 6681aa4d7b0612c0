"""What BLIP's texts attend to, themselves or a medium, and the attention that does it.

Several texts may look at one medium: their queries stand side by side, and its keys and values are
made once per layer and are never repeated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, layers, scan
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.common.types import Array, Bool, Float, Int, Shaped


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


class Seen(NamedTuple):
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
    seen: Seen

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
    weights = functions.dropout(jax.nn.softmax(scores, axis=-1), rate, key).astype(v.dtype)
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
        self, states: Float[Array, "m t e"], layer: scan.LayerInputs, seen: Seen | None = None
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
        layer: scan.LayerInputs,
        *,
        bias: Float[Array, "..."] | None,
        factor: Float[Array, "q p t"] | None = None,
        after: Any = None,
        beside: Any = None,
    ) -> Float[Array, "b l d"]:
        """Rows of `x` are grouped: the first b / q of them attend to the first row of `k`.

        after, beside: the modules at the layer's places before and after dropout.
        """
        grouped = (k.shape[0], -1, x.shape[1], self.heads, k.shape[-1])
        q = self.q(x, layer).reshape(grouped).transpose(0, 3, 1, 2, 4)
        weights_key = layer.key_of(f"{self.name}.weights")
        z = attend(q, k, v, bias=bias, factor=factor, rate=self.dropout, key=weights_key)
        z = self.out(z.transpose(0, 2, 3, 1, 4).reshape(x.shape), layer)
        z = layers.at_place(after, z, x, layer)
        z = functions.dropout(z, self.dropout, layer.key_of(f"{self.name}.out"))
        return self.ln(x + layers.at_place(beside, z, x, layer))
