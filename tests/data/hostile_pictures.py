"""Odd, broken and hostile pictures, made on the spot."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image


def noise(width, height, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, channels), dtype=np.uint8)
    image = Image.fromarray(small if channels > 1 else small[..., 0])
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(width, height, rows, depth=8, colour=2, more=b"", interlace=0):
    """A black PNG whose data ends after `rows`; `more` chunks come before its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    stream = zlib.compressobj(9)
    data = b"".join(stream.compress(row) for _ in range(rows)) + stream.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def tiff(data, width, height, bits, sample_format=1, photometric=1, compression=1, **more):
    """A little-endian TIFF of one sample in one strip; `more` tags by number, as in t322=16."""
    tags = {
        256: width, 257: height, 258: bits, 259: compression, 262: photometric, 273: 8, 277: 1,
        278: height, 279: len(data), 339: sample_format,
    } | {int(name[1:]): value for name, value in more.items()}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def with_exif(jpeg, tags):
    """A JPEG with EXIF entries (tag, type, count, value) as they are."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def with_size(jpeg, width, height, marker=b"\xff\xc0"):
    """A JPEG whose header claims another size."""
    place = jpeg.index(marker) + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def gif_with_less(gif):
    """A GIF whose last frame has half of its blocks of pixels, all else whole."""
    place, starts = 13 + (3 << (gif[10] % 8 + 1) if gif[10] & 0x80 else 0), []
    while gif[place] != ord(";"):
        if gif[place] == ord(","):
            place += 11 + (3 << (gif[place + 9] % 8 + 1) if gif[place + 9] & 0x80 else 0)
            starts = []
        else:
            place += 2
        while gif[place]:
            starts.append(place)
            place += gif[place] + 1
        place += 1
    return gif[: starts[len(starts) // 2]] + b"\0;"


def apng_with_less(apng):
    """An animated PNG whose last frame has half of its pixels, with the right checksum."""
    place = apng.rindex(b"fdAT")
    size = int.from_bytes(apng[place - 4 : place], "big")
    content = apng[place + 4 : place + 4 + size]
    pixels = zlib.decompress(content[4:])
    less = chunk(b"fdAT", content[:4] + zlib.compress(pixels[: len(pixels) // 2]))
    return apng[: place - 4] + less + apng[place + 8 + size :]


def _boxes(data, start, end):
    """(name, first byte of the content, end) of the boxes between two places."""
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], start + 8, start + size
        start += size


def _box(name, *content):
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + name + body


def _full(name, version, *content):
    return _box(name, struct.pack(">I", version << 24), *content)


def _tile(image):
    """(decoder's configuration, pixels' data) of a picture as one HEVC item."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90)
    data = buffer.getvalue()
    top = {name: (a, b) for name, a, b in _boxes(data, 0, len(data))}
    meta = {name: (a, b) for name, a, b in _boxes(data, top[b"meta"][0] + 4, top[b"meta"][1])}
    iprp = {n: (a, b) for n, a, b in _boxes(data, *meta[b"iprp"])}
    hvcc = next(data[a - 8 : b] for n, a, b in _boxes(data, *iprp[b"ipco"]) if n == b"hvcC")
    a, b = top[b"mdat"]
    return hvcc, data[a:b]


def tiled_heic(image, side):
    """HEIC as telephones write it: a grid of square tiles, each an item of its own."""
    across, down = image.width // side, image.height // side
    corners = [(x * side, y * side) for y in range(down) for x in range(across)]
    tiles = [_tile(image.crop((x, y, x + side, y + side))) for x, y in corners]
    grid = struct.pack(">BBBBHH", 0, 0, down - 1, across - 1, image.width, image.height)
    pieces = [grid, *(data for _, data in tiles)]
    numbers = range(2, len(pieces) + 1)  # of the tiles' items; the grid is item 1
    infe = [
        _full(b"infe", 2, struct.pack(">HH", item, 0), name + b"\0")
        for item, name in [(1, b"grid"), *((item, b"hvc1") for item in numbers)]
    ]
    sizes = [_full(b"ispe", 0, struct.pack(">II", *size)) for size in ((side, side), image.size)]
    uses = struct.pack(">IHBB", len(pieces), 1, 1, 3)
    uses += b"".join(struct.pack(">HBBB", item, 2, 0x81, 2) for item in numbers)
    made_of = struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *numbers)

    def meta(start):
        places, at = struct.pack(">BBH", 0x44, 0, len(pieces)), start
        for item, piece in enumerate(pieces, 1):
            places += struct.pack(">HHHII", item, 0, 1, at, len(piece))
            at += len(piece)
        return _full(
            b"meta",
            0,
            _full(b"hdlr", 0, bytes(4) + b"pict" + bytes(13)),
            _full(b"pitm", 0, struct.pack(">H", 1)),
            _full(b"iloc", 0, places),
            _full(b"iinf", 0, struct.pack(">H", len(infe)), *infe),
            _full(b"iref", 0, _box(b"dimg", made_of)),
            _box(b"iprp", _box(b"ipco", tiles[0][0], *sizes), _full(b"ipma", 0, uses)),
        )

    head = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + _box(b"mdat", *pieces)


@functools.cache
def mutable():
    """{name: data} of sound pictures in every format and way of writing it."""
    picture, grey, clear = noise(150, 110), noise(150, 110, 1), noise(150, 110, 4)
    black = grey.convert("1")
    several = {"save_all": True, "append_images": [noise(60, 60, seed=1)]}
    return {
        "png": encoded(picture, "PNG"),
        "png-grey": encoded(grey, "PNG"),
        "png-alpha": encoded(clear, "PNG"),
        "png-palette": encoded(picture.quantize(32), "PNG"),
        "jpeg": encoded(picture, "JPEG"),
        "jpeg-444": encoded(picture, "JPEG", quality=95, subsampling=0),
        "jpeg-progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg-restarts": encoded(picture, "JPEG", restart_marker_blocks=4),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "gif": encoded(picture.quantize(64), "GIF"),
        "webp": encoded(picture, "WEBP"),
        "webp-lossless": encoded(clear, "WEBP", lossless=True),
        "bmp": encoded(picture, "BMP"),
        "bmp-palette": encoded(picture.quantize(16), "BMP"),
        "tiff": encoded(picture, "TIFF"),
        "tiff-lzw": encoded(picture, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(picture, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encoded(picture, "TIFF", compression="jpeg"),
        "tiff-packbits": encoded(picture, "TIFF", compression="packbits"),
        "tiff-g4": encoded(black, "TIFF", compression="group4"),
        "tiff-pages": encoded(picture, "TIFF", **several),
        "avif": encoded(picture, "AVIF", speed=10),
        "avif-alpha": encoded(clear, "AVIF", speed=10),
        "heic-tiled": tiled_heic(picture.crop((0, 0, 128, 64)), 64),
    }


def mutated(count, seed):
    """`count` times (name, what was done, data), each format in turn."""
    rng = random.Random(seed)
    sound = sorted(mutable().items())
    for i in range(count):
        name, data = sound[i % len(sound)]
        way = rng.choice(("flip", "flip", "cut", "zeros", "delete", "double", "header"))
        place = rng.randrange(20, len(data) - 20)
        changed = bytearray(data)
        if way == "flip":
            changed[place] ^= 1 << rng.randrange(8)
        elif way == "cut":
            del changed[place:]
        elif way == "zeros":
            changed[place : place + 40] = bytes(min(40, len(data) - place))
        elif way == "delete":
            del changed[place : place + rng.randrange(1, 200)]
        elif way == "double":
            changed[place:place] = data[place - rng.randrange(1, min(place, 200)) : place]
        else:
            changed[rng.randrange(0, min(len(data), 60))] = rng.randrange(256)
        yield name, way, bytes(changed)
