"""Randomness by name, so that no two uses of one seed overlap.

Initial values are drawn by NumPy: the same bits with any JAX, backend or number of devices, and no
program to compile per shape. What is drawn inside a step (dropout) comes from a JAX key.

A JAX key is one for all rows of a batch, or an array of keys, one a row. With these a row draws the
same whatever rows are beside it.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.types import Array, Bool, Float, Int


def stream(seed: int, name: str) -> Array:
    """The JAX key of what is drawn under `name`."""
    return fold_name(jax.random.key(seed), name)


def fold_name(key: Array, name: str) -> Array:
    """The key of what is drawn under `name` below `key`; of each row if there are keys of rows."""
    return fold_in(key, zlib.crc32(name.encode()))


def fold_in(key: Array, number: Int[Array, ""] | int) -> Array:
    """The key numbered so below `key`, or below each row's."""
    if not key.ndim:
        return jax.random.fold_in(key, number)
    return jax.vmap(lambda row: jax.random.fold_in(row, number))(key)


def split(key: Array, count: int) -> Array:
    """`count` keys below `key`; below keys of rows, as many arrays of keys of rows."""
    if not key.ndim:
        return jax.random.split(key, count)
    return jnp.swapaxes(jax.vmap(lambda row: jax.random.split(row, count))(key), 0, 1)


def row_keys(key: Array, rows: Int[Array, " b"]) -> Array:
    """Keys "b" of rows, by their numbers."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def frame_keys(keys: Array, frames: int) -> Array:
    """Keys "b f" of every row's frames."""
    return jax.vmap(lambda key: row_keys(key, jnp.arange(frames)))(keys)


def bernoulli(key: Array, p: float | Array, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability p; from keys of rows, each row of the leading axis by its own."""
    if not key.ndim:
        return jax.random.bernoulli(key, p, shape)
    return jax.vmap(lambda row: jax.random.bernoulli(row, p, shape[1:]))(key)


def generator(seed: int, name: str) -> np.random.Generator:
    """The NumPy generator of what is drawn under `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def normal(rng: np.random.Generator | None, std: float, *shape: int) -> Float[Array, "..."]:
    """Normal values in float32; zeros without a generator, for what a file will fill."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(std))


def uniform(rng: np.random.Generator | None, bound: float, *shape: int) -> Float[Array, "..."]:
    """Values in [-bound, bound) in float32; zeros without a generator, as `normal` gives."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray((2 * rng.random(shape, np.float32) - 1) * np.float32(bound))
