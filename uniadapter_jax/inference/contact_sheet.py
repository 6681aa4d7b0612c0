"""A contact sheet of records: the frames that are stored, with times and captions.

As one picture, or as an HTML page that holds everything it shows.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.records import Record
from uniadapter_jax.inference.gallery import FRAME, GAP, INK, film_strip

FRAMES = 12  # most frames that are shown of a clip, spread over it
_LINE = 18  # pixels from a line of text to the next
_LONGEST = 160  # characters of a line in the picture
_TALLEST = 60_000  # pixels; a PNG viewer gives up somewhere
_STYLE = (
    ":root{color-scheme:light dark;--ink:#1e1e1e;--muted:#5f5f5f;--paper:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e9e9e9;--muted:#a8a8a8;--paper:#16181a}}"
    "body{font:14px sans-serif;color:var(--ink);background:var(--paper);margin:1em;"
    "overflow-wrap:anywhere}h1{font-size:1.6em}h2{font-size:1.2em}img{display:block}"
    "div{overflow-x:auto}li{white-space:pre-wrap}section{margin:1em 0}small{color:var(--muted)}"
)
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)


def shown(count: int) -> list[int]:
    """The positions of the frames that are shown of a clip, first and last among them."""
    if count <= FRAMES:
        return list(range(count))
    return [round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)]


def draw_sheet(title: str, records: Sequence[Record]) -> Image.Image:
    """All clips below each other, as one picture.

    Raises:
      UserError: there are none, too many for one picture, or a frame is no JPEG.
    """
    font = ImageFont.load_default(size=14)
    clips = [(_strip(record), _lines(record)) for record in records]
    if not clips:
        raise UserError("nothing to draw: no clip was chosen")
    lines = [_short(title), *(line for _, of_clip in clips for line in of_clip)]
    strips = [strip for strip, _ in clips]
    width = max(*(strip.width for strip in strips), *(int(font.getlength(line)) for line in lines))
    heights = [_LINE * len(of_clip) + FRAME + 2 * GAP for _, of_clip in clips]
    height = 2 * GAP + _LINE + sum(heights)
    if height > _TALLEST:
        raise UserError(
            f"{len(clips)} clips do not fit one picture; write HTML, or choose fewer with --count"
        )
    sheet = Image.new("RGB", (width + 2 * GAP, height), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((GAP, GAP), _short(title), INK, font)
    top = GAP + _LINE
    for (strip, of_clip), taken in zip(clips, heights, strict=True):
        for i, line in enumerate(of_clip):
            canvas.text((GAP, top + GAP + i * _LINE), line, INK, font)
        sheet.paste(strip, (GAP, top + GAP + len(of_clip) * _LINE))
        top += taken
    return sheet


def html_sheet(title: str, records: Iterable[Record]) -> str:
    """The same as a page; every text of the records is escaped."""
    title = html.escape(title)
    parts = [f"{_HEAD}<title>{title}</title><style>{_STYLE}</style></head><body><main>"]
    parts.append(f"<h1>{title}</h1>")
    for record in records:
        buffer = io.BytesIO()
        _strip(record).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        texts = "".join(f'<li dir="auto">{html.escape(text)}</li>' for text in _texts(record))
        parts.append(
            f'<section><h2 dir="auto">{html.escape(record.id)}</h2>'
            f"<small>{html.escape(_times(record))}</small>"
            '<div tabindex="0" role="group" aria-label="Frames">'
            f'<img alt="" src="data:image/png;base64,{data}"></div><ul>{texts}</ul></section>'
        )
    return "\n".join([*parts, "</main></body></html>\n"])


def _strip(record: Record) -> Image.Image:
    return film_strip([record.frames[i] for i in shown(len(record.frames))])


def _times(record: Record) -> str:
    """How many frames there are, and when those that are shown come."""
    times = ", ".join(f"{record.pts[i]:.2f}" for i in shown(len(record.frames)))
    return f"{len(record.frames)} frames; at {times} s"


def _texts(record: Record) -> list[str]:
    asked = [f"{qa.get('question')} -- {qa.get('answers', qa.get('answer'))}" for qa in record.qa]
    return [*record.captions, *asked]


def _lines(record: Record) -> list[str]:
    return [_short(line) for line in (f"{record.id}   {_times(record)}", *_texts(record))]


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
