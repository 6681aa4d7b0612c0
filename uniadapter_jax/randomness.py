"""Keys by name, so that no two uses of randomness of one seed overlap."""

from __future__ import annotations

import zlib

import jax

from uniadapter_jax.types import Array


def stream(seed: int, name: str) -> Array:
    """The key of everything that is drawn under `name`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
