"""Randomness by name, so that no two uses of one seed overlap.

NumPy draws initial values: the same bits with any JAX, backend or number of devices, and no program
to compile per shape. Inside a step, random values (dropout) come from a JAX key.

A JAX key is one for all rows of a batch, or an array with a key per row. With a key per row, the
values of a row do not depend on the other rows.
"""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.types import Array, Bool, Float, Int, UInt32


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
    """True with probability p; with keys of rows, each row of the leading axis uses its own.

    An element is drawn from the key's words and from its place in the row (without keys of rows: in
    the whole) alone, p to 24 bits.

    Raises:
      ValueError: a row has more than 2^32 elements, so that their numbers would repeat, or there
        are not as many keys as rows.
    """
    if key.ndim and len(key) != shape[0]:
        raise ValueError(f"{len(key)} keys for {shape[0]} rows")
    bits = _bits(jax.random.key_data(key), shape)
    threshold = jnp.round(jnp.asarray(p, jnp.float32) * 2.0**24).astype(jnp.int32)
    # Of 24 bits, so that p=1 is always and p=0 never; signed, as TPUs compare.
    return (bits >> 8).astype(jnp.int32) < threshold


# Shifts and factors of a mixer of 32 bits that was searched for by how evenly a bit of its argument
# acts on all bits of its value ("triple32", C. Wellons, hash-prospector, 2018).
_SHIFTS, _FACTORS = (17, 11, 15), (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)


def _bits(words: UInt32[Array, "*b w"], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """32 bits an element, of which the upper are the better mixed: a hash of a dozen operations.

    The place of the element plus a key's first word goes through three rounds, x ^= x >> shift and
    x *= factor; the key's second word is added after the first round. Rows whose ranges of first
    words overlap (of 25,000 keys in a step some do) so still differ in what enters the second. A
    last x ^= x >> 14 of the mixer is left out, which would change the lower bits only. JAX's own
    bits cost ten times as many operations, which a compiler fuses into the products around.
    """
    rows = words.ndim - 1
    first, second = (jnp.expand_dims(words[..., i], tuple(range(rows, len(shape)))) for i in (0, 1))
    x = _places(shape[rows:])[(None,) * rows] + first
    for i, (shift, factor) in enumerate(zip(_SHIFTS, _FACTORS, strict=True)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
        x = x + second if i == 0 else x
    return x


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """0, 1, ... in this shape, made axis by axis: no reshape is in the way of a fusion."""
    if math.prod(shape) > 2**32:
        raise ValueError(f"random values of shape {shape} are more than the 2^32 of one key")
    places, below = jnp.zeros((1,) * len(shape), jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        places, below = places + place * jnp.uint32(below), below * shape[axis]
    return places


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
