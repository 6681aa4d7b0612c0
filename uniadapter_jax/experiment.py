"""From a config to everything a run needs: backbone, method, task, data, mesh, optimizer."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniadapter_jax import config as configs
from uniadapter_jax import mesh as meshes
from uniadapter_jax.adapters import Method, get_method
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.data.pipeline import steps_per_epoch
from uniadapter_jax.data.records import Records, carve_validation, open_records
from uniadapter_jax.data.text import Tokenizer, load_tokenizer
from uniadapter_jax.errors import UserError
from uniadapter_jax.optimizers import make_optimizer
from uniadapter_jax.partition import Partition, partition
from uniadapter_jax.randomness import generator
from uniadapter_jax.tasks.retrieval import Retrieval
from uniadapter_jax.weights.directory import TOKENIZER_FILES, Backbone, load_clip


@dataclasses.dataclass
class Data:
    """The parts of the data set; `val` is None unless `config.data.val` carves one."""

    train: Records | None
    val: Records | None
    test: Records


@dataclasses.dataclass
class Experiment:
    """Built once; everything after it is pure functions over `partition`'s arrays."""

    config: ConfigDict
    mesh: Mesh
    method: Method
    backbone: Backbone
    partition: Partition
    task: Retrieval
    data: Data
    tokenizer: Tokenizer
    tokenizer_directory: str
    total_steps: int
    epoch_steps: int
    optimizer: optax.GradientTransformation | None

    @property
    def model_config(self) -> CLIPConfig:
        """The backbone's config."""
        return self.backbone.model.config

    @property
    def eval_batch(self) -> int:
        """Clips of an evaluation batch: the config's, rounded up to what the mesh divides."""
        return meshes.round_up(self.mesh, self.config.eval.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, flat; a resumed run must agree in all of it."""
        config = self.config
        train = self.data.train
        identity = {
            "backbone": self.backbone.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "method.version": self.method.version,
            "data.records": None if train is None else train.fingerprint,
            "data.test": self.data.test.fingerprint,
            "steps": self.total_steps,
            "seed": config.seed,
            "batch_size": config.train.batch_size,
            "dtype": config.compute.dtype,
            "selection": config.selection,
            "selection_metric": config.selection_metric,
            **_flat("method", config.method),
            **_flat("task", config.task),
            **_flat("optimizer", config.optimizer),
            **{
                f"data.{name}": config.data[name]
                for name in ("frames", "words", "captions", "augment", "val")
            },
        }
        return json.loads(json.dumps(identity))  # as it will be read back: tuples become lists


def _flat(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in options.items()}


def build(config: ConfigDict) -> Experiment:
    """Loads and attaches everything; every misfit is an error before the first step."""
    config = configs.validate(config)
    mesh = meshes.make_mesh(config.mesh)
    method = get_method(config.method.name)
    data = _open_data(config, trains=method.trainable is not None)
    backbone = _load_backbone(config)
    tokenizer, tokenizer_directory = _choose_tokenizer(config, backbone)
    part = attach_method(backbone.model, config)
    part.trainable = meshes.put_replicated(part.trainable, mesh)
    part.frozen = meshes.put_replicated(part.frozen, mesh)
    epoch_steps, total_steps, optimizer = 0, 0, None
    if data.train is not None:
        meshes.check_divides(mesh, config.train.batch_size, "train.batch_size")
        epoch_steps = steps_per_epoch(data.train, config.data.captions, config.train.batch_size)
        total_steps = config.train.steps or config.train.epochs * epoch_steps
        optimizer = make_optimizer(config.optimizer, total_steps, part.trainable)
    return Experiment(
        config=config,
        mesh=mesh,
        method=method,
        backbone=backbone,
        partition=part,
        task=Retrieval(config.task, mesh),
        data=data,
        tokenizer=tokenizer,
        tokenizer_directory=tokenizer_directory,
        total_steps=total_steps,
        epoch_steps=epoch_steps,
        optimizer=optimizer,
    )


def attach_method(model: Any, config: ConfigDict) -> Partition:
    """Attaches the config's method to a backbone, and splits off what it trains."""
    method = get_method(config.method.name)
    method.attach(model, config.method, generator(config.seed, "adapters"))
    return partition(model, method.trainable, config.compute.dtype)


def _open_data(config: ConfigDict, *, trains: bool) -> Data:
    options = config.data
    if not options.records:
        raise UserError("config.data.records is empty: the directory that prepare wrote")
    test = open_records(options.records, options.test_split)
    train = open_records(options.records, options.train_split)
    val = None
    if options.val:
        train, val = carve_validation(train, options.val)
    return Data(train if trains else None, val, test)


def _load_backbone(config: ConfigDict) -> Backbone:
    if not config.backbone:
        raise UserError("config.backbone is empty: a directory, or random:<config.json>")
    return load_clip(
        config.backbone,
        seed=config.seed,
        dtype=config.compute.dtype,
        remat=config.compute.remat,
        frame_chunks=config.compute.frame_chunks,
    )


def _choose_tokenizer(config: ConfigDict, backbone: Backbone) -> tuple[Tokenizer, str]:
    """The named directory's, else the backbone's, else the one trained on the records."""
    candidates = [config.tokenizer] if config.tokenizer else []
    if not config.tokenizer and not backbone.source.startswith("random:"):
        candidates.append(backbone.source)
    if not config.tokenizer:
        candidates.append(str(pathlib.Path(config.data.records) / "tokenizer"))
    present = [
        c for c in candidates if any((pathlib.Path(c) / f).is_file() for f in TOKENIZER_FILES)
    ]
    if not present:
        raise UserError(
            f"no tokenizer files in {', '.join(candidates)}; pass --config.tokenizer=DIR, or make "
            "one with `python -m uniadapter_jax.prepare ... --train-tokenizer N`"
        )
    tokenizer = load_tokenizer(present[0])
    size, eos = backbone.model.config.vocab_size, backbone.model.config.eos_id
    if tokenizer.vocab_size > size:
        raise UserError(
            f"{present[0]} has {tokenizer.vocab_size} tokens, the backbone {config.backbone} "
            f"embeds {size}"
        )
    if eos != 2 and tokenizer.eos_id != eos:
        raise UserError(
            f"EOS is {tokenizer.eos_id} in {present[0]}, but {eos} in the config of "
            f"{config.backbone}"
        )
    return tokenizer, present[0]
