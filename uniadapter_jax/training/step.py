"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.randomness import stream
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Loss, Task, step_shardings
from uniadapter_jax.training.accumulation import InHalves, value_and_grad
from uniadapter_jax.training.optimizers import Schedule

Step = Callable[..., tuple[PyTree, PyTree, PyTree, dict[str, Array]]]

# {(family of the backbone, kind of device): options}. libtpu 0.0.42.1 for v6e recurses while it
# considers nested dot fusions of BLIP's step and overflows its thread's stack (SIGSEGV).
_COMPILER_OPTIONS = {("blip", "TPU v6 lite"): {"xla_tpu_dot_dot_fusion": False}}


def make_step(
    task: Task,
    part: Partition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    accumulation: int = 1,
    schedule: Schedule | None = None,
) -> Step:
    """A compiled step from (trainable, opt_state, task_state, frozen, batch, step) to the new
    (trainable, opt_state, task_state, metrics).

    The first three arguments are donated. `accumulation` is the number of parts of the batch whose
    activations are held one after another. The metric `nonfinite` has a flag per trainable leaf:
    its gradient or its new value is not finite. With a `schedule` the metric `lr` is the learning
    rate of the step.
    """
    step = pure_step(task, part, optimizer, mesh, seed, accumulation, schedule)
    shardings = step_shardings(task, part.trainable, mesh)
    kind = mesh.devices.flat[0].device_kind
    options: dict[str, Any] = {}
    for family in task.families:
        options |= _COMPILER_OPTIONS.get((family, kind), {})
    return jax.jit(
        step, donate_argnums=(0, 1, 2), out_shardings=shardings, compiler_options=options or None
    )


def pure_step(
    task: Task,
    part: Partition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    seed: int,
    accumulation: int = 1,
    schedule: Schedule | None = None,
) -> Step:
    """The uncompiled step; `mesh` is needed to accumulate the gradient from parts."""

    def step_fn(
        trainable: PyTree,
        opt_state: PyTree,
        task_state: PyTree,
        frozen: PyTree,
        batch: Mapping[str, Array],
        step: Array,
    ) -> tuple[PyTree, PyTree, PyTree, dict[str, Array]]:
        key = jax.random.fold_in(stream(seed, "dropout"), step)

        def merge(trainable: PyTree) -> Any:
            return part.merge(trainable, frozen)

        given, task_state = task.begin(task_state, trainable, merge, batch, step)

        def loss_fn(trainable: PyTree) -> Loss:
            return task.loss(merge(trainable), batch, key, given)

        if accumulation == 1:
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        else:
            assert isinstance(task, InHalves) and mesh is not None
            (loss, metrics), grads = value_and_grad(
                task, merge, trainable, batch, key, given, mesh=mesh, count=accumulation
            )
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        finite = jax.tree.map(
            lambda g, x: jnp.isfinite(g).all() & jnp.isfinite(x).all(), grads, trainable
        )
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            **metrics,
            **({} if schedule is None else {"lr": schedule(step)}),
            "nonfinite": ~jnp.stack(jax.tree.leaves(finite)),
        }
        return trainable, opt_state, task_state, metrics

    return step_fn


def init_opt_state(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> PyTree:
    """The optimizer's state for the trainables, on the mesh."""
    return jax.jit(optimizer.init, out_shardings=meshes.replicated(mesh))(trainable)
