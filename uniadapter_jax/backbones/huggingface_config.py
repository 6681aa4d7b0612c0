"""What the `config.json` files of transformers' vision-language models have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.backbones import functions
from uniadapter_jax.errors import UserError

_MOST_LAYERS = 1000  # a wrong number should be an error, not an endless loop


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One transformer; the defaults of a field are transformers' (`CLIPTextConfig`, ...)."""

    width: int
    hidden: int
    layers: int
    heads: int
    activation: str = "quick_gelu"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        known = functions.ACTIVATIONS
        if self.activation not in known:
            raise UserError(f"hidden_act={self.activation!r} is not known; known: {sorted(known)}")
        if self.width % self.heads:
            raise UserError(f"hidden_size={self.width} does not divide by {self.heads} heads")
        if self.layers > _MOST_LAYERS:
            raise UserError(f"num_hidden_layers={self.layers}: at most {_MOST_LAYERS}")

    @classmethod
    def from_section(cls, source: Mapping[str, Any]) -> TowerConfig:
        """Reads a tower's section of a config, as `section` returns it."""
        return cls(
            width=source["hidden_size"],
            hidden=source["intermediate_size"],
            layers=source["num_hidden_layers"],
            heads=source["num_attention_heads"],
            activation=source["hidden_act"],
            eps=source["layer_norm_eps"],
        )

    def to_section(self) -> dict[str, Any]:
        """The fields that transformers reads."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": self.activation,
            "layer_norm_eps": self.eps,
        }


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's fields, by transformers' rule: what early files call `NAME_dict` wins, whole."""
    found = dict(defaults)
    early = config.get(f"{name}_dict")
    for layer in (config.get(name), early if early is None else defaults, early):
        if layer is not None and not isinstance(layer, Mapping):
            raise UserError(f"{name} is a {type(layer).__name__}, expected a JSON object")
        found.update(layer or {})
    for field, default in defaults.items():
        found[field] = checked(f"{name}.{field}", found[field], type(default))
    if found.get("num_channels", 3) != 3:
        raise UserError(f"{name}.num_channels={found['num_channels']}: pictures have 3")
    return found


def checked(name: str, value: Any, kind: type) -> Any:
    """`value`, if it is a positive number or a name, as `kind` says."""
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed or (kind is not str and not value > 0):
        wanted = "a name" if kind is str else f"a positive {kind.__name__}"
        raise UserError(f"{name}={value!r}: expected {wanted}")
    return value


def check_patches(image_size: int, patch_size: int) -> None:
    """Raises `UserError` unless patches fill a picture."""
    if image_size % patch_size:
        raise UserError(f"image_size={image_size} does not divide by patch_size={patch_size}")
