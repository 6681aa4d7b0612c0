"""Randomness by name, so that no two uses of one seed overlap.

NumPy draws initial values: the same bits with any JAX, backend or number of devices, and no program
to compile per shape. Inside a step, random values (dropout) come from a JAX key.

A JAX key is one for all rows of a batch, or an array with a key per row. With a key per row, the
values of a row do not depend on the other rows.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.types import Array, Bool, Float, Int


def stream(seed: int | np.uint32, name: str) -> Array:
    """The JAX key for the use called `name`."""
    return fold_name(jax.random.key(seed), name)


def fold_name(key: Array, name: str) -> Array:
    """The key derived from `key`, or from each row's key, for the use called `name`."""
    return fold_in(key, zlib.crc32(name.encode()))


def fold_in(key: Array, number: Int[Array, ""] | int) -> Array:
    """The key derived from `key`, or from each row's key, by a number."""
    if not key.ndim:
        return jax.random.fold_in(key, number)
    return jax.vmap(lambda row: jax.random.fold_in(row, number))(key)


def split(key: Array, count: int) -> Array:
    """`count` keys derived from `key`; for keys of rows, `count` arrays of keys of rows."""
    if not key.ndim:
        return jax.random.split(key, count)
    return jnp.swapaxes(jax.vmap(lambda row: jax.random.split(row, count))(key), 0, 1)


def row_keys(key: Array, rows: Int[Array, " b"]) -> Array:
    """Keys "b" of rows, derived from their numbers."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def frame_keys(keys: Array, frames: int) -> Array:
    """Keys "b f" of the frames of every row."""
    return jax.vmap(lambda key: row_keys(key, jnp.arange(frames)))(keys)


def bernoulli(key: Array, p: float | Array, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability p; with keys of rows, each row of the leading axis uses its own."""
    if not key.ndim:
        return jax.random.bernoulli(key, p, shape)
    return jax.vmap(lambda row: jax.random.bernoulli(row, p, shape[1:]))(key)


def generator(seed: int, name: str) -> np.random.Generator:
    """The NumPy generator for the use called `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def normal(rng: np.random.Generator | None, std: float, *shape: int) -> Float[Array, "..."]:
    """Normal values in float32; zeros without a generator, for weights that a file will fill."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(std))


def uniform(rng: np.random.Generator | None, bound: float, *shape: int) -> Float[Array, "..."]:
    """Values in [-bound, bound) in float32; zeros without a generator, as in `normal`."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray((2 * rng.random(shape, np.float32) - 1) * np.float32(bound))
