"""From the many ways in which files keep pixels to upright RGB with 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

BAND_PIXELS = (
    1 << 22
)  # worked on at a time, so that a large picture exists twice and not five times
WHITE_IS_ZERO = 0  # TIFF's tag PhotometricInterpretation
UNSIGNED = 1  # TIFF's tag SampleFormat
_ORIENTATION, _BITS, _PHOTOMETRIC, _FORMAT = 274, 258, 262, 339  # tags

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says to turn a picture; a note that cannot be read counts as none."""
    for read in (image.getexif, lambda: getattr(image, "tag_v2", {})):
        try:
            return _TURNS.get(int(read().get(_ORIENTATION, 1)))
        except Exception:  # whatever cameras and editors write makes Pillow raise nearly anything
            continue
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB: transparency laid on white, other depths scaled to 8 bits.

    16 bits lose their lower half. Of whole numbers and floats that know no white, the picture's
    own range decides, see `_range`.

    Raises:
      ValueError: a mode that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data or image.mode == "La":
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, band) of the picture from top to bottom."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _on_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGB", image.size)
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        key = tuple(value >> 8 for value in key)  # of 16 bits, which the pixels no longer have
    for top, band in _bands(image):
        if key is not None:
            band.info["transparency"] = key
        if band.mode == "La":
            band = band.convert("LA")
        band = band.convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        out.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return out


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or in floats."""
    tags = getattr(image, "tag_v2", {})
    unsigned = image.mode == "I" and tags.get(_FORMAT, (0,))[0] == UNSIGNED
    key = image.info.get("transparency") if image.mode.startswith("I;16") else None

    def bands() -> Iterator[tuple[int, np.ndarray]]:
        for top, band in _bands(image):
            pixels = np.asarray(band)
            yield top, pixels.view(np.uint32) if unsigned else pixels

    if image.mode.startswith("I;16"):
        depth = tags.get(_BITS, (16,))[0]
        black, white = 0.0, float(2**depth)
    else:
        black, white = _range(pixels for _, pixels in bands())
    out = Image.new("RGB", image.size)
    for top, pixels in bands():
        grey = _to_bytes(pixels, black, white)
        if tags.get(_PHOTOMETRIC) == WHITE_IS_ZERO:
            grey = 255 - grey
        if key is not None:
            grey = np.where(pixels == key, 255, grey).astype(np.uint8)
        out.paste(Image.fromarray(grey).convert("RGB"), (0, top))
    return out


def _range(bands: Iterator[np.ndarray]) -> tuple[float, float]:
    """The values that become black and white.

    Floats that keep to 0 .. 1, and values that keep to 0 .. 255 or to 0 .. 65535 and use a tenth of
    it, are taken to mean that range; all others are stretched over the range that they have.
    """
    low, high, floats = np.inf, -np.inf, False
    for pixels in bands:
        floats = floats or pixels.dtype.kind == "f"
        finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:  # nothing finite
        return 0.0, 1.0
    if low >= 0:
        if floats and high <= 1:
            return 0.0, 1.0
        for top in (255.0, 65535.0):
            if top / 10 < high <= top:
                return 0.0, top
    return (low, high) if low < high else (low, low + 1.0)


def _to_bytes(
    pixels: Shaped[np.ndarray, "H W"], black: float, white: float
) -> UInt8[np.ndarray, "H W"]:
    """Scaled to 0 .. 255; a power of two of whole numbers by a shift."""
    if black == 0 and white in (4096.0, 65536.0):
        return (pixels >> (4 if white == 4096.0 else 8)).clip(0, 255).astype(np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (pixels.astype(np.float64) - black) * (255.0 / (white - black))
    return np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)
