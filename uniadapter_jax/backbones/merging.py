"""Fewer tokens of a picture in every layer: alike ones merge (ToMe: Bolya et al., ICLR 2023).

Between attention and MLP a layer merges r tokens, a fixed number, so that shapes are known:

    tokens take turns: 0, 2, 4, ... are A, 1, 3, 5, ... are B
    each of A finds the most alike of B, by the cosine of keys, their mean over heads
    the r of A that are most alike merge into theirs: a mean by how many tokens each stands for
    what is left of A comes first, in order, then B

Keys that stand for s tokens count s times in attention: + log s to their scores. The class token is
the first of A and stays. No more than half of the tokens are merged in one layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones import scan
from uniadapter_jax.common.types import Array, Float, Int

KEPT = 1  # the class token


class Matching(NamedTuple):
    """Which tokens of A stay, in order, and which become part of which of B."""

    stay: Int[Array, "b u"]
    go: Int[Array, "b r"]
    to: Int[Array, "b r"]


class Tokens(NamedTuple):
    """The states of a layer's tokens, and how many of the first layer's each stands for."""

    x: Float[Array, "b s d"]
    size: Float[Array, "b s"]


def match(metric: Float[Array, "b s k"], count: int) -> Matching:
    """The `count` best pairs by cosine; the first token does not go."""
    metric = jax.lax.stop_gradient(metric).astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(metric * metric, axis=-1, keepdims=True))
    unit = metric / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)
    a, b = unit[:, ::2], unit[:, 1::2]
    cosines = jnp.einsum("bik,bjk->bij", a, b, precision=jax.lax.Precision.HIGHEST)
    best = jnp.max(cosines, axis=-1).at[:, :KEPT].set(-jnp.inf)
    order = jnp.argsort(-best, axis=-1)
    go, stay = order[:, :count], jnp.sort(order[:, count:], axis=-1)
    to = jnp.take_along_axis(jnp.argmax(cosines, axis=-1), go, axis=1)
    return Matching(stay, go, to)


def merge(tokens: Tokens, found: Matching) -> Tokens:
    """The tokens that are left, each the mean of what it stands for."""
    size = _sums(tokens.size[..., None], found)
    x = tokens.x.astype(jnp.float32) * tokens.size[..., None]
    return Tokens((_sums(x, found) / size).astype(tokens.x.dtype), size[..., 0])


def _sums(x: Float[Array, "b s d"], found: Matching) -> Float[Array, "b t d"]:
    a, b = x[:, ::2], x[:, 1::2]
    stay, go = (jnp.take_along_axis(a, rows[..., None], axis=1) for rows in (found.stay, found.go))
    # As a product: a sum into rows, one after another, is slow on every device.
    into = jax.nn.one_hot(found.to, b.shape[1], axis=1, dtype=x.dtype)
    return jnp.concatenate(
        [stay, b + jnp.einsum("bjr,brd->bjd", into, go, precision=jax.lax.Precision.HIGHEST)],
        axis=1,
    )


class Merging(NamedTuple):
    """What a layer is handed: how many tokens go, and what those that came stand for."""

    merged: int
    size: Float[Array, "b s"]

    @property
    def bias(self) -> Float[Array, "b 1 1 s"]:
        """What is added to the scores of keys."""
        return jnp.log(self.size)[:, None, None]

    def __call__(
        self, x: Float[Array, "b s d"], keys: Float[Array, "b h s k"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t"]]:
        """The tokens that are left and their sizes; `keys` are of the layer's own tokens."""
        most = (x.shape[1] - KEPT) // 2
        found = match(keys.astype(jnp.float32).mean(1), min(self.merged, most))
        return merge(Tokens(x, self.size), found)


def run(
    blocks: Any, x: Float[Array, "b s d"], count: int, layers: int, **options: Any
) -> Float[Array, "b t d"]:
    """As `layers.run_stack`, with `count` tokens fewer behind every layer; no layer is scanned."""

    def call(block: Any, tokens: Tokens, layer: scan.LayerInputs, own: None) -> tuple[Tokens, None]:
        x, size = block(tokens.x, None, layer, Merging(count, tokens.size))
        return Tokens(x, size), None

    first = Tokens(x, jnp.ones(x.shape[:2], jnp.float32))
    tokens, _ = scan.collect_layers(call, blocks, first, None, layers, unrolled=True, **options)
    return tokens.x
