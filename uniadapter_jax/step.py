"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uniadapter_jax import mesh as meshes
from uniadapter_jax.partition import Partition
from uniadapter_jax.randomness import stream
from uniadapter_jax.tasks.retrieval import Retrieval
from uniadapter_jax.types import Array, PyTree

Step = Callable[..., tuple[PyTree, PyTree, dict[str, Array]]]


def make_step(
    task: Retrieval,
    part: Partition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> Step:
    """One compiled step: (trainable, opt_state, frozen, batch, step) -> the same two, metrics.

    `trainable` and `opt_state` are donated. Metrics hold `nonfinite`, a flag per trainable leaf:
    its gradient or its new value is not finite.
    """

    def step_fn(
        trainable: PyTree,
        opt_state: PyTree,
        frozen: PyTree,
        batch: Mapping[str, Array],
        step: Array,
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        key = jax.random.fold_in(stream(seed, "dropout"), step)

        def loss_fn(trainable: PyTree) -> tuple[Array, dict[str, Array]]:
            return task.loss(part.merge(trainable, frozen), batch, key)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        finite = jax.tree.map(
            lambda g, x: jnp.isfinite(g).all() & jnp.isfinite(x).all(), grads, trainable
        )
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            **metrics,
            "nonfinite": ~jnp.stack(jax.tree.leaves(finite)),
        }
        return trainable, opt_state, metrics

    everywhere = meshes.replicated(mesh)
    return jax.jit(step_fn, donate_argnums=(0, 1), out_shardings=everywhere)


def init_opt_state(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> PyTree:
    """The optimizer's state for the trainables, on the mesh."""
    return jax.jit(optimizer.init, out_shardings=meshes.replicated(mesh))(trainable)
