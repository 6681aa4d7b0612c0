"""The gradient of a batch whose activations do not fit, in parts, with negatives from all rows.

A contrastive loss is no mean over rows, so gradients of small batches do not add up to that of the
large one. But features are small, and the loss needs only them (GradCache: Gao et al., RepL4NLP
2021, arXiv 2101.06983). First come the features of all parts, without a gradient; then the loss of
the global batch and its gradient with respect to every feature; then each part again, forward, and
backward from the gradients of its features. Loss and gradient equal the large batch's up to
rounding, for one more forward pass. Dropout draws by row, so it is the same in both passes of a
row, and in the large batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import row_keys
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Batch, Loss

_Tree = TypeVar("_Tree")


@runtime_checkable
class InHalves(Protocol):
    """A task whose loss is computed from features: `features(model, batch, keys of the rows)`.

    Features are a tree of float arrays with a leading batch axis. Those of a row depend only on
    this row and its key. `loss_of_features` is computed for all rows at once, not in parts.
    """

    def features(self, model: Any, batch: Batch, keys: Array | None) -> PyTree: ...

    def loss_of_features(
        self, model: Any, features: PyTree, batch: Batch, key: Array | None, given: Any
    ) -> Loss: ...


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A batch in `count` parts with rows of every device, so that no row changes its device."""

    mesh: Mesh
    count: int

    def take(self, tree: _Tree, i: Array) -> _Tree:
        """Part i."""

        def one(x: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(self._cut(x), i, axis=1, keepdims=False)
            return part.reshape(-1, *x.shape[1:])

        return self._over_devices(jax.tree.map(one, tree))

    def join(self, tree: _Tree) -> _Tree:
        """Joins all parts, which are stacked, to the full batch."""

        def one(x: Array) -> Array:
            shards = meshes.batch_shards(self.mesh)
            cut = x.reshape(self.count, shards, -1, *x.shape[2:])
            return jnp.swapaxes(cut, 0, 1).reshape(-1, *x.shape[2:])

        return self._over_devices(jax.tree.map(one, tree))

    def _cut(self, x: Array) -> Array:
        return x.reshape(meshes.batch_shards(self.mesh), self.count, -1, *x.shape[1:])

    def _over_devices(self, tree: _Tree) -> _Tree:
        return meshes.constrain(tree, self.mesh, meshes.BATCH_AXES)


def check(task: Any, mesh: Mesh, batch_size: int, count: int) -> None:
    """Raises `UserError` if a batch cannot be accumulated from `count` parts."""
    if count == 1:
        return
    if not isinstance(task, InHalves):
        raise UserError(
            f"config.train.accumulation={count}: the loss of this task is no function of features "
            "of single rows, so its batch cannot be cut; set it to 1, and use compute.remat or a "
            "smaller train.batch_size"
        )
    rows = batch_size // meshes.batch_shards(mesh)
    if count < 1 or rows % count:
        known = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UserError(
            f"config.train.accumulation={count} does not divide the {rows} rows that a device has "
            f"of train.batch_size={batch_size}; what does: {known}"
        )


def value_and_grad(
    task: InHalves,
    merge: Callable[[PyTree], Any],
    trainable: PyTree,
    batch: Batch,
    key: Array | None,
    given: Any,
    *,
    mesh: Mesh,
    count: int,
) -> tuple[Loss, PyTree]:
    """((loss, metrics), gradients with respect to `trainable`), equal to those of `task.loss`.

    merge: makes the model with some trainables.
    count: number of parts of the batch; see `check`.
    """
    parts = _Parts(mesh, count)
    rows = jnp.arange(len(jax.tree.leaves(batch)[0]))

    def features(trainable: PyTree, i: Array) -> PyTree:
        part, numbers = parts.take((dict(batch), rows), i)
        return task.features(
            merge(trainable), part, None if key is None else row_keys(key, numbers)
        )

    def loss(trainable: PyTree, all_features: PyTree) -> Loss:
        return task.loss_of_features(merge(trainable), all_features, batch, key, given)

    all_features = parts.join(jax.lax.map(lambda i: features(trainable, i), jnp.arange(count)))
    # The loss may need trainables beside the features, such as a temperature.
    value, (gradient, of_features) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        trainable, all_features
    )

    def add(i: Array, gradient: PyTree) -> PyTree:
        _, pull = jax.vjp(lambda trainable: features(trainable, i), trainable)
        (more,) = pull(parts.take(of_features, i))
        return jax.tree.map(jnp.add, gradient, more)

    return value, jax.lax.fori_loop(0, count, add, gradient)
