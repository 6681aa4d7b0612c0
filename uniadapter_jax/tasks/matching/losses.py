"""The losses of BLIP's matching task: contrastive with momentum targets and a queue (ITC), hard
negatives, and matching (ITM). UniAdapter trains with them (arXiv 2302.06605, section 3.3).

Pure functions over the global batch under jit; n pairs, q entries of
the queue. Features are unit vectors. As in `losses`, nothing names a collective, and what is drawn
does not depend on how many devices share the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree

TEMPERATURES = (0.001, 0.5)  # BLIP clamps its temperature to these
NO_ITEM = -1  # of a place in the queue that nothing has filled yet


class Queue(NamedTuple):
    """Momentum features of the latest pairs; `item` is `NO_ITEM` where there is none yet."""

    image: Float[Array, "q c"]
    text: Float[Array, "q c"]
    item: Int[Array, " q"]
    next: Int[Array, ""]  # where the next batch goes


class Momentum(NamedTuple):
    """Features of the batch by the averaged parameters; no gradient flows through them."""

    image: Float[Array, "n c"]
    text: Float[Array, "n c"]


def check_queue(size: int, batch: int) -> None:
    """Raises `UserError` unless whole batches fill the queue: one would be cut at its end."""
    if size % batch:
        raise UserError(
            f"config.task.queue={size} does not divide by the batch of {batch}; the next sizes "
            f"that do: {size // batch * batch or batch} and {(size // batch + 1) * batch}"
        )


def empty_queue(size: int, width: int, batch: int) -> Queue:
    """A queue that holds nothing yet."""
    check_queue(size, batch)
    features = jnp.zeros((size, width), jnp.float32)
    items = jnp.full((size,), NO_ITEM, jnp.int32)
    return Queue(features, features, items, jnp.zeros((), jnp.int32))


def enqueue(queue: Queue, momentum: Momentum, item: Int[Array, " n"]) -> Queue:
    """The queue with a batch in place of its oldest entries."""
    put = jax.lax.dynamic_update_slice_in_dim
    at = queue.next
    return Queue(
        put(queue.image, momentum.image.astype(queue.image.dtype), at, 0),
        put(queue.text, momentum.text.astype(queue.text.dtype), at, 0),
        put(queue.item, item.astype(queue.item.dtype), at, 0),
        (at + item.shape[0]) % queue.item.shape[0],
    )


def average(averaged: PyTree, trainable: PyTree, factor: float) -> PyTree:
    """The exponential moving average: factor * averaged + (1 - factor) * trainable."""
    return jax.tree.map(lambda old, new: factor * old + (1.0 - factor) * new, averaged, trainable)


def ramp(alpha: float, step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """The weight of momentum's targets: rises linearly to `alpha` over the first `steps`."""
    return alpha * jnp.minimum(step.astype(jnp.float32) / max(steps, 1), 1.0)


def itc_loss(
    image: Float[Array, "n c"],
    text: Float[Array, "n c"],
    item: Int[Array, " n"],
    temperature: Float[Array, ""],
    *,
    momentum: Momentum | None = None,
    queue: Queue | None = None,
    alpha: Float[Array, ""] | float = 0.0,
    beside_queue: Callable[[Array], Array] = lambda rows: rows,
) -> Float[Array, ""]:
    """Cross-entropy of images over candidate texts and of texts over candidate images, averaged.

    Candidates are the batch itself or, with `momentum`, the batch's momentum features and the
    queue. Targets share a row evenly among the candidates of its item; momentum's own softmax has
    the weight `alpha` in them. Places of the queue that are empty are no candidates.

    `beside_queue` puts the rows that are compared with the queue where its entries are: on all
    devices, if it is cut over them.
    """
    temperature = jnp.clip(temperature, *TEMPERATURES)
    if momentum is None:
        if queue is not None:
            raise UserError("a queue holds momentum features, so it needs momentum")
        blocks = [_Candidates(image, text, item)]
    else:
        momentum = jax.lax.stop_gradient(momentum)
        blocks = [_Candidates(momentum.image, momentum.text, item)]
    places: list[Callable[[Array], Array]] = [lambda rows: rows]
    if queue is not None:
        blocks.append(_Candidates(queue.image, queue.text, queue.item))
        places.append(beside_queue)
    same = [
        (place(item)[:, None] == block.item[None, :]).astype(jnp.float32)
        for place, block in zip(places, blocks, strict=True)
    ]
    count = functools.reduce(jnp.add, (jnp.sum(part, axis=1) for part in same))

    def direction(query: Array, own: Array | None, side: str) -> Float[Array, ""]:
        def log_shares(rows: Array) -> list[Float[Array, "n q"]]:
            """log softmax over the candidates of all blocks."""
            logits = []
            for place, block in zip(places, blocks, strict=True):
                dots = _dots(place(rows), getattr(block, side)) / temperature
                logits.append(jnp.where(block.filled, dots, -jnp.inf))
            total = functools.reduce(jnp.logaddexp, map(_log_sum_exp, logits))
            return [part - total[:, None] for part in logits]

        soft = None if own is None else map(jnp.exp, jax.lax.stop_gradient(log_shares(own)))
        loss = jnp.zeros((), jnp.float32)
        for block, hard, found in zip(blocks, same, log_shares(query), strict=True):
            targets = hard / count[:, None]
            if soft is not None:
                targets = alpha * next(soft) + (1.0 - alpha) * targets
            # An empty place has target 0 and log share -inf; their product must be 0.
            loss -= jnp.sum(targets * jnp.where(block.filled, found, 0.0)) / len(item)
        return loss

    own = (None, None) if momentum is None else (momentum.image, momentum.text)
    return 0.5 * (direction(image, own[0], "text") + direction(text, own[1], "image"))


class _Candidates(NamedTuple):
    image: Float[Array, "q c"]
    text: Float[Array, "q c"]
    item: Int[Array, " q"]

    @property
    def filled(self) -> Bool[Array, "1 q"]:
        return (self.item != NO_ITEM)[None, :]


def _log_sum_exp(logits: Float[Array, "n q"]) -> Float[Array, " n"]:
    """Over rows that may hold nothing but minus infinity: the gradient of such a row is 0."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=1))
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    total = jnp.sum(jnp.exp(logits - peak[:, None]), axis=1)
    alive = total > 0
    return jnp.where(alive, jnp.log(jnp.where(alive, total, 1.0)) + peak, -jnp.inf)


def _dots(left: Float[Array, "n c"], right: Float[Array, "q c"]) -> Float[Array, "n q"]:
    return jnp.einsum(
        "nc,qc->nq",
        left,
        right,
        precision=Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def hard_negatives(
    key: Array,
    queries: Float[Array, "n c"],
    candidates: Float[Array, "n c"],
    item: Int[Array, " n"],
    temperature: Float[Array, ""],
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """For each query a candidate of another item, drawn from softmax(similarity / temperature).

    Returns its index, and whether there is one at all: where every candidate shows the query's own
    item the index is 0 and the pair must not count. No gradient flows.
    """
    queries, candidates = jax.lax.stop_gradient((queries, candidates))
    logits = _dots(queries, candidates) / jnp.clip(temperature, *TEMPERATURES)
    other = item[:, None] != item[None, :]
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    noisy = jnp.where(other, logits + jax.random.gumbel(key, logits.shape), -jnp.inf)
    return jnp.argmax(noisy, axis=1), jnp.any(other, axis=1)


def itm_loss(
    logits: Float[Array, "p 2"], matching: Bool[Array, " p"], counts: Bool[Array, " p"]
) -> Float[Array, ""]:
    """Cross-entropy of "do they match" over the pairs that count; 0 if none does."""
    shares = jax.nn.log_softmax(logits.astype(jnp.float32), axis=1)
    found = jnp.where(matching, shares[:, 1], shares[:, 0])
    weight = counts.astype(jnp.float32)
    return -jnp.sum(found * weight) / jnp.maximum(jnp.sum(weight), 1.0)
