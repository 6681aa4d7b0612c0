"""The likeliest texts of a decoder, as transformers' `generate` finds them with several beams.

A text's score is log p(its words) / (their number ^ length_penalty), [SEP] counted, the first token
not. In each step every running text is continued by every word; of the 2 `beams` best, those among
the first `beams` that end are finished, and the best `beams` that do not end run on. A question is
closed once its best running text, at its present length, scores no more than the worst of `beams`
finished ones. Ties go to the earlier beam, then to the smaller word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree

# (words "q p" at a position, the position, state) to (scores of the next word "q p v", state).
Step = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]
# (state, beams "q p") to the state in which text j of question i is what text beams[i, j] was.
Reorder = Callable[[PyTree, Array], PyTree]


class _Search(NamedTuple):
    at: Int[Array, ""]  # words of running texts, the first included
    words: Int[Array, "q p a"]
    total: Float[Array, "q p"]  # log p; minus infinity where there is no text
    finished: Int[Array, "q p a"]
    score: Float[Array, "q p"]  # of finished texts, likewise
    is_open: Bool[Array, " q"]
    state: PyTree


def beam_search(
    step: Step,
    reorder: Reorder,
    state: PyTree,
    *,
    questions: int,
    beams: int,
    length: int,
    first: int,
    end: int,
    pad: int,
    min_length: int = 1,
    length_penalty: float = 1.0,
) -> tuple[Int[Array, "q p a"], Float[Array, "q p"]]:
    """The `beams` best texts of each question, best first, and their scores.

    Args:
      length: tokens of the longest text, `first` and `end` included; a text that reaches it is
        finished without `end`.
      first, end, pad: ids of the token that texts begin with, of the one that ends them, and of
        what fills the result.
      min_length: tokens a text has before it may end, `first` included: 1 lets the empty text be,
        as there; 2 does not.

    Where there are fewer texts than `beams`, the scores of the others are minus infinity.

    Raises:
      UserError: no beam, or no room for a word.
    """
    if beams < 1:
        raise UserError(f"beams={beams}: at least 1")
    if length < 2:
        raise UserError(f"answers of at most {length} tokens: no room for a word")

    def advance(s: _Search) -> _Search:
        last = jax.lax.dynamic_index_in_dim(s.words, s.at - 1, 2, keepdims=False)
        scores, state = step(last, s.at - 1, s.state)
        log = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
        too_short = (jnp.arange(log.shape[-1]) == end) & (s.at < min_length)
        log = jnp.where(too_short[None, None], -jnp.inf, log)
        totals = (s.total[..., None] + log).reshape(questions, -1)
        total, found = jax.lax.top_k(totals, min(2 * beams, totals.shape[1]))
        beam, word = jnp.divmod(found, jnp.asarray(log.shape[-1], found.dtype))
        words = _take(s.words, beam)
        words = jax.lax.dynamic_update_slice_in_dim(
            words, word[..., None].astype(words.dtype), s.at, 2
        )
        ends = (word == end) | (s.at + 1 == length)
        per_word = s.at.astype(jnp.float32) ** length_penalty
        may_finish = ends & s.is_open[:, None] & (jnp.arange(ends.shape[1]) < beams)[None]
        score = jnp.where(may_finish, total / per_word, -jnp.inf)
        score, chosen = jax.lax.top_k(jnp.concatenate([s.score, score], axis=1), beams)
        finished = _take(jnp.concatenate([s.finished, words], axis=1), chosen)
        total, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, total), beams)
        return _Search(
            at=s.at + 1,
            words=_take(words, chosen),
            total=total,
            finished=finished,
            score=score,
            is_open=s.is_open & (total[:, 0] / per_word > score[:, -1]),
            state=reorder(state, _take(beam, chosen)),
        )

    words = jnp.full((questions, beams, length), pad, jnp.int32).at[:, :, 0].set(first)
    nothing = jnp.full((questions, beams), -jnp.inf, jnp.float32)
    search = _Search(
        at=jnp.ones((), jnp.int32),
        words=words,
        total=nothing.at[:, 0].set(0.0),  # all beams are the same: one may go on
        finished=words,
        score=nothing,
        is_open=jnp.ones(questions, bool),
        state=state,
    )
    search = jax.lax.while_loop(lambda s: (s.at < length) & jnp.any(s.is_open), advance, search)
    return search.finished, search.score


def _take(x: Array, index: Int[Array, "q k"]) -> Array:
    """Rows of the second axis, of each question its own."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
