"""Frame weights against their formula, one text and one clip at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.tasks.frame_weights import frame_factor, token_mask


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_equals_its_formula():
    rng = np.random.default_rng(0)
    text, frames = unit(rng, 2, 3, 5), unit(rng, 2, 4, 5)
    mask = np.array([[True] * 4, [True, False, True, False]])
    expected = np.zeros((2, 3, 4, 3))
    for m, p in np.ndindex(2, 3):
        here = np.flatnonzero(mask[m])
        e = np.exp(frames[m, here] @ text[m, p] / 4)
        expected[m, p, here] = (len(here) * e / e.sum())[:, None]
        expected[m, p, here, 0] = 1
    got = frame_factor(*(jnp.asarray(x, jnp.float32) for x in (text, frames)), mask, 3)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected.reshape(2, 3, 12), atol=1e-6)


def test_absent_frames_are_not_read_and_one_frame_weighs_one():
    rng = np.random.default_rng(1)
    text, frames = unit(rng, 1, 2, 5), unit(rng, 1, 3, 5)
    mask = jnp.array([[True, False, False]])
    frames[:, 1:] = np.nan
    got = frame_factor(*(jnp.asarray(x, jnp.float32) for x in (text, frames)), mask, 4)
    np.testing.assert_array_equal(got, np.broadcast_to([1.0] * 4 + [0.0] * 8, (1, 2, 12)))
    none = frame_factor(jnp.ones((2, 5)), jnp.ones((3, 5)), jnp.zeros(3, bool), 4)
    assert not np.any(none)


def test_no_gradient():
    mask = jnp.ones(3, bool)
    grads = jax.grad(lambda t, v: frame_factor(t, v, mask, 2).sum(), (0, 1))(
        jnp.ones((2, 5)), jnp.ones((3, 5))
    )
    assert not any(np.any(g) for g in grads)


def test_bfloat16_features_are_weighed_in_float32():
    rng = np.random.default_rng(2)
    rounded = [jnp.asarray(unit(rng, 3, 5), jnp.bfloat16) for _ in range(2)]
    mask = jnp.ones(3, bool)
    exact = frame_factor(*(x.astype(jnp.float32) for x in rounded), mask, 2)
    np.testing.assert_array_equal(frame_factor(*rounded, mask, 2), exact)


def test_tokens_of_absent_frames_are_masked():
    assert token_mask(jnp.array([[True, False]]), 3).tolist() == [[True] * 3 + [False] * 3]
