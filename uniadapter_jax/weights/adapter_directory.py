"""An adapter as a directory of its own: adapter_model.safetensors and adapter_config.json.

Tensors are float32 under our own dotted paths, such as `vision.blocks.after_attn.down_kernel`.
The config says which method they belong to and, by its fingerprint, which backbone.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniadapter_jax.adapters import get_method
from uniadapter_jax.weights.safetensors_file import read_safetensors, write_safetensors

FORMAT = "uniadapter_jax/1"


def write_adapter(
    directory: pathlib.Path,
    *,
    method: str,
    options: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    fingerprint: str,
) -> None:
    """Writes an adapter for the backbone of that fingerprint and reads it back to compare.

    `options` overrides the method's defaults; the file has them all.
    """
    chosen = get_method(method)
    config = {
        "library_name": "uniadapter_jax",
        "format": FORMAT,
        "method": method,
        "method_version": chosen.version,
        "options": {**chosen.options, **options},
        "backbone_fingerprint": fingerprint,
    }
    directory.mkdir(parents=True)
    wide = {name: np.asarray(tensor, np.float32) for name, tensor in sorted(tensors.items())}
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in wide.items()}
    file = directory / "adapter_model.safetensors"
    metadata = {"format": FORMAT, "backbone_fingerprint": fingerprint}
    write_safetensors(file, specs, wide.items(), metadata)
    for name, tensor in read_safetensors(file).items():
        if not np.array_equal(tensor, wide[name], equal_nan=True):
            raise OSError(f"{file}: {name} does not read back as it was written")
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
