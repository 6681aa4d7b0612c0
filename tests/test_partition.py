"""What trains, what is frozen, and the proof that it stays so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from uniadapter_jax.adapters.partition import count, flat_names, partition
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.retrieval.task import Retrieval
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step


def test_merge_gives_the_model_back():
    model = tiny.clip("cross_modal_adapter")
    part = tiny.split("cross_modal_adapter")
    batch = tiny.batch()
    merged = part.merge(part.trainable, part.frozen)
    assert (merged.encode_text(batch["text"]) == model.encode_text(batch["text"])).all()


def test_a_filter_that_matches_nothing_raises():
    with pytest.raises(UserError, match="matches nothing"):
        partition(tiny.clip(), nnx.All(nnx.Param, lambda path, _: "nowhere" in path))


def test_zero_shot_trains_nothing():
    part = tiny.split("zero_shot")
    assert part.counts()["trained"] == 0 and part.table() == "nothing trains"


def test_frozen_arrays_take_the_compute_dtype_except_norms_and_temperature():
    part = tiny.split("lora", dtype="bfloat16")
    dtypes = {name: x.dtype for name, x in flat_names(part.frozen).items()}
    wide = {name for name, dtype in dtypes.items() if dtype == jnp.float32}
    assert wide == {n for n in dtypes if ".ln_" in n or n == "logit_scale"}
    assert {x.dtype for x in jax.tree.leaves(part.trainable)} == {jnp.dtype("float32")}


def test_table_and_counts():
    part = tiny.split("projection")
    counts = part.counts()
    assert counts["trained"] == 48 * 24 + 32 * 24
    assert counts["percent"] == pytest.approx(100 * counts["trained"] / counts["total"])
    assert "vision/projection/kernel" in part.table()


@pytest.mark.parametrize("name", ["cross_modal_adapter", "lora", "projection"])
def test_twenty_steps_change_every_adapter_leaf_and_no_frozen_bit(name):
    config = base_config(name)
    config.optimizer.lr = 1e-2
    part = tiny.split(name)
    mesh = meshes.make_mesh(config.mesh)
    part.trainable, part.frozen = (
        meshes.put_replicated(t, mesh) for t in (part.trainable, part.frozen)
    )
    before = {name: np.array(x) for name, x in flat_names(part.trainable).items()}
    frozen = {name: np.array(x) for name, x in flat_names(part.frozen).items()}
    optimizer = make_optimizer(config.optimizer, 20, part.trainable)
    state = init_opt_state(optimizer, part.trainable, mesh)
    # No leaf of the optimizer is as large as the smallest thing that stays frozen would allow.
    assert sum(x.size for x in jax.tree.leaves(state)) <= 2 * count(part.trainable) + 8
    step = make_step(Retrieval(config.task, mesh), part, optimizer, mesh, seed=0)
    trainable = part.trainable
    for i in range(20):
        batch = meshes.put_batch(jax.tree.map(np.asarray, tiny.batch(clips=8, seed=i)), mesh, 8)
        trainable, state, _, metrics = step(trainable, state, {}, part.frozen, batch, np.int32(i))
    assert np.isfinite(metrics["loss"]) and not metrics["nonfinite"].any()
    after = flat_names(trainable)
    assert [k for k, x in before.items() if (np.asarray(after[k]) == x).all()] == []
    assert [k for k, x in flat_names(part.frozen).items() if not np.array_equal(x, frozen[k])] == []
    assert step.programs() == 1  # nothing was compiled after the first step


def test_the_backward_pass_makes_no_gradient_of_a_frozen_matrix():
    """Twice the forward FLOPs for adapters, three times for full fine-tuning."""

    def flops(name):
        part = tiny.split(name)
        batch = tiny.batch(clips=8)

        def loss(trainable, frozen):
            model = part.merge(trainable, frozen)
            return model.encode_frames(batch["frames"]).sum()

        compiled = jax.jit(jax.grad(loss)).lower(part.trainable, part.frozen).compile()
        return compiled.cost_analysis()["flops"]

    assert flops("cross_modal_adapter") < 0.8 * flops("full")


def test_the_optimizer_sees_a_plain_nested_dict():
    part = tiny.split("cross_modal_adapter")
    state = optax.adam(1e-3).init(part.trainable)
    assert jax.tree.structure(state[0].mu) == jax.tree.structure(part.trainable)
