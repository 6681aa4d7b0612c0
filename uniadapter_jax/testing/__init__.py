"""Functions for people who port weights or compare with another implementation.

They compute what a PyTorch reference computes on a batch, and return it as float32 NumPy arrays
under the reference's own tensor names:

    model = uniadapter_jax.load_model("made/", "made/adapter")    # from `convert`
    losses, grads = loss_and_grads(model, batch, "retrieval")
    after = recipe_steps(model, batches, {"lr": 1e-3, "total_steps": 20}, n=3)

Tasks are those of a run: `retrieval` for CLIP and SigLIP, `matching` and `vqa` for BLIP. The two
halves of matching's loss can be computed alone: `itc` (contrastive) and `itm` (matching).

A batch has arrays or anything that becomes one; `testing.batches` describes those of BLIP:

    frames      "b f H W 3"   normalised floats, or uint8
    frame_mask  "b f"         False where a clip has ended; default: no clip has
    text        "b l"         ids with BOS and EOS
    item        "b"           number of the clip that a row shows; default: all rows differ

`reference_batch` makes one from PyTorch's layout. Features and similarities are the model's
methods.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import count, flat_names
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.common.randomness import stream
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.config import base_config
from uniadapter_jax.config.rules import RANGES, multipliers
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.blip_model import AdaptedBLIP
from uniadapter_jax.inference.model import AdaptedModel
from uniadapter_jax.inference.options import check_option, of_section
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Setting, place_state
from uniadapter_jax.tasks.matching.losses import average
from uniadapter_jax.tasks.matching.task import Negatives
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.testing.batches import (
    candidate_ids,
    clip_fields,
    device_batch,
    question_ids,
    reference_batch,
)
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step
from uniadapter_jax.weights.families import FAMILIES, family_of
from uniadapter_jax.weights.names import cma as cma_names
from uniadapter_jax.weights.names import uniadapter as uniadapter_names

__all__ = [
    "loss_and_grads",
    "momentum_update",
    "official_names",
    "rank_scores",
    "recipe_steps",
    "reference_batch",
    "trained_counts",
]

Model = AdaptedModel | AdaptedBLIP
_PARTS = ("itc", "itm")  # the halves of matching's loss
Task = str | Mapping[str, Any]


def loss_and_grads(
    model: Model,
    batch: Mapping[str, Any],
    task: Task = "retrieval",
    *,
    deterministic: bool = True,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The losses of a batch, and the gradient of every trained tensor by its official name.

    The gradient is that of `loss`; `matching` also has its parts `itc` and `itm`.

    Args:
      task: name of a task, or fields of `config.task` (such as {"similarity": "mean_pool"}); other
        fields are the model's own, else the defaults.
      deterministic: without dropout; otherwise `seed` draws it, and negatives that are missing.
    """
    name, options = _task(model, task)
    part = model.partition
    arguments.flag(deterministic, "deterministic")
    arguments.whole(seed, "seed", 0)
    arrays = device_batch(batch, options.name, model.config)
    if deterministic and name in ("matching", "itm") and arrays["negatives"] is None:
        raise UserError(f"{name} without dropout draws nothing: give the batch its 'negatives'")
    key = None if deterministic else stream(seed, "dropout")
    gradient = _gradient(model, name, options)
    (_, values), grads = gradient(part.trainable, part.frozen, arrays, key)
    losses = {name: float(value) for name, value in values.items()}
    return losses, official_names(model.method, grads)


# Compiled functions by model and task; those of deleted models are dropped.
_COMPILED: weakref.WeakKeyDictionary[Model, dict[str, Any]] = weakref.WeakKeyDictionary()


def _gradient(model: Model, name: str, options: ConfigDict) -> Any:
    known = _COMPILED.setdefault(model, {})
    called = f"{name} {options.to_json(sort_keys=True)}"
    if called not in known:
        part, built = model.partition, _make(model, options)

        def loss(trainable: PyTree, frozen: PyTree, batch: Any, key: Any) -> tuple[Array, Any]:
            merged = part.merge(trainable, frozen)
            if options.name != "matching":
                value, _ = built.loss(merged, batch, key)
                return value, {"loss": value}
            pairs = dict(batch)
            given, negatives = pairs.pop("given"), pairs.pop("negatives")
            if name == "itc" and negatives is None:
                # Placeholders: the compiler removes whatever is computed from them.
                first = jnp.zeros(len(pairs["item"]), jnp.int32)
                negatives = Negatives(first, first == 0, first, first == 0)
            value, metrics = built.loss(merged, pairs, key, given, negatives)
            parts = {part: metrics[part] for part in _PARTS}
            if name in _PARTS:
                return parts[name], {"loss": parts[name], name: parts[name]}
            return value, {"loss": value, **parts}

        known[called] = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return known[called]


def _make(model: Model, options: ConfigDict, batch_size: int = 0, epoch_steps: int = 0) -> Any:
    setting = Setting(options, meshes.one_device(), model.config, batch_size, epoch_steps)
    return get_task(options.name).make(setting)


def momentum_update(
    model: Model, averaged: Mapping[str, Any], factor: float
) -> dict[str, np.ndarray]:
    """factor * averaged + (1 - factor) * the model's trained tensors, by official name.

    This is one step of our average. UniAdapter's own code applies it twice per step, with the same
    `factor`, to the adapters of layers, and once to the rest; to compare, call it again for these.
    """
    _check_model(model)
    now = official_names(model.method, model.partition.trainable)
    factor = arguments.real(factor, "factor", 0.0, 1.0)
    if not isinstance(averaged, Mapping):
        raise UserError(f"averaged: tensors by name are meant, not {type(averaged).__name__}")
    if set(averaged) != set(now):
        wrong = sorted(map(str, set(averaged) ^ set(now)))
        raise UserError(f"averaged tensors are not those that train: {', '.join(wrong)}")
    old = {}
    for name, value in now.items():
        axes = " ".join(f"n{i}" for i in range(value.ndim))
        old[name] = jnp.asarray(arguments.floats(averaged[name], name, axes, value.shape))
    new = average(old, {name: jnp.asarray(value) for name, value in now.items()}, factor)
    return {name: np.asarray(value) for name, value in new.items()}


def rank_scores(
    model: AdaptedBLIP,
    batch: Mapping[str, Any],
    candidates: Any,
    task: Task = "vqa",
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of `candidates`, their scores) for every question, best first: "b k" each.

    Args:
      batch: frames, question and, if clips end, frame_mask.
      candidates: "n a", [DEC] first, [SEP] last, then 0.
      task: fields of `config.task` such as {"rank_k": 3, "rank_smoothing": 0.0}. The result has
        `rank_k` answers per question, and is empty without candidates or questions.
    """
    named = {"name": "vqa", **task} if isinstance(task, Mapping) else task
    name, options = _task(model, named)
    if name != "vqa":
        raise UserError(f"rank_scores ranks answers to questions, task 'vqa', not {name!r}")
    options.top_answers = options.rank_k
    built = _make(model, options)
    if not isinstance(batch, Mapping):
        raise UserError(f"a batch is a mapping of fields, not {type(batch).__name__}")
    fields = ("frames", "frame_mask", "question")
    for field in batch:
        if field not in fields:
            raise UserError(unknown("the batch", str(field), fields))
    for field in ("frames", "question"):
        if field not in batch:
            raise UserError(f"the batch has no {field!r}; ranking needs it")
    arrays = clip_fields(batch, model.config)
    asked = question_ids(batch["question"], "question", model.config)
    arguments.check_shape(asked, "question", "b l", (len(arrays["frames"]), None))
    rows = candidate_ids(candidates, model.config)
    if not len(rows) or not len(asked):
        shape = (len(asked), min(options.rank_k, len(rows)))
        return np.empty(shape, np.int32), np.empty(shape, np.float32)
    arrays["question"] = jnp.asarray(asked)
    part = model.partition

    @jax.jit
    def rank(trainable: PyTree, frozen: PyTree) -> tuple[Array, Array]:
        merged = part.merge(trainable, frozen)
        clips = built.encode_clips(merged, arrays)
        return built.rank(merged, clips, arrays["question"][:, None], jnp.asarray(rows))

    best, scores = rank(part.trainable, part.frozen)
    return np.asarray(best), np.asarray(scores)


def trained_counts(model: Model) -> dict[str, int]:
    """{trained, as_released}: the number of parameters that train here, and in the authors' code.

    They differ for UniAdapter in BLIP. In the authors' code LN_x never trains; here an option of
    the method decides, which `convert` sets for a file whose LN_x is not (1, 0). For questions the
    authors' code has a second set of adapters for the decoder, which counts but is never called.
    """
    _check_model(model)
    ours = flat_names(model.partition.trainable)
    trained = released = count(model.partition.trainable)
    if model.method == "uniadapter" and uniadapter_names.is_known(ours):
        sizes = {name: leaf.size for name, leaf in ours.items()}
        frozen = [name for name in ours if uniadapter_names.is_cross_norm(name)]
        released -= sum(sizes[name] for name in frozen)
        if any(name.startswith("decoder.") for name in ours):
            of_layers = filter(uniadapter_names.of_layers, set(ours) - set(frozen))
            released += sum(sizes[name] for name in of_layers)
    return {"trained": trained, "as_released": released}


def recipe_steps(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    n: int,
    task: Task = "retrieval",
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The trained tensors after `n` steps of the real training step, by official name.

    Args:
      batches: at least `n` of them, one for each step.
      recipe: fields of `config.optimizer` over its defaults (recipe, lr, weight_decay, warmup,
        clip_norm), and `total_steps` of the full schedule (default: `n`).
      seed: seed of dropout, if there is any, and of negatives.

    `model` is not changed.
    """
    arguments.whole(n, "n", 0)
    arguments.whole(seed, "seed", 0)
    options, total = _recipe(recipe, n)
    name, kind = _task(model, task)
    if name in _PARTS:
        raise UserError(f"recipe_steps trains on whole tasks; {name} is a part of 'matching'")
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise UserError(f"batches: several of them are meant, not a {type(batches).__name__}")
    arrays = [_of_step(batch, kind.name, model) for batch in itertools.islice(batches, n)]
    if len(arrays) < n:
        raise UserError(f"recipe_steps: {n} steps, but only {len(arrays)} batches")
    if len(sizes := {len(batch["frames"]) for batch in arrays}) > 1:
        raise UserError(f"recipe_steps: batches of several sizes, {sorted(sizes)}")
    mesh = meshes.one_device()
    part = model.partition
    built = _make(model, kind, len(arrays[0]["frames"]) if arrays else 0, n)
    optimizer = make_optimizer(options, total, part.trainable)
    step_fn = make_step(built, part, optimizer, mesh, seed)
    trainable = jax.tree.map(jnp.copy, part.trainable)  # the step takes its arguments' memory
    state = init_opt_state(optimizer, trainable, mesh)
    task_state = place_state(built, trainable, mesh)
    for step, batch in enumerate(arrays):
        trainable, state, task_state, _ = step_fn(
            trainable, state, task_state, part.frozen, batch, np.int32(step)
        )
    return official_names(model.method, trainable)


def _recipe(recipe: Mapping[str, Any], n: int) -> tuple[ConfigDict, int]:
    """(`config.optimizer`, steps of the full schedule)."""
    if not isinstance(recipe, Mapping):
        raise UserError(f"recipe: fields by name are meant, not {type(recipe).__name__}")
    settings = dict(recipe)
    total = arguments.whole(settings.pop("total_steps", max(n, 1)), "recipe.total_steps", 1)
    if n > total:
        raise UserError(f"recipe_steps: {n} steps of a schedule of {total}")
    options, ranges = base_config().optimizer, of_section(RANGES, "optimizer")
    for name, value in settings.items():
        if name not in options:
            raise UserError(unknown("recipe", str(name), [*options, "total_steps"]))
        if name == "lr_multipliers":
            options[name] = multipliers(value)
        else:
            options[name] = check_option(f"recipe.{name}", value, options[name], ranges, {})
    return options, total


def _of_step(batch: Mapping[str, Any], kind: str, model: Model) -> dict[str, Array]:
    """The fields that a training step reads; it makes momentum's features and negatives itself."""
    if isinstance(batch, Mapping):
        for what, fields in (
            ("given", ("momentum", "queue", "alpha")),
            ("negatives", ("negatives",)),
        ):
            if any(batch.get(field) is not None for field in fields):
                raise UserError(
                    f"recipe_steps: a step makes its own {what}; leave them out of batches"
                )
    arrays = device_batch(batch, kind, model.config)
    return {name: value for name, value in arrays.items() if name not in ("given", "negatives")}


def official_names(method: str, tree: PyTree) -> dict[str, np.ndarray]:
    """A tree like a method's trainables (values, gradients) under the authors' tensor names.

    For Cross-Modal Adapter these are the names in released checkpoints, with the prefix `clip.`;
    for UniAdapter in BLIP also, each adapter once, as `adapters.{i}`. What the authors' code lacks
    keeps our dotted paths: a method without a reference, a Cross-Modal Adapter with a decoder, a
    down-projection of UniAdapter that is not shared.
    """
    if not isinstance(method, str):
        raise UserError(f"method: a name is meant, not {type(method).__name__}")
    get_method(method)
    leaves = jax.tree.leaves(tree)
    if not isinstance(tree, Mapping) or not all(hasattr(leaf, "shape") for leaf in leaves):
        raise UserError(f"tree: arrays by name are meant, as {method}'s trainables have them")
    try:
        ours = {name: np.asarray(leaf, np.float32) for name, leaf in flat_names(tree).items()}
        if method == "cross_modal_adapter" and cma_names.is_known(ours):
            official = cma_names.to_official(ours)
            return {f"{cma_names.PREFIX}{name}": tensor for name, tensor in official.items()}
        if method == "uniadapter" and uniadapter_names.is_known(ours):
            return uniadapter_names.to_official(ours)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"tree is not one of {method}'s trainables: {error!r}") from error
    return ours


def _check_model(model: Any) -> None:
    if not isinstance(model, AdaptedModel | AdaptedBLIP):
        raise UserError(f"model: what load_model gives is meant, not {type(model).__name__}")


def _task(model: Model, task: Task) -> tuple[str, ConfigDict]:
    """(the name in `task`, `config.task`); for a half of matching's loss these differ."""
    _check_model(model)
    if not isinstance(task, str | Mapping):
        raise UserError(f"task: a name or fields are meant, not {type(task).__name__}")
    fields = {"name": task} if isinstance(task, str) else dict(task)
    name = fields.pop("name", "retrieval" if isinstance(model, AdaptedModel) else "matching")
    if not isinstance(name, str):
        raise UserError(f"task: its name is a string, not {name!r}")
    kind = get_task("matching" if name in _PARTS else name)
    family = family_of(model.config)
    if not any(family is FAMILIES[fitting] for fitting in kind.families):
        needed = " or a ".join(kind.families)
        raise UserError(f"the task {name} needs a {needed}, the model is a {family.title}")
    options = ConfigDict({"name": kind.name, **kind.options})
    for field in set(kind.options) & set(model.task):
        options[field] = model.task[field]
    for field, value in fields.items():
        if field not in kind.options:
            raise UserError(unknown("task", str(field), kind.options))
        usual = kind.options[field]
        options[field] = check_option(f"task.{field}", value, usual, kind.ranges, kind.choices)
    return name, options
