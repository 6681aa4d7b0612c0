"""Optimizer recipes by name, and freezing for users who keep all parameters in one tree.

A recipe is a chain over the trainables: clip the global norm, precondition, decay, multiply by the
step's learning rate. The state is float32 whatever the parameters are; updates have the parameters'
dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Float, Int, PyTree

TRAINABLE, FROZEN = "trainable", "frozen"


class Recipe(NamedTuple):
    """The choices in which recipes differ.

    shape: (share of the run done, warm-up share) -> factor of the learning rate.
    epsilon: added outside the root.
    decays_all: whether weight decay applies to biases and scales, too.
    per_epoch: whether the learning rate changes only after epochs.
    """

    bias_correction: bool
    shape: Callable[[Array, float], Array]
    betas: tuple[float, float] = (0.9, 0.98)  # CLIP's, as is epsilon
    epsilon: float = 1e-6
    decays_all: bool = False
    per_epoch: bool = False


def _cosine_of_run(done: Array, warmup: float) -> Array:
    """BertAdam's: after the warm-up the cosine over the full run, so it first drops from 1."""
    return jnp.where(done < warmup, done / max(warmup, 1e-9), 0.5 + 0.5 * jnp.cos(math.pi * done))


def _cosine_of_rest(done: Array, warmup: float) -> Array:
    """Continuous: the cosine spans the steps after the warm-up."""
    rest = (done - warmup) / max(1.0 - warmup, 1e-9)
    return jnp.where(done < warmup, done / max(warmup, 1e-9), 0.5 + 0.5 * jnp.cos(math.pi * rest))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "bert_adam_warmup_cosine": Recipe(bias_correction=False, shape=_cosine_of_run),
        "adamw_warmup_cosine": Recipe(bias_correction=True, shape=_cosine_of_rest),
        # BLIP's and UniAdapter's: torch's defaults of AdamW, for all parameters.
        "adamw_cosine_per_epoch": Recipe(
            bias_correction=True,
            shape=_cosine_of_rest,
            betas=(0.9, 0.999),
            epsilon=1e-8,
            decays_all=True,
            per_epoch=True,
        ),
    }
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["lr", "share", "epoch_steps"],
    meta_fields=["recipe", "warmup"],
)
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of step 0, 1, ..., total_steps - 1; with a warm-up the first is 0.

    What two runs of a search differ in is data, so as an argument of a compiled step it makes no
    other program.

    Attributes:
      lr: the learning rate at the top.
      share: of the run that a step is. A division by a known number of steps is compiled to the
        same product.
      epoch_steps: matters to recipes whose rate changes only after epochs.
      recipe, warmup: fields of `config.optimizer`.
    """

    lr: Any
    share: Any
    epoch_steps: Any
    recipe: str
    warmup: float

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        recipe, taken = RECIPES[self.recipe], jnp.asarray(step)
        if recipe.per_epoch:
            taken = taken // self.epoch_steps * self.epoch_steps
        done = jnp.minimum(taken.astype(jnp.float32) * self.share, 1.0)
        return jnp.asarray(self.lr, jnp.float32) * recipe.shape(done, self.warmup)


def lr_schedule(config: Any, total_steps: int, epoch_steps: int = 1) -> Schedule:
    """The schedule of the recipe that `config`, as `config.optimizer`, names."""
    _recipe(config.recipe)
    if total_steps < 1:
        raise UserError(f"an optimizer needs at least one step, got total_steps={total_steps}")
    share = np.float32(1) / np.float32(total_steps)
    numbers = np.float32(config.lr), share, np.int32(epoch_steps)
    return Schedule(*numbers, config.recipe, config.warmup)


def make_optimizer(
    config: Any, total_steps: int, params: PyTree, epoch_steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """The recipe that `config` names, for `params` (a tree of trainables; only paths are read).

    `config`: recipe, lr, weight_decay, warmup (share of the run), clip_norm (0: none), and
    optionally lr_multipliers {regular expression on a path such as 'heads/text/kernel': factor}, or
    a sequence of such pairs; the first that matches counts. A pattern that matches no path raises
    `UserError`. The update takes another `schedule` by that name, such as one that is an argument
    of the compiled step.
    """
    recipe = _recipe(config.recipe)
    steps = [clip_by_norm(config.clip_norm)] if config.clip_norm else []
    steps += [
        scale_by_adam(recipe),
        optax.add_decayed_weights(config.weight_decay, mask=None if recipe.decays_all else decays),
    ]
    multipliers = dict(config.get("lr_multipliers") or {})
    if multipliers:
        _check_patterns(multipliers, params)
        steps.append(scale_by_path(multipliers))
    steps.append(scale_by_schedule(lr_schedule(config, total_steps, epoch_steps)))
    return _in_float32(optax.chain(*steps))


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UserError(
            f"config.optimizer.recipe={name!r} is unknown; choose from {sorted(RECIPES)}"
        )
    return RECIPES[name]


def path_of(path: tuple[Any, ...]) -> str:
    """A key path as 'a/b/c'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def decays(params: PyTree) -> PyTree:
    """True for leaves with weight decay: all but biases and scales, by the last key of the path."""

    def one(path: tuple[Any, ...], _: Any) -> bool:
        return not path_of(path[-1:]).endswith(("bias", "scale"))

    return jax.tree_util.tree_map_with_path(one, params)


class BertAdamState(NamedTuple):
    """Steps done, and the two moments in float32."""

    step: Int[Array, ""]
    first: PyTree
    second: PyTree


def scale_by_adam(recipe: Recipe) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps); BertAdam leaves the bias correction out."""
    rise, fall = recipe.betas

    def init(params: PyTree) -> BertAdamState:
        def zeros() -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)

        return BertAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        gradients: PyTree, state: BertAdamState, params: PyTree | None = None
    ) -> tuple[PyTree, BertAdamState]:
        del params
        step = state.step + 1
        first = jax.tree.map(lambda m, g: rise * m + (1 - rise) * g, state.first, gradients)
        second = jax.tree.map(lambda v, g: fall * v + (1 - fall) * g * g, state.second, gradients)
        seen = step.astype(jnp.float32)
        one, two = (1 - rise**seen, 1 - fall**seen) if recipe.bias_correction else (1.0, 1.0)
        direction = jax.tree.map(
            lambda m, v: (m / one) / (jnp.sqrt(v / two) + recipe.epsilon), first, second
        )
        return direction, BertAdamState(step, first, second)

    return optax.GradientTransformation(init, update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """g * min(1, limit / (norm + 1e-6)), with the norm of the full tree."""

    def update(gradients: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor, gradients)

    return optax.stateless(update)


def scale_by_schedule(default: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the learning rate of the step, by `default` unless one is given."""

    def update(
        updates: PyTree,
        state: optax.OptState,
        params: PyTree | None = None,
        *,
        schedule: Schedule | None = None,
        **_: Any,
    ) -> tuple[PyTree, optax.OptState]:
        return optax.scale_by_learning_rate(schedule or default).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(optax.scale_by_learning_rate(default).init, update)


def scale_by_path(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each leaf's update by the factor of the first pattern found in its path."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        return _first_match(multipliers, path_of(path)) or ""

    def labels(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(label, tree)

    groups = {pattern: optax.scale(factor) for pattern, factor in multipliers.items()}
    return optax.partition({"": optax.identity(), **groups}, labels)


def _first_match(patterns: Mapping[str, float], path: str) -> str | None:
    return next((pattern for pattern in patterns if re.search(pattern, path)), None)


def _check_patterns(multipliers: Mapping[str, float], params: PyTree) -> None:
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    used = {_first_match(multipliers, path) for path in paths}
    idle = [pattern for pattern in multipliers if pattern not in used]
    if idle:
        raise UserError(
            f"config.optimizer.lr_multipliers {idle} match no trainable parameter (or only ones "
            f"that an earlier pattern takes); paths look like {paths[:3]}"
        )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` in float32; updates get the dtype of the parameters they are added to."""

    def wide(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), tree)

    inner = optax.with_extra_args_support(inner)

    def update(
        gradients: PyTree, state: Any, params: PyTree | None = None, **given: Any
    ) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("weight decay needs params: call update(gradients, state, params)")
        updates, state = inner.update(wide(gradients), state, wide(params), **given)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def frozen_partition(tx: optax.GradientTransformation, labels: Any) -> optax.GradientTransformation:
    """Applies `tx` to the leaves of a tree labelled 'trainable', and nothing to the 'frozen' ones.

    `labels` is a tree of the parameters' structure (or a prefix of it), or a function from
    parameters to one. Trainables get bit for bit the updates that `tx` gives them alone: frozen
    leaves have no state and clipping does not see their gradients. `UserError` if all are frozen.
    """

    def checked(params: PyTree) -> PyTree:
        tree = labels(params) if callable(labels) else labels
        _check_labels(tree)
        return tree

    if not callable(labels):
        _check_labels(labels)
    # Updates of -0.0: with 0.0 a parameter of -0.0 would become 0.0, which has other bits.
    frozen = optax.chain(optax.set_to_zero(), optax.scale(-1.0))
    return optax.partition({TRAINABLE: tx, FROZEN: frozen}, checked)


def _check_labels(tree: PyTree) -> None:
    used = set(jax.tree.leaves(tree))
    unknown = used - {TRAINABLE, FROZEN}
    if unknown:
        raise UserError(
            f"labels are {TRAINABLE!r} or {FROZEN!r}, found {sorted(map(str, unknown))}"
        )
    if TRAINABLE not in used:
        raise UserError("no leaf is labelled 'trainable', so nothing would be trained")
