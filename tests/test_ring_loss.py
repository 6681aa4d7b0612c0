"""The ring loss against the dense one, on every kind of mesh, and what it holds in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_similarity import data, f32

from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import collectives
from uniadapter_jax.tasks.base import Setting
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval import ring_loss
from uniadapter_jax.tasks.retrieval.losses import Comparison, Pairs, retrieval_loss
from uniadapter_jax.tasks.retrieval.ring_loss import ring_retrieval_loss

MB = 10**6


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(
        sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def batch(n=24, f=3, c=8):
    """Three captions of one clip, on three devices of eight; some frames are masked."""
    text, frames, mask = data(n=n, m=n, f=f, c=c)
    item = np.arange(n, dtype=np.int32)
    item[[3, 17]] = item[5]
    return *f32(text, frames), jnp.asarray(mask), jnp.asarray(item), jnp.asarray(2.3, jnp.float32)


def gradients(loss, similarity, mesh=None, duplicates="negative"):
    """Compiled: ((loss, metrics), gradients of text, frames and logit_scale)."""
    how = Comparison(similarity, 5.0, duplicates, mesh)

    def value(text, frames, mask, item, scale):
        return loss(Pairs(text, frames, mask, item), scale, how)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 4), has_aux=True))


def assert_equal(found, wanted, tolerance=2e-6):
    for ours, dense in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        ours, dense = (np.asarray(x, np.float32) for x in (ours, dense))
        np.testing.assert_allclose(ours, dense, atol=tolerance * np.abs(dense).max())


# Meshes, and blocks: whole, parts that divide the three or six rows of a device, ones that do not.
MESHES = {"none": None, "1": (1, 1, 1), "2": (2, 1, 1), "8": (2, 4, 1), "2x2x2": (2, 2, 2)}
CASES = [
    ("q_score", "negative", "none", 1024),
    ("q_score", "positive", "8", 1024),
    ("q_score", "avoid", "2x2x2", 4),
    ("q_score", "positive", "1", 16),
    ("mean_pool", "negative", "2", 1024),
    ("mean_pool", "positive", "2x2x2", 4),
    ("mean_pool_unit", "positive", "8", 2),
]


@pytest.mark.parametrize("similarity, duplicates, mesh, most", CASES)
def test_it_equals_the_dense_loss(similarity, duplicates, mesh, most, monkeypatch):
    """Value, metrics, and the gradients of text, frames and logit scale."""
    monkeypatch.setattr(ring_loss, "MOST_TEXTS", most)
    monkeypatch.setattr(ring_loss, "BLOCK", 4 * most)
    arrays = batch()
    sizes = MESHES[mesh]
    found = gradients(ring_retrieval_loss, similarity, sizes and mesh_of(*sizes), duplicates)
    wanted = gradients(retrieval_loss, similarity, None, duplicates)
    assert_equal(found(*arrays), wanted(*arrays))


def test_bfloat16_features_sum_up_in_float32():
    """A few blocks' gradients, each rounded like the dense one's, then added exactly."""
    text, frames, *rest = batch()
    arrays = text.astype(jnp.bfloat16), frames.astype(jnp.bfloat16), *rest
    (found, (d_text, d_frames, _)) = gradients(ring_retrieval_loss, "q_score", mesh_of(4, 1, 1))(
        *arrays
    )
    assert d_text.dtype == d_frames.dtype == jnp.bfloat16
    wanted, of_features = gradients(retrieval_loss, "q_score")(*arrays)
    assert_equal(found, wanted)
    assert_equal((d_text, d_frames), of_features[:2], 1e-2)


def test_equal_logits_count_the_first_and_nan_stays_visible():
    text, frames, mask, item, scale = batch()
    ring = gradients(ring_retrieval_loss, "mean_pool", mesh_of(8, 1, 1))
    (_, metrics), _ = ring(jnp.ones_like(text), jnp.ones_like(frames), mask, item, scale)
    assert metrics["t2v_accuracy"] == metrics["v2t_accuracy"] == pytest.approx(1 / 24)
    (loss, _), _ = ring(text.at[7, 0].set(jnp.nan), frames, mask, item, scale)
    assert np.isnan(loss)
    with pytest.raises(ValueError, match="sometimes"):
        gradients(ring_retrieval_loss, "mean_pool", None, "sometimes")(*batch())


def compile_for(mesh, similarity, n, f, c, dtype):
    """The program for features of these shapes, none of which exists."""
    rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    shapes = [((n, c), dtype), ((n, f, c), dtype), ((n, f), bool), ((n,), "int32"), ((), "float32")]
    arrays = [
        jax.ShapeDtypeStruct(shape, kind, sharding=rows if shape else whole)
        for shape, kind in shapes
    ]
    return gradients(ring_retrieval_loss, similarity, mesh).lower(*arrays).compile()


def test_texts_travel_and_nothing_is_gathered():
    """Twice round the ring, one step a device; one device sends nothing."""
    compiled = compile_for(mesh_of(4, 1, 1), "q_score", 64, 12, 32, "float32")
    module = Module(compiled.as_text())
    assert module.unknown_loops == 0
    found = collectives(module, 4)
    assert set(found) == {"collective-permute", "all-reduce"}
    texts = 16 * 32 * 4
    assert 4 * 3 * texts < found["collective-permute"].bytes < 4 * 4 * texts
    assert found["all-reduce"].bytes < 64
    alone = compile_for(mesh_of(1, 1, 1), "q_score", 64, 12, 32, "float32")
    assert not collectives(Module(alone.as_text()), 1)


@pytest.mark.parametrize("dtype, frames", [("float32", 1), ("bfloat16", 12)])
def test_memory_of_a_large_batch(dtype, frames):
    compiled = compile_for(mesh_of(8, 1, 1), "mean_pool", 32_768, frames, 512, dtype)
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * MB


def test_memory_of_a_large_batch_under_q_score():
    compiled = compile_for(mesh_of(8, 1, 1), "q_score", 32_768, 12, 512, "bfloat16")
    features = 32_768 // 8 * (12 + 1) * 512 * 2
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * features + 100 * MB


def test_it_is_refused_where_candidates_stand_in_a_queue():
    options = base_config("uniadapter", "matching").task
    options.loss = "ring"
    model = BLIPConfig.from_huggingface(tiny.blip_config())
    with pytest.raises(UserError, match=r"loss=.ring. is for task retrieval.* a queue of 57600"):
        get_task("matching").make(Setting(options, mesh_of(1, 1, 1), model, 8, 10))
