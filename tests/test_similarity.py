"""Each similarity against a float64 implementation that materialises every pooled vector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES

NAMES = sorted(SIMILARITIES)


def naive_pool(name, text, frames, mask, temperature):
    """Pooled vectors "n m c", as the papers write them."""
    if name == "q_score":
        dots = np.einsum("nc,mfc->nmf", text, frames) / temperature
        dots = np.where(mask[None], dots, -np.inf)
        weights = np.exp(dots - dots.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("nmf,mfc->nmc", weights, frames)
    if name == "mean_pool_unit":
        frames = frames / np.linalg.norm(frames, axis=-1, keepdims=True)
    mean = (frames * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return np.broadcast_to(mean, (len(text), *mean.shape))


def naive(name, text, frames, mask, temperature):
    pooled = naive_pool(name, text, frames, mask, temperature)
    lengths = np.linalg.norm(text, axis=-1)[:, None] * np.linalg.norm(pooled, axis=-1)
    return np.einsum("nc,nmc->nm", text, pooled) / lengths


def naive_gradient(function, x, weight, step=1e-6):
    """Central differences in float64 of sum(weight * function(x))."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append((weight * function(moved)).sum())
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def data(n=5, m=4, f=3, c=6, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    text, frames = rng.normal(size=(n, c)) * scale, rng.normal(size=(m, f, c)) * scale
    mask = rng.random((m, f)) < 0.7
    mask[:, 0] = True
    return text, frames, mask


def f32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 4, 3, 6), (7, 3, 8, 5), (3, 5, 1, 4), (40, 30, 12, 64)])
def test_value_equals_the_materialised_form(name, shape):
    text, frames, mask = data(*shape)
    got = SIMILARITIES[name](*f32(text, frames), jnp.asarray(mask), 5.0)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, naive(name, text, frames, mask, 5.0), atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [1, 8])
def test_gradients_equal_float64_differences(name, devices):
    text, frames, mask = data(n=8, m=8)
    weight = np.random.default_rng(1).normal(size=(8, 8))

    def loss(t, v):
        return jnp.sum(jnp.asarray(weight, jnp.float32) * SIMILARITIES[name](t, v, mask, 5.0))

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(f32(text, frames), NamedSharding(mesh, P("data")))
    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(*placed)
    wanted = (
        naive_gradient(lambda t: naive(name, t, frames, mask, 5.0), text, weight),
        naive_gradient(lambda v: naive(name, text, v, mask, 5.0), frames, weight),
    )
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())


def hostile(case):
    """One clip that breaks careless code, beside a good one."""
    text, frames, _ = data(n=6, m=2, f=4, c=8)
    mask = np.ones((2, 4), bool)
    if case == "all masked":
        mask[0] = False
    elif case == "cancel exactly":
        frames[0] = np.stack([frames[0, 0], -frames[0, 0]] * 2)
        text[0] = 0  # a text without direction as well
    elif case == "cancel for orthogonal text":
        frames[0] = np.stack([frames[0, 0], -frames[0, 0]] * 2)
        text -= np.outer(text @ frames[0, 0], frames[0, 0]) / (frames[0, 0] @ frames[0, 0])
    elif case == "cancel but for noise":
        frames[0] = np.stack([frames[0, 0], -frames[0, 0]] * 2)
        frames[0] += 1e-6 * np.random.default_rng(5).normal(size=frames[0].shape)
    elif case == "repeat":
        frames[0] = frames[0, :1]
        text[0] = frames[0, 0]
    elif case == "zero frames":
        frames[0] = 0
    elif case == "junk under the mask":
        mask[0, 2:] = False
        frames[0, 2], frames[0, 3] = np.nan, np.inf
    elif case == "large":
        text, frames = text * 1e3, frames * 1e3
    elif case == "small":
        text, frames = text * 1e-5, frames * 1e-5
    return text, frames, mask


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(name, text, frames, mask):
    value, pull = jax.vjp(lambda t, v: SIMILARITIES[name](t, v, mask, 5.0), text, frames)
    return value, pull(jnp.ones_like(value))


CASES = [
    "all masked",
    "cancel exactly",
    "cancel for orthogonal text",
    "cancel but for noise",
    "repeat",
    "zero frames",
    "junk under the mask",
    "large",
    "small",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hostile_clips_are_defined_and_bounded(name, case, dtype):
    text, frames, mask = hostile(case)
    t, v = (x.astype(dtype) for x in f32(text, frames))
    value, gradients = value_and_gradients(name, t, v, jnp.asarray(mask))
    assert np.all(np.isfinite(value)) and np.all(np.abs(value) <= 1 + 1e-5)
    assert all(np.all(np.isfinite(g.astype(jnp.float32))) for g in gradients)
    if case in ("all masked", "zero frames"):
        assert np.all(value[:, 0] == 0) and np.all(gradients[1][0] == 0)
    if case == "repeat" and dtype == jnp.float32:
        assert value[0, 0] == pytest.approx(1, abs=1e-6)
    if case == "junk under the mask":
        assert np.all(gradients[1][0, 2:] == 0)
    # The other clip does not notice.
    doubled, _ = value_and_gradients(name, t, jnp.stack([v[1], v[1]]), jnp.ones((2, 4), bool))
    np.testing.assert_allclose(value[:, 1], doubled[:, 1], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(name, bad):
    """It must reach the loss, and only the pairs that it is in."""
    text, frames, mask = data()
    text[1, 0], frames[2, 0, 0] = bad, bad
    got = SIMILARITIES[name](*f32(text, frames), jnp.asarray(mask), 5.0)
    wanted = np.zeros(got.shape, bool)
    wanted[1], wanted[:, 2] = True, True
    np.testing.assert_array_equal(np.isnan(got), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_noise_that_cancelling_frames_leave_is_no_evidence(name):
    text, frames, mask = hostile("cancel for orthogonal text")
    frames[0] += 1e-6 * np.random.default_rng(5).normal(size=frames[0].shape)
    value, _ = value_and_gradients(name, *f32(text, frames), jnp.asarray(mask))
    assert np.abs(naive(name, text, frames, mask, 5.0)[:, 0]).max() > 0.3
    assert np.abs(value[:, 0]).max() < 1e-2


def test_q_score_keeps_its_digits_where_frames_nearly_cancel():
    """Unit features get almost even weights, so v and -v pool to a hundredth of a frame."""
    rng = np.random.default_rng(0)
    text, frames = rng.normal(size=(50, 64)), rng.normal(size=(20, 1, 64))
    text, frames = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (text, frames))
    frames = np.concatenate([frames, -frames], axis=1)
    mask = np.ones((20, 2), bool)
    pooled = naive_pool("q_score", text, frames, mask, 5.0)
    clear = np.linalg.norm(pooled, axis=-1) > 5e-3
    assert clear.sum() > 100
    got = SIMILARITIES["q_score"](*f32(text, frames), jnp.asarray(mask), 5.0)
    wanted = naive("q_score", text, frames, mask, 5.0)
    np.testing.assert_allclose(np.asarray(got)[clear], wanted[clear], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_features_are_contracted_in_float32(name):
    """Rounded features, exact arithmetic: the error stays far below bfloat16's own 4e-3."""
    text, frames, mask = data(20, 10, 6, 32, scale=0.5)
    t, v = (x.astype(jnp.bfloat16) for x in f32(text, frames))
    rounded = (np.asarray(x.astype(jnp.float32), np.float64) for x in (t, v))
    got = SIMILARITIES[name](t, v, jnp.asarray(mask), 5.0)
    np.testing.assert_allclose(got, naive(name, *rounded, mask, 5.0), atol=2e-6)


def test_neighbouring_frames_keep_their_span():
    """Frames of a still video differ by little; projecting once would leave a skewed basis."""
    rng = np.random.default_rng(0)
    text, still = rng.normal(size=(20, 32)), rng.normal(size=(6, 1, 32))
    for step in (1e-2, 1e-4, 1e-6, 0.0):
        frames = (still + step * rng.normal(size=(6, 40, 32))).astype(np.float32)
        mask = np.ones((6, 40), bool)
        got = SIMILARITIES["q_score"](*f32(text, frames), jnp.asarray(mask), 5.0)
        wanted = naive("q_score", text, frames.astype(np.float64), mask, 5.0)
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_q_score_never_holds_a_vector_per_pair():
    n, m, f, c = 64, 32, 4, 512
    shapes = (jnp.zeros((n, c)), jnp.zeros((m, f, c)), jnp.ones((m, f), bool))
    run = jax.jit(functools.partial(SIMILARITIES["q_score"], temperature=5.0))
    memory = run.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * m * c * 4 / 4
