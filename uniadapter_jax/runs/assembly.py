"""Builds everything a run needs from a config: backbone, method, task, data, mesh, optimizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniadapter_jax import config as configs
from uniadapter_jax.adapters.partition import Partition, partition
from uniadapter_jax.adapters.registry import Method, get_method
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.data.loading.pipeline import Batch, clip_batches
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.splits import Splits, open_splits
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.attention import tried_form
from uniadapter_jax.parallel.sharding import Weights
from uniadapter_jax.runs import identity as identities
from uniadapter_jax.runs import preflight
from uniadapter_jax.runs.backbone import load
from uniadapter_jax.runs.initial import begin_from
from uniadapter_jax.runs.prefix import Prefix, checked_entries
from uniadapter_jax.runs.tokenizer import choose
from uniadapter_jax.tasks.base import Setting, Task
from uniadapter_jax.tasks.registry import Kind, get_task
from uniadapter_jax.training import accumulation
from uniadapter_jax.training.optimizers import make_optimizer


@dataclasses.dataclass
class Experiment:
    """All that a run is built from; training is then pure functions over `partition`'s arrays.

    Only `partition` has arrays of the backbone: those that were loaded are let go once it has put
    them on the devices.

    Attributes:
      fingerprint: of the backbone.
      initial: of the adapter that training begins from, None without one.
      model_config: the backbone's config, of the family that the task needs.
      prefix: the cache that training reads in place of frames and words.
    """

    config: ConfigDict
    mesh: Mesh
    method: Method
    fingerprint: str
    model_config: Any
    partition: Partition
    kind: Kind
    task: Task
    data: Splits
    tokenizer: Tokenizer
    tokenizer_directory: str
    initial: str | None
    total_steps: int
    epoch_steps: int
    optimizer: optax.GradientTransformation | None
    prefix: Prefix | None = None

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, Any]]:
        """This process' rows of the global training batches from `start_step` on, without end."""
        assert self.data.train is not None
        size = self.config.train.batch_size
        return self.kind.samples.train_batches(
            self.data.train,
            self.tokenizer,
            self.config,
            image_size=self.model_config.image_size,
            global_batch=size,
            seed=self.config.seed,
            start_step=start_step,
            rows=meshes.rows_of_process(self.mesh, size),
            **({} if self.prefix is None else {"known": self.prefix.cache}),
        )

    def clip_batches(self, records: Records) -> Iterator[Batch]:
        """This process' rows of batches of `eval_batch` clips: every clip once, in order."""
        return clip_batches(
            records,
            self.config.data,
            image_size=self.model_config.image_size,
            global_batch=self.eval_batch,
            rows=meshes.rows_of_process(self.mesh, self.eval_batch),
        )

    @property
    def eval_batch(self) -> int:
        """Clips of an evaluation batch: the config's, rounded up so that the mesh divides it."""
        return meshes.round_up(self.mesh, self.config.eval.batch_size)

    @property
    def measured(self) -> Records:
        """The split that the result is measured on."""
        return self.data.named()[self.config.eval.split]

    @property
    def identity(self) -> dict[str, Any]:
        """The values that training depends on, flat; a resumed run must agree in all of them."""
        return identities.training(self.config, self._facts)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The further values that the evaluation of the trained run depends on, flat."""
        return identities.evaluation(self.config, self._facts)

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        data = self.data
        facts = self.kind.samples.facts(self.config, data.train)
        return {
            "backbone": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "method.version": self.method.version,
            "steps": self.total_steps,
            "data.records": None if data.train is None else data.train.fingerprint,
            "data.validation": None if data.val is None else data.val.fingerprint,
            "data.test": self.measured.fingerprint,
            "initial": self.initial,
            "answers": None if facts is None else identities.digest(facts),
        }


def build(config: ConfigDict) -> Experiment:
    """Builds the experiment; settings that do not fit are an error here, before the first step."""
    config = configs.validate(config)
    mesh = meshes.make_mesh(config.mesh)
    method, kind = get_method(config.method.name), get_task(config.task.name)
    data = open_splits(config, trains=method.trainable is not None)
    preflight.check_evaluation(config, data)
    preflight.check_patience(config)
    with meshes.on_host():  # unsharded weights need not fit on a device
        config, backbone = load(config, kind)
        model_config = backbone.model.config
        preflight.check_lengths(config, model_config)
        parameters = attach_method(backbone.model, config)
        entries = checked_entries(config, kind, method, backbone.model)
    config, tokenizer, tokenizer_directory = choose(config, backbone)
    fingerprint, initial = backbone.fingerprint, None
    if config.init_from:
        parameters.trainable, initial = begin_from(config, parameters.trainable, fingerprint)
    del backbone  # so that no float32 copy outlives the frozen arrays below
    parameters.trainable = meshes.put_replicated(parameters.trainable, mesh)
    parameters.weights = Weights.of(config.mesh, mesh, model_config)
    parameters.fused = tried_form(config.compute.attention, mesh)
    parameters.frozen = parameters.weights.put(parameters.frozen)
    epoch_steps, total_steps, optimizer = 0, 0, None
    if data.train is not None:
        meshes.check_divides(mesh, config.train.batch_size, "train.batch_size")
        epoch_steps = count_steps(config, kind, data.train)
        total_steps = config.train.steps or config.train.epochs * epoch_steps
        preflight.check_steps(config, total_steps)
        optimizer = make_optimizer(config.optimizer, total_steps, parameters.trainable, epoch_steps)
    batch_size = config.train.batch_size if data.train is not None else 0
    setting = Setting(config.task, mesh, model_config, batch_size, epoch_steps)
    task = kind.make(setting)
    accumulation.check(task, mesh, batch_size, config.train.accumulation)
    experiment = Experiment(
        config=config,
        mesh=mesh,
        method=method,
        fingerprint=fingerprint,
        model_config=model_config,
        partition=parameters,
        kind=kind,
        task=task,
        data=data,
        tokenizer=tokenizer,
        tokenizer_directory=tokenizer_directory,
        initial=initial,
        total_steps=total_steps,
        epoch_steps=epoch_steps,
        optimizer=optimizer,
    )
    experiment.prefix = Prefix(experiment, entries, experiment._facts) if entries else None
    return experiment


def count_steps(config: ConfigDict, kind: Kind, train: Records) -> int:
    """Steps of an epoch; raises `UserError` if the split is unfit, or too small for a batch."""
    preflight.check_training(config, train)
    return kind.samples.steps_per_epoch(train, config)


def attach_method(model: Any, config: ConfigDict) -> Partition:
    """Attaches the config's method to a backbone, and splits off the arrays that it trains.

    Raises `UserError` where the method does not fit, or leaves texts no room.
    """
    method = get_method(config.method.name)
    method.attach(model, config.method, generator(config.seed, "adapters"))
    preflight.check_room(config, model)
    return partition(model, method.filter(config.method), config.compute.dtype)
