"""The files of backbones and adapters: what they are called, and the config of a backbone."""

from __future__ import annotations

import pathlib

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json
from uniadapter_jax.weights.families import FAMILIES, Config

CONFIG_FILE, WEIGHT_FILE = "config.json", "model.safetensors"
FINGERPRINT_FILE = "fingerprint.json"  # only in directories that we wrote
# Weights that `convert` looks for in a directory, in this order.
WEIGHT_FILES = (
    WEIGHT_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
OPEN_CLIP_CONFIG, PIXELS_CONFIG = "open_clip_config.json", "preprocessor_config.json"
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_BYTES = 2**20  # transformers' largest have some KB


def read_config(path: pathlib.Path) -> Config:
    """A backbone's `config.json`; raises `UserError` unless it belongs to a known family."""
    try:
        config = read_json(path, limit=CONFIG_BYTES)
    except FileNotFoundError:
        raise FileError(path, "there is no such file; a backbone needs it") from None
    name = config.get("model_type", "clip")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        known = " or ".join(map(repr, FAMILIES))
        raise FileError(path, f"model_type is {str(name)[:80]!r}, expected {known}")
    try:
        return family.config.from_huggingface(config)
    except UserError as error:
        raise FileError(path, str(error)) from error
