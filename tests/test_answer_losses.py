"""The loss of weighted answers against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniadapter_jax.tasks.vqa.losses import answer_losses, token_losses, weighted_loss

B, P, A, V, PAD, SEP = 3, 4, 6, 11, 0, 5


def draw(seed=0, scale=3.0):
    """(scores "b p l v", answers "b p a" of several lengths), in NumPy."""
    rng = np.random.default_rng(seed)
    answer = rng.integers(6, V, (B, P, A))
    length = rng.integers(2, A + 1, (B, P, 1))
    place = np.arange(A)
    answer = np.where(place == length - 1, SEP, np.where(place < length, answer, PAD))
    return scale * rng.standard_normal((B, P, A - 1, V)), answer


def naive(scores, answer, smoothing):
    """Token by token, with the whole smoothed target of each."""
    losses = np.zeros((B, P))
    for b, p, at in np.ndindex(B, P, A - 1):
        token = answer[b, p, at + 1]
        if token == PAD:
            continue
        x = scores[b, p, at]
        log = x - x.max() - np.log(np.exp(x - x.max()).sum())
        target = np.full(V, smoothing / V)
        target[token] += 1 - smoothing
        losses[b, p] -= target @ log
    return losses


def ours(scores, answer, smoothing):
    return answer_losses(
        jnp.asarray(scores, jnp.float32),
        jnp.asarray(answer, jnp.int32),
        pad_id=PAD,
        smoothing=smoothing,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_answers_cost_the_sum_of_their_tokens(smoothing):
    scores, answer = draw()
    np.testing.assert_allclose(
        ours(scores, answer, smoothing), naive(scores, answer, smoothing), rtol=2e-6, atol=2e-6
    )


def test_one_sure_answer_by_hand():
    """Two words, of which one has a share of 3/4; smoothing .5."""
    scores = jnp.asarray(np.log([[3.0, 1.0]]), jnp.float32)
    found = token_losses(scores, jnp.array([0]), 0.5)
    expected = 0.5 * np.log(4 / 3) + 0.5 * (np.log(4 / 3) + np.log(4)) / 2
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_gradients_are_those_of_the_plain_formula():
    scores, answer = draw(1)
    weight = jnp.asarray(np.random.default_rng(2).random((B, P)), jnp.float32)
    single, words = jnp.asarray(scores, jnp.float32), jnp.asarray(answer, jnp.int32)

    def plain(x):
        log = jax.nn.log_softmax(x)
        target = words[..., 1:]
        likely = jnp.take_along_axis(log, target[..., None], -1)[..., 0]
        losses = -0.9 * likely - 0.1 * log.mean(-1)
        return (weight * jnp.where(target == PAD, 0.0, losses).sum(-1)).sum() / B

    def fast(x):
        return weighted_loss(answer_losses(x, words, pad_id=PAD, smoothing=0.1), weight)

    for found, wanted in zip(
        jax.jit(jax.value_and_grad(fast))(single), jax.value_and_grad(plain)(single), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_large_scores_stay_exact():
    scores, answer = draw(3)
    far = scores * 1e3 + 1e4
    np.testing.assert_allclose(ours(far, answer, 0.1), naive(far, answer, 0.1), rtol=2e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: ours(x, answer, 0.1).sum())(jnp.float32(far))))


def test_scores_in_half_precision_count_in_float32():
    scores, answer = draw(4)
    half = jnp.asarray(scores, jnp.bfloat16)
    words = jnp.asarray(answer, jnp.int32)

    def loss(x):
        return answer_losses(x, words, pad_id=PAD, smoothing=0.1)

    assert loss(half).dtype == jnp.float32
    np.testing.assert_allclose(
        loss(half), naive(np.asarray(half, np.float64), answer, 0.1), rtol=2e-6
    )
    assert jax.grad(lambda x: loss(x).sum())(half).dtype == jnp.bfloat16


def test_places_without_answer_cost_nothing():
    """Their ids are padding all through, and even a loss that is not finite counts nothing."""
    scores, answer = draw(5)
    answer[0, 1:] = PAD
    weight = np.where(np.arange(P) < np.array([[1], [4], [4]]), 0.3, 0.0)
    losses = ours(scores, answer, 0.1)
    assert np.all(losses[0, 1:] == 0)
    expected = (weight * naive(scores, answer, 0.1)).sum() / B
    single = jnp.asarray(weight, jnp.float32)
    assert float(weighted_loss(losses, single)) == pytest.approx(expected, rel=1e-6)
    broken = losses.at[0, 2].set(jnp.nan)
    value, grad = jax.value_and_grad(weighted_loss)(broken, single)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad, weight / B, rtol=1e-6)


def test_no_array_of_targets_is_kept_for_the_gradient():
    """The backward pass gets the scores, and nothing else of their size."""
    scores, answer = draw()
    words = jnp.asarray(answer, jnp.int32)
    _, pull = jax.vjp(
        lambda x: answer_losses(x, words, pad_id=PAD, smoothing=0.1),
        jnp.asarray(scores, jnp.float32),
    )
    kept = [x.shape for x in jax.tree.leaves(pull) if x.size >= scores.size]
    assert kept == [scores.shape]
