"""From a decoded frame to a picture: upright RGB of square pixels, transparency on white."""

from __future__ import annotations

import av
from PIL import Image

from uniadapter_jax.data.images import BICUBIC
from uniadapter_jax.data.media.video_file import MAX_PIXELS, check_size

BAND_PIXELS = 1 << 20  # converted at a time, so that a large frame is not held in four forms
ODDEST_PIXEL = 16.0  # width over height, or the other way; what is beyond is no real camera's

_TURNS = {  # by quarters, counter-clockwise
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


def picture(frame: av.VideoFrame, aspect: float) -> Image.Image:
    """The frame as players show it.

    Args:
      aspect: width over height of a pixel.
    """
    check_size(frame.width, frame.height)
    image = square(_to_rgb(frame), aspect)
    turn = _TURNS.get(round((frame.rotation or 0) / 90) % 4)
    return image if turn is None else image.transpose(turn)


def pixel_aspect(stream: av.VideoStream) -> float:
    """Width over height of a pixel; 1 where the file does not say or says nonsense."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / ODDEST_PIXEL <= aspect <= ODDEST_PIXEL else 1.0


def square(image: Image.Image, aspect: float) -> Image.Image:
    """Stretches the shorter side of the pixels; shrinks the longer where that would be too much."""
    width, height = image.size
    if aspect > 1:
        size = round(width * aspect), height
        less = width, max(1, round(height / aspect))
    else:
        size = width, round(height / aspect)
        less = max(1, round(width * aspect)), height
    if size[0] * size[1] > MAX_PIXELS:
        size = less
    return image if size == image.size else image.resize(size, BICUBIC)


def _to_rgb(frame: av.VideoFrame) -> Image.Image:
    alpha = any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8"
    mode, channels = ("RGBA", 4) if alpha else ("RGB", 3)
    plane = frame.reformat(format="rgba" if alpha else "rgb24").planes[0]
    width, height, stride = frame.width, frame.height, plane.line_size
    data, rows = memoryview(plane), max(1, BAND_PIXELS // width)
    if not alpha and rows >= height:
        return Image.frombytes(mode, (width, height), data, "raw", mode, stride, 1)
    image = Image.new("RGB", (width, height))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        start = top * stride
        lines = bytes(data[start : start + (count - 1) * stride + width * channels])
        band = Image.frombytes(mode, (width, count), lines, "raw", mode, stride, 1)
        if alpha:
            white = Image.new("RGBA", band.size, "white")
            band = Image.alpha_composite(white, band).convert("RGB")
        image.paste(band, (0, top))
    return image
