"""Multi-head attention: of tokens to themselves, to a medium, or of one query to all tokens.

Keys and values are made apart from their use, so that they may come from elsewhere: from a medium
that several texts look at, from words that were decoded before, or in part from prompts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, linear, scan
from uniadapter_jax.backbones.fused_attention import Fused, Inputs
from uniadapter_jax.common.types import Array, Bool, Float


class KeysValues(NamedTuple):
    """Keys and values of one layer, or of all layers with a leading axis "z"."""

    keys: Float[Array, "*z m h t k"]
    values: Float[Array, "*z m h t k"]


def attend(
    q: Float[Array, "q h *p l k"],
    k: Float[Array, "q h t k"],
    v: Float[Array, "q h t k"],
    *,
    bias: Float[Array, "#q #p #l #t"] | None = None,
    factor: Float[Array, "q p t"] | None = None,
    rate: float = 0.0,
    key: Array | None = None,
    fused: Fused | None = None,
) -> Float[Array, "q h *p l k"]:
    """softmax(factor * q k^T / sqrt(width of a head) + bias) v; scores and softmax are float32.

    The axis p, where there is one, is of texts that share keys and values; each has its row of
    `factor`. `rate` is the dropout of attention's weights where there is a `key`. `fused` is used
    where it applies.
    """
    if fused is not None:
        keep = functions.kept((*q.shape[:-1], k.shape[2]), rate, key)
        whole = fused(Inputs(q, k, v, bias, factor, keep, rate))
        if whole is not None:
            return whole
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("qh...lk,qhtk->qh...lt", q, k, preferred_element_type=jnp.float32)
    if factor is not None:
        scores = scores * factor.astype(jnp.float32)[:, None, :, None]
    if bias is not None:
        scores = scores + (bias if q.ndim == 4 else bias[:, None])
    weights = functions.dropout(jax.nn.softmax(scores, axis=-1), rate, key).astype(v.dtype)
    z = jnp.einsum("qh...lt,qhtk->qh...lk", weights, v, preferred_element_type=jnp.float32)
    return z.astype(v.dtype)


def mask_bias(mask: Bool[Array, "s t"] | None) -> Float[Array, "1 1 s t"] | None:
    """The bias that hides keys where `mask` is False, as `attend` takes it."""
    if mask is None:
        return None
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)[None, None]


class Attention(nnx.Module):
    """Four linear layers by the reference's names; `stack` as in `linear.Linear`.

    Args:
      attended: width of the states that keys and values are made of; by default `width`.
      std, std_out: of the initial weights of q, k and v, and of out; by default equal.

    Attributes:
      fused: the form of attention that the devices have; None in the bare backbone.
    """

    fused: Fused | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        attended: int | None = None,
        stack: tuple[int, ...] = (),
        std: float,
        std_out: float | None = None,
        rng: linear.Rng,
    ):
        seen = width if attended is None else attended
        self.q = linear.Linear(width, width, stack=stack, std=std, rng=rng)
        self.k = linear.Linear(seen, width, stack=stack, std=std, rng=rng)
        self.v = linear.Linear(seen, width, stack=stack, std=std, rng=rng)
        self.out = linear.Linear(width, width, stack=stack, std=std_out or std, rng=rng)
        self.heads = heads

    def keys_and_values(
        self,
        states: Float[Array, "m t e"],
        layer: scan.LayerInputs,
        added: tuple[Array | None, Array | None] = (None, None),
    ) -> KeysValues:
        """Keys and values of states; `added` is added to both, "m t d" each."""
        made = []
        for project, more in zip((self.k, self.v), added, strict=True):
            y = project(states, layer)
            y = y if more is None else y + more
            made.append(self._heads_first(y))
        return KeysValues(*made)

    def with_prompts(
        self,
        prompts: Float[Array, "p d"],
        seen: KeysValues,
        bias: Float[Array, "..."] | None,
        layer: scan.LayerInputs,
    ) -> tuple[KeysValues, Float[Array, "..."] | None]:
        """Keys and values with those of prompts ahead, which are seen from everywhere."""
        made = self.keys_and_values(prompts.astype(seen.keys.dtype)[None], layer)
        rows = len(seen.keys)
        together = (
            jnp.concatenate([jnp.broadcast_to(new, (rows, *new.shape[1:])), old], axis=2)
            for new, old in zip(made, seen, strict=True)
        )
        if bias is not None:
            bias = jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(len(prompts), 0)])
        return KeysValues(*together), bias

    def __call__(
        self,
        x: Float[Array, "b l d"],
        seen: KeysValues | None,
        layer: scan.LayerInputs,
        *,
        bias: Float[Array, "..."] | None = None,
        factor: Float[Array, "q p t"] | None = None,
        rate: float = 0.0,
        key: Array | None = None,
    ) -> Float[Array, "b l d"]:
        """Rows of `x` attend to themselves, or to what is `seen`.

        Then they are grouped: the first b / m of them attend to the first of its m rows.
        """
        q = self.q(x, layer)
        if seen is None:
            q, seen = self._heads_first(q), self.keys_and_values(x, layer)
        else:
            q = q.reshape(len(seen.keys), -1, *q.shape[1:])
            q = q.reshape(*q.shape[:3], self.heads, -1).transpose(0, 3, 1, 2, 4)
        z = attend(q, *seen, bias=bias, factor=factor, rate=rate, key=key, fused=self.fused)
        return self.out(jnp.moveaxis(z, 1, -2).reshape(x.shape), layer)

    def _heads_first(self, y: Float[Array, "m t d"]) -> Float[Array, "m h t k"]:
        return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)
