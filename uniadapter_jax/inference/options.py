"""`model.task`: what a model for inference remembers of its training, and may be told otherwise."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.common.ranges import check_choice, check_range, check_type
from uniadapter_jax.config.rules import CHOICES, RANGES


def check_option(path: str, value: Any, usual: Any, ranges: Mapping[str, Any], choices: Any) -> Any:
    """The value of an option, of the type that its default `usual` has.

    `ranges` and `choices` go by name, the last part of `path`.

    Raises:
      UserError: it is of another type, out of range or no choice; `path` is in the message.
    """
    name = path.rpartition(".")[2]
    value = value.item() if isinstance(value, np.generic) else value
    check_type(path, value, type(usual))
    if name in ranges:
        check_range(path, value, ranges[name])
    if name in choices:
        check_choice(path, value, choices[name])
    return type(usual)(value)


def of_section(rules: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The rules of one section of the config, by name, of rules by path."""
    return {
        path.removeprefix(f"{section}."): rule
        for path, rule in rules.items()
        if path.startswith(f"{section}.")
    }


class Options(collections.UserDict[str, Any]):
    """Options by name. Each is checked when it is set, and counts from the next call on.

    What an adapter remembers beyond `defaults` is kept, and not read.
    """

    def __init__(
        self,
        defaults: Mapping[str, Any],
        kind: Any,
        remembered: Mapping[str, Any],
        positions: int,
    ):
        """`kind`: the task; `positions`: of the backbone's texts, which `words` cannot exceed."""
        self._defaults = dict(defaults)
        self._positions = positions
        self._ranges = {**of_section(RANGES, "data"), **kind.ranges}
        self._choices = {**of_section(CHOICES, "data"), **kind.choices}
        super().__init__()
        self.data.update(defaults)
        for name, value in remembered.items():
            if name in self._defaults:
                self[name] = value
            else:
                self.data[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._defaults:
            raise UserError(unknown("the model's task", name, self._defaults))
        usual = self._defaults[name]
        value = check_option(f"task.{name}", value, usual, self._ranges, self._choices)
        if name == "words" and value > self._positions:
            raise UserError(f"task.words={value}: the model reads {self._positions} tokens")
        self.data[name] = value

    def __ior__(self, other: Any) -> Options:  # type: ignore[misc,override]
        self.update(other)  # the inherited one would not check
        return self

    def __delitem__(self, name: str) -> None:
        raise UserError(f"task.{name} cannot be left out; set it")
