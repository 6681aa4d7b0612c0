"""The contracts of a task: loss for a step, samples for the data, evaluation for a run.

A task by name is a `Kind`; nothing else knows names of tasks. See docs/architecture.md.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.ranges import Range
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.splits import Splits
from uniadapter_jax.parallel import mesh as meshes

Batch = Mapping[str, Array]
Loss = tuple[Array, dict[str, Array]]


class Setting(NamedTuple):
    """The run that a task is made for.

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

    families: see `Kind.families`.
    """

    families: ClassVar[tuple[str, ...]]

    @property
    def options(self) -> Any:
        """`config.task`."""

    def init_state(self, trainable: PyTree) -> PyTree:
        """State that a run carries beside the optimizer's; {} if there is none."""

    def state_shardings(self, state: PyTree) -> PyTree:
        """The placement of such a state's leaves on the mesh."""

    def begin(
        self,
        state: PyTree,
        trainable: PyTree,
        merge: Callable[[PyTree], Any],
        batch: Batch,
        step: Array,
    ) -> tuple[Any, PyTree]:
        """Arguments of `loss` beside the batch, without a gradient, and the next state.

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
        """Of an empty state, nothing."""
        return {}

    def begin(self, state: PyTree, *of_step: Any) -> tuple[Any, PyTree]:
        """Nothing to do."""
        return None, state


class Runnable(Protocol):
    """A run as programs know it; its arrays may be shapes alone, as in a plan."""

    @property
    def config(self) -> ConfigDict: ...

    @property
    def mesh(self) -> Mesh: ...

    @property
    def partition(self) -> Partition: ...

    @property
    def task(self) -> Any: ...

    @property
    def model_config(self) -> Any: ...


class Subject(Runnable, Protocol):
    """The run that is evaluated, as evaluators know it.

    Attributes:
      eval_batch: clips of a batch, over all devices.
      identity: what training depends on, flat.
    """

    @property
    def data(self) -> Splits: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def eval_batch(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def clip_batches(self, records: Records) -> Iterator[Mapping[str, Any]]: ...


class Evaluator(Protocol):
    """Evaluation as the training loop and a run call it."""

    def __call__(self, trainable: PyTree, records: Records) -> dict[str, Any]:
        """{"metrics": {group: {name: value}}, ...}, equal on all processes."""


class Program(NamedTuple):
    """A compiled part of an evaluation, for `plan`.

    Attributes:
      function: the jitted function that a run calls with (trainable, frozen, *given).
      given: shapes of what it is given beside the weights, by kind and in order, placed on the
        mesh.
    """

    function: Any
    given: Callable[[], dict[str, PyTree]]


class Samples(Protocol):
    """Samples to train on and to be measured by: captions, or questions with answers."""

    unit: str
    texts: tuple[str, ...]  # read by the model in any split; see `data.tokenizers.truncation`
    train_texts: tuple[str, ...]  # read in training only

    def steps_per_epoch(self, records: Records, config: ConfigDict) -> int:
        """Whole batches of an epoch; `UserError` where the split fills none."""

    def train_batches(
        self, records: Records, tokenizer: Any, config: ConfigDict, **options: Any
    ) -> Iterator[Mapping[str, Any]]:
        """Host batches without end; options as of `data.loading.pipeline.train_batches`."""

    def batch_shapes(self, config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global training batch's arrays beside the frames."""

    def facts(self, config: ConfigDict, train: Records | None) -> Any:
        """Facts beside config and records that training depends on, as JSON; None if none."""

    def check_lengths(self, config: ConfigDict, positions: int) -> None:
        """Raises `UserError` for texts of the samples longer than the backbone's positions."""

    def check_training(self, config: ConfigDict, train: Records, field: str) -> None:
        """Raises `UserError` for a split that cannot be trained on; `field` named it."""

    def check_evaluation(
        self, config: ConfigDict, records: Records, field: str, *, selects: bool
    ) -> None:
        """Raises `UserError` for a split that cannot be measured, or cannot select."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task by name.

    Attributes:
      name: as `config.task.name`.
      families: names of the backbones that it can train, keys of `weights.families.FAMILIES`.
      tag: what people search for on the hub.
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
      samples: what it trains on.
      evaluator: for a run, and the directory that keeps what a long evaluation has done.
      programs: {name: what an evaluation compiles}, in the order in which it runs.
      also: further scores that `config.eval.also` may ask for.
      several_captions: whether a clip of a batch may have several captions.
      enters_prefix: whether it trains from what is known of frames and texts (`config.data.cache`).
      whole_losses: {loss from blocks, some of them computed twice: the same from whole logits}.
    """

    name: str
    families: tuple[str, ...]
    tag: str
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
    samples: Samples
    evaluator: Callable[[Subject, pathlib.Path | None], Evaluator]
    programs: Callable[[Runnable], dict[str, Program]]
    also: tuple[str, ...] = ()
    several_captions: bool = False
    enters_prefix: bool = False
    whole_losses: Mapping[str, str] = dataclasses.field(default_factory=dict)


def place_state(task: Task, trainable: PyTree, mesh: Mesh) -> PyTree:
    """The first state of a task, on the mesh."""
    state = jax.eval_shape(task.init_state, trainable)
    if not jax.tree.leaves(state):
        return state
    shardings = task.state_shardings(state)
    return jax.jit(task.init_state, out_shardings=shardings)(trainable)


def step_shardings(task: Task, trainable: PyTree, mesh: Mesh) -> tuple[Any, ...]:
    """Placements of a training step's results: trainables, both states, metrics."""
    everywhere = meshes.replicated(mesh)
    state = jax.eval_shape(task.init_state, trainable)
    return everywhere, everywhere, task.state_shardings(state), everywhere
