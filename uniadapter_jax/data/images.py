"""Transforms of pictures on the host, before they are stored in a record and after.

Resizing is Pillow's antialiased bicubic on uint8, as CLIP and BLIP preprocess; other bicubics
differ by up to 1.5/255. Each spatial transform is a function of pixels that fills a (H, W, 3) uint8
view.
"""

from __future__ import annotations

import dataclasses
import io
import math
import threading
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from uniadapter_jax.data.media.pictures import open_picture

BICUBIC = Image.Resampling.BICUBIC
CROP_AREA = (0.5, 1.0)  # share of the picture that a random crop keeps (BLIP, X-Pool)
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10
CHANNEL_GAIN = (0.4, 1.0)
JPEG_SIDE = 65_500  # pixels; libjpeg's limit
FAR_LONGER = 16  # ratio of the sides
KEPT_BYTES = 4 << 20  # most memory that a thread keeps for decoding

Box = tuple[float, float, float, float]  # left, upper, right, lower
Pixels = UInt8[np.ndarray, "H W 3"]
Resize = Callable[[Pixels, Pixels], None]  # copies pixels of the right size as they are

_COLOURS = ("YCbCr", "Gray", "RGB")  # which both decoders turn to RGB alike
_ROOM = threading.local()  # memory that a thread decodes into again and again


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Scales the shorter side down to `short_side`; a smaller picture stays as it is.

    A picture that would still be longer than a JPEG can be is cropped to its middle.
    """
    short = min(image.size)
    image = middle(image, JPEG_SIDE * max(short, short_side) // short_side)
    if min(image.size) <= short_side:
        return image
    return image.resize(_scaled_size(image.size, short_side), BICUBIC)


def middle(image: Image.Image, longest: int) -> Image.Image:
    """The picture without the ends of a side that is longer than `longest`."""
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, upper, left + width, upper + height))


def middle_square(image: Image.Image) -> Image.Image:
    """The part of a picture that `center_crop` takes."""
    side = min(image.size)
    left, upper = (round((longer - side) / 2) for longer in image.size)
    return image.crop((left, upper, left + side, upper + side))


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: bytes | memoryview) -> Image.Image:
    """Decodes a JPEG in full: its draft mode would be faster but gives other pixels."""
    with open_picture(io.BytesIO(data), "JPEG") as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def decode_pixels(data: bytes | memoryview, out: Pixels | None = None) -> Pixels:
    """The pixels that `decode_jpeg` gives, bit for bit, in two thirds of the time.

    Args:
      out: where they go, if it has their size.

    Returns:
      `out`, or an array that the next call by the same thread may overwrite.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _COLOURS:
            return np.asarray(decode_jpeg(data))
        if out is None or out.shape[:2] != (height, width):
            out = _room(height, width)
        return simplejpeg.decode_jpeg(data, buffer=out)
    except ValueError:  # damage, for which Pillow has the better words
        return np.asarray(decode_jpeg(data))


def _room(height: int, width: int) -> Pixels:
    size = height * width * 3
    if size > KEPT_BYTES:
        return np.empty((height, width, 3), np.uint8)
    if len(getattr(_ROOM, "bytes", ())) < size:
        _ROOM.bytes = np.empty(size, np.uint8)
    return _ROOM.bytes[:size].reshape(height, width, 3)


def decode_to(data: bytes | memoryview, out: Pixels, resize: Resize) -> None:
    """Decodes a JPEG and resizes it; one of the right size is decoded where it is wanted."""
    pixels = decode_pixels(data, out)
    if pixels is not out:
        resize(pixels, out)


def center_crop(pixels: Pixels, out: Pixels) -> None:
    """Resizes the short side to the side of `out` and takes the middle, bit for bit as CLIP does.

    Resampling only the cropped box would be cheaper, but Pillow then rounds differently. A frame
    stored at the right size, the usual case, is not resampled at all. Only if one side is more than
    `FAR_LONGER` times the other is the middle alone resampled, since resizing the complete picture
    would fill the memory.
    """
    side, (height, width) = out.shape[0], pixels.shape[:2]
    if max(width, height) > FAR_LONGER * min(width, height):
        out[...] = _resized(pixels, (side, side), _middle_square((width, height)))
        return
    size = _scaled_size((width, height), side)
    if size != (width, height):
        pixels = _resized(pixels, size)
    left, upper = round((size[0] - side) / 2), round((size[1] - side) / 2)
    out[...] = pixels[upper : upper + side, left : left + side]


def squash(pixels: Pixels, out: Pixels) -> None:
    """Resizes both sides to those of `out`, whatever the aspect ratio, as BLIP's test does."""
    size = (out.shape[1], out.shape[0])
    out[...] = pixels if pixels.shape == out.shape else _resized(pixels, size)


def resized(
    pixels: UInt8[np.ndarray, "b H W 3"], side: int, resize: Resize
) -> UInt8[np.ndarray, "b S S 3"]:
    """Pictures resized by `center_crop` or `squash`; those of the right size are returned as is."""
    if pixels.shape[1:3] == (side, side):
        return pixels
    out = np.empty((len(pixels), side, side, 3), np.uint8)
    for picture, place in zip(pixels, out, strict=True):
        resize(picture, place)
    return out


@dataclasses.dataclass(frozen=True)
class CropFlip:
    """A random resized crop and a mirror image, drawn once and applied to every frame of a clip.

    The crop is in relative coordinates: the size is known only once the first frame is decoded.
    """

    area: tuple[float, ...]
    ratio: tuple[float, ...]
    position: tuple[float, float]
    mirror: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> CropFlip:
        low, high = (math.log(r) for r in CROP_RATIO)
        return cls(
            area=tuple(rng.uniform(*CROP_AREA, size=CROP_TRIES)),
            ratio=tuple(np.exp(rng.uniform(low, high, size=CROP_TRIES))),
            position=tuple(rng.random(2)),
            mirror=bool(rng.random() < 0.5),
        )

    def box(self, width: int, height: int) -> Box:
        """The first drawn shape that fits; else the largest central box of an allowed ratio."""
        for area, ratio in zip(self.area, self.ratio, strict=True):
            w = round(math.sqrt(width * height * area * ratio))
            h = round(math.sqrt(width * height * area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(self.position[0] * (width - w + 1))
                upper = int(self.position[1] * (height - h + 1))
                return (left, upper, left + w, upper + h)
        ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
        w = min(width, max(1, round(height * ratio)))
        h = min(height, max(1, round(width / ratio)))
        left, upper = (width - w) // 2, (height - h) // 2
        return (left, upper, left + w, upper + h)

    def __call__(self, pixels: Pixels, out: Pixels) -> None:
        side, (height, width) = out.shape[0], pixels.shape[:2]
        cropped = _resized(pixels, (side, side), self.box(width, height))
        out[...] = cropped[:, ::-1] if self.mirror else cropped


@dataclasses.dataclass(frozen=True)
class CropFlipColor:
    """`CropFlip`, then a factor for each colour channel dims it, the same for all frames."""

    crop: CropFlip
    gain: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> CropFlipColor:
        return cls(CropFlip.draw(rng), tuple(rng.uniform(*CHANNEL_GAIN, size=3)))

    def __call__(self, pixels: Pixels, out: Pixels) -> None:
        self.crop(pixels, out)
        out[...] = np.rint(out * np.asarray(self.gain, np.float32)).astype(np.uint8)


def _resized(pixels: Pixels, size: tuple[int, int], box: Box | None = None) -> Pixels:
    """The pixels, or a box of them, at a (width, height), by Pillow."""
    return np.asarray(Image.fromarray(pixels).resize(size, BICUBIC, box=box))


def _scaled_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `short_side`; the longer is cut to whole pixels."""
    width, height = size
    if width <= height:
        return short_side, short_side * height // width
    return short_side * width // height, short_side


def _middle_square(size: tuple[int, int]) -> Box:
    width, height = size
    side = min(size)
    left, upper = (width - side) / 2, (height - side) / 2
    return (left, upper, left + side, upper + side)
