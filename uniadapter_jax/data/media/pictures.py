"""Picture files: each is opened as the one format that its bytes show, within bounds.

Pillow left to itself tries all its plugins, of which one starts Ghostscript. So nothing in this
package opens a file with Pillow but `open_picture`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator

import PIL
from PIL import Image

from uniadapter_jax.data.media import colours, integrity
from uniadapter_jax.data.media import kinds as media
from uniadapter_jax.data.media.kinds import DecodeError, Medium

MEMORY = 400 << 20  # bytes that decoding a picture may take, so that a worker stays below 600 MB
RGB_BYTES = 4  # of a pixel in Pillow
# Bytes that a pixel takes while it is decoded and turned, measured.
_COSTS = {"JPEG": 8, "PNG": 8, "BMP": 8, "TIFF": 8, "WEBP": 20, "AVIF": 20, "HEIF": 20, "GIF": 20}
_NUMBERS = 4  # bytes more where the pixels are numbers of 32 bits, which numpy scales
GIF_PIXELS = 1 << 30  # of all frames; a GIF with more is looked through for its end alone
_SMALLER = 1  # TIFF's tag NewSubfileType: a smaller version of another page
_PAGES = 16  # of a TIFF that are looked at for one in full size


@contextlib.contextmanager
def open_picture(source: str | io.BytesIO, format_name: str) -> Iterator[Image.Image]:
    """The picture in a file or in memory, not yet decoded; no other format is tried."""
    if format_name == "HEIF":
        _register_heif()
    with open(source, "rb") if isinstance(source, str) else source as file:
        with Image.open(file, formats=(format_name,)) as image:
            yield image


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise DecodeError(
            "unreadable", "HEIC needs pillow-heif: pip install 'uniadapter_jax[heic]'"
        ) from error
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.register_heif_opener()


def read_picture(path: str, medium: Medium | None = None) -> Image.Image:
    """A picture file as upright RGB.

    Raises:
      DecodeError: the file is missing, no picture, cut short, damaged, or would take more than
        `MEMORY` to decode.
    """
    medium = medium or media.identify(path)
    if medium.kind != "picture":
        raise DecodeError("unreadable", f"holds {medium.name}, which is no picture")
    opened = False
    try:
        if medium in (media.WEBP, media.AVIF, media.HEIC):
            with open(path, "rb") as file:
                integrity.check_length(file)
        with _without_warnings(), open_picture(path, medium.pillow) as image:
            opened = True
            _PREPARE.get(medium.pillow, _fits)(image, path)
            turn = colours.turn_of(image)
            if medium is media.TIFF:  # which Pillow would turn, and fail on an odd note
                image.getexif = Image.Exif  # type: ignore[method-assign]
            image.load()
            if turn is None:  # a mirror image is 0
                turn = colours.turn_of(image)  # a PNG may say so behind its pixels
            picture = colours.to_rgb(image)
            if picture is not image:
                image.close()  # its pixels are not needed twice
            return picture if turn is None else picture.transpose(turn)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", "more pixels than Pillow opens") from error
    except MemoryError as error:
        raise DecodeError("too_large", "not enough memory to decode it") from error
    except Exception as error:  # a hostile file makes Pillow's decoders raise nearly anything
        raise DecodeError(*_reason(error, opened)) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of odd files and of large ones; what matters becomes a `DecodeError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception, opened: bool) -> tuple[str, str]:
    if isinstance(error, PIL.UnidentifiedImageError):  # its text holds the whole path
        return "unreadable", "not a known picture format"
    text = str(error) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated", text
    return ("damaged" if opened else "unreadable"), text


def _fits(image: Image.Image, path: str, cost: float | None = None) -> None:
    """Raises DecodeError where decoding would take more than `MEMORY`."""
    del path
    width, height = image.size
    more = _NUMBERS if image.mode in ("I", "F") else 0
    needed = width * height * (cost or _COSTS[image.format or ""] + more)
    if needed > MEMORY:
        raise DecodeError(
            "too_large",
            f"{width} x {height} pixels would take {needed / 2**20:,.0f} MB to decode, more than "
            f"{MEMORY >> 20}",
        )


def _prepare_jpeg(image: Image.Image, path: str) -> None:
    """A JPEG above the bound is decoded at 1/2, 1/4 or 1/8 of its size."""
    with open(path, "rb") as file:
        data = file.read(integrity.JPEG_BYTES)
    jpeg = integrity.read_jpeg(data)
    kept = 2 * jpeg.samples if jpeg.progressive else 0  # libjpeg keeps all coefficients
    checked = jpeg.samples + kept + len(data)
    if checked <= MEMORY and len(data) < integrity.JPEG_BYTES:
        integrity.check_jpeg(data, jpeg)
    width, height = image.size
    for scale in (1, 2, 4, 8):
        pixels = (width // scale) * (height // scale)
        if kept + pixels * _COSTS["JPEG"] <= MEMORY:
            if scale > 1:
                image.draft(None, (width // scale, height // scale))
            return
    _fits(image, path, cost=(kept + pixels * _COSTS["JPEG"]) / max(1, width * height))


def _prepare_png(image: Image.Image, path: str) -> None:
    _fits(image, path)
    with open(path, "rb") as file:
        integrity.check_png(file)


def _prepare_tiff(image: Image.Image, path: str) -> None:
    """Chooses the first page that is no smaller version of another."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    for page in range(_PAGES):
        if not tags.get(254, 0) & _SMALLER:
            break
        try:
            image.seek(page + 1)
        except EOFError as error:
            raise DecodeError("unreadable", "a TIFF that holds only smaller versions") from error
        tags = image.tag_v2  # type: ignore[attr-defined]
    _fits(image, path)
    width, height = image.size
    bits = sum(tags.get(258, (1,))) if len(tags.get(258, (1,))) > 1 else tags.get(258, (1,))[0]
    bits *= tags.get(277, 1) if len(tags.get(258, (1,))) == 1 else 1
    rows = min(height, tags.get(278, height))
    block = tags[322] * tags[323] if 322 in tags and 323 in tags else width * rows
    if block * bits / 8 > MEMORY:
        raise DecodeError("too_large", f"tiles of {block * bits // 8:,} bytes")


def _prepare_heif(image: Image.Image, path: str) -> None:
    _fits(image, path)
    integrity.check_heic(path)


_PREPARE: dict[str, Callable[[Image.Image, str], None]] = {
    "JPEG": _prepare_jpeg,
    "PNG": _prepare_png,
    "HEIF": _prepare_heif,
    "TIFF": _prepare_tiff,
}


def check_gif(path: str) -> None:
    """Decodes every frame with Pillow, which notices pixels that lack; FFmpeg makes some up.

    Raises:
      DecodeError: a frame is short or broken, or the file ends before its end mark.
    """
    with open(path, "rb") as file:
        frames = integrity.check_gif(file)
    frame = 0
    try:
        with _without_warnings(), open_picture(path, "GIF") as image:
            width, height = image.size
            pixels = width * height
            if pixels * _COSTS["GIF"] > MEMORY or pixels * frames > GIF_PIXELS:
                return
            for frame in range(frames):
                image.seek(frame)
                image.load()
    except Exception as error:  # as in `read_picture`
        reason, detail = _reason(error, opened=True)
        raise DecodeError(reason, f"frame {frame}: {detail}") from error
