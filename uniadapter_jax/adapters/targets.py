"""Linear layers and parameters of a backbone by name, for methods that act on or train them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flax import nnx

from uniadapter_jax.backbones.linear import Linear
from uniadapter_jax.backbones.scan import Below
from uniadapter_jax.common.errors import UserError

# Parameters whose gradient is zero whatever the loss: softmax does not see a constant on all keys,
# or on all layers.
WITHOUT_GRADIENT = re.compile(r".*\.((attn|cross)\.k\.(bias|delta\.shift)|side\.gate_bias)")

Kind = TypeVar("Kind")
Filter = Callable[[tuple[Any, ...], Any], bool]


def modules_of(module: nnx.Module, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """Every module of a class with its dotted path, such as `vision.blocks.attn.q`.

    Where a tower is cut, those above the cut, by the same paths.
    """
    for path, node in nnx.iter_graph(module, graph=True):
        if isinstance(node, kind) and not any(isinstance(p, Below) for p in vars(node).values()):
            yield ".".join(str(name) for name in path if name != "above"), node


def linear_layers(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Every linear layer with its dotted path."""
    yield from modules_of(module, Linear)


def linear_layers_named(backbone: nnx.Module, target: str, field: str) -> list[tuple[str, Linear]]:
    """The linear layers whose path ends in `target`, in whole segments: `q`, `mlp.fc1`.

    Raises:
      UserError: there is none; `field` is named, and which layers there are.
    """
    every = sorted(linear_layers(backbone), key=lambda pair: pair[0])
    chosen = [(path, layer) for path, layer in every if f".{path}".endswith(f".{target}")]
    if not chosen:
        known = ", ".join(path for path, _ in every)
        raise UserError(f"{field}: no linear layer ends in {target!r}; there are {known}")
    return chosen


def parameters(pattern: str) -> Filter:
    """A filter of the backbone's own parameters whose dotted path matches the whole pattern.

    Where a tower is cut, none below the cut matches.
    `partition` raises where a method's filter matches nothing.
    """
    matches = re.compile(pattern).fullmatch

    def chosen(path: tuple[Any, ...], value: Any) -> bool:
        trains = isinstance(value, nnx.Param) and not isinstance(value, Below)
        return trains and bool(matches(".".join(map(str, path))))

    return chosen


def biases() -> Filter:
    """Every bias: of linear layers and of LayerNorms."""
    return parameters(r"(.*\.)?bias")


def norms() -> Filter:
    """Scale and bias of every LayerNorm."""
    return parameters(r"(.*\.)?ln(_\w+)?\.(scale|bias)")
