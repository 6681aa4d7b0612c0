"""Reads what the `config.json` files of transformers' vision-language models share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniadapter_jax.backbones import functions
from uniadapter_jax.common.errors import UserError

# The most that a size may be: a wrong number should be an error, not an endless loop or a request
# for more memory than there is. No array of such a model has 2**63 bytes.
_MOST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**12,
    "image_size": 2**14,
    "patch_size": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**20,
    "projection_dim": 2**16,
    "image_text_hidden_size": 2**16,
}
_MOST_FLOAT = 1e3  # of an epsilon, or a deviation of random weights


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
            raise UserError(
                f"hidden_act={self.activation[:80]!r} is not known; known: {sorted(known)}"
            )
        section = self.to_section()
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            check_size(name, section[name])
        check_size("num_attention_heads", self.heads)
        checked("layer_norm_eps", self.eps, float)
        if self.width % self.heads:
            raise UserError(f"hidden_size={self.width} does not divide by {self.heads} heads")

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


@dataclasses.dataclass(frozen=True)
class VisionLanguageConfig:
    """The fields that every family has; a family adds its own.

    Attributes:
      positions: the most tokens that a text may have.
      embed: width of the joint embedding.
    """

    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocab_size: int
    positions: int
    embed: int

    @property
    def patches(self) -> int:
        """Whole patches of one picture."""
        return (self.image_size // self.patch_size) ** 2

    def check_sizes(self, embed: str) -> None:
        """Raises `UserError` unless every size is possible; `embed` is the foreign name of one."""
        check_size("image_size", self.image_size)
        check_size("patch_size", self.patch_size)
        check_size("vocab_size", self.vocab_size)
        check_size("max_position_embeddings", self.positions)
        check_size(embed, self.embed)

    def check_id(
        self, field: str, value: Any, also: tuple[int, ...] = (), or_else: str = ""
    ) -> None:
        """Raises `UserError` unless `value` is in the vocabulary or one of `also`."""
        if value not in also and (type(value) is not int or not 0 <= value < self.vocab_size):
            raise UserError(
                f"text_config.{field}={value!r:.80}: expected an id below "
                f"vocab_size={self.vocab_size}{or_else}"
            )

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises `UserError` unless all host ids "n l" are known; the text is named."""
        bad = np.flatnonzero(((ids < 0) | (ids >= self.vocab_size)).any(1))
        if bad.size:
            raise UserError(f"text {bad[0]}: ids outside 0..{self.vocab_size - 1}")

    def used_lengths(self, ids: np.ndarray) -> np.ndarray:
        """How many of the host ids "n l" of each text have a say in its features: here, all."""
        return np.full(len(ids), ids.shape[1])

    @staticmethod
    def sizes(vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
        """The fields but for `embed`, from the sections of both towers."""
        return {
            "vision": TowerConfig.from_section(vision),
            "text": TowerConfig.from_section(text),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "vocab_size": text["vocab_size"],
            "positions": text["max_position_embeddings"],
        }

    def to_sections(
        self, vision: Mapping[str, Any], text: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """The sections that transformers reads, with what the family adds to each."""
        words = {"vocab_size": self.vocab_size, "max_position_embeddings": self.positions}
        pictures = {"image_size": self.image_size, "patch_size": self.patch_size}
        return {
            "text_config": {**self.text.to_section(), **words, **text},
            "vision_config": {**self.vision.to_section(), **pictures, **vision},
        }


# Of transformers' configs: a base-sized tower, where a config.json leaves its fields out.
HF_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's fields, by transformers' rule: what early files call `NAME_dict` wins, whole."""
    fields = dict(defaults)
    early = config.get(f"{name}_dict")
    for layer in (config.get(name), early if early is None else defaults, early):
        if layer is not None and not isinstance(layer, Mapping):
            raise UserError(f"{name} is a {type(layer).__name__}, expected a JSON object")
        fields.update(layer or {})
    for field, default in defaults.items():
        fields[field] = checked(f"{name}.{field}", fields[field], type(default))
    if fields.get("num_channels", 3) != 3:
        raise UserError(f"{name}.num_channels={fields['num_channels']!r:.80}: pictures have 3")
    return fields


def checked(name: str, value: Any, kind: type) -> Any:
    """`value`, if it is a positive number of a possible size or a name, as `kind` says."""
    if kind is int:
        check_size(name, value)
    elif kind is float:
        if type(value) not in (int, float) or not 0 < value <= _MOST_FLOAT:
            raise UserError(f"{name}={value!r:.80}: expected a positive number up to {_MOST_FLOAT}")
    elif type(value) is not kind:
        raise UserError(f"{name}={value!r:.80}: expected a name")
    return value


def check_size(name: str, value: Any) -> None:
    """Raises `UserError` unless `value` is a whole number from 1 up, within the limits."""
    most = _MOST.get(name.rpartition(".")[2], 2**31 - 1)
    if type(value) is not int or not 0 < value <= most:
        raise UserError(f"{name}={value!r:.80}: expected a positive int up to {most}")


def check_pictures(image_size: Any, patch_size: Any) -> None:
    """Raises `UserError` unless both are sizes, and patches fill a picture."""
    check_size("image_size", image_size)
    check_size("patch_size", patch_size)
    if image_size % patch_size:
        raise UserError(f"image_size={image_size} does not divide by patch_size={patch_size}")
