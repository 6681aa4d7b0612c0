"""Fewer tokens of a picture in every layer: alike ones merge (ToMe: Bolya et al., ICLR 2023).

Between attention and MLP a layer merges r tokens, a fixed number, so that shapes are known:

    class tokens stay first; of all tokens 0, 2, 4, ... are A, 1, 3, 5, ... are B
    each patch of A finds the most alike of B, by the cosine of keys, their mean over heads
    the r of A that are most alike merge into theirs: a mean by how many tokens each stands for
    what is left of A comes first, in order, then B

Keys that stand for s tokens count s times in attention: + log s to their scores. No more than half
of the patches are merged in one layer. A picture has one class token, frames that were joined have
one each (`joining`).

A token of size 0 is padding: it stands for nothing, so no mean has it and no query sees it. It
merges before any other, so that what is beside it stays as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones import scan
from uniadapter_jax.common.types import Array, Float, Int

KEPT = 1  # class tokens of a picture
_ABOVE_ALL, _BELOW_ALL = 2.0, -2.0  # what no cosine is


class Matching(NamedTuple):
    """Which patches of A stay, in order, and which become part of which of B."""

    stay: Int[Array, "b u"]
    go: Int[Array, "b r"]
    to: Int[Array, "b r"]


class Tokens(NamedTuple):
    """The states of a layer's tokens, and how many of the first layer's each stands for."""

    x: Float[Array, "b s d"]
    size: Float[Array, "b s"]


def match(
    metric: Float[Array, "b s k"], size: Float[Array, "b s"], count: int, kept: int = KEPT
) -> Matching:
    """The `count` best pairs by cosine; the first `kept` tokens have no part in it."""
    metric = jax.lax.stop_gradient(metric).astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(metric * metric, axis=-1, keepdims=True))
    a, b = _halves(metric / jnp.maximum(length, jnp.finfo(jnp.float32).tiny), kept)
    real_a, real_b = _halves(size > 0, kept)
    cosines = jnp.einsum("bik,bjk->bij", a, b, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(real_b[:, None], cosines, _BELOW_ALL)
    best = jnp.where(real_a, jnp.max(cosines, axis=-1), _ABOVE_ALL)
    order = jnp.argsort(-best, axis=-1)
    go, stay = order[:, :count], jnp.sort(order[:, count:], axis=-1)
    to = jnp.take_along_axis(jnp.argmax(cosines, axis=-1), go, axis=1)
    return Matching(stay, go, to)


def merge(tokens: Tokens, found: Matching, kept: int = KEPT) -> Tokens:
    """The tokens that are left, each the mean of what it stands for; padding becomes zeros."""
    size = _sums(tokens.size[..., None], found, kept)
    x = tokens.x.astype(jnp.float32) * tokens.size[..., None]
    mean = _sums(x, found, kept) / jnp.maximum(size, 1.0)
    return Tokens(mean.astype(tokens.x.dtype), size[..., 0])


def fewer(tokens: Tokens, metric: Float[Array, "b s k"], count: int, kept: int = KEPT) -> Tokens:
    """`count` tokens fewer, by what is alike in `metric`."""
    if not count:
        return tokens
    return merge(tokens, match(metric, tokens.size, count, kept), kept)


def _halves(x: Float[Array, "b s ..."], kept: int) -> tuple[Array, Array]:
    """The patches of A and of B."""
    patches = x[:, kept:]
    return patches[:, kept % 2 :: 2], patches[:, 1 - kept % 2 :: 2]


def _sums(x: Float[Array, "b s d"], found: Matching, kept: int) -> Float[Array, "b t d"]:
    a, b = _halves(x, kept)
    stay, go = (jnp.take_along_axis(a, rows[..., None], axis=1) for rows in (found.stay, found.go))
    # As a product: a sum into rows, one after another, is slow on every device.
    into = jax.nn.one_hot(found.to, b.shape[1], axis=1, dtype=x.dtype)
    sums = b + jnp.einsum("bjr,brd->bjd", into, go, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([x[:, :kept], stay, sums], axis=1)


class Merging(NamedTuple):
    """What a layer is handed: how many tokens go, and what those that came stand for.

    kept: the class tokens that stand first.
    """

    merged: int
    size: Float[Array, "b s"]
    kept: int = KEPT

    @property
    def bias(self) -> Float[Array, "b 1 1 s"]:
        """What is added to the scores of keys."""
        hidden = jnp.finfo(jnp.float32).min
        log = jnp.where(self.size > 0, jnp.log(jnp.maximum(self.size, 1.0)), hidden)
        return log[:, None, None]

    def __call__(self, x: Float[Array, "b s d"], keys: Float[Array, "b h s k"]) -> Tokens:
        """The tokens that are left and their sizes; `keys` are of the layer's own tokens."""
        most = (x.shape[1] - self.kept) // 2
        metric = keys.astype(jnp.float32).mean(1)
        return fewer(Tokens(x, self.size), metric, min(self.merged, most), self.kept)


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
