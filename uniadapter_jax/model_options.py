"""`model.task`: what a model for inference remembers of its training, and may be told otherwise."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from uniadapter_jax import arguments
from uniadapter_jax.data.caption_text import PREPROCESS
from uniadapter_jax.data.frames import RESIZES
from uniadapter_jax.errors import UserError, unknown

# {option: (least, most)}, both allowed.
_RANGES: Mapping[str, tuple[float, float | None]] = {
    "temperature": (1e-6, 1e6),
    "smoothing": (0.0, 0.999999),
    "rank_smoothing": (0.0, 0.999999),
    "momentum": (0.0, 0.999999999),
    "alpha": (0.0, 1.0),
    "rank_k": (1, None),
    "beams": (1, 256),
    "top_answers": (1, None),
    "words": (3, None),
    "answer_words": (3, None),
    "rerank_rows": (1, None),
    "lr": (0.0, 1e6),
    "weight_decay": (0.0, 1e6),
    "warmup": (0.0, 1.0),
    "clip_norm": (0.0, 1e30),
}
TEXT_CHOICES: Mapping[str, tuple[str, ...]] = {
    "preprocess": PREPROCESS,
    "resize": tuple(RESIZES),
}


def check_option(
    name: str, value: Any, usual: Any, choices: tuple[str, ...] = (), where: str = "task"
) -> Any:
    """The value of an option, of the type that its default `usual` has.

    Raises:
      UserError: it is of another type, out of range or no choice; `where.name` is in the message.
    """
    low, high = _RANGES.get(name, (None, None))
    name = f"{where}.{name}"
    if isinstance(usual, bool):
        return arguments.flag(value, name)
    if isinstance(usual, int):
        return arguments.whole(value, name, int(low or 0), None if high is None else int(high))
    if isinstance(usual, float):
        return arguments.real(
            value, name, -1e30 if low is None else low, 1e30 if high is None else high
        )
    if not isinstance(value, str):
        raise UserError(f"{name}={str(value)[:80]!r}: a string is meant")
    if choices and value not in choices:
        raise UserError(f"{name}={value!r}: choose one of {', '.join(choices)}")
    return value


class Options(collections.UserDict[str, Any]):
    """Options by name. Each is checked when it is set, and counts from the next call on.

    What an adapter remembers beyond `defaults` is kept, and not read.
    """

    def __init__(
        self,
        defaults: Mapping[str, Any],
        choices: Mapping[str, tuple[str, ...]],
        remembered: Mapping[str, Any],
        positions: int,
    ):
        """`positions`: of the backbone's texts, which `words` cannot exceed."""
        self._defaults = dict(defaults)
        self._positions = positions
        self._choices = {**TEXT_CHOICES, **choices}
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
        usual, choices = self._defaults[name], self._choices.get(name, ())
        value = check_option(name, value, usual, choices)
        if name == "words" and value > self._positions:
            raise UserError(f"task.words={value}: the model reads {self._positions} tokens")
        self.data[name] = value

    def __ior__(self, other: Any) -> Options:  # type: ignore[misc,override]
        self.update(other)  # the inherited one would not check
        return self

    def __delitem__(self, name: str) -> None:
        raise UserError(f"task.{name} cannot be left out; set it")
