"""Position embeddings for another picture size, as torch's bicubic interpolation makes them."""

from __future__ import annotations

import math

import numpy as np

_A = -0.75  # torch's cubic; others use -.5


def resize_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """[1 + g * g, d] with the class token first, to [1 + grid * grid, d]; the class token stays.

    Patches are resized as in `resize_patches`.

    Raises:
      ValueError: the table does not belong to a square of patches.
    """
    side = math.isqrt(max(0, len(table) - 1)) if table.ndim == 2 else 0
    if side < 1 or side * side != len(table) - 1:
        raise ValueError(f"{table.shape} is no table of 1 + g * g positions")
    if side == grid:
        return table
    return np.concatenate([table[:1].astype(np.float32), resize_patches(table[1:], grid)])


def resize_patches(table: np.ndarray, grid: int) -> np.ndarray:
    """[g * g, d] to [grid * grid, d].

    Equals `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` without
    antialiasing. A table that fits already is returned unchanged, else the result is float32.

    Raises:
      ValueError: the table does not belong to a square of patches.
    """
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    if side < 1 or side * side != len(table):
        raise ValueError(f"{table.shape} is no table of g * g positions")
    if side == grid:
        return table
    weights = cubic_weights(side, grid)
    patches = table.astype(np.float64).reshape(side, side, -1)
    resized = np.einsum("Hh,Ww,hwd->HWd", weights, weights, patches, optimize=True)
    return resized.reshape(grid * grid, -1).astype(np.float32)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """float64 "new old": row i has the weight of each old point in new point i.

    Points lie at pixel centres; outside the table the point at the border is repeated.
    """
    place = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(place).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        point = left + tap
        share = _cubic(np.abs(place - point))
        np.add.at(weights, (np.arange(new), point.clip(0, old - 1)), share)
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel over |distance| in [0, 2]."""
    x = distance
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x <= 1, near, far)
