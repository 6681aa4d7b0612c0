"""Foreign weights: finds their files, their format, and the config of the backbone they make.

A format is a row of `FORMATS`: how to recognise its tensor names, and how to open it (which rules
convert it, where its config comes from).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.families import FAMILIES, Config, family_of
from uniadapter_jax.weights.layout import (
    CONFIG_BYTES,
    CONFIG_FILE,
    FINGERPRINT_FILE,
    OPEN_CLIP_CONFIG,
    PIXELS_CONFIG,
    WEIGHT_FILE,
    WEIGHT_FILES,
    read_config,
)
from uniadapter_jax.weights.names import blip_own as blip_own_names
from uniadapter_jax.weights.names import cma as cma_names
from uniadapter_jax.weights.names import openai as openai_names
from uniadapter_jax.weights.names import uniadapter as uniadapter_names
from uniadapter_jax.weights.names.rules import Rule
from uniadapter_jax.weights.open_clip_config import check_pixels, clip_config
from uniadapter_jax.weights.safetensors_file import read_safetensors, read_weights
from uniadapter_jax.weights.torch.file import read_state_dict

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a user may add about files that hold nothing but tensors."""

    activation: str | None = None
    heads: tuple[int, int] | None = None


NO_HINTS = Hints()


@dataclasses.dataclass(frozen=True)
class ForeignAdapter:
    """An adapter inside foreign weights.

    Attributes:
      options: those options of the method that the tensors tell.
      tensors: {our path: array}; empty if there are problems.
      problems: the tensors that do not fit, one line each.
    """

    method: str
    options: Mapping[str, Any]
    tensors: Tensors
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """Foreign weights and the way to convert them.

    Attributes:
      kind: name of the format, shown to people.
      tensors: backbone tensors by the format's own names, as views of the files.
      folder: the folder that may hold its other files (config, tokenizer).
      adapter: None if the file has no adapter.
      ours: whether `folder` has a fingerprint of these weights.
    """

    kind: str
    tensors: Tensors
    config: Config
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    folder: pathlib.Path
    adapter: ForeignAdapter | None = None
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A foreign layout: `recognises` looks at tensor names, `open` makes a `Source`."""

    name: str
    recognises: Callable[[Iterable[str]], bool]
    open: Callable[[Tensors, pathlib.Path, Hints], Source]


def open_source(path: str, hints: Hints = NO_HINTS) -> Source:
    """Opens the weights in a file or directory, in whichever format they are.

    Raises:
      UserError: no such file, an unreadable file, or tensors in no known format.
    """
    root = pathlib.Path(path)
    file = _find(root) if root.is_dir() else root
    if not file.is_file():
        raise UserError(f"{path}: no such file or directory")
    tensors = read_weights(file, _read)
    for form in FORMATS:
        if form.recognises(tensors):
            try:
                return form.open(tensors, file, hints)
            except FileError:
                raise
            except UserError as error:
                raise FileError(file, str(error)) from error
    some = printable(", ".join(sorted(tensors)[:3]))
    raise UserError(
        f"{file} holds {len(tensors)} tensors of no known format ({some}, ...); "
        f"known: {', '.join(form.name for form in FORMATS)}"
    )


def _find(directory: pathlib.Path) -> pathlib.Path:
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory} holds none of {', '.join(WEIGHT_FILES)}; if its weights have another name, "
        "pass that file"
    )


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    return (read_safetensors if file.suffix == ".safetensors" else read_state_dict)(file)


def _open_huggingface(tensors: Tensors, file: pathlib.Path, hints: Hints) -> Source:
    config = read_config(file.with_name(CONFIG_FILE))
    if (pixels := file.with_name(PIXELS_CONFIG)).exists():
        content = read_json(pixels, limit=CONFIG_BYTES)
        check_pixels(content, ("image_mean", "image_std"), pixels, config.pixels)
    family = family_of(config)
    return Source(
        f"HuggingFace {family.title}",
        family.canonical(tensors, config),
        config,
        family.rules(config),
        family.ignored,
        file.parent,
        ours=file.name == WEIGHT_FILE and file.with_name(FINGERPRINT_FILE).exists(),
    )


def _open_openai(tensors: Tensors, file: pathlib.Path, hints: Hints) -> Source:
    rules, ignored = openai_names.RULES, openai_names.IGNORED
    # Models of open_clip's CustomTextCLIP have the text tower's tensors under `text.`.
    plain = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    described = file.with_name(OPEN_CLIP_CONFIG)
    if described.exists():
        config = clip_config(read_json(described, limit=CONFIG_BYTES), described)
        return Source("open_clip", plain, config, rules, ignored, file.parent)
    if hints.activation is None and (
        file.name.startswith("open_clip") or set(plain) != set(tensors)
    ):
        raise FileError(
            file,
            f"is open_clip's, without its {described.name}: weights do not tell quick_gelu (models "
            "with -quickgelu in their name, and OpenAI's) from gelu (the others). Put that file "
            "beside it, or pass --activation",
        )
    config = openai_names.config_of_shapes(
        plain, activation=hints.activation or "quick_gelu", heads=hints.heads
    )
    return Source("OpenAI CLIP", plain, config, rules, ignored, file.parent)


def _open_cross_modal_adapter(tensors: Tensors, file: pathlib.Path, hints: Hints) -> Source:
    prefix = cma_names.PREFIX
    adapter = {
        name: t for name, t in tensors.items() if name.removeprefix(prefix) in cma_names.NAMES
    }
    clip = {name: tensor for name, tensor in tensors.items() if name not in adapter}
    plain = {name.removeprefix(prefix): tensor for name, tensor in clip.items()}
    config = openai_names.config_of_shapes(plain, heads=hints.heads)
    adapter = {name.removeprefix(prefix): tensor for name, tensor in adapter.items()}
    return Source(
        "Cross-Modal Adapter" if adapter else "CLIP4Clip",
        clip,
        config,
        tuple(dataclasses.replace(r, source=prefix + r.source) for r in openai_names.RULES),
        tuple(prefix + name for name in openai_names.IGNORED),
        file.parent,
        _cross_modal_adapter(adapter, config) if adapter else None,
    )


def _cross_modal_adapter(official: Tensors, config: Config) -> ForeignAdapter:
    options = cma_names.options(official)
    vision, text = config.vision, config.text
    problems = cma_names.misfits(
        official,
        layers=(vision.layers, text.layers),
        widths=(vision.width, text.width),
        **options,
    )
    tensors = {} if problems else dict(cma_names.from_official(official))
    return ForeignAdapter("cross_modal_adapter", options, tensors, tuple(problems))


def _open_blip(tensors: Tensors, file: pathlib.Path, hints: Hints) -> Source:
    config = blip_own_names.config_of_shapes(
        tensors, activation=hints.activation or "gelu", heads=hints.heads
    )
    adapter, rest, copies = uniadapter_names.split(blip_own_names.of_model(tensors, config))
    family = family_of(config)
    return Source(
        "UniAdapter" if adapter else "BLIP",
        family.canonical(rest, config),
        config,
        blip_own_names.rules(config),
        family.ignored,
        file.parent,
        _uniadapter(adapter, config, copies) if adapter else None,
    )


def _uniadapter(official: Tensors, config: BLIPConfig, copies: list[str]) -> ForeignAdapter:
    options = uniadapter_names.options(official)
    problems = copies + uniadapter_names.misfits(
        official,
        config,
        bottleneck=options["bottleneck"],
        key_value_bottleneck=options["key_value_bottleneck"],
    )
    keep = {"train_cross_norm": options["train_cross_norm"]}
    tensors = {} if problems else uniadapter_names.trained(official, **keep)
    return ForeignAdapter("uniadapter", options, tensors, tuple(problems))


def _any_starts(*prefixes: str) -> Callable[[Iterable[str]], bool]:
    return lambda names: any(name.startswith(prefixes) for name in names)


def _has_vit(names: Iterable[str]) -> bool:
    return not {"visual.conv1.weight", "visual.proj", "visual.class_embedding"}.isdisjoint(names)


FORMATS: tuple[Format, ...] = (
    Format(
        "HuggingFace " + " or ".join(family.title for family in FAMILIES.values()),
        _any_starts("vision_model.", "text_model."),
        _open_huggingface,
    ),
    Format("BLIP or UniAdapter", _any_starts("visual_encoder."), _open_blip),
    Format(
        "Cross-Modal Adapter",
        _any_starts("clip.visual.", *(cma_names.PREFIX + name for name in cma_names.NAMES)),
        _open_cross_modal_adapter,
    ),
    Format("OpenAI CLIP or open_clip (ViT)", _has_vit, _open_openai),
)
