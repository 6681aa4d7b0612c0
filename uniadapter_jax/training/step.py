"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.randomness import stream
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Loss, Task, step_shardings
from uniadapter_jax.training.accumulation import InHalves, value_and_grad
from uniadapter_jax.training.optimizers import Schedule


class Given(NamedTuple):
    """What a step is given beside state, batch and number.

    It is no part of the program, so runs that differ in it alone compile once.

    Attributes:
      seed: of dropout.
      schedule: of the learning rate, reported as the metric `lr`; without one the optimizer's own
        counts.
    """

    seed: np.uint32
    schedule: Schedule | None = None

    @classmethod
    def of(cls, seed: int, schedule: Schedule | None = None) -> Given:
        """For a seed from 0 to 2**32 - 1."""
        return cls(np.uint32(seed), schedule)


class Step:
    """A compiled step that knows what it is given.

    It goes from (trainable, opt_state, task_state, frozen, batch, number) to the new (trainable,
    opt_state, task_state, metrics); the first three arguments are donated.
    """

    def __init__(self, compiled: Any, given: Given):
        self._compiled, self.given = compiled, given

    def __call__(self, *arguments: Any) -> tuple[PyTree, PyTree, PyTree, dict[str, Array]]:
        return self._compiled(*arguments, self.given)

    def trace(self, *arguments: Any) -> jax.stages.Traced:
        """The step as a jaxpr; its compiled form takes `given` as its last argument."""
        return self._compiled.trace(*arguments, self.given)

    def programs(self) -> int:
        """How many the calls have compiled."""
        return self._compiled._cache_size()


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
    """A compiled step of `task`, for a run with this seed and schedule; see `Given`.

    `accumulation` is the number of parts of the batch whose activations are held one after another.
    The metric `nonfinite` has a flag per trainable leaf: its gradient or its new value is not
    finite.
    """
    step = pure_step(task, part, optimizer, mesh, accumulation)
    shardings = step_shardings(task, part.trainable, mesh)
    kind = mesh.devices.flat[0].device_kind
    options: dict[str, Any] = {}
    for family in task.families:
        options |= _COMPILER_OPTIONS.get((family, kind), {})
    compiled = jax.jit(
        step, donate_argnums=(0, 1, 2), out_shardings=shardings, compiler_options=options or None
    )
    return Step(compiled, Given.of(seed, schedule))


def pure_step(
    task: Task,
    part: Partition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    accumulation: int = 1,
) -> Callable[..., tuple[PyTree, PyTree, PyTree, dict[str, Array]]]:
    """The uncompiled step, which takes `Given` as its last argument; `mesh` is needed to accumulate
    the gradient from parts.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step_fn(
        trainable: PyTree,
        opt_state: PyTree,
        task_state: PyTree,
        frozen: PyTree,
        batch: Mapping[str, Array],
        step: Array,
        given: Given,
    ) -> tuple[PyTree, PyTree, PyTree, dict[str, Array]]:
        key = jax.random.fold_in(stream(given.seed, "dropout"), step)

        def merge(trainable: PyTree) -> Any:
            return part.merge(trainable, frozen)

        of_begin, task_state = task.begin(task_state, trainable, merge, batch, step)

        def loss_fn(trainable: PyTree) -> Loss:
            return task.loss(merge(trainable), batch, key, of_begin)

        if accumulation == 1:
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        else:
            assert isinstance(task, InHalves) and mesh is not None
            (loss, metrics), grads = value_and_grad(
                task, merge, trainable, batch, key, of_begin, mesh=mesh, count=accumulation
            )
        updates, opt_state = optimizer.update(grads, opt_state, trainable, schedule=given.schedule)
        trainable = optax.apply_updates(trainable, updates)
        finite = jax.tree.map(
            lambda g, x: jnp.isfinite(g).all() & jnp.isfinite(x).all(), grads, trainable
        )
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            **metrics,
            **({} if given.schedule is None else {"lr": given.schedule(step)}),
            "nonfinite": ~jnp.stack(jax.tree.leaves(finite)),
        }
        return trainable, opt_state, task_state, metrics

    return step_fn


def init_opt_state(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> PyTree:
    """The optimizer's state for the trainables, on the mesh."""
    return jax.jit(optimizer.init, out_shardings=meshes.replicated(mesh))(trainable)
