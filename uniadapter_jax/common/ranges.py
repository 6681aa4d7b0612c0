"""Types and ranges of settings, and checks whose errors name the setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError

INT32 = 2**31 - 1  # steps and row numbers are int32 on the devices
_TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple of strings",
}


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; an infinite end is no limit.

    Attributes:
      low_open, high_open: whether the end itself is excluded.
      also: single values outside the range, such as -1 for "the rest".
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    also: tuple[int, ...] = ()

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):  # isfinite(10**400) raises
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return (above and below) or value in self.also

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high}")
        text = ", ".join(parts) or "any finite number"
        return " or ".join([*map(str, self.also), text])


def at_least(low: float) -> Range:
    """Numbers from `low` up; `check_range` keeps whole numbers within int32."""
    return Range(low)


POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)  # rates of dropout, momentum, smoothing


def has_type(value: Any, kind: type) -> bool:
    """Whether a setting of this kind may have the value; True is no number, 1 is a float."""
    if kind is tuple:
        return isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def check_type(path: str, value: Any, kind: type) -> None:
    """Raises `UserError` that names `path` unless the value is of `kind`."""
    if not has_type(value, kind):
        raise UserError(f"{path}={value!r}: expected {_TYPES[kind]}")


def check_range(path: str, value: int | float, allowed: Range, why: str = "") -> None:
    """Raises `UserError` that names `path` unless the range has the number.

    If the range has no upper end, a whole number has to fit into int32.
    """
    if isinstance(value, int) and not math.isfinite(allowed.high):
        allowed = dataclasses.replace(allowed, high=INT32)
        if value <= INT32 and value not in allowed:
            allowed = dataclasses.replace(allowed, high=math.inf)  # for a shorter message
    if value not in allowed:
        raise UserError(f"{path}={value}: {allowed}{why}")


def check_choice(path: str, value: Any, choices: Sequence[str]) -> None:
    """Raises `UserError` that names `path` unless the value is one of `choices`."""
    if value not in choices:
        raise UserError(f"{path}={value!r}: choose one of {', '.join(choices)}")
