"""UniAdapter's official tensors in BLIP: names and layout, theirs and ours.

Official: an adapter per layer i under `adapters.{i}`, repeated at every place that uses it,
matrices [out, in]; a pair for keys and values per text transformer. Ours: one tensor for all
layers, matrices [L, in, out]. The heads train with the method, so its tensors include them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np

from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.weights.names.base import TRANSFORMS, Row, linear_rows, norm_rows, write_rows
from uniadapter_jax.weights.names.rules import Rule, convert

Tensors = Mapping[str, np.ndarray]

_HEADS = ("vision_proj", "text_proj", "itm_head")
_CROSS_NORM = "adapter_layer_norm_cross_modal"
_ENCODERS = {"text": "text_encoder.encoder", "decoder": "text_decoder.bert.encoder"}


def _linear(ours: str, theirs: str) -> list[Row]:
    return [
        (f"{ours}_kernel", f"{theirs}.weight", "transpose"),
        (f"{ours}_bias", f"{theirs}.bias", "same"),
    ]


def _states(ours: str, theirs: str) -> list[Row]:
    return [
        (f"{ours}.scale", f"{theirs}.scale", "rows"),
        *_linear(f"{ours}.down", f"{theirs}.down_proj"),
        *_linear(f"{ours}.up", f"{theirs}.up_proj"),
    ]


# (our path, official name, transform); `{i}` stands for the layer.
OFFICIAL: tuple[Row, ...] = (
    *norm_rows("adapters.rows", "adapters.{i}.adapter_layer_norm_before"),
    ("adapters.rows.kernel", "adapters.{i}.down_proj.weight", "transpose"),
    ("adapters.down_bias", "adapters.{i}.down_proj.bias", "same"),
    *_linear("adapters.text", "adapters.{i}.up_proj"),
    *_linear("adapters.cross", "adapters.{i}.multi_up_proj"),
    ("adapters.ln_cross_scale", f"adapters.{{i}}.{_CROSS_NORM}.weight", "same"),
    ("adapters.ln_cross_bias", f"adapters.{{i}}.{_CROSS_NORM}.bias", "same"),
    *_linear("vision.blocks.beside_mlp.up", "adapters.{i}.visual_up_proj"),
    *(
        row
        for tower, encoder in _ENCODERS.items()
        for part in ("key", "value")
        for row in _states(f"{tower}.cross_{part}", f"{encoder}.video_{part}_adapter")
    ),
    *(row for head in _HEADS for row in linear_rows(head, head)),
)
_RULES = tuple(Rule(name, (name,)) for _, name, _ in OFFICIAL)

# The names under which a file repeats the adapter of layer i; all copies should be the same.
_COPIES = re.compile(
    r"(?:(?:visual_encoder\.)?adapters\.(\d+)|visual_encoder\.blocks\.(\d+)\.adapter"
    r"|(?:text_encoder|text_decoder\.bert)\.encoder\.layer\.(\d+)\.adapter)\.(.*)"
)
_OF_STATES = re.compile(r"text_(encoder|decoder\.bert)\.encoder\.video_(key|value)_adapter\..*")
# A second set of adapters that the authors' code builds for the decoder and never calls.
_UNUSED = re.compile(r"adapters_dec\..*")


def is_known(ours: Container[str]) -> bool:
    """Whether these are paths of UniAdapter in BLIP; for CLIP there are no official names."""
    return "adapters.cross_bias" in ours


def is_cross_norm(ours: str) -> bool:
    """Whether this is the path of LN_x, which the released code does not train."""
    return ours.startswith("adapters.ln_cross_")


def of_layers(ours: str) -> bool:
    """Whether every layer has a tensor of this path; encoders and heads have the others."""
    return any(ours == path and "{i}" in name for path, name, _ in OFFICIAL)


def to_official(ours: Tensors) -> dict[str, np.ndarray]:
    """Turns {our path: array} into {official name: array}, each once; also fits gradients.

    Tensors that the method lacks (no decoder, frozen heads) are left out. Tensors that the official
    layout does not know, those of towers that differ in width, keep our paths.
    """
    known = {name for name, _, _ in OFFICIAL}
    official = dict(write_rows((row for row in OFFICIAL if row[0] in ours), ours))
    return official | {name: np.asarray(x) for name, x in ours.items() if name not in known}


def from_official(official: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """(our path, array) of official tensors; missing ones are left out."""
    for ours, name, how in OFFICIAL:
        read = TRANSFORMS[how].read
        if "{i}" not in name and name in official:
            yield ours, np.asarray(read(official[name]))
        elif name.format(i=0) in official:
            yield ours, np.stack([read(official[key]) for key in _of_layers(name, official)])


def trained(official: Tensors, *, train_cross_norm: bool) -> dict[str, np.ndarray]:
    """{our path: array} of the tensors that train with that option of the method."""
    return {
        name: tensor
        for name, tensor in from_official(official)
        if train_cross_norm or not is_cross_norm(name)
    }


def _of_layers(name: str, official: Tensors) -> Iterator[str]:
    layer = 0
    while (key := name.format(i=layer)) in official:
        yield key
        layer += 1


def split(tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Splits a file into (adapter under official names, backbone, copies that disagree).

    The adapter is empty if there is none; else it includes the heads, which the backbone has, too.
    """
    adapter: dict[str, np.ndarray] = {}
    first: dict[str, str] = {}
    backbone: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        if match := _COPIES.fullmatch(name):
            *layers, rest = match.groups()
            official = f"adapters.{next(filter(None, layers))}.{rest}"
        elif _OF_STATES.fullmatch(name):
            official = name
        else:
            if not _UNUSED.fullmatch(name):
                backbone[name] = tensor
            continue
        kept = adapter.setdefault(official, tensor)
        origin = first.setdefault(official, name)
        if not (kept is tensor or np.array_equal(kept, tensor, equal_nan=True)):
            problems.append(f"{name} is not {origin}, of which it should be a copy")
    if adapter:
        heads = (f"{head}.{part}" for head in _HEADS for part in ("weight", "bias"))
        adapter |= {name: tensors[name] for name in heads if name in tensors}
    return adapter, backbone, problems


def options(official: Tensors) -> dict[str, Any]:
    """The method's options that the tensors tell.

    LN_x starts as 1 and 0 and the released code does not train it; other values show that it has
    been trained.

    Raises:
      UserError: the tensor that tells the bottleneck is missing.
    """
    states = any(_OF_STATES.fullmatch(name) for name in official)
    initial = {f"{_CROSS_NORM}.weight": 1.0, f"{_CROSS_NORM}.bias": 0.0}
    starts = {name: initial.get(name.split(".", 2)[-1]) for name in official}
    return {
        "bottleneck": _length(official, "adapters.0.down_proj.bias"),
        "key_value_bottleneck": _length(official, _key("text")) if states else 0,
        "train_heads": True,
        "train_cross_norm": any(
            start is not None and bool(np.any(official[name] != start))
            for name, start in starts.items()
        ),
    }


def _key(tower: str) -> str:
    return f"{_ENCODERS[tower]}.video_key_adapter.down_proj.bias"


def _length(official: Tensors, name: str) -> int:
    tensor = official.get(name)
    if tensor is None or tensor.ndim != 1 or not tensor.size:
        problem = "missing" if tensor is None else f"of shape {tensor.shape}"
        raise UserError(f"{name} is {problem}; it tells the bottleneck")
    return len(tensor)


def misfits(
    official: Tensors, config: BLIPConfig, *, bottleneck: int, key_value_bottleneck: int
) -> list[str]:
    """The tensors that do not fit a backbone of that config, one line each."""
    vision, text = config.vision, config.text
    if (vision.layers, vision.width) != (text.layers, text.width):
        return [
            f"adapter i belongs to layer i of both towers, but vision is {vision.layers} x "
            f"{vision.width} and text {text.layers} x {text.width}"
        ]
    expected = official_shapes(
        config, bottleneck=bottleneck, key_value_bottleneck=key_value_bottleneck
    )
    return convert(official, _RULES, expected)[1]


def official_shapes(
    config: BLIPConfig, *, bottleneck: int, key_value_bottleneck: int
) -> dict[str, tuple[int, ...]]:
    """Official shapes where both towers have the same depth and width.

    A `key_value_bottleneck` of 0 means that keys and values have no adapters.
    """
    width = config.text.width
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inside: int, outside: int) -> None:
        shapes[f"{name}.weight"] = (outside, inside)
        shapes[f"{name}.bias"] = (outside,)

    for i in range(config.text.layers):
        for norm in ("adapter_layer_norm_before", _CROSS_NORM):
            shapes[f"adapters.{i}.{norm}.weight"] = shapes[f"adapters.{i}.{norm}.bias"] = (width,)
        linear(f"adapters.{i}.down_proj", width, bottleneck)
        for up in ("up_proj", "visual_up_proj", "multi_up_proj"):
            linear(f"adapters.{i}.{up}", bottleneck, width)
    for tower, encoder in _ENCODERS.items():
        if not key_value_bottleneck or (tower == "decoder" and not config.decoder):
            continue
        for part in ("key", "value"):
            shapes[f"{encoder}.video_{part}_adapter.scale"] = (1,)
            linear(f"{encoder}.video_{part}_adapter.down_proj", width, key_value_bottleneck)
            linear(f"{encoder}.video_{part}_adapter.up_proj", key_value_bottleneck, width)
    if config.matching:
        for head, outside in zip(_HEADS, (config.embed, config.embed, 2), strict=True):
            linear(head, width, outside)
    return shapes
