"""Pictures as the vision towers take them: normalised, in patches."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones import functions
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Float, Shaped, UInt8


class PixelStatistics(NamedTuple):
    """Mean and deviation of colours in [0, 1], by which pixels are normalised."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP_PIXELS = PixelStatistics(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
PIXEL_MEAN, PIXEL_STD = CLIP_PIXELS


class _Pictures(Protocol):
    @property
    def pixels(self) -> PixelStatistics: ...

    @property
    def image_size(self) -> int: ...

    @property
    def patch_size(self) -> int: ...


def picture_patches(pixels: Array, config: _Pictures, dtype: jnp.dtype) -> Float[Array, "b s i"]:
    """Pictures "b H W 3", uint8 or normalised floats, as flat patches of normalised floats.

    Raises:
      UserError: the pictures have another size.
    """
    size = config.image_size
    if pixels.shape[1:] != (size, size, 3):
        raise UserError(f"pictures of {size}x{size}x3 expected, got {pixels.shape[1:]}")
    # Cut as bytes, which XLA would turn into floats first: to cut those takes a TPU several times
    # the memory, most of it padding.
    patches = jax.lax.optimization_barrier(_tiles(pixels, config.patch_size))
    if patches.dtype == jnp.uint8:
        patches = normalize_pixels(patches, config.pixels)
    return patches.astype(dtype)


def normalize_pixels(
    pixels: UInt8[Array, "... i"], statistics: PixelStatistics = CLIP_PIXELS
) -> Float[Array, "... i"]:
    """uint8 to zero-mean, unit-variance floats; the last axis is one pixel or several."""
    count = pixels.shape[-1] // 3
    mean, std = (
        functions.along_last(jnp.tile(jnp.asarray(of, jnp.float32), count), pixels)
        for of in statistics
    )
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std


def _tiles(pixels: Shaped[Array, "b H W 3"], patch: int) -> Shaped[Array, "b s i"]:
    """Square pictures cut into rows of patches; each is flattened as (row, column, colour).

    Rows and columns beyond the last whole patch are left out, as a convolution does.
    """
    b, grid = pixels.shape[0], pixels.shape[1] // patch
    if pixels.shape[1] % patch:
        pixels = pixels[:, : grid * patch, : grid * patch]
    cut = pixels.reshape(b, grid, patch, grid, patch, 3).swapaxes(2, 3)
    return cut.reshape(b, grid * grid, patch * patch * 3)
