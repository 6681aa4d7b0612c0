"""A picture of what was retrieved: a query's text above the film strips of its best clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import images

FRAME = 56  # height of a frame, pixels
WIDEST = 8  # a frame's longer side over its shorter one; of a longer frame the middle is shown
GAP = 10
RIGHT = (20, 150, 60)  # outline of the clip that the text belongs to
INK = (30, 30, 30)


@dataclasses.dataclass(frozen=True)
class Hit:
    """One clip that a query found: its frames as JPEG, and whether the text belongs to it."""

    frames: Sequence[bytes]
    right: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One query: its text, the rank of the right clip, and the best clips, best first."""

    text: str
    rank: int
    hits: Sequence[Hit]


def film_strip(frames: Sequence[bytes]) -> Image.Image:
    """The frames side by side, each `FRAME` pixels high.

    Raises:
      UserError: no frames, or one that is no JPEG.
    """
    pictures = []
    if not frames or isinstance(frames, bytes):
        raise UserError("frames: a list of JPEG files is meant, at least one")
    for i, data in enumerate(frames):
        picture = _decoded(data, i)
        picture = images.middle(picture, WIDEST * min(picture.size))
        width = max(1, round(picture.width * FRAME / picture.height))
        pictures.append(picture.resize((width, FRAME), Image.Resampling.BICUBIC))
    strip = Image.new("RGB", (sum(p.width for p in pictures), FRAME))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def _decoded(data: bytes, i: int) -> Image.Image:
    try:
        return images.decode_jpeg(data)
    except (OSError, TypeError, Image.DecompressionBombError) as error:
        raise UserError(f"frames[{i}] is no JPEG that can be read: {error}") from error


def draw_rows(title: str, rows: Sequence[Row]) -> Image.Image:
    """All rows below each other; the right clip outlined in green.

    Raises:
      UserError: no rows, a row without hits, or a frame that is no JPEG.
    """
    if not rows or not all(row.hits for row in rows):
        raise UserError("nothing to draw: every row needs at least one hit")
    font, strips = ImageFont.load_default(size=14), []
    for row in rows:
        strips.append([film_strip(hit.frames) for hit in row.hits])
    text_height, row_height = 22, 22 + FRAME + 2 * GAP
    lines = [f"{row.text}   (the right clip is number {row.rank})" for row in rows]
    width = max(
        *(sum(strip.width + GAP for strip in row) for row in strips),
        *(int(font.getlength(line)) for line in [title, *lines]),
    )
    sheet = Image.new("RGB", (width + 2 * GAP, 2 * GAP + 30 + row_height * len(rows)), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((GAP, GAP), title, INK, ImageFont.load_default(size=16))
    top = GAP + 30
    for row, line, pictures in zip(rows, lines, strips, strict=True):
        canvas.text((GAP, top), line, INK, font)
        left, below = GAP, top + text_height
        for hit, strip in zip(row.hits, pictures, strict=True):
            sheet.paste(strip, (left, below))
            if hit.right:
                box = (left - 4, below - 4, left + strip.width + 3, below + FRAME + 3)
                canvas.rectangle(box, outline=RIGHT, width=4)
            left += strip.width + GAP
        top += row_height
    return sheet
