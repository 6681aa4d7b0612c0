"""The loss of weighted answers (BLIP; UniAdapter trains VQA with it, arXiv 2302.06605, 3.3).

A token's loss is the cross-entropy with smoothed targets over the vocabulary of v words,

    (1 - smoothing) * -log p(token)  +  smoothing * mean over all words of -log p(word)

as torch's `CrossEntropyLoss(label_smoothing=..., ignore_index=...)` has it; an answer's loss is
the sum over its tokens, a batch's the weighted sum over answers, divided by the number of its
questions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from uniadapter_jax.common.types import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def token_losses(
    scores: Float[Array, "... v"], target: Int[Array, "..."], smoothing: float
) -> Float[Array, "..."]:
    """Smoothed cross-entropy of each target, float32. The backward pass keeps the scores alone.

    Nothing of the size of `scores` is made, one-hot targets least of all.
    """
    return _token_losses(scores, target, smoothing)[0]


def _token_losses(scores: Array, target: Array, smoothing: float) -> tuple[Array, Array]:
    """The losses, and the logarithm of the sum of exponentials."""
    scores = scores.astype(jnp.float32)
    total = jax.nn.logsumexp(scores, axis=-1)
    chosen = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
    # Differences first: the mean of scores is as large as their logarithmic sum.
    likely, even = total - chosen, total - jnp.mean(scores, axis=-1)
    return (1.0 - smoothing) * likely + smoothing * even, total


def _forward(scores: Array, target: Array, smoothing: float) -> tuple[Array, tuple]:
    losses, total = _token_losses(scores, target, smoothing)
    return losses, (scores, target, total)


def _backward(smoothing: float, residuals: tuple, g: Array) -> tuple[Array, None]:
    scores, target, total = residuals
    g = g[..., None]
    shares = jnp.exp(scores.astype(jnp.float32) - total[..., None])
    words = jax.lax.broadcasted_iota(target.dtype, scores.shape, scores.ndim - 1)
    wanted = jnp.where(words == target[..., None], 1.0 - smoothing, 0.0)
    wanted = wanted + smoothing / scores.shape[-1]
    return (g * (shares - wanted)).astype(scores.dtype), None


token_losses.defvjp(_forward, _backward)


def answer_losses(
    scores: Float[Array, "b p l v"],
    answer: Int[Array, "b p a"],
    *,
    pad_id: int,
    smoothing: float,
) -> Float[Array, "b p"]:
    """The sum of each answer's token losses; padding does not count.

    Args:
      scores: of the word after each of the answer's tokens, a = l + 1: what follows the last token
        is no one's business. `answer_words` gives a decoder the others.
      answer: [DEC] first, [SEP] behind the last word, then `pad_id`.
    """
    target = answer[..., 1:]
    losses = token_losses(scores, target, smoothing)
    return jnp.sum(jnp.where(target != pad_id, losses, 0.0), axis=-1)


def weighted_loss(losses: Float[Array, "b p"], weight: Float[Array, "b p"]) -> Float[Array, ""]:
    """sum(weight * loss) / b, with b the questions of the global batch, clips or pictures.

    A place with weight 0 holds no answer: its loss may be anything.
    """
    counted = jnp.where(weight > 0, weight * losses, 0.0)
    return jnp.sum(counted) / losses.shape[0]
