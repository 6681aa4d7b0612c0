"""Randomness by name, so that no two uses of one seed overlap.

Initial values are drawn by NumPy: the same bits with any JAX, backend or number of devices, and no
program to compile per shape. What is drawn inside a step (dropout) comes from a JAX key.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.types import Array, Float


def stream(seed: int, name: str) -> Array:
    """The JAX key of what is drawn under `name`."""
    return fold_name(jax.random.key(seed), name)


def fold_name(key: Array, name: str) -> Array:
    """The key of what is drawn under `name` below `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def generator(seed: int, name: str) -> np.random.Generator:
    """The NumPy generator of what is drawn under `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def normal(rng: np.random.Generator | None, std: float, *shape: int) -> Float[Array, "..."]:
    """Normal values in float32; zeros without a generator, for what a file will fill."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(std))


def uniform(rng: np.random.Generator, bound: float, *shape: int) -> Float[Array, "..."]:
    """Values in [-bound, bound) in float32."""
    return jnp.asarray((2 * rng.random(shape, np.float32) - 1) * np.float32(bound))
