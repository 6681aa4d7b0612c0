"""The fingerprint that binds an adapter to a backbone: a hash of its tensors and its config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.weights.safetensors_file import pieces

_FLOAT32 = np.dtype("<f4")


class BackboneConfig(Protocol):
    """A backbone's config; `function` gives the fields that change what the model computes."""

    def function(self) -> dict[str, Any]: ...


def workers() -> ThreadPoolExecutor:
    """Threads for hashing and copying of large arrays; both release Python's lock."""
    return ThreadPoolExecutor(min(8, usable_cores()))


def digest(name: str, tensor: np.ndarray) -> str:
    """SHA-256 over name, shape and little-endian float32 values of one tensor.

    Other floating dtypes are cast piece by piece, so a tensor and its half-precision copy hash
    alike if the copy lost no precision.
    """
    sha = hashlib.sha256(f"{name} {list(tensor.shape)} float32 ".encode())
    for piece in pieces(tensor, _FLOAT32):
        sha.update(piece.view(np.uint8).data)
    return sha.hexdigest()


def combine(digests: Iterable[tuple[str, str]], config: BackboneConfig) -> str:
    """The fingerprint: a hash of the config and of all (name, digest) in order of their names."""
    sha = hashlib.sha256(json.dumps(config.function(), sort_keys=True).encode())
    for name, value in sorted(digests):
        sha.update(f"{name}={value}\n".encode())
    return sha.hexdigest()


def fingerprint(tensors: Iterable[tuple[str, np.ndarray]], config: BackboneConfig) -> str:
    """The fingerprint of a backbone's (HuggingFace name, array) pairs, in any order."""
    with workers() as pool:
        return combine(pool.map(lambda pair: (pair[0], digest(*pair)), tensors), config)
