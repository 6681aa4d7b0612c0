"""A run of shapes alone: the programs of `main`, lowered for devices that need not be there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.two_towers import fastest_chunks
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.attention import fused_form
from uniadapter_jax.parallel.sharding import Weights
from uniadapter_jax.runs.assembly import attach_method
from uniadapter_jax.runs.preflight import check_lengths
from uniadapter_jax.tasks.base import Program, Setting
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.training import accumulation
from uniadapter_jax.training.optimizers import lr_schedule, make_optimizer
from uniadapter_jax.training.step import Step, make_step
from uniadapter_jax.weights.families import Config, family_of

TRAIN = "train step"
OPTIMIZER, TASK = "optimizer state", "task's state"
# Of the run and of an epoch, where the program needs a number.
_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """Built like an `Experiment`, but every array is a shape; `optimizer` is None for zero-shot."""

    config: ConfigDict
    model_config: Config
    mesh: Mesh
    partition: Partition
    optimizer: optax.GradientTransformation | None

    @property
    def task(self) -> Any:
        """The config's."""
        size = self.config.train.batch_size if self.optimizer is not None else 0
        setting = Setting(self.config.task, self.mesh, self.model_config, size, _STEPS)
        return get_task(self.config.task.name).make(setting)

    @functools.cached_property
    def evaluation(self) -> dict[str, Program]:
        """{name: program} of what the run is evaluated by, in order."""
        return get_task(self.config.task.name).programs(self)

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of what a run compiles."""
        train = () if self.optimizer is None else (TRAIN,)
        return (*train, *self.evaluation)

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch of the training step."""
        data, size = self.config.data, self.model_config.image_size
        clips = self.config.train.batch_size
        batch = {
            "frames": jax.ShapeDtypeStruct((clips, data.frames, size, size, 3), jnp.uint8),
            "frame_mask": jax.ShapeDtypeStruct((clips, data.frames), jnp.bool_),
        }
        batch.update(get_task(self.config.task.name).samples.batch_shapes(self.config))
        return {**batch, "item": jax.ShapeDtypeStruct((clips,), jnp.int32)}

    @property
    def state(self) -> dict[str, PyTree]:
        """What a run keeps from step to step beside the weights, by kind, placed on the mesh."""
        if self.optimizer is None:
            return {OPTIMIZER: {}, TASK: {}}
        moments = jax.eval_shape(self.optimizer.init, self.partition.trainable)
        kept = jax.eval_shape(self.task.init_state, self.partition.trainable)
        return {
            OPTIMIZER: meshes.placed(moments, meshes.replicated(self.mesh)),
            TASK: jax.tree.map(meshes.placed, kept, self.task.state_shardings(kept)),
        }

    def arguments(self, program: str) -> dict[str, PyTree]:
        """What the program is given, by kind and in order, with its place on the mesh."""
        trained = meshes.placed(self.partition.trainable, meshes.replicated(self.mesh))
        assert self.partition.weights is not None
        frozen = self.partition.frozen
        frozen = jax.tree.map(meshes.placed, frozen, self.partition.weights.shardings(frozen))
        parts = {"trained weights": trained, "frozen weights": frozen}
        if program != TRAIN:
            return {**parts, **self.evaluation[program].given()}
        batch = meshes.placed(self.batch, meshes.batch_sharding(self.mesh))
        return {"trained weights": trained, **self.state, **parts, "batch": batch}

    @functools.cached_property
    def plain(self) -> AbstractRun:
        """The run on one device, with nothing computed twice to save memory or traffic."""
        config = self.config.copy_and_resolve_references()
        config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
        config.compute.remat, config.compute.attention = "none", "xla"
        config.train.accumulation = 1
        whole = get_task(config.task.name).whole_losses.get(config.task.get("loss"))
        if whole:
            config.task.loss = whole
        (device, *_) = self.mesh.devices.flat
        mesh = meshes.make_mesh(config.mesh, [device])
        return build(config, self.model_config, mesh, device.platform)

    @functools.cached_property
    def step(self) -> Step:
        """The training step, with a schedule of any length: that is no part of the program."""
        assert self.optimizer is not None
        return make_step(
            self.task,
            self.partition,
            self.optimizer,
            self.mesh,
            self.config.seed,
            self.config.train.accumulation,
            lr_schedule(self.config.optimizer, _STEPS, _STEPS),
        )

    def trace(self, program: str, arguments: Iterable[PyTree]) -> jax.stages.Traced:
        """The program as a jaxpr, for arguments like its own."""
        if program != TRAIN:
            return self.evaluation[program].function.trace(*arguments)
        return self.step.trace(*arguments, np.int32(0))

    def lower(self, program: str) -> jax.stages.Lowered:
        """The program as `main` would start it."""
        return self.trace(program, self.arguments(program).values()).lower()


def build(config: ConfigDict, backbone: Config, mesh: Mesh, platform: str) -> AbstractRun:
    """The run that `config` describes, as shapes.

    Raises:
      UserError: the method does not fit the backbone, texts are longer than it reads, or the batch
        cannot be accumulated so.
    """
    check_lengths(config, backbone)
    part = abstract_partition(config, backbone, platform)
    part.weights = Weights.of(config.mesh, mesh, backbone)
    part.fused = fused_form(config.compute.attention, mesh)
    optimizer = None
    if get_method(config.method.name).trainable is not None:
        optimizer = make_optimizer(config.optimizer, _STEPS, part.trainable)
    run = AbstractRun(config, backbone, mesh, part, optimizer)
    accumulation.check(run.task, mesh, config.train.batch_size, config.train.accumulation)
    return run


def abstract_partition(config: ConfigDict, backbone: Config, platform: str) -> Partition:
    """The config's method on a backbone of these sizes; every array is a shape."""
    made: list[Partition] = []
    family = family_of(backbone)
    options = {name: config.compute[name] for name in family.options}
    if "frame_chunks" in options:
        options["frame_chunks"] = options["frame_chunks"] or fastest_chunks(
            backbone.vision.width, platform
        )

    def make() -> tuple[PyTree, PyTree]:
        model = family.model(backbone, rng=None, **options)
        made.append(attach_method(model, config))
        return made[0].trainable, made[0].frozen

    trainable, frozen = jax.eval_shape(make)
    return dataclasses.replace(made[0], trainable=trainable, frozen=frozen)
