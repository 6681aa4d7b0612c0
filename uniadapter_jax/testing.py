"""For people who port weights or compare with another implementation.

What a PyTorch reference computes on one batch, computed here, under the reference's own tensor
names, as float32 NumPy arrays:

    model = uniadapter_jax.load_model("made/", "made/adapter")    # from `convert`
    losses, grads = loss_and_grads(model, batch, "retrieval")
    after = recipe_steps(model, batches, {"lr": 1e-3, "total_steps": 20}, n=3)

A batch has arrays or anything that becomes one:

    frames      "b f H W 3"   normalised floats, or uint8
    frame_mask  "b f"         False where a clip has ended; left out: no clip has
    text        "b l"         ids with BOS and EOS
    item        "b"           which clip a row shows; left out: every row its own

`reference_batch` makes one of PyTorch's layout. Features and similarities are methods of the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax import mesh as meshes
from uniadapter_jax.config import base_config
from uniadapter_jax.errors import UserError, unknown
from uniadapter_jax.model import AdaptedModel
from uniadapter_jax.optimizers import make_optimizer
from uniadapter_jax.partition import flat_names
from uniadapter_jax.randomness import stream
from uniadapter_jax.step import init_opt_state, make_step
from uniadapter_jax.tasks.retrieval import Retrieval
from uniadapter_jax.types import Array, PyTree
from uniadapter_jax.weights import cma_names

Task = str | Mapping[str, Any]


def loss_and_grads(
    model: AdaptedModel,
    batch: Mapping[str, Any],
    task: Task = "retrieval",
    *,
    deterministic: bool = True,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The losses of a batch, and the gradient of every trained tensor by its official name.

    Args:
      task: name of a task, or fields of `config.task` (such as {"similarity": "mean_pool"}); what
        is not said is the model's own, else the default.
      deterministic: no dropout; otherwise `seed` draws it.
    """
    part = model.partition
    gradient = _gradient(model, _task(model, task))
    key = None if deterministic else stream(seed, "dropout")
    (value, _), grads = gradient(part.trainable, part.frozen, _device_batch(batch), key)
    return {"loss": float(value)}, official_names(model.method, grads)


# Compiled functions of the models that are alive, by task.
_COMPILED: weakref.WeakKeyDictionary[AdaptedModel, dict[str, Any]] = weakref.WeakKeyDictionary()


def _gradient(model: AdaptedModel, task: ConfigDict) -> Any:
    known = _COMPILED.setdefault(model, {})
    name = task.to_json(sort_keys=True)
    if name not in known:
        part, retrieval = model.partition, Retrieval(task, meshes.one_device())

        def loss(trainable: PyTree, frozen: PyTree, batch: Any, key: Any) -> tuple[Array, Any]:
            return retrieval.loss(part.merge(trainable, frozen), batch, key)

        known[name] = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return known[name]


def recipe_steps(
    model: AdaptedModel,
    batches: Iterable[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    n: int,
    task: Task = "retrieval",
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The trained tensors after `n` steps of the real training step, by official name.

    Args:
      batches: at least `n` of them; one step each.
      recipe: fields of `config.optimizer` over its defaults (recipe, lr, weight_decay, warmup,
        clip_norm), and `total_steps` of the whole schedule (`n` if not said).
      seed: of dropout, in methods that have it.

    `model` is left as it was.
    """
    recipe = dict(recipe)
    total = recipe.pop("total_steps", n)
    options = base_config().optimizer
    for name, value in recipe.items():
        if name not in options:
            raise UserError(unknown("recipe", name, [*options, "total_steps"]))
        options[name] = value
    mesh = meshes.one_device()
    part = model.partition
    optimizer = make_optimizer(options, total, part.trainable)
    step_fn = make_step(Retrieval(_task(model, task), mesh), part, optimizer, mesh, seed)
    trainable = jax.tree.map(jnp.copy, part.trainable)  # the step takes its arguments' memory
    state = init_opt_state(optimizer, trainable, mesh)
    task_state: PyTree = {}
    given = iter(batches)
    for step in range(n):
        batch = next(given, None)
        if batch is None:
            raise UserError(f"recipe_steps: {n} steps, but only {step} batches")
        trainable, state, task_state, _ = step_fn(
            trainable, state, task_state, part.frozen, _device_batch(batch), np.int32(step)
        )
    return official_names(model.method, trainable)


def official_names(method: str, tree: PyTree) -> dict[str, np.ndarray]:
    """A tree like a method's trainables (values, gradients) under the tensor names of its authors.

    Cross-Modal Adapter: those of the released checkpoints, `clip.` in front. A method without a
    reference keeps our dotted paths.
    """
    ours = {name: np.asarray(leaf, np.float32) for name, leaf in flat_names(tree).items()}
    if method == "cross_modal_adapter":
        official = cma_names.to_official(ours)
        return {f"{cma_names.PREFIX}{name}": tensor for name, tensor in official.items()}
    return ours


def reference_batch(pixels: Any, mask: Any, text: Any) -> dict[str, np.ndarray]:
    """PyTorch's "b f 3 H W", "b f" and "b l" as a batch."""
    return {
        "frames": np.moveaxis(np.asarray(pixels, np.float32), 2, -1),
        "frame_mask": np.asarray(mask, bool),
        "text": np.asarray(text, np.int32),
    }


def _task(model: AdaptedModel, task: Task) -> ConfigDict:
    given = {"name": task} if isinstance(task, str) else dict(task)
    options = base_config().task
    for name in set(options) & set(model.task):
        options[name] = model.task[name]
    for name, value in given.items():
        if name not in options:
            raise UserError(unknown("task", name, options))
        options[name] = value
    if options.name != "retrieval":
        raise UserError(f"task {options.name!r} is not known; known: retrieval")
    return options


def _device_batch(batch: Mapping[str, Any]) -> dict[str, Array]:
    known = ("frames", "frame_mask", "text", "item")
    for name in batch:
        if name not in known:
            raise UserError(unknown("the batch", name, known))
    frames, text = np.asarray(batch["frames"]), np.asarray(batch["text"], np.int32)
    if frames.ndim != 5 or text.ndim != 2 or len(frames) != len(text):
        raise UserError(
            f"frames {frames.shape} and text {text.shape} are not (b, f, H, W, 3) and (b, l)"
        )
    frames = frames if frames.dtype == np.uint8 else frames.astype(np.float32)
    mask = batch.get("frame_mask", np.ones(frames.shape[:2], bool))
    item = batch.get("item", np.arange(len(text)))
    return {
        "frames": jnp.asarray(frames),
        "frame_mask": jnp.asarray(np.asarray(mask, bool)),
        "text": jnp.asarray(text),
        "item": jnp.asarray(np.asarray(item, np.int32)),
    }
