"""Sizes of a backbone without its weights."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.packaged import model, packaged
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.weights.families import Config, check_family, family_of
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import hub_name
from uniadapter_jax.weights.layout import CONFIG_FILE, read_config
from uniadapter_jax.weights.needed import CONFIG


def _large(image_size: int) -> dict[str, Any]:
    return {
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": image_size,
            "patch_size": 14,
        },
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
    }


# OpenAI's models, by the name of their architecture and by that of their directory on the
# HuggingFace hub: what differs from transformers' defaults, as in their config.json.
_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-b-32": ("clip-vit-base-patch32", {}),
    "vit-b-16": ("clip-vit-base-patch16", {"vision_config": {"patch_size": 16}}),
    "vit-l-14": ("clip-vit-large-patch14", _large(224)),
    "vit-l-14-336": ("clip-vit-large-patch14-336", _large(336)),
}


def _blip(image_size: int, *parts: str) -> dict[str, Any]:
    return {
        "architectures": list(parts),
        "text_config": {"num_attention_heads": 12},
        "vision_config": {"layer_norm_eps": 1e-6, "image_size": image_size},
    }


# BLIP's ViT-B, by the names that the configs give its directories; `convert` chooses the size.
BLIP_BASE: dict[str, dict[str, Any]] = {
    **{f"blip-base-{size}": _blip(size, MATCHING) for size in (224, 384)},
    **{f"blip-base-capfilt-{size}": _blip(size, MATCHING, ANSWERING) for size in (224, 480)},
}


def known_config(name: str) -> Config | None:
    """The sizes that go by that name, if any."""
    for architecture, (directory, fields) in _KNOWN.items():
        if name in (architecture, directory):
            return CLIPConfig.from_huggingface(fields)
    if name in BLIP_BASE:
        return BLIPConfig.from_huggingface(BLIP_BASE[name])
    return None


def backbone_config(config: ConfigDict, given: str | None) -> tuple[Config, str]:
    """(sizes, where they come from) of a run's backbone.

    Args:
      given: a `config.json`, the directory of one, a known name, or a name on the hub; None:
        what `config.backbone` names. Known names cost no download.

    Raises:
      UserError: nothing there says how large the backbone is, or it is not one for the task.
    """
    source = packaged(given or config.backbone.removeprefix("random:"))
    path = pathlib.Path(model(source))
    if path.is_dir():
        path = path / CONFIG_FILE
    if source and path.is_file():
        sizes, where = read_config(path), str(path)
    elif known := known_config(path.name.partition("@")[0]):
        sizes, where = known, f"the published sizes of {path.name}"
    elif hub_name(source):
        where, folder = located(source, _field(given), CONFIG)
        sizes = read_config(pathlib.Path(folder) / CONFIG_FILE)
    else:
        raise UserError(_unknown(source, given))
    check_family(family_of(sizes), config.task.name, get_task(config.task.name).families, where)
    return sizes, where


def _field(given: str | None) -> str:
    return "--backbone-config" if given else "config.backbone"


def _unknown(source: str, given: str | None) -> str:
    return (
        f"{_field(given)}={source!r} is no config.json and no directory with one; pass "
        f"--backbone-config=FILE, or one of {', '.join((*_KNOWN, *BLIP_BASE))}"
    )
