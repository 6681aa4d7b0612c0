"""An adapter as a directory of its own: adapter_model.safetensors and adapter_config.json.

Tensors are float32 under our own dotted paths, such as `vision.blocks.after_attn.down_kernel`.
The config says which method they belong to and, by its fingerprint, which backbone.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniadapter_jax.adapters import get_method
from uniadapter_jax.errors import UserError
from uniadapter_jax.weights.directory import raise_problems, read_json
from uniadapter_jax.weights.errors import WeightFileError
from uniadapter_jax.weights.safetensors_file import read_safetensors, write_safetensors

FORMAT = "uniadapter_jax/1"
CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """What an adapter's directory says.

    Attributes:
      options: of the method, all of them.
      tensors: {our path: float32 array}.
      fingerprint: of the backbone that it was trained on.
      task: similarity, temperature and text length that it was trained with; may be empty.
      tokenizer: fingerprint of the tokenizer that it was trained with, "" if not known.
      backbone: where that backbone was; only for people.
    """

    method: str
    options: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    fingerprint: str
    task: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    backbone: str = ""


def write_adapter(directory: pathlib.Path, adapter: AdapterFiles) -> None:
    """Writes an adapter and reads it back to compare.

    `adapter.options` overrides the method's defaults; the file has them all.
    """
    chosen = get_method(adapter.method)
    config = {
        "library_name": "uniadapter_jax",
        "format": FORMAT,
        "method": adapter.method,
        "method_version": chosen.version,
        "options": {**chosen.options, **adapter.options},
        "task": dict(adapter.task),
        "base_model_name_or_path": adapter.backbone,
        "backbone_fingerprint": adapter.fingerprint,
        "tokenizer_fingerprint": adapter.tokenizer,
    }
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "backbone_fingerprint": adapter.fingerprint}
    write_float32(directory / TENSOR_FILE, adapter.tensors, metadata)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def write_float32(
    file: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes tensors, float32 and contiguous, in order of their names; reads back and compares."""
    wide = {name: np.asarray(tensor, np.float32) for name, tensor in sorted(tensors.items())}
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in wide.items()}
    write_safetensors(file, specs, wide.items(), metadata)
    for name, tensor in read_safetensors(file).items():
        if not np.array_equal(tensor, wide[name], equal_nan=True):
            raise WeightFileError(file, f"{name} does not read back as it was written")


def read_adapter(directory: pathlib.Path) -> AdapterFiles:
    """What `write_adapter` wrote.

    Raises:
      UserError: a file is missing or damaged, of another format, or of another version of its
        method or of its options; both sides are said.
    """
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{directory} holds no {CONFIG_FILE}, so it is no adapter of this package")
    config = read_json(file)
    if config.get("format") != FORMAT:
        raise UserError(
            f"{file}: format is {config.get('format')!r}, this package reads {FORMAT!r}"
        )
    try:
        name, version, options = config["method"], config["method_version"], config["options"]
        fingerprint = config["backbone_fingerprint"]
    except KeyError as error:
        raise UserError(f"{file} has no field {error}") from error
    method = get_method(name)
    if version != method.version:
        raise UserError(
            f"{file}: made by version {version} of {name}, this package has version "
            f"{method.version}, which computes something else from the same tensors"
        )
    if set(options) != set(method.options):
        raise UserError(
            f"{file}: options are {sorted(options)}, those of {name} are {sorted(method.options)}"
        )
    return AdapterFiles(
        method=name,
        options=options,
        tensors=read_safetensors(directory / TENSOR_FILE),
        fingerprint=fingerprint,
        task=config.get("task", {}),
        tokenizer=config.get("tokenizer_fingerprint", ""),
        backbone=config.get("base_model_name_or_path", ""),
    )


def check_tensors(
    where: object, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> None:
    """Raises `UserError` with all differences unless these are exactly the arrays `expected`."""
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unknown: {name}" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name].shape:
            problems.append(
                f"shape of {name}: {tensor.shape}, this model has {expected[name].shape}"
            )
        if tensor.dtype != np.float32:
            problems.append(f"dtype of {name}: {tensor.dtype}, expected float32")
    raise_problems(where, problems)
