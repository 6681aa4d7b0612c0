"""Which kind of medium a file is. Its bytes say so; its name does not count.

The one table of formats that Pillow may be handed. Everything that is neither there nor refused
goes to FFmpeg, which keeps to `video.FORMATS`. Nothing is decoded here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from typing import BinaryIO, Literal

HEAD_BYTES = 4096


class DecodeError(Exception):
    """A media file that gives no usable clip.

    `reason` is one of: missing, empty, unreadable, truncated, damaged, too_large, no_video,
    no_frames.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Medium:
    """What a file holds.

    Attributes:
      name: of the format, as people call it.
      kind: pictures are read by Pillow, animations and videos by FFmpeg.
      pillow: of a picture, the one format that Pillow may try.
    """

    name: str
    kind: Literal["picture", "animation", "video", "refused"]
    pillow: str = ""


JPEG = Medium("JPEG", "picture", "JPEG")
PNG = Medium("PNG", "picture", "PNG")
WEBP = Medium("WebP", "picture", "WEBP")
BMP = Medium("BMP", "picture", "BMP")
TIFF = Medium("TIFF", "picture", "TIFF")
AVIF = Medium("AVIF", "picture", "AVIF")
HEIC = Medium("HEIC", "picture", "HEIF")
GIF = Medium("GIF", "animation")
APNG = Medium("animated PNG", "animation")
MJPEG = Medium("several JPEGs in a row", "video")
VIDEO = Medium("video", "video")


def _refused(name: str) -> Medium:
    return Medium(name, "refused")


_ANIMATED = re.escape(bytes(flags for flags in range(256) if flags & 2))  # of WebP's flags
# First bytes, as regular expressions; the first line that fits counts.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], Medium], ...] = tuple(
    (re.compile(pattern, re.DOTALL), medium)
    for pattern, medium in (
        (rb"\xff\xd8\xff", JPEG),
        (rb"\x89PNG\r\n\x1a\n", PNG),
        (rb"GIF8[79]a", GIF),
        (rb"RIFF....WEBPVP8X....[" + _ANIMATED + rb"]", _refused("an animated WebP")),
        (rb"RIFF....WEBP", WEBP),
        (rb"BM.{12}[\x0c-\x7c]\0\0\0", BMP),
        (rb"II[*+]\0|MM\0[*+]", TIFF),
        (rb"YUV4MPEG2 ", VIDEO),
        (rb"[\x04\s]*%!|\xc5\xd0\xd3\xc6", _refused("PostScript")),
        (rb"\s*%PDF-", _refused("PDF")),
        (rb"8BPS", _refused("Photoshop")),
        (rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51", _refused("JPEG 2000")),
        (rb"\0\0\0\x0cJXL \r\n|\xff\x0a", _refused("JPEG XL")),
        (rb"....ftypcrx ", _refused("a raw photograph")),
        (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", _refused("a Windows metafile")),
        (rb"[^\0-\x08\x0e-\x1f]*#EXTM3U", _refused("a playlist")),
        (rb"[^\0-\x08\x0e-\x1f]*<(?i:svg|[a-z]+:svg)\b", _refused("SVG")),
        (rb"\xff\xfe[^\xff]|\xfe\xff[^\xff]", _refused("text")),
        (rb"[^\0-\x08\x0e-\x1a\x1c-\x1f]{1,}\Z", _refused("text")),
    )
)
_PICTURE_BRANDS = {b"avif": AVIF, **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), HEIC)}
_BRANDS = {
    b"avis": _refused("an AVIF sequence"),
    **dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"), _refused("a HEIF sequence")),
    **_PICTURE_BRANDS,
}


def check_file(path: str) -> None:
    """Raises DecodeError for a path that is no file with something in it."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise DecodeError("missing", getattr(error, "strerror", None) or str(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError("missing", "it is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("missing", "it is no regular file")
    if status.st_size == 0:
        raise DecodeError("empty")


def identify(path: str) -> Medium:
    """The medium in a file, never one of kind 'refused'.

    Raises:
      DecodeError: the file is missing, empty, cannot be read, or holds what is never opened.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            medium = _identify(file)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error
    if medium.kind == "refused":
        raise DecodeError("unreadable", f"holds {medium.name}, which is not read")
    return medium


def _identify(file: BinaryIO) -> Medium:
    head = file.read(HEAD_BYTES)
    if head[4:8] == b"ftyp" and (medium := _by_brand(head)):
        return medium
    for pattern, medium in _SIGNATURES:
        if pattern.match(head):
            if medium is PNG and _is_animated(file):
                return APNG
            if medium is JPEG and _more_follow(file):
                return MJPEG
            return medium
    return VIDEO


def _by_brand(head: bytes) -> Medium | None:
    """Of the ISO containers (MP4, HEIC, ...) those that hold pictures."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    major, compatible = head[8:12], {head[i : i + 4] for i in range(16, size - 3, 4)}
    if major in (b"mif1", b"mif2", b"miaf"):  # says no more than "a picture"
        known = [medium for brand, medium in _PICTURE_BRANDS.items() if brand in compatible]
        return known[0] if known else _refused("a HEIF picture of an unknown codec")
    return _BRANDS.get(major)


def _is_animated(file: BinaryIO) -> bool:
    """Whether a PNG announces an animation, which it must do before its first pixels."""
    position = 8
    while True:
        file.seek(position)
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        if len(head) < 8 or name in (b"IDAT", b"IEND"):
            return False
        position += 12 + length


def _more_follow(file: BinaryIO) -> bool:
    """Whether another JPEG begins where the first ends, as in a raw stream of them.

    Cameras also put several into one file; they say so (MPF), and the first is the picture.
    """
    position = 2
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 4 or head[0] != 0xFF:
            return False
        if head[1] == 0xE2 and head[4:8] == b"MPF\0":
            return False
        position += 2 + int.from_bytes(head[2:4], "big")
        if head[1] == 0xDA:
            break
    file.seek(position)
    data = b""
    while block := file.read(1 << 20):
        data = data[-8:] + block
        if (end := data.find(b"\xff\xd9")) >= 0:
            data = data[end + 2 :] + file.read(3)
            return data.startswith(b"\xff\xd8\xff")
    return False
