"""Answers to questions about clips and pictures with BLIP (UniAdapter, section 4; BLIP, 4.4).

A question is read in fusion with its clip, once; the decoder then attends to the question's states.
Two ways lead to an answer:

    rank       of a list, the k answers whose first word is likeliest; of these the one with the
               smallest loss (`answer_losses`)
    generate   the likeliest text, by beam search
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones.attention import KeysValues
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.memory import Attended, Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Float, Int
from uniadapter_jax.tasks.clip_states import ClipStates, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.vqa.beam_search import beam_search
from uniadapter_jax.tasks.vqa.losses import answer_losses

# Of words, at once: 256 MB of float32. Ranking goes through a question's answers in parts.
MOST_SCORES = 2**26


def read_questions(
    model: BLIP,
    clips: ClipStates,
    ids: Int[Array, "m p l"],
    *,
    frame_weights: bool = False,
    key: Array | None = None,
) -> Memory:
    """The states of p questions about each of m clips, m * p memories for `decode`, one each.

    Args:
      ids: as the tokenizer gives them, [CLS] first.
      frame_weights: frame-aware attention; it needs the model's two projections.

    Raises:
      UserError: frame weights, but no projections.
    """
    rows = ids.reshape(-1, ids.shape[-1])
    mask = ids != model.config.pad_id
    factor = None
    if frame_weights:
        words = model.encode_text(rows, mask.reshape(rows.shape), key=key)
        text = model.text_features(words[:, 0]).reshape(*ids.shape[:2], -1)
        frames = frame_features(model, clips)
        factor = frame_factor(text, frames, clips.frame_mask, clips.tokens)
    memory = Memory(clips.states, clips.mask, factor=factor)
    states = model.fuse(model.fusion_ids(ids), mask, memory, key=key)
    return Memory(states.reshape(*rows.shape, -1), mask.reshape(rows.shape))


def rank_answers(
    model: BLIP,
    questions: Memory,
    candidates: Int[Array, "n a"],
    *,
    k: int,
    top: int,
    smoothing: float,
    parts: int = 1,
    most_scores: int = MOST_SCORES,
) -> tuple[Int[Array, "q c"], Float[Array, "q c"]]:
    """The `top` best of n candidates for each of q questions, best first, and their scores.

    A score is minus the answer's loss with this `smoothing`; 0 makes it log p(answer). Only the k
    candidates whose first word is likeliest are scored; k and `top` are capped at n. Ties, also of
    first words, go to the candidate that stands first in the list.

    Args:
      candidates: [DEC] first, [SEP] behind the last word, then padding.
      parts: devices that share the questions.
      most_scores: of words, that exist at once on a device; bounds the memory, not the result.

    Raises:
      UserError: no candidates, or k or `top` below 1.
    """
    count, length = candidates.shape
    if not count or k < 1 or top < 1:
        raise UserError(f"the best {top} of {k} of {count} answers: each must be at least 1")
    k = min(k, count)
    attended = model.attend_to_questions(questions)
    best = _likely_first(model, attended, candidates, k)

    def score(part: Int[Array, "q k"]) -> Float[Array, "q k"]:
        ids = candidates[part]
        words = ids[..., :-1]
        scores = model.decode(words, words != model.config.pad_id, attended)
        return -answer_losses(scores, ids, pad_id=model.config.pad_id, smoothing=smoothing)

    each = len(best) * (length - 1) * model.config.vocab_size
    size = min(k, max(1, parts * most_scores // each))
    rounds = -(-k // size)
    padded = jnp.pad(best, ((0, 0), (0, rounds * size - k)))
    found = jax.lax.map(score, padded.reshape(-1, rounds, size).swapaxes(0, 1))
    scores = found.swapaxes(0, 1).reshape(len(best), -1)[:, :k]
    # In the list's order, so that ties go to its first.
    order = jnp.argsort(best, axis=1)
    best, scores = (jnp.take_along_axis(x, order, axis=1) for x in (best, scores))
    scores, place = jax.lax.top_k(scores, min(top, k))
    return jnp.take_along_axis(best, place, axis=1), scores


def _likely_first(
    model: BLIP, attended: Attended, candidates: Int[Array, "n a"], k: int
) -> Int[Array, "q k"]:
    """The k candidates whose first word is likeliest after [DEC] alone."""
    groups = attended.memory.states.shape[0]
    start = jnp.full((groups, 1, 1), model.config.dec_id, candidates.dtype)
    scores = model.decode(start, None, attended)[:, 0, 0]
    # Softmax would keep their order, but for what it rounds to zero.
    return jax.lax.top_k(scores[:, candidates[:, 1]], k)[1]


def generate_answers(
    model: BLIP,
    questions: Memory,
    *,
    beams: int,
    length: int,
    min_length: int = 1,
    length_penalty: float = 1.0,
) -> tuple[Int[Array, "q p a"], Float[Array, "q p"]]:
    """The `beams` best texts for each of q questions, best first, and their scores.

    See `beam_search` for scores and arguments; `length` counts [DEC] and [SEP]. With mask None in
    `questions` their padding is attended to, as released.
    """
    attended = model.attend_to_questions(questions)
    groups, config = questions.states.shape[0], model.config

    def reorder(past: KeysValues, beam: Int[Array, "q p"]) -> KeysValues:
        def move(x: Array) -> Array:
            grouped = x.reshape(x.shape[0], groups, beams, *x.shape[2:])
            index = beam.reshape(1, groups, beams, *(1,) * (grouped.ndim - 3))
            return jnp.take_along_axis(grouped, index, axis=2).reshape(x.shape)

        return jax.tree.map(move, past)

    return beam_search(
        lambda ids, at, past: model.decode_next(ids, at, past, attended),
        reorder,
        model.no_answers(groups * beams, length),
        questions=groups,
        beams=beams,
        length=length,
        first=config.dec_id,
        end=config.sep_id,
        pad=config.pad_id,
        min_length=min_length,
        length_penalty=length_penalty,
    )
