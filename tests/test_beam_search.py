"""Beam search over tiny vocabularies, against every text there is and against plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.tasks.vqa.beam_search import beam_search

FIRST, END, PAD = 0, 1, 0


def table(questions, vocab, length, seed=0, ends=0.0):
    """log p(word | position, last word, the word before) of each question.

    The later the question, the likelier is `END`: by up to `ends`.
    """
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.standard_normal((questions, length, vocab, vocab, vocab)).astype(np.float32)
    x[..., END] += np.linspace(0, ends, questions, dtype=np.float32)[:, None, None, None]
    return np.asarray(jax.nn.log_softmax(x))


def log_share(log, text):
    """log p of a whole text, [first, ...]."""
    return sum(
        log[at, text[at], text[at - 1] if at else 0, text[at + 1]] for at in range(len(text) - 1)
    )


def searched(log, **options):
    """Our search; its state is the word before the last, which has to follow the beams."""
    log = jnp.asarray(log)

    def step(ids, at, before):
        own = jnp.arange(len(log))[:, None]
        return log[own, at, ids, before], ids

    def reorder(state, beam):
        return jnp.take_along_axis(state, beam, axis=1)

    given = {"first": FIRST, "end": END, "pad": PAD, "questions": len(log), **options}
    start = jnp.zeros((len(log), options["beams"]), jnp.int32)
    words, scores = jax.jit(lambda: beam_search(step, reorder, start, **given))()
    return np.asarray(words), np.asarray(scores)


def every_text(vocab, length, min_length=1):
    """All texts that end, and all that reach the length."""
    for count in range(1, length):
        for words in itertools.product(range(vocab), repeat=count):
            ends = words[-1] == END
            if END not in words[:-1] and (ends or count == length - 1):
                if not ends or count >= min_length:
                    yield (FIRST, *words)


def padded(text, length):
    return [*text, *[PAD] * (length - len(text))]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("min_length", [1, 3])
def test_with_beams_for_all_texts_it_finds_the_best(penalty, min_length):
    vocab, length, beams = 3, 4, 30
    log = table(2, vocab, length)
    words, scores = searched(
        log, beams=beams, length=length, min_length=min_length, length_penalty=penalty
    )
    for q in range(2):
        everything = sorted(
            (
                (log_share(log[q], text) / (len(text) - 1) ** penalty, padded(text, length))
                for text in every_text(vocab, length, min_length)
            ),
            reverse=True,
        )
        count = len(everything)
        assert count < beams
        np.testing.assert_allclose(scores[q, :count], [s for s, _ in everything], rtol=1e-5)
        assert words[q, :count].tolist() == [text for _, text in everything]
        assert np.all(scores[q, count:] == -np.inf)


def slow_search(log, beams, length, penalty, min_length):
    """One question, with lists: what the module's docstring says."""
    vocab = log.shape[-1]
    running, finished = [(0.0, (FIRST,))], []
    for at in range(1, length):
        going_on = [
            (total + (-np.inf if word == END and at < min_length else step[word]), (*text, word))
            for total, text in running
            for step in [log[at - 1, text[-1], text[-2] if at > 1 else 0]]
            for word in range(vocab)
        ]
        best = sorted(going_on, key=lambda entry: -entry[0])[: 2 * beams]
        ended = [text[-1] == END or len(text) == length for _, text in best]
        finished += [
            (total / at**penalty, text)
            for (total, text), end in list(zip(best, ended, strict=True))[:beams]
            if end
        ]
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        running = [entry for entry, end in zip(best, ended, strict=True) if not end][:beams]
        full = len(finished) == beams
        if not running or (full and running[0][0] / at**penalty <= finished[-1][0]):
            break
    return finished


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_few_beams_find_what_plain_loops_find(beams, penalty):
    vocab, length, questions = 7, 6, 12
    log = table(questions, vocab, length, seed=1, ends=4.0)
    words, scores = searched(log, beams=beams, length=length, length_penalty=penalty)
    lengths = set()
    for q in range(questions):
        expected = slow_search(log[q], beams, length, penalty, 1)
        np.testing.assert_allclose(scores[q], [s for s, _ in expected], rtol=1e-5)
        assert words[q].tolist() == [padded(text, length) for _, text in expected]
        lengths |= {len(text) for _, text in expected}
    assert len(lengths) > 2


def test_a_question_does_not_depend_on_the_others():
    """Each closes by itself, also while others go on."""
    log = table(6, 5, 6, seed=2)
    together = searched(log, beams=3, length=6)
    for q in range(6):
        alone = searched(log[q : q + 1], beams=3, length=6)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[q])


def test_ties_go_to_the_smaller_word():
    log = np.full((1, 3, 5, 5, 5), -np.log(5), np.float32)
    words, scores = searched(log, beams=2, length=3, length_penalty=0.0)
    assert words[0].tolist() == [[FIRST, END, PAD], [FIRST, 0, 0]]
    np.testing.assert_allclose(scores[0], [-np.log(5), -2 * np.log(5)], rtol=1e-6)


@pytest.mark.parametrize("options", [{"beams": 0, "length": 4}, {"beams": 2, "length": 1}])
def test_no_beam_and_no_room_are_refused(options):
    with pytest.raises(UserError, match=r"at least 1|no room"):
        searched(table(1, 3, 4), **options)
