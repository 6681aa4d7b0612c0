"""An adapter as a directory of its own: adapter_model.safetensors and adapter_config.json.

Tensors are float32 under our own dotted paths, such as `vision.blocks.after_attn.down_kernel`.
The config names their method and, by its fingerprint, their backbone. Each of the two files holds
the SHA-256 of the other: the config that of the tensors, the header of the tensors' file that of
the config. Adapters of earlier versions have neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from shlex import quote
from typing import Any

import numpy as np
from absl import logging

from uniadapter_jax.adapters.registry import Method, check_options, get_method
from uniadapter_jax.common.digests import file_digest
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, write_json
from uniadapter_jax.weights.directory import raise_problems
from uniadapter_jax.weights.errors import WeightFileError
from uniadapter_jax.weights.fingerprint import digest
from uniadapter_jax.weights.layout import ADAPTER_CONFIG, ADAPTER_TENSORS
from uniadapter_jax.weights.safetensors_file import (
    open_safetensors,
    read_safetensors,
    write_safetensors,
)

FORMAT = "uniadapter_jax/1"
CONFIG_FILE, TENSOR_FILE = ADAPTER_CONFIG, ADAPTER_TENSORS
TENSORS_DIGEST, CONFIG_DIGEST = "tensors_sha256", "config_sha256"
PEFT_FOLDER = "peft"  # holds an exported LoRA, say, again in PEFT's layout
PEFT_METADATA = {"format": "pt"}  # PEFT asks for it
_DIGESTS = (TENSORS_DIGEST, CONFIG_DIGEST)
_CONFIG_BYTES = 2**20
_KINDS = {str: "a string", int: "a whole number", dict: "a JSON object"}


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """The contents of an adapter's directory.

    Attributes:
      options: all options of the method.
      tensors: {our path: float32 array}.
      fingerprint: fingerprint of the backbone that the adapter was trained on.
      task: similarity, temperature and text length that it was trained with; may be empty.
      tokenizer: fingerprint of the tokenizer that it was trained with, "" if not known.
      backbone: path of that backbone when it was trained; shown to people only.
      clips: how frames were taken out of videos; see `inference.clip_options`. May be empty.
    """

    method: str
    options: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    fingerprint: str
    task: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    backbone: str = ""
    clips: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_adapter(directory: pathlib.Path, adapter: AdapterFiles) -> None:
    """Writes an adapter and reads it back to compare.

    `adapter.options` overrides the method's defaults; the file holds all options.
    """
    chosen = get_method(adapter.method)
    config = {
        "library_name": "uniadapter_jax",
        "format": FORMAT,
        "method": adapter.method,
        "method_version": chosen.version,
        "options": {**chosen.options, **adapter.options},
        "task": dict(adapter.task),
        "clips": dict(adapter.clips),
        "base_model_name_or_path": adapter.backbone,
        "backbone_fingerprint": adapter.fingerprint,
        "tokenizer_fingerprint": adapter.tokenizer,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_pair(directory, config, adapter.tensors, _metadata(adapter.fingerprint))


def write_pair(
    directory: pathlib.Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    *,
    digest_in_config: bool = True,
) -> None:
    """Writes a config and float32 tensors with digests, by which `read_adapter` detects damage.

    The tensors are sorted by name, read back and compared. With `digest_in_config=False`, for a
    reader that rejects unknown fields, the tensors' digest goes into the header of their file.
    """
    wide = {name: np.asarray(tensor, np.float32) for name, tensor in sorted(tensors.items())}
    digest = tensors_digest(wide)
    if digest_in_config:
        config = {**config, TENSORS_DIGEST: digest}
    else:
        metadata = {**metadata, TENSORS_DIGEST: digest}
    write_json(directory / CONFIG_FILE, config)
    metadata = {**metadata, CONFIG_DIGEST: file_digest(directory / CONFIG_FILE)}
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in wide.items()}
    file = directory / TENSOR_FILE
    write_safetensors(file, specs, wide.items(), metadata)
    for name, tensor in read_safetensors(file).items():
        if not np.array_equal(tensor, wide[name], equal_nan=True):
            raise WeightFileError(file, f"{name} does not read back as it was written")


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and float32 values, in order of the names."""
    lines = [f"{name}={digest(name, tensor)}\n" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_pair(
    directory: pathlib.Path,
    expected: str | None,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    known: Mapping[str, str],
) -> None:
    """Checks the two files that `write_pair` wrote.

    Args:
      expected: digest of the tensors that was written down.
      metadata: header of the tensors' file; apart from the digests it should equal `known`.

    Raises:
      FileError: one of the files, which is named, has changed.
    """
    file, config = directory / TENSOR_FILE, directory / CONFIG_FILE
    if not config.is_file():
        raise FileError(config, f"is missing, {file.name} belongs to it")
    header = {name: text for name, text in metadata.items() if name not in _DIGESTS}
    if CONFIG_DIGEST not in metadata or header != known:
        raise FileError(file, f"is damaged: its header should say {known} and {CONFIG_DIGEST}")
    for path, measured, noted, other in (
        (config, file_digest(config), metadata[CONFIG_DIGEST], file),
        (file, tensors_digest(tensors), expected, config),
    ):
        if measured != noted:
            raise FileError(
                path,
                f"has changed since it was written, or {other.name} has: its SHA-256 is "
                f"{measured}, noted is {str(noted)[:80]}. Export it again, or get it anew",
            )


def read_adapter(directory: pathlib.Path) -> AdapterFiles:
    """Reads what `write_adapter` wrote.

    Raises:
      UserError: a file is missing or damaged, or its format, its method's version or its options
        are not those of this package; the message has both sides.
    """
    file = directory / CONFIG_FILE
    try:
        config = read_json(file, limit=_CONFIG_BYTES)
    except FileNotFoundError:
        if not directory.is_dir():
            raise UserError(f"adapter={directory}: there is no such directory") from None
        if (directory / "identity.json").exists():
            raise UserError(
                f"adapter={directory} is the workdir of a run; export its adapter: python -m "
                f"uniadapter_jax.export --workdir={quote(str(directory))} --to=DIR"
            ) from None
        raise UserError(
            f"{directory} holds no {CONFIG_FILE}, so it is no adapter of this package"
        ) from None
    method = _check_config(file, config)
    tensors, metadata = open_safetensors(directory / TENSOR_FILE)
    fingerprint = config["backbone_fingerprint"]
    if TENSORS_DIGEST in config or CONFIG_DIGEST in metadata:
        noted = config.get(TENSORS_DIGEST)
        _check_pair(directory, noted, tensors, metadata, _metadata(fingerprint))
        if (peft := directory / PEFT_FOLDER).is_dir():  # only PEFT reads it, unchecked
            copies, header = open_safetensors(peft / TENSOR_FILE)
            _check_pair(peft, header.get(TENSORS_DIGEST), copies, header, PEFT_METADATA)
    else:
        logging.warning(
            "%s was made by an earlier version, without digests: damage to its numbers cannot be "
            "seen",
            directory,
        )
    return AdapterFiles(
        method=method.name,
        options={**method.options, **config["options"]},  # an earlier version may have fewer
        tensors=tensors,
        fingerprint=fingerprint,
        task=config.get("task", {}),
        tokenizer=config.get("tokenizer_fingerprint", ""),
        backbone=config.get("base_model_name_or_path", ""),
        clips=config.get("clips", {}),
    )


def _metadata(fingerprint: str) -> dict[str, str]:
    return {"format": FORMAT, "backbone_fingerprint": fingerprint}


_REQUIRED = {
    **{"format": str, "method": str, "method_version": int, "options": dict},
    "backbone_fingerprint": str,
}
_OPTIONAL = {
    **{"task": dict, "clips": dict},
    **{"tokenizer_fingerprint": str, "base_model_name_or_path": str},
}


def _check_config(file: pathlib.Path, config: Mapping[str, Any]) -> Method:
    """The method that a config names, after a check of all fields."""
    if config.get("format") != FORMAT:
        peft = (
            "; this is PEFT's layout, pass the directory above it" if "peft_type" in config else ""
        )
        raise FileError(
            file, f"format is {config.get('format')!r:.80}, this package reads {FORMAT!r}{peft}"
        )
    for name, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if name in _REQUIRED and name not in config:
            raise FileError(file, f"has no field {name!r}")
        value = config.get(name, kind())
        if type(value) is not kind:
            raise FileError(file, f"{name}={value!r:.80}: expected {_KINDS[kind]}")
    try:
        method = get_method(config["method"])
    except UserError as error:
        raise FileError(file, str(error)) from error
    if config["method_version"] != method.version:
        raise FileError(
            file,
            f"made by version {config['method_version']!r:.80} of {method.name}, this package has "
            f"version {method.version}, which computes something else from the same tensors",
        )
    check_options(f"{file}: options", method, config["options"])
    return method


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
