"""Arguments of the library's doors as arrays and strings. A wrong one is named in a `UserError`.

Arrays may be of NumPy, JAX or PyTorch, or (nested) lists; nothing is rounded, cut or broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Bool, Float, Int, Shaped

Shape = tuple[int | None, ...]

UNIT = 1e-2  # how far from 1 a unit vector's length may be: bfloat16 rounds by .4 %
BRIGHTEST = 20.0  # of normalised pixels, which lie within 3 of 0; those of 0 to 255 do not
_NO_ARRAYS = (str, bytes, bytearray, Mapping, set, frozenset)


def as_array(value: Any, name: str) -> Shaped[np.ndarray, "..."]:
    """Numbers or truth values of any shape."""
    if value is None or isinstance(value, _NO_ARRAYS):
        raise UserError(f"{name}: an array is meant, not {type(value).__name__}")
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{name} is a masked array, whose mask would be lost; fill it")
    try:
        if hasattr(value, "detach"):  # of PyTorch
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
    except Exception as error:  # whatever the other library raises
        reason = str(error).splitlines()[:1]
        raise UserError(f"{name}: no array with rows of one shape comes of it: {reason}") from error
    if not (array.dtype.kind in "biu" or jnp.issubdtype(array.dtype, jnp.floating)):
        raise UserError(f"{name}: numbers are meant, not {array.dtype}")
    return array


def check_shape(array: np.ndarray, name: str, axes: str, shape: Shape = ()) -> None:
    """Raises unless the array has `axes`, such as "b f", as long as `shape` says; None: any."""
    letters = axes.split()
    expected = shape or (None,) * len(letters)
    if array.ndim != len(letters) or any(
        n is not None and n != m for n, m in zip(expected, array.shape, strict=True)
    ):
        said = "".join(
            f", {letter} = {n}"
            for letter, n in zip(letters, expected, strict=True)
            if n is not None and not letter.isdigit()
        )
        comma = "," if len(letters) == 1 else ""
        raise UserError(
            f"{name} has the shape {array.shape}, expected ({', '.join(letters)}{comma}){said}"
        )


def floats(value: Any, name: str, axes: str, shape: Shape = ()) -> Float[np.ndarray, "..."]:
    """Finite numbers, float32."""
    array = as_array(value, name)
    check_shape(array, name, axes, shape)
    if array.dtype == bool:
        raise UserError(f"{name}: numbers are meant, not {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not (finite := np.isfinite(array)).all():
        place = np.argwhere(~finite)[0].tolist()
        raise UserError(f"{name} is not finite at {place}: {array[tuple(place)]}")
    return array


def unit_vectors(value: Any, name: str, shape: Shape) -> Float[np.ndarray, "n c"]:
    """Rows of length 1; rows of zeros stand for nothing."""
    array = floats(value, name, "n c", shape)
    length = np.linalg.norm(array, axis=1)
    if (wrong := np.flatnonzero((np.abs(length - 1) > UNIT) & (length > 0))).size:
        raise UserError(
            f"{name}: row {wrong[0]} has the length {length[wrong[0]]:.4g}; rows are unit vectors "
            "of one item each"
        )
    return array


def integers(
    value: Any, name: str, axes: str, shape: Shape = (), *, low: int = 0, high: int = 2**31 - 1
) -> Int[np.ndarray, "..."]:
    """Whole numbers from `low` to `high`, int32; floats may be whole numbers."""
    array = as_array(value, name)
    check_shape(array, name, axes, shape)
    if array.dtype == bool or not (array == np.floor(array)).all():
        raise UserError(f"{name}: whole numbers are meant, not {array.dtype}")
    if array.size and (array.min() < low or array.max() > high):
        raise UserError(
            f"{name} has values from {array.min()} to {array.max()}, expected {low} to {high}"
        )
    return array.astype(np.int32)


def mask_of(value: Any, name: str, axes: str, shape: Shape) -> Bool[np.ndarray, "..."]:
    """Truth values, which may be written as 0 and 1."""
    array = as_array(value, name)
    check_shape(array, name, axes, shape)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise UserError(f"{name}: True and False, or 1 and 0, are meant")
    return array.astype(bool)


def frame_mask(value: Any, name: str, clips: int, frames: int) -> Bool[np.ndarray, "m f"]:
    """A mask of frames, all there by default; no clip may be without any."""
    if value is None:
        return np.ones((clips, frames), bool)
    mask = mask_of(value, name, "m f", (clips, frames))
    if (empty := np.flatnonzero(~mask.any(axis=1))).size:
        raise UserError(f"{name}: clip {empty[0]} has no frame that is there")
    return mask


def pixels_of(value: Any, name: str, axes: str, side: int | None) -> Shaped[np.ndarray, "..."]:
    """Pictures with the channels last: uint8, or normalised floats (float32) of `side` x `side`.

    `axes` ends with "H W 3". With `side` None floats may have any size.
    """
    array = as_array(value, name)
    letters = axes.split()
    if array.ndim != len(letters) or array.shape[-1] != 3:
        raise UserError(
            f"{name} of shape {array.shape} are not ({', '.join(letters)}), channels last"
        )
    if 0 in array.shape[1:]:
        raise UserError(f"{name} of shape {array.shape} have no pixels")
    if array.dtype == np.uint8:
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} are {array.dtype}: uint8, or normalised floats")
    height, width = array.shape[-3:-1]
    if side is not None and (height, width) != (side, side):
        raise UserError(
            f"{name}: normalised pictures of {height}x{width}, the model sees {side}x{side}; "
            "pass uint8 to have them resized"
        )
    array = floats(array, name, axes)
    if array.size and (brightest := np.abs(array).max()) > BRIGHTEST:
        raise UserError(
            f"{name} are floats as far from 0 as {brightest:.4g}, normalised ones lie within 3; "
            "pass uint8 to have them normalised"
        )
    return array


def is_empty(value: Any) -> bool:
    """Whether this is a list of nothing, which has no shape."""
    return isinstance(value, list | tuple) and not value


def are_strings(value: Any) -> bool:
    """Whether texts are given as strings (perhaps wrong ones), not as ids."""
    if isinstance(value, str | bytes):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "US"
    if isinstance(value, list | tuple):
        return not value or any(isinstance(text, str | bytes) for text in value)
    return not hasattr(value, "__array__")


def strings(value: Any, name: str, *, single: bool = True) -> list[str]:
    """A list of texts; with `single` one string is a list of one."""
    if isinstance(value, str) and single:
        value = [value]
    if value is None or isinstance(value, _NO_ARRAYS) or not hasattr(value, "__iter__"):
        raise UserError(f"{name}: a list of strings is meant, not {type(value).__name__}")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise UserError(f"{name}: a list of strings is meant, not an array of {value.shape}")
    texts = list(value)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{i}] is no string but {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name}[{i}] is no text: half a character at {error.start}") from error
    return list(map(str, texts))  # NumPy's strings are of a type of their own


def padded_ids(
    value: Any, name: str, axes: str, shape: Shape, *, vocab_size: int, pad: int, longest: int
) -> Int[np.ndarray, "... l"]:
    """Ids of a vocabulary; padding stands behind the last token of a row, if anywhere."""
    ids = integers(value, name, axes, shape, high=vocab_size - 1)
    if not 0 < ids.shape[-1] <= longest:
        raise UserError(f"{name}: rows of {ids.shape[-1]} ids, the model reads 1 to {longest}")
    there = ids != pad
    if (there[..., 1:] & ~there[..., :-1]).any():
        row = np.argwhere((there[..., 1:] & ~there[..., :-1]).any(axis=-1))[0].tolist()
        raise UserError(f"{name}: row {_place(row)} has padding (id {pad}) before its last token")
    return ids


def text_ids(value: Any, name: str, axes: str, config: Any) -> Int[np.ndarray, "... l"]:
    """`padded_ids` of what a backbone with `pad_id` and `positions` reads."""
    return padded_ids(
        value,
        name,
        axes,
        (None,) * len(axes.split()),
        vocab_size=config.vocab_size,
        pad=config.pad_id,
        longest=config.positions,
    )


def check_begin(
    ids: Int[np.ndarray, "... l"], rows: Bool[np.ndarray, "..."], name: str, begin: int, token: str
) -> None:
    """Raises unless each of the `rows` begins with that token."""
    if (wrong := np.argwhere(rows & (ids[..., 0] != begin))).size:
        place = wrong[0].tolist()
        first = ids[(*place, 0)]
        raise UserError(
            f"{name}: row {_place(place)} begins with the id {first}, expected {token}, {begin}"
        )


def _place(row: Sequence[int]) -> str:
    return ", ".join(map(str, row))


def whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    """A whole number of at least `low`."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}={value!r}: a whole number is meant")
    if value < low or (high is not None and value > high):
        most = "" if high is None else f", at most {high}"
        raise UserError(f"{name}={value}: at least {low}{most}")
    return value


def real(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray):
        raise UserError(f"{name}={str(value)[:80]!r}: a number is meant")
    array = as_array(value, name)
    if array.ndim:
        raise UserError(f"{name}: one number is meant, not an array of {array.shape}")
    number = float(array)
    if not math.isfinite(number) or not low <= number <= high:
        raise UserError(f"{name}={number}: a number from {low:g} to {high:g} is meant")
    return number


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name}={str(value)[:80]!r}: True or False is meant")
    return bool(value)
