"""BLIP's training augmentation: a random crop, a mirror image, and RandomAugment(2, 5).

RandomAugment draws two of ten operations, one after the other, with repetition, and applies each
with probability 1/2, at magnitude 5 of 10. At that magnitude the enhancement factor of Brightness
and Sharpness is 5 / 10 x 1.8 + .1 = 1: they change nothing, as Identity does, but they are drawn.

The released code computes with OpenCV, and so do we: shifted, sheared and turned pictures are
sampled as OpenCV 4.5 does it, bilinear at 1/32 pixel, whole coordinates at pixel centres, grey
outside. One slip is not repeated: there, the table of AutoContrast overflows where the darkest
value of a channel is above 0, and the channel comes out white. Here it is Pillow's, which that code
says to equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps

from uniadapter_jax.data.images import CropFlip

DRAWS, PROBABILITY = 2, 0.5
SHEAR = 5 / 10 * 0.3  # pixels per pixel
SHIFT = 5 / 10 * 10  # pixels
TURN = 5 / 10 * 30  # degrees
FILL = 128
_STEPS = 32  # positions between two pixels that OpenCV tells apart
_UNIT = 1024  # of its fixed-point coordinates

Pixels = UInt8[np.ndarray, "H W 3"]
Backward = Float[np.ndarray, "2 3"]  # (x, y, 1) of the result -> (x, y) of the picture


def unchanged(pixels: Pixels, sign: float) -> Pixels:
    del sign
    return pixels


def auto_contrast(pixels: Pixels, sign: float) -> Pixels:
    """Each channel is stretched to 0 .. 255, as Pillow does it."""
    del sign
    return np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))


def equalize(pixels: Pixels, sign: float) -> Pixels:
    """Each channel's histogram is made even, as Pillow does it."""
    del sign
    return np.asarray(ImageOps.equalize(Image.fromarray(pixels)))


def shear_x(pixels: Pixels, sign: float) -> Pixels:
    """Row y moves right by sign x SHEAR x y."""
    return sample(pixels, np.array([[1, -sign * SHEAR, 0], [0, 1, 0]]))


def shear_y(pixels: Pixels, sign: float) -> Pixels:
    """Column x moves down by sign x SHEAR x x."""
    return sample(pixels, np.array([[1, 0, 0], [-sign * SHEAR, 1, 0]]))


def shift_x(pixels: Pixels, sign: float) -> Pixels:
    """The picture moves left by sign x SHIFT."""
    return sample(pixels, np.array([[1, 0, sign * SHIFT], [0, 1, 0]]))


def shift_y(pixels: Pixels, sign: float) -> Pixels:
    """The picture moves up by sign x SHIFT."""
    return sample(pixels, np.array([[1, 0, 0], [0, 1, sign * SHIFT]]))


def rotate(pixels: Pixels, sign: float) -> Pixels:
    """Turned about (W / 2, H / 2) by sign x TURN degrees, counter-clockwise."""
    angle = math.radians(sign * TURN)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = pixels.shape[1] / 2, pixels.shape[0] / 2
    return sample(
        pixels,
        np.array(
            [
                [cosine, -sine, x - cosine * x + sine * y],
                [sine, cosine, y - sine * x - cosine * y],
            ]
        ),
    )


# In the order of the released list: Identity, AutoContrast, Brightness, Sharpness, Equalize, ...
OPERATIONS: Mapping[str, Callable[[Pixels, float], Pixels]] = {
    "identity": unchanged,
    "auto_contrast": auto_contrast,
    "brightness": unchanged,
    "sharpness": unchanged,
    "equalize": equalize,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "shift_x": shift_x,
    "shift_y": shift_y,
    "rotate": rotate,
}


@dataclasses.dataclass(frozen=True)
class CropFlipAugment:
    """`CropFlip`, then the operations drawn, in order, each with its sign; one draw for a clip."""

    crop: CropFlip
    operations: tuple[tuple[str, float], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> CropFlipAugment:
        crop = CropFlip.draw(rng)
        names = rng.choice(list(OPERATIONS), size=DRAWS).tolist()
        applied = rng.random(DRAWS) < PROBABILITY
        signs = np.where(rng.random(DRAWS) < 0.5, -1.0, 1.0).tolist()
        drawn = zip(names, signs, applied, strict=True)
        return cls(crop, tuple((name, sign) for name, sign, used in drawn if used))

    def __call__(self, frame: Pixels, out: Pixels) -> None:
        self.crop(frame, out)
        pixels = out
        for name, sign in self.operations:
            pixels = OPERATIONS[name](pixels, sign)
        if pixels is not out:
            out[...] = pixels


def sample(pixels: Pixels, backward: Backward) -> Pixels:
    """The picture whose pixels `backward` finds in this one, by OpenCV's fixed-point arithmetic.

    Coordinates are cut to 1/1024, rounded to 1/32, and the four neighbours are mixed in whole
    numbers. A neighbour outside is grey.
    """
    height, width = pixels.shape[:2]
    framed = np.full((height + 2, width + 2, 3), FILL, np.uint8)
    framed[1:-1, 1:-1] = pixels
    flat = framed.reshape(-1, 3)
    x, y = (_fixed_point(row, height, width) for row in backward)
    to_right, down = x % _STEPS, y % _STEPS
    columns = [np.clip(x // _STEPS + k, 0, width + 1) for k in (1, 2)]
    rows = [np.clip(y // _STEPS + k, 0, height + 1) * (width + 2) for k in (1, 2)]
    mixed = np.full(pixels.shape, _STEPS**2 // 2, np.int32)
    for row, vertical in zip(rows, (_STEPS - down, down), strict=True):
        for column, horizontal in zip(columns, (_STEPS - to_right, to_right), strict=True):
            weight = vertical * horizontal
            if weight.any():  # a shift has one neighbour, a shear two
                mixed += flat.take(row + column, axis=0) * weight[..., None]
    return (mixed // _STEPS**2).astype(np.uint8)


def _fixed_point(row: Float[np.ndarray, "3"], height: int, width: int) -> Int[np.ndarray, "H W"]:
    """One coordinate of every pixel, in 1/32 pixel; each product is rounded by itself."""
    along = np.rint(row[0] * np.arange(width) * _UNIT).astype(np.int32)
    across = np.rint((row[1] * np.arange(height) + row[2]) * _UNIT).astype(np.int32)
    part = _UNIT // _STEPS
    return (across[:, None] + along[None] + part // 2) // part
