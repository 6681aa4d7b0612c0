"""The values that fields of a config may have: a type, and a range or a list of choices.

The type is that of the default. A range without an upper end stops at int32 for whole numbers; for
floats it has no limit: `optimizer.lr` may be 100, if unwisely. Ranges of the options of a method or
task are defined beside the options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import (
    BELOW_ONE,
    POSITIVE,
    SHARE,
    Range,
    at_least,
    check_choice,
    check_range,
    check_type,
)
from uniadapter_jax.data.preparation import clips
from uniadapter_jax.parallel.sharding import WEIGHTS
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.training.optimizers import RECIPES

_AXIS = Range(1, also=(-1,))
RANGES: Mapping[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "compute.frame_chunks": at_least(0),
    "compute.merge": at_least(0),
    "compute.dropout": BELOW_ONE,
    "compute.drop_path": BELOW_ONE,
    "data.val": at_least(0),
    "data.frames": at_least(1),
    "data.words": at_least(3),
    "data.captions_per_clip": at_least(1),
    "data.max_words": at_least(0),
    "data.answers": at_least(1),
    "data.answer_words": at_least(3),
    "data.workers": at_least(0),
    "data.threads": at_least(0),
    "data.prefetch_mb": POSITIVE,
    **{f"data.prepare.{name}": clips.RANGES[name] for name in clips.RANGES},
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": at_least(0),
    "optimizer.warmup": SHARE,
    "optimizer.clip_norm": at_least(0),
    "train.batch_size": at_least(1),
    "train.accumulation": at_least(1),
    "train.epochs": at_least(0),
    "train.steps": at_least(0),
    "train.log_every": at_least(1),
    "train.checkpoint_every": at_least(0),
    "train.validate_every": at_least(0),
    "train.keep": at_least(1),
    "train.patience": at_least(0),
    "eval.batch_size": at_least(1),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "compute.dtype": ("float32", "bfloat16"),
    "compute.remat": ("none", "full", "dots"),
    "compute.attention": ("auto", "xla", "fused"),
    "data.captions": ("all", "random"),
    "data.sampling": ("evenly", "uniform", "middle", "random"),
    "data.resize": ("crop", "squash"),
    "data.augment": ("none", "crop_flip", "crop_flip_color", "blip"),
    "data.preprocess": ("none", "blip"),
    "data.cache": ("none", "prefix", "auto"),
    "data.cache_dtype": ("float32", "bfloat16"),
    **{f"data.prepare.{name}": values for name, values in clips.CHOICES.items()},
    "mesh.weights": WEIGHTS,
    "eval.split": ("test", "val"),
    "optimizer.recipe": tuple(RECIPES),
    "selection": ("auto", "last", "val", "test"),
}
MULTIPLIERS = "optimizer.lr_multipliers"
_WHY = {
    "data.words": "; BOS, a token and EOS need 3",
    "data.answer_words": "; [DEC], a token and [SEP] need 3",
}


def ranges_of(method: str, task: str) -> dict[str, Range]:
    """{path: range} of every number in the config of a method and task."""
    of_method = {f"method.{name}": r for name, r in get_method(method).ranges.items()}
    return {**RANGES, **of_method, **{f"task.{n}": r for n, r in get_task(task).ranges.items()}}


def choices_of(method: str, task: str) -> dict[str, tuple[str, ...]]:
    """{path: choices} of every field with choices in the config of a method and task."""
    of_method = {f"method.{name}": values for name, values in get_method(method).choices.items()}
    of_task = {f"task.{name}": values for name, values in get_task(task).choices.items()}
    return {**CHOICES, **of_method, **of_task}


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every field that is not a section, such as ("train.steps", 0)."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict) and f"{prefix}{name}" != MULTIPLIERS:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_values(config: ConfigDict, defaults: ConfigDict) -> None:
    """Raises `UserError` that names a field whose type, range or choice is wrong.

    Both configs have the same fields; `defaults` gives their types.
    """
    method, task = config.method.name, config.task.name
    ranges, choices = ranges_of(method, task), choices_of(method, task)
    for path, default in leaves(defaults):
        if path == MULTIPLIERS:
            continue
        value = _at(config, path)
        check_type(f"config.{path}", value, type(default))
        if path in ranges:
            check_range(f"config.{path}", value, ranges[path], _WHY.get(path, ""))
        if path in choices:
            check_choice(f"config.{path}", value, choices[path])


def _at(config: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


def multipliers(value: Any) -> tuple[tuple[str, float], ...]:
    """(regular expression, factor) in order, from a mapping, pairs, or None for none.

    Raises:
      UserError: the value is neither, an expression is invalid, or a factor is no number >= 0.
    """
    field = f"config.{MULTIPLIERS}"
    pairs = list(value.items() if isinstance(value, Mapping | ConfigDict) else _pairs(value))
    for pattern, factor in pairs:
        check_type(f"{field}: the pattern", pattern, str)
        check_type(f"{field}: the factor of {pattern!r}", factor, float)
        check_range(f"{field}: the factor of {pattern!r}", factor, at_least(0))
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{field}: {pattern!r} is no regular expression: {error}") from error
    return tuple((pattern, float(factor)) for pattern, factor in pairs)


def _pairs(value: Any) -> list[Any]:
    pairs = [] if value is None else value
    shaped = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    )
    if not shaped:
        raise UserError(
            f"config.{MULTIPLIERS}={value!r}: expected {{'regular expression': factor, ...}}"
        )
    return list(pairs)
