"""The matching task's losses against float64, and draws that no number of devices changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.tasks.matching.losses import (
    Momentum,
    average,
    empty_queue,
    enqueue,
    hard_negatives,
    itc_loss,
    itm_loss,
    ramp,
)

N, C, Q = 8, 6, 24
TEMPERATURE = jnp.float32(0.07)


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def f32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def softmax(x):
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def naive_itc(image, text, item, image_own, text_own, images, texts, items, alpha):
    """As BLIP writes it, for candidates that are all real."""
    same = (item[:, None] == items[None]).astype(float)
    same /= same.sum(1, keepdims=True)
    loss = 0.0
    for query, own, candidates in ((image, image_own, texts), (text, text_own, images)):
        targets = alpha * softmax(own @ candidates.T / 0.07) + (1 - alpha) * same
        loss -= (targets * np.log(softmax(query @ candidates.T / 0.07))).sum(1).mean() / 2
    return loss


ITEM = np.array([3, 1, 4, 1, 5, 9, 2, 6])


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return [unit(rng, N, C) for _ in range(4)]


def filled_queue(rng, batches):
    """A queue after some batches, and what is in it, oldest place first."""
    queue = empty_queue(Q, C, N)
    kept = [(np.zeros((0, C)), np.zeros((0, C)), np.zeros(0, int))]
    for b in range(batches):
        image, text = unit(rng, N, C), unit(rng, N, C)
        item = np.arange(N) + 3 * b
        queue = enqueue(queue, Momentum(*f32(image, text)), jnp.asarray(item, jnp.int32))
        kept.append((image, text, item))
    return queue, [np.concatenate(parts) for parts in zip(*kept, strict=True)]


@pytest.mark.parametrize("batches", [0, 1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_itc_with_momentum_and_a_queue_equals_float64(features, batches, alpha):
    """A queue that is partly empty counts as a shorter one."""
    queue, (images, texts, items) = filled_queue(np.random.default_rng(1), batches)
    image, text, image_own, text_own = features
    wanted = naive_itc(
        *features[:2],
        ITEM,
        image_own,
        text_own,
        np.concatenate([image_own, images]),
        np.concatenate([text_own, texts]),
        np.concatenate([ITEM, items]),
        alpha,
    )
    item = jnp.asarray(ITEM, jnp.int32)

    @jax.jit
    def loss(image, text):
        momentum = Momentum(*f32(image_own, text_own))
        return itc_loss(image, text, item, TEMPERATURE, momentum=momentum, queue=queue, alpha=alpha)

    assert float(loss(*f32(image, text))) == pytest.approx(wanted, rel=2e-6)
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(*f32(image, text))
    assert all(np.all(np.isfinite(g)) and np.abs(g).max() > 0 for g in grads)


def test_itc_of_a_batch_alone_shares_targets_of_one_item(features):
    image, text = features[:2]
    found = itc_loss(*f32(image, text), jnp.asarray(ITEM, jnp.int32), TEMPERATURE)
    wanted = naive_itc(image, text, ITEM, image, text, image, text, ITEM, 0.0)
    assert float(found) == pytest.approx(wanted, rel=2e-6)
    distinct = itc_loss(*f32(image, text), jnp.arange(N), TEMPERATURE)
    assert abs(float(distinct) - float(found)) > 1e-3


def test_the_temperature_is_clamped(features):
    image, text = f32(*features[:2])
    item = jnp.arange(N)
    one, other = (itc_loss(image, text, item, jnp.float32(t)) for t in (0.5, 7.0))
    assert float(one) == float(other)


def test_a_queue_forgets_its_oldest_batch():
    rng = np.random.default_rng(2)
    queue, (images, _, items) = filled_queue(rng, 4)
    order = np.r_[3 * N : 4 * N, N : 3 * N]  # the fourth batch lies where the first was
    np.testing.assert_array_equal(queue.item, items[order])
    np.testing.assert_array_equal(queue.image, images[order].astype(np.float32))
    assert int(queue.next) == N
    with pytest.raises(UserError, match=r"=20 does not divide by the batch of 8; .* 16 and 24"):
        empty_queue(20, C, N)
    with pytest.raises(UserError, match="needs momentum"):
        itc_loss(*f32(images[:N], images[:N]), jnp.arange(N), TEMPERATURE, queue=queue)


def draw(key, queries, candidates, item):
    return jax.jit(hard_negatives)(key, queries, candidates, item, jnp.float32(0.5))


def test_negatives_follow_the_softmax_of_other_items(features):
    queries, candidates = f32(*features[:2])
    item = jnp.asarray(ITEM, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn, exists = jax.vmap(lambda key: draw(key, queries, candidates, item))(keys)
    assert bool(jnp.all(exists))
    shares = np.stack([np.bincount(drawn[:, i], minlength=N) for i in range(N)]) / len(keys)
    weights = np.exp(features[0] @ features[1].T / 0.5) * (ITEM[:, None] != ITEM[None])
    np.testing.assert_allclose(shares, weights / weights.sum(1, keepdims=True), atol=0.03)
    assert np.all(shares[ITEM[:, None] == ITEM[None]] == 0)


def test_negatives_are_the_same_on_any_number_of_devices(features):
    found = []
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, P("data"))
        queries, candidates = jax.device_put(f32(*features[:2]), rows)
        item = jax.device_put(jnp.asarray(ITEM, jnp.int32), rows)
        found.append(np.asarray(draw(jax.random.key(7), queries, candidates, item)[0]))
    np.testing.assert_array_equal(*found)


def test_a_batch_of_one_item_has_no_negative_and_no_nan(features):
    queries, candidates = f32(*features[:2])
    index, exists = draw(jax.random.key(0), queries, candidates, jnp.zeros(N, jnp.int32))
    assert not np.any(exists) and np.all(index == 0)
    logits = jnp.ones((N, 2), jnp.float32)
    loss = itm_loss(logits, jnp.zeros(N, bool), exists)
    assert float(loss) == 0.0


def test_itm_counts_only_what_counts():
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((5, 2))
    matching, counts = np.array([1, 1, 0, 0, 0], bool), np.array([1, 1, 1, 0, 1], bool)
    logs = np.log(softmax(logits))
    wanted = -logs[np.arange(5), matching.astype(int)][counts].mean()
    found = itm_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(matching), jnp.asarray(counts))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_averages_and_ramps():
    found = average({"w": jnp.ones(3)}, {"w": jnp.zeros(3)}, 0.995)
    np.testing.assert_allclose(found["w"], 0.995, rtol=1e-6)
    steps = [float(ramp(0.4, jnp.int32(step), 10)) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(steps, [0, 0.2, 0.4, 0.4], rtol=1e-6)
