"""The contract between a method and a frozen backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import Range


class AdapterParam(nnx.Param):
    """A variable that a method added to a frozen backbone; always float32."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to adapt a backbone.

    Attributes:
      name: the name that configs use.
      attach: puts trainable modules into the backbone's places; says nothing else. Without a
        generator their values are zeros, for who wants shapes.
      options: the method's knobs with their defaults, their only home.
      ranges: {option: the numbers it may have}, of every number among the options.
      choices: {option: the values it may have}.
      trainable: the nnx filter of what trains; None trains nothing. `targets` has filters of the
        backbone's own parameters.
      trainable_for: the filter for given options, where it depends on them.
      merge: works a trained module into the backbone's own weights and takes it out; None for a
        method that is not linear.
      version: grows when the function that the same parameters compute changes.
      trains_backbone: whether what trains is the whole backbone: its export is a backbone.
      behind_layers: whether all that trains, and all that it adds, stands behind the layers of the
        towers, or beside them without a gradient into them: so the states of these never change.
      layered: whether it acts in the layers of towers, so that it may begin at any: the registry
        gives it the option `from_layer`.
      reads_padding: whether its features of a text depend on rows behind those that the backbone
        reads, so that an evaluation may not cut them.
      joins_frames: whether the frames of a clip are encoded together, not one by one.
    """

    name: str
    attach: Callable[[nnx.Module, Any, np.random.Generator | None], None]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    trainable: Any = AdapterParam
    trainable_for: Callable[[Any], Any] | None = None
    merge: Callable[[nnx.Module], None] | None = None
    version: int = 1
    trains_backbone: bool = False
    behind_layers: bool = False
    layered: bool = False
    reads_padding: bool = False
    joins_frames: bool = False

    def filter(self, options: Any) -> Any:
        """The nnx filter of what trains with these options; None trains nothing."""
        return self.trainable if self.trainable_for is None else self.trainable_for(options)


def attach_nothing(backbone: nnx.Module, options: Any, rng: np.random.Generator | None) -> None:
    """For methods that train what the backbone already has, or nothing."""


def merge_nothing(backbone: nnx.Module) -> None:
    """For methods whose trained parameters are the backbone's own."""


def fill_place(owner: nnx.Module, place: str, module: nnx.Module) -> None:
    """Puts `module` at an empty place; raises if another method sits there, or there is none."""
    if not hasattr(owner, place):
        raise UserError(
            f"this method does not fit this backbone: its {type(owner).__name__} has no place "
            f"{place!r} (docs/methods.md says which method is for which backbone)"
        )
    if getattr(owner, place) is not None:
        raise UserError(f"{type(owner).__name__}.{place} already holds a method's module")
    setattr(owner, place, module)


def slot_of_layer(count: int, slots: int) -> np.ndarray:
    """The shared slot of each of `count` layers: i, or floor(i * slots / count) if too few."""
    rows = np.arange(count)
    return rows if count <= slots else rows * slots // count
