"""Answers by rank and by search, with a BLIP: against scoring all of them, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_uniadapter_blip import adapted

from uniadapter_jax.backbones.blip import MATCHING
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.tasks.clip_states import encode_clips
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.vqa.answering import generate_answers, rank_answers, read_questions

DEC, ENC, SEP, PAD, VOCAB = 58, 59, 5, 0, 60
CLIPS, FRAMES, ASKED, WORDS, LENGTH = 4, 2, 2, 7, 6
QUESTIONS = CLIPS * ASKED


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def model():
    """With UniAdapter, whose places must act in the same way word by word."""
    return adapted(noise=0.3)


@pytest.fixture(scope="module")
def inputs():
    """(frames, frame mask, questions "m p l")."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (CLIPS, FRAMES, 32, 32, 3)).astype(np.uint8)
    frame_mask = np.array([[1, 1], [1, 0], [1, 1], [1, 0]], bool)
    ids = rng.integers(6, 58, (CLIPS, ASKED, WORDS)).astype(np.int32)
    ids[..., 0] = 3
    ids[np.arange(WORDS) >= rng.integers(3, WORDS + 1, (CLIPS, ASKED, 1))] = PAD
    return jnp.asarray(frames), jnp.asarray(frame_mask), jnp.asarray(ids)


@pytest.fixture(scope="module")
def questions(model, inputs):
    frames, frame_mask, ids = inputs
    read = jax.jit(lambda *x: read_questions(model, encode_clips(model, x[0], x[1]), x[2]))
    memory = read(frames, frame_mask, ids)
    return Memory(memory.states, memory.mask)


def candidate_list(count=17, seed=1):
    """Answers of 1 to 4 words; few first words, so that many share theirs."""
    rng = np.random.default_rng(seed)
    rows = np.full((count, LENGTH), PAD, np.int32)
    for row in rows:
        length = rng.integers(1, 5)
        row[: length + 2] = [DEC, *rng.integers(6, 58, length), SEP]
        row[1] = rng.integers(10, 16)
    return jnp.asarray(rows)


@pytest.fixture(scope="module")
def logs(model, questions):
    """log p of all words after each word of each candidate, each question and candidate alone."""

    @jax.jit
    def decode(states, mask, ids):
        return jax.nn.log_softmax(model.decode(ids, ids != PAD, Memory(states, mask)))

    found = [
        [decode(states[None], mask[None], ids[None, None])[0, 0] for ids in candidate_list()]
        for states, mask in zip(questions.states, questions.mask, strict=True)
    ]
    return np.asarray(found, np.float64)


def naive_scores(logs, candidates, smoothing):
    """Scores of all candidates, with a whole smoothed target, and those of their first words."""
    scores = np.zeros(logs.shape[:2])
    for q, n in np.ndindex(scores.shape):
        for at, token in enumerate(np.asarray(candidates)[n, 1:]):
            if token != PAD:
                smooth = np.full(VOCAB, smoothing / VOCAB)
                smooth[token] += 1 - smoothing
                scores[q, n] += smooth @ logs[q, n, at]
    first = np.take_along_axis(logs[:, :, 0], np.asarray(candidates)[None, :, 1:2], 2)[..., 0]
    return scores, first


@pytest.mark.parametrize(
    "k, top, most, smoothing",
    [(99, 18, 2**26, 0.1), (6, 4, 1, 0.0), (7, 3, 20000, 0.1)],
)
def test_ranks_are_those_of_scoring_one_by_one(model, questions, logs, k, top, most, smoothing):
    candidates = candidate_list()
    scores, first = naive_scores(logs, candidates, smoothing)

    @jax.jit
    def run(questions):
        return rank_answers(
            model, questions, candidates, k=k, top=top, smoothing=smoothing, most_scores=most
        )

    best, found = run(questions)
    k, top = min(k, 17), min(top, 17)
    assert best.shape == found.shape == (QUESTIONS, top)
    for q in range(QUESTIONS):
        chosen = np.argsort(-first[q].round(5), kind="stable")[:k]  # equal first words tie
        order = chosen[np.argsort(-scores[q, chosen], kind="stable")][:top]
        assert best[q].tolist() == order.tolist()
        close(found[q], scores[q, order], 1e-4)


def test_ties_go_to_the_first_of_the_list(model, questions):
    @jax.jit
    def run(candidates):
        return rank_answers(model, questions, candidates, k=4, top=4, smoothing=0.1)

    three, two = [0, 2, 4], [1, 3]  # copies of one candidate each; one of the five is cut off
    best, scores = run(candidate_list()[jnp.array([3, 0, 3, 0, 3])])
    for row, values in zip(best.tolist(), scores, strict=True):
        assert row in (three + two[:1], two[:1] + three, two + three[:2], three[:2] + two)
        assert len(set(values.tolist())) == 2


def test_ranking_holds_no_more_scores_than_said(model, questions):
    """Of all words of all candidates, only `most_scores` are there at a time."""
    candidates, most = candidate_list(40), QUESTIONS * (LENGTH - 1) * VOCAB * 4

    def largest(most):
        program = jax.make_jaxpr(
            lambda states, mask: rank_answers(
                model,
                Memory(states, mask),
                candidates,
                k=40,
                top=1,
                smoothing=0.1,
                most_scores=most,
            )
        )(questions.states, questions.mask)
        return max(np.prod(shape) for shape in all_shapes(program.jaxpr) if VOCAB in shape)

    assert largest(most) == most < largest(2**26) == 10 * most


def all_shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from all_shapes(inner)


def test_word_by_word_gives_the_scores_of_all_at_once(model, questions):
    """Also with beams that change places, and where the memory is made before."""
    beams, rng = 3, np.random.default_rng(2)
    ids = rng.integers(6, 58, (QUESTIONS, beams, LENGTH)).astype(np.int32)
    ids[..., 0] = DEC

    @jax.jit
    def both(states, mask, ids):
        memory = Memory(states, mask)
        attended = model.attend_to_questions(memory)

        def step(past, word):
            scores, past = model.decode_next(*word, past, attended)
            return past, scores

        words = jnp.moveaxis(ids, 2, 0), jnp.arange(LENGTH)
        _, found = jax.lax.scan(step, model.no_answers(QUESTIONS * beams, LENGTH), words)
        whole = model.decode(ids, None, memory)
        return found, model.decode(ids, None, attended), whole

    found, made, whole = both(questions.states, questions.mask, jnp.asarray(ids))
    close(made, whole)
    close(jnp.moveaxis(found, 0, 2), whole)


def slow_beams(log_next, beams, length, end):
    """Beam search with lists, over the whole model's scores of every running text."""
    running, finished = [(0.0, [DEC])], []
    for at in range(1, length):
        log = log_next([text for _, text in running])
        going = sorted(
            (
                (-(total + log[i][word]), i, word)
                for i, (total, _) in enumerate(running)
                for word in range(VOCAB)
            ),
        )[: 2 * beams]
        best = [(-cost, [*running[i][1], word]) for cost, i, word in going]
        ends = [text[-1] == end or len(text) == length for _, text in best]
        finished += [
            (total / at, text)
            for (total, text), over in list(zip(best, ends, strict=True))[:beams]
            if over
        ]
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        running = [entry for entry, over in zip(best, ends, strict=True) if not over][:beams]
        if not running or (len(finished) == beams and running[0][0] / at <= finished[-1][0]):
            break
    return finished


@pytest.mark.parametrize("padding", [True, False])
def test_generated_answers_are_those_of_a_slow_search(model, questions, padding):
    """Without a mask the question's padding is attended to, which changes the scores."""
    mask = questions.mask if padding else None
    memory = Memory(questions.states, mask)
    run = jax.jit(
        lambda states: generate_answers(model, memory._replace(states=states), beams=3, length=5)
    )
    words, scores = run(questions.states)

    @jax.jit
    def decode(states, mask, ids):
        return jax.nn.log_softmax(model.decode(ids, None, Memory(states, mask)))

    for q in range(0, QUESTIONS, 3):
        own = questions.states[q : q + 1], None if mask is None else mask[q : q + 1]

        def log_next(texts, own=own):
            rows = np.full((1, 3, 5), PAD, np.int32)
            for row, text in zip(rows[0], texts, strict=False):
                row[: len(text)] = text
            return np.asarray(decode(*own, rows))[0, :, len(texts[0]) - 1]

        expected = slow_beams(log_next, 3, 5, SEP)
        close(scores[q], [score for score, _ in expected], 1e-4)
        assert words[q].tolist() == [[*t, *[PAD] * (5 - len(t))] for _, t in expected]


def test_questions_of_one_clip_together_and_alone(model, inputs):
    """A frame that is absent, whatever it holds, and padding of questions are not seen."""
    frames, frame_mask, ids = inputs

    @jax.jit
    def read(frames, frame_mask, ids):
        return read_questions(
            model, encode_clips(model, frames, frame_mask), ids, frame_weights=True
        )

    states = read(frames, frame_mask, ids).states.reshape(*ids.shape, -1)
    words = int((ids[1, 0] != PAD).sum())
    alone = read(frames[1:2, :1], frame_mask[1:2, :1], ids[1:2, :1, :words])
    close(states[1, 0, :words], alone.states[0])


def test_frame_weights_are_those_of_the_plain_question(model, inputs):
    @jax.jit
    def run(frames, frame_mask, ids):
        clips = encode_clips(model, frames, frame_mask)
        found = read_questions(model, clips, ids, frame_weights=True).states
        rows = ids.reshape(QUESTIONS, WORDS)
        text = model.text_features(model.encode_text(rows, rows != PAD)[:, 0])
        each = model.image_features(clips.cls)
        factor = frame_factor(text.reshape(CLIPS, ASKED, -1), each, frame_mask, clips.tokens)
        memory = Memory(clips.states, clips.mask, None, factor)
        wanted = model.fuse(model.fusion_ids(ids), ids != PAD, memory).reshape(found.shape)
        return found, wanted, read_questions(model, clips, ids).states

    found, wanted, plain = run(*inputs)
    close(found, wanted)
    assert np.abs(found - plain).max() > 1e-3


def test_what_cannot_be_answered_says_so(model, questions):
    with pytest.raises(UserError, match="of 0 answers"):
        rank_answers(model, questions, candidate_list(0), k=1, top=1, smoothing=0.1)
    with pytest.raises(UserError, match="at least 1"):
        rank_answers(model, questions, candidate_list(), k=0, top=1, smoothing=0.1)
    with pytest.raises(UserError, match=r"13 tokens.*12 positions"):
        generate_answers(model, questions, beams=3, length=13)
    with pytest.raises(UserError, match="no decoder"):
        generate_answers(tiny.blip(parts=(MATCHING,)), questions, beams=3, length=4)
    with pytest.raises(UserError, match="no decoder"):
        rank_answers(
            tiny.blip(parts=(MATCHING,)), questions, candidate_list(), k=1, top=1, smoothing=0.1
        )
