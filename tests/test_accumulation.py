"""A batch in parts gives the loss and the gradients of the whole, dropout included."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_matching_task as matching
import tiny
from jax.sharding import AxisType

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import collectives
from uniadapter_jax.tasks.retrieval.task import Retrieval
from uniadapter_jax.training import accumulation

DROPOUT = {"dropout": 0.3}


def mesh_of(devices):
    return jax.make_mesh(
        (devices, 1, 1),
        meshes.AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:devices],
    )


def retrieval(mesh, loss="dense"):
    options = base_config().task
    options.loss = loss
    return Retrieval(options, mesh)


def pieces(method, clips=32):
    """A partition whose temperature trains beside the method, and a batch."""
    part = tiny.split(method, options=DROPOUT, vision_layers=2)
    batch = tiny.batch(clips=clips, frames=2)
    return part, {**batch, "item": batch["item"].at[3].set(17)}


def run(part, batch, mesh, count, loss="dense"):
    """The program, and ((loss, metrics), gradients) of trainables and of the temperature."""
    task, key = retrieval(mesh, loss), jax.random.key(7)
    rest = {name: value for name, value in part.frozen.items() if name != "logit_scale"}
    trainable = {"method": part.trainable, "scale": part.frozen["logit_scale"]}

    def merge(trainable):
        return part.merge(trainable["method"], {**rest, "logit_scale": trainable["scale"]})

    @jax.jit
    def in_parts(trainable, batch):
        return accumulation.value_and_grad(
            task, merge, trainable, batch, key, None, mesh=mesh, count=count
        )

    @jax.jit
    def whole(trainable, batch):
        of = lambda trainable: task.loss(merge(trainable), batch, key)  # noqa: E731
        return jax.value_and_grad(of, has_aux=True)(trainable)

    arguments = (
        jax.device_put(trainable, meshes.replicated(mesh)),
        jax.device_put(batch, meshes.batch_sharding(mesh)),
    )
    compiled = (whole if count == 1 else in_parts).lower(*arguments).compile()
    return compiled, compiled(*arguments)


def assert_equal(found, wanted):
    (loss, metrics), gradients = found
    (whole, whole_metrics), whole_gradients = wanted
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    for name, value in whole_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5)
    pairs = list(zip(*map(jax.tree.leaves, (gradients, whole_gradients)), strict=True))
    # What cancels by design, such as a bias of all keys, leaves rounding of what is large.
    floor = 1e-2 * max(np.abs(dense).max() for _, dense in pairs)
    for ours, dense in pairs:
        np.testing.assert_allclose(ours, dense, atol=1e-5 * max(floor, np.abs(dense).max()))


def test_four_parts_equal_the_whole_on_one_and_eight_devices():
    """Dropout is on: see `test_rows_draw_alone`."""
    part, batch = pieces("cross_modal_adapter")
    one, wanted = run(part, batch, mesh_of(1), 1)
    alone, found = run(part, batch, mesh_of(1), 4)
    assert_equal(found, wanted)
    eight, found = run(part, batch, mesh_of(8), 4, "ring")
    assert_equal(found, wanted)
    for program in (one, alone):
        assert not collectives(Module(program.as_text()), 1)
    # Pictures and features stay where they are; what is summed are gradients.
    moved = collectives(Module(eight.as_text()), 8)
    gathered = [moved[kind].bytes for kind in moved.keys() - {"all-reduce", "collective-permute"}]
    assert sum(gathered) < batch["frames"].nbytes / 10
    held, parts = (p.memory_analysis().temp_size_in_bytes for p in (one, alone))
    assert parts < 0.6 * held


@pytest.mark.slow
def test_matching_pairs_of_the_whole_batch_from_parts():
    """Candidates, negatives and pairs are the whole batch's; with momentum and a queue."""
    part, _ = matching.adapted()
    model_of = functools.partial(part.merge, frozen=part.frozen)
    mesh, key = mesh_of(1), jax.random.key(5)
    task = matching.make_task(mesh)
    batch = {name: jnp.asarray(rows) for name, rows in matching.batch(2).items()}

    @functools.partial(jax.jit, static_argnums=0)
    def step(count, trainable):
        state = task.init_state(part.trainable)
        given, _ = task.begin(state, trainable, model_of, batch, jnp.int32(2))
        if count == 1:
            of = lambda trainable: task.loss(model_of(trainable), batch, key, given)  # noqa: E731
            return jax.value_and_grad(of, has_aux=True)(trainable)
        return accumulation.value_and_grad(
            task, model_of, trainable, batch, key, given, mesh=mesh, count=count
        )

    assert_equal(step(4, part.trainable), step(1, part.trainable))


def test_rows_draw_alone():
    """Dropout of a row depends on its number, not on what is beside it."""
    part, batch = pieces("uniadapter", clips=8)
    rng = np.random.default_rng(0)  # no branch starts at zero

    def noisy(x):
        return x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    trainable = jax.tree.map(noisy, part.trainable)
    task, model = retrieval(mesh_of(1)), part.merge(trainable, part.frozen)
    keys = accumulation.row_keys(jax.random.key(3), jnp.arange(8))
    features = jax.jit(lambda batch, keys: task.features(model, batch, keys))
    whole = features(batch, keys)
    some = features(jax.tree.map(lambda x: x[2:6], batch), keys[2:6])
    for ours, all_rows in zip(some, whole, strict=True):
        np.testing.assert_allclose(ours, all_rows[2:6], atol=1e-5 * np.abs(all_rows).max())
    for others, all_rows in zip(features(batch, keys[::-1]), whole, strict=True):
        assert np.abs(others - all_rows).max() > 1e-3 * np.abs(all_rows).max()


def test_what_does_not_divide_is_named():
    task = retrieval(mesh_of(8))
    accumulation.check(task, mesh_of(8), 96, 4)
    with pytest.raises(UserError, match=r"accumulation=5 .* 12 rows .*: 1, 2, 3, 4, 6, 12"):
        accumulation.check(task, mesh_of(8), 96, 5)
    task = dataclasses.make_dataclass("Other", ["options"])(None)
    accumulation.check(task, mesh_of(8), 96, 1)
    with pytest.raises(UserError, match="no function of features"):
        accumulation.check(task, mesh_of(8), 96, 2)
