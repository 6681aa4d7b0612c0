"""The sums of a ring loss over blocks of logits, and the slope of each logit.

Softmax: cross-entropy over rows and over columns. Sigmoid: every pair is a question of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uniadapter_jax.common.types import Array, Bool, Float, Int


class Sums(NamedTuple):
    """Rows of logits as far as their columns were seen; columns alike.

    peak, total: the largest logit, and sum(exp(logit - peak)); of a sigmoid, the sum of losses.
    same, targets: sum and number of logits of the same target.
    best, hit: place of the first largest logit in the global batch; does it show the own item?
    """

    peak: Float[Array, " n"]
    total: Float[Array, " n"]
    same: Float[Array, " n"]
    targets: Float[Array, " n"]
    best: Int[Array, " n"]
    hit: Bool[Array, " n"]

    def cross_entropy(self) -> Float[Array, " n"]:
        return self.logsumexp() - self.same / self.targets

    def logsumexp(self) -> Float[Array, " n"]:
        return self.peak + jnp.log(self.total)

    def kept(self) -> Kept:
        return Kept(self.logsumexp(), self.targets)


class Names(NamedTuple):
    """Rows by name: the item, its place in the global batch, and the name that targets go by."""

    item: Int[Array, " n"]
    place: Int[Array, " n"]
    target: Int[Array, " n"]


class Kept(NamedTuple):
    """Kept of each row for the backward pass: its logsumexp and the number of its targets."""

    logsumexp: Float[Array, " n"]
    targets: Float[Array, " n"]


def unseen(rows: int) -> Sums:
    """The sums of rows that have met no column."""

    def full(value: float) -> Array:
        return jnp.full((rows,), value, jnp.float32)

    best, hit = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), bool)
    return Sums(full(-jnp.inf), full(0), full(0), full(0), best, hit)


def _see_best(sums: Sums, logits: Float[Array, "n m"], rows: Names, columns: Names) -> Sums:
    """The sums of these rows whose largest logit is known for more columns."""
    found = jnp.max(logits, axis=1)
    at = jnp.argmax(logits, axis=1)
    best = columns.place[at]
    # Blocks come in another order on each device: the first of equal logits is the lowest place.
    better = (found > sums.peak) | ((found == sums.peak) & (best < sums.best))
    return sums._replace(
        peak=jnp.maximum(sums.peak, found),
        best=jnp.where(better, best, sums.best),
        hit=jnp.where(better, columns.item[at] == rows.item, sums.hit),
    )


def _same(rows: Names, columns: Names) -> Bool[Array, "n m"]:
    return rows.target[:, None] == columns.target[None, :]


def _see_softmax(sums: Sums, logits: Float[Array, "n m"], rows: Names, columns: Names) -> Sums:
    """A logit of -inf is not there."""
    seen = _see_best(sums, logits, rows, columns)
    total = sums.total * jnp.exp(sums.peak - seen.peak)
    same = _same(rows, columns) & (logits > -jnp.inf)
    return seen._replace(
        total=total + jnp.sum(jnp.exp(logits - seen.peak[:, None]), axis=1),
        same=sums.same + jnp.sum(jnp.where(same, logits, 0.0), axis=1),
        targets=sums.targets + jnp.sum(same.astype(jnp.float32), axis=1),
    )


def _softmax_total(texts: Sums, clips: Sums) -> Float[Array, ""]:
    return jnp.sum(texts.cross_entropy() + clips.cross_entropy())


def _softmax_slope(
    logits: Float[Array, "n m"], rows: Names, columns: Names, row: Kept, column: Kept
) -> Float[Array, "n m"]:
    """Its share of the row, and of the column, less twice its target; targets are symmetric."""
    shares = jnp.exp(logits - row.logsumexp[:, None])
    shares = shares + jnp.exp(logits - column.logsumexp[None, :])
    return shares - jnp.where(_same(rows, columns), 2.0 / row.targets[:, None], 0.0)


def _see_sigmoid(sums: Sums, logits: Float[Array, "n m"], rows: Names, columns: Names) -> Sums:
    """`total` sums the losses of pairs; a logit of -inf is not there."""
    losses = jax.nn.softplus(jnp.where(_same(rows, columns), -logits, logits))
    losses = jnp.where(logits > -jnp.inf, losses, 0.0)
    seen = _see_best(sums, logits, rows, columns)
    return seen._replace(total=sums.total + jnp.sum(losses, axis=1))


def _sigmoid_total(texts: Sums, clips: Sums) -> Float[Array, ""]:
    del clips  # they met the same pairs
    return jnp.sum(texts.total)


def _sigmoid_slope(
    logits: Float[Array, "n m"], rows: Names, columns: Names, row: Kept, column: Kept
) -> Float[Array, "n m"]:
    del row, column  # no pair depends on another
    return jax.nn.sigmoid(logits) - _same(rows, columns).astype(jnp.float32)


class Objective(NamedTuple):
    """A loss over all pairs of a batch of n.

    see: the sums of rows with a block of columns more.
    total: n / `share` times what own texts and clips add to the loss.
    slope: n / `share` times the derivative of the loss with respect to each logit of a block.
    """

    see: Callable[[Sums, Array, Names, Names], Sums]
    total: Callable[[Sums, Sums], Array]
    slope: Callable[[Array, Names, Names, Kept, Kept], Array]
    share: float


SOFTMAX = Objective(_see_softmax, _softmax_total, _softmax_slope, 0.5)
SIGMOID = Objective(_see_sigmoid, _sigmoid_total, _sigmoid_slope, 1.0)
