"""The contract between a task and the trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from uniadapter_jax.common.ranges import Range
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.parallel import mesh as meshes

Batch = Mapping[str, Array]
Loss = tuple[Array, dict[str, Array]]


class Setting(NamedTuple):
    """What a task is made for.

    options: `config.task`.
    model_config: of the backbone.
    batch_size: examples of the global batch; 0 where nothing trains.
    epoch_steps: steps of an epoch; 0 likewise.
    """

    options: Any
    mesh: Mesh
    model_config: Any
    batch_size: int
    epoch_steps: int


class Task(Protocol):
    """The loss of a global batch, and what of it lives from step to step.

    A step calls `begin`, outside the gradient, then `loss` with what that gave.

    family: see `Kind`.
    """

    family: ClassVar[str]

    @property
    def options(self) -> Any:
        """`config.task`."""

    def init_state(self, trainable: PyTree) -> PyTree:
        """What a run carries beside the optimizer's state; {} if nothing."""

    def state_shardings(self, state: PyTree) -> PyTree:
        """Where the leaves of such a state lie on the mesh."""

    def begin(
        self,
        state: PyTree,
        trainable: PyTree,
        merge: Callable[[PyTree], Any],
        batch: Batch,
        step: Array,
    ) -> tuple[Any, PyTree]:
        """What `loss` needs beside the batch, without a gradient, and the next state.

        `merge` makes the model that holds given trainables.
        """

    def loss(self, model: Any, batch: Batch, key: Array | None, given: Any = None) -> Loss:
        """The loss and its metrics, scalars; `key` is for dropout, None is deterministic."""


class Stateless:
    """The half of `Task` that carries nothing from step to step."""

    def init_state(self, trainable: PyTree) -> PyTree:
        """Nothing."""
        return {}

    def state_shardings(self, state: PyTree) -> PyTree:
        """Of nothing."""
        return {}

    def begin(
        self,
        state: PyTree,
        trainable: PyTree,
        merge: Callable[[PyTree], Any],
        batch: Batch,
        step: Array,
    ) -> tuple[Any, PyTree]:
        """Nothing to do."""
        return None, state


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task by name.

    Attributes:
      name: as `config.task.name`.
      family: the name of the backbones that it needs, a key of `weights.families.FAMILIES`.
      make: the task for a setting.
      options: its knobs with their defaults, their only home.
      ranges: {option: the numbers it may have}, of every number among the options.
      choices: {option: the values it may have}.
      protocol: options that say how a result was measured.
      evaluation: options that only evaluation reads, so that a trained run may be measured by
        others.
      kept: options that an exported adapter remembers.
      groups: {group of metrics: their names}, as its evaluation gives them.
      selection_metric: what chooses a checkpoint unless the config says otherwise.
      shown: the metric of a training batch that progress lines show.
      asks: whether its samples are questions, not captions.
    """

    name: str
    family: str
    make: Callable[[Setting], Task]
    options: Mapping[str, Any]
    ranges: Mapping[str, Range]
    choices: Mapping[str, tuple[str, ...]]
    protocol: tuple[str, ...]
    evaluation: tuple[str, ...]
    kept: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    selection_metric: str
    shown: str
    asks: bool = False


def place_state(task: Task, trainable: PyTree, mesh: Mesh) -> PyTree:
    """The first state of a task, on the mesh."""
    state = jax.eval_shape(task.init_state, trainable)
    if not jax.tree.leaves(state):
        return state
    shardings = task.state_shardings(state)
    return jax.jit(task.init_state, out_shardings=shardings)(trainable)


def step_shardings(task: Task, trainable: PyTree, mesh: Mesh) -> tuple[Any, ...]:
    """Of what a training step returns: trainables, optimizer's state, task's state, metrics."""
    everywhere = meshes.replicated(mesh)
    state = jax.eval_shape(task.init_state, trainable)
    return everywhere, everywhere, task.state_shardings(state), everywhere
