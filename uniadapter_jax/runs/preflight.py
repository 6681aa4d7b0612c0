"""Checks before a run for errors that would stop it after hours, or make its numbers worthless.

Each error names the field of the config, and a way out. Checks that depend on the samples of a task
are made by `tasks.base.Samples`.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import INT32
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.splits import Splits
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.weights.families import family_of


def check_lengths(config: ConfigDict, model_config: Any) -> None:
    """Raises `UserError` for texts or answers that are longer than the backbone can read.

    model_config: the backbone's config; `positions` is the most tokens that it can read.
    """
    data, positions = config.data, model_config.positions
    if data.words > positions:
        raise UserError(
            f"config.data.words={data.words}: texts of {data.words} tokens, but this backbone has "
            f"{positions} positions; set it to at most {positions}"
        )
    if data.preprocess == "blip" and data.max_words > positions:
        raise UserError(
            f"config.data.max_words={data.max_words}: this backbone has {positions} positions, so "
            "no text keeps so many words; set it to 0 to keep all that data.words lets through"
        )
    get_task(config.task.name).samples.check_lengths(config, positions)


def check_room(config: ConfigDict, model: Any) -> None:
    """Raises `UserError` if texts and the tokens that a method adds to them have no room together.

    So it does where tokens that the backbone or the method needs are to be merged, and where a
    method that joins frames is not given all of a clip.

    model: the backbone with the method attached.
    """
    _check_merging(config, model)
    _check_joins(config, model)
    added = getattr(model.text, "before", None)
    room = model.config.positions - getattr(added, "rows", 0)
    if added is not None and config.data.words > room:
        raise UserError(
            f"config.data.words={config.data.words}: the backbone has {model.config.positions} "
            f"positions, of which method {config.method.name!r} takes {added.rows} for its own "
            f"tokens; set it to at most {room}, or give the method fewer tokens"
        )


def _check_merging(config: ConfigDict, model: Any) -> None:
    """Raises `UserError` if the backbone, or the method attached to it, needs all its tokens."""
    if not config.compute.merge:
        return
    field, name = f"config.compute.merge={config.compute.merge}", config.method.name
    family = family_of(model.config)
    if "merge" not in family.options:
        raise UserError(f"{field}: {family.title} reads all tokens of a picture; set it to 0")
    if model.vision.joins_frames:
        raise UserError(f"{field}: method {name!r} merges tokens itself; set it to 0")
    if model.vision.before is not None or model.vision.side is not None:
        raise UserError(
            f"{field}: method {name!r} adds rows to pictures, or reads the states of all layers; "
            "set it to 0"
        )


def _check_joins(config: ConfigDict, model: Any) -> None:
    """Raises `UserError` if the method joins frames, and cannot have all of a clip together."""
    if not model.vision.joins_frames:
        return
    chunks, name = config.compute.frame_chunks, config.method.name
    if chunks > 1:
        raise UserError(
            f"config.compute.frame_chunks={chunks}: method {name!r} joins the frames of a clip, so "
            "they cannot be cut into groups; set it to 0"
        )
    if config.data.frames > config.method.frames:
        raise UserError(
            f"config.data.frames={config.data.frames}: method {name!r} joins at most "
            f"config.method.frames={config.method.frames}; set both alike, and "
            "config.method.joins to numbers whose product divides them"
        )


def check_training(config: ConfigDict, train: Records) -> None:
    """Raises `UserError` for a split that the task cannot be trained on."""
    field = f"config.data.train_split={config.data.train_split!r}"
    get_task(config.task.name).samples.check_training(config, train, field)


def check_evaluation(config: ConfigDict, data: Splits) -> None:
    """Raises `UserError` for a split that cannot be measured, or cannot select a checkpoint."""
    check = get_task(config.task.name).samples.check_evaluation
    field = f"config.data.test_split={config.data.test_split!r}"
    check(config, data.test, field, selects=config.selection == "test")
    if config.selection == "val" and data.val is not None:
        own = config.data.val_split
        field = f"config.data.val_split={own!r}" if own else f"config.data.val={config.data.val}"
        check(config, data.val, field, selects=True)


def check_patience(config: ConfigDict) -> None:
    """Raises `UserError` where nothing is measured that could lose patience."""
    if config.train.patience and config.selection == "last":
        raise UserError(
            f"config.train.patience={config.train.patience} waits for a better value on validation "
            "data, and config.selection is last: set config.data.val or config.data.val_split"
        )


def check_steps(config: ConfigDict, total: int) -> None:
    """Raises `UserError` for more steps than an int32 can count."""
    if total > INT32:
        raise UserError(
            f"config.train.epochs={config.train.epochs}: that is {total:,} steps, and at most "
            f"{INT32:,} can be counted"
        )
