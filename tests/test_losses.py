"""The contrastive loss against float64, on any mesh, and what the compiler makes of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_similarity import data, f32, naive, naive_gradient

from uniadapter_jax.tasks.retrieval.losses import (
    Comparison,
    Pairs,
    contrastive_loss,
    in_batch_accuracy,
    retrieval_loss,
)

COLLECTIVE = re.compile(r"all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all")


def naive_loss(logits, item, duplicates):
    if duplicates == "positive":
        targets = (item[:, None] == item[None, :]).astype(np.float64)
    else:
        targets = np.eye(len(item))

    def cross_entropy(logits, targets):
        shifted = logits - logits.max(1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -(targets / targets.sum(1, keepdims=True) * log).sum(1).mean()

    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2


@pytest.mark.parametrize("duplicates", ["negative", "positive", "avoid"])
def test_contrastive_loss_and_gradient_equal_float64(duplicates):
    logits = np.random.default_rng(0).normal(size=(6, 6)) * 5
    item = np.array([3, 1, 3, 0, 9, 3])
    value, gradient = jax.value_and_grad(contrastive_loss)(
        jnp.asarray(logits, jnp.float32), jnp.asarray(item), duplicates
    )
    one = np.ones(())
    wanted = naive_gradient(lambda x: naive_loss(x, item, duplicates), logits, one)
    assert value == pytest.approx(naive_loss(logits, item, duplicates), rel=1e-6)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_duplicates_differ_only_where_a_clip_comes_twice():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    twice, once = jnp.array([0, 0, 1, 2]), jnp.arange(4)
    assert contrastive_loss(logits, twice, "negative") == contrastive_loss(logits, once, "negative")
    assert contrastive_loss(logits, once, "positive") == pytest.approx(
        float(contrastive_loss(logits, once, "negative")), rel=1e-6
    )
    assert contrastive_loss(logits, twice, "positive") != contrastive_loss(logits, twice)
    with pytest.raises(ValueError, match="sometimes"):
        contrastive_loss(logits, once, "sometimes")


def batch(n=16, f=3, c=8):
    text, frames, mask = data(n=n, m=n, f=f, c=c)
    item = np.arange(n)
    item[3] = item[5]
    return *f32(text, frames), jnp.asarray(mask), jnp.asarray(item), jnp.asarray(2.3, jnp.float32)


def mesh_of(data_axis, fsdp_axis):
    return jax.make_mesh((data_axis, fsdp_axis), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def value_and_gradients(mesh, similarity, duplicates, arrays):
    how = Comparison(similarity, 5.0, duplicates, mesh)

    def loss(text, frames, mask, item, scale):
        return retrieval_loss(Pairs(text, frames, mask, item), scale, how)

    rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    placed = [jax.device_put(x, rows if x.ndim else whole) for x in arrays]
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 4), has_aux=True))
    compiled = step.lower(*placed).compile()
    return compiled, compiled(*placed)


@pytest.mark.parametrize("similarity", ["q_score", "mean_pool", "mean_pool_unit"])
@pytest.mark.parametrize("duplicates", ["negative", "positive"])
def test_one_and_eight_devices_agree_with_float64(similarity, duplicates):
    arrays = batch()
    text, frames, mask, item, scale = (np.asarray(x) for x in arrays)
    wanted = naive_loss(
        np.exp(np.float64(scale)) * naive(similarity, *map(np.float64, (text, frames)), mask, 5.0),
        item,
        duplicates,
    )
    results = []
    for mesh in (mesh_of(1, 1), mesh_of(2, 4)):
        compiled, ((loss, metrics), gradients) = value_and_gradients(
            mesh, similarity, duplicates, arrays
        )
        assert loss == pytest.approx(wanted, rel=1e-6)
        assert bool(COLLECTIVE.search(compiled.as_text())) == (mesh.size > 1)
        results.append((loss, metrics, gradients))
    for single, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eight, single, rtol=1e-6, atol=1e-6 * np.abs(single).max())


def test_clips_stay_and_texts_are_gathered_once():
    arrays = batch(n=64, f=4, c=32)
    compiled, _ = value_and_gradients(mesh_of(8, 1), "q_score", "negative", arrays)
    text = compiled.as_text()
    for whole in ("[64,64]", "[64,4,64]", "[64,4,32]"):
        assert whole not in text
    gathered = re.findall(r"= (\w+)\[64,([\d,]+)\]\S* all-gather\(", text)
    assert [shape for kind, shape in gathered if "32" in shape] == ["32"], gathered


def test_logit_scale_is_capped_at_a_hundred():
    pairs, how = Pairs(*batch()[:4]), Comparison("mean_pool", 5.0)
    loss = functools.partial(retrieval_loss, pairs, how=how)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (at_cap, metrics), _ = step(jnp.asarray(np.log(100.0), jnp.float32))
    (beyond, _), gradient = step(jnp.asarray(9.0, jnp.float32))
    assert beyond == pytest.approx(float(at_cap), rel=1e-5) and gradient == 0
    assert metrics["logit_scale"] == pytest.approx(100, rel=1e-5)


def test_accuracy_counts_the_same_clip_and_no_collapse():
    item = jnp.array([0, 1, 0, 2])
    logits = jnp.eye(4)[jnp.array([2, 1, 0, 3])]
    assert in_batch_accuracy(logits, item) == {"t2v_accuracy": 1.0, "v2t_accuracy": 1.0}
    collapsed = in_batch_accuracy(jnp.zeros((4, 4)), jnp.arange(4))
    assert collapsed["t2v_accuracy"] == collapsed["v2t_accuracy"] == 0.25
