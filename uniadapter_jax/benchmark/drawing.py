"""Draws Vega-Lite charts: SVG in the colours of the page, and SVG and PNG files for papers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from uniadapter_jax.common.errors import UserError

# {name: (light, dark)}: blue against orange is told apart with any kind of colour blindness, and
# every text has a contrast of at least 4.5 to its paper. Each light one is there once only, for
# `_inline` finds it by its value.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#fefefe", "#14181d"),
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#57606a", "#a8b1bb"),
    "line": ("#dde1e6", "#343b43"),
    "accent": ("#0b5cad", "#79b8ff"),
    "warn": ("#b54708", "#ffab70"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_SVG = "http://www.w3.org/2000/svg"
_SCALE = 2.0  # pixels of the PNG to one of the SVG
CONFIG: dict[str, Any] = {
    "font": "sans-serif",
    "background": LIGHT["paper"],
    "view": {"stroke": LIGHT["line"]},
    "title": {"color": LIGHT["ink"], "anchor": "start", "fontSize": 12, "frame": "group"},
    "header": {"labelColor": LIGHT["ink"], "labelFontSize": 11, "labelPadding": 3},
    "axis": {
        **{"labelColor": LIGHT["ink"], "titleColor": LIGHT["ink"], "gridColor": LIGHT["line"]},
        **{"domainColor": LIGHT["muted"], "tickColor": LIGHT["muted"]},
        **{"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
        **{"labelLimit": 130},
    },
    "text": {"color": LIGHT["ink"], "fontSize": 11},
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart, drawn.

    Attributes:
      inline: an <svg> element for the page, in the colours of its style.
      width: of it, in pixels of the page, where there is room.
      svg: a file of its own, light.
      png: the same as pixels.
    """

    inline: str
    width: int
    svg: str
    png: bytes


def draw(spec: Mapping[str, Any], name: str, alt: str) -> Drawing:
    """Draws a chart; `name` is that of its file, `alt` what a screen reader says of the whole.

    Raises:
      UserError: the extra `report` is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise UserError(
            "charts need vl-convert-python: pip install 'uniadapter_jax[report]'"
        ) from error
    drawn = vl_convert.vegalite_to_svg({**spec, "config": CONFIG}, allowed_base_urls=[])
    tree = _labelled(drawn, name, alt)
    svg = ElementTree.tostring(tree, encoding="unicode")
    width = round(float(tree.attrib["width"]))
    png = vl_convert.svg_to_png(drawn, scale=_SCALE)
    return Drawing(_inline(tree), width, svg + "\n", png)


def _labelled(drawn: str, name: str, alt: str) -> ElementTree.Element:
    """The SVG with a name, a title for each mark, and ids that no other chart has."""
    ElementTree.register_namespace("", _SVG)
    tree = ElementTree.fromstring(drawn)
    tree.set("role", "graphics-document")
    tree.set("aria-label", alt)
    ids: dict[str, str] = {}
    for element in list(tree.iter()):
        if "id" in element.attrib:
            ids[element.attrib["id"]] = f"{name}-{len(ids)}"
            element.set("id", ids[element.attrib["id"]])
        is_mark = element.get("aria-roledescription") not in (None, "axis", "visualization")
        if element.get("role") == "graphics-symbol" and is_mark and element.get("aria-label"):
            element.set("role", "img")
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = element.get("aria-label")
            element.insert(0, title)
    for element in tree.iter():
        for key, value in element.attrib.items():
            if match := re.fullmatch(r"url\(#(.+)\)", value):
                element.set(key, f"url(#{ids[match[1]]})")
    return tree


def _inline(tree: ElementTree.Element) -> str:
    """The SVG that fits its place and takes its colours from the page's style."""
    names = {light: f"var(--{name})" for name, light in LIGHT.items()}
    for element in tree.iter():
        for key in ("fill", "stroke"):
            if element.get(key) in names:
                element.set(key, names[element.attrib[key]])
    del tree.attrib["width"], tree.attrib["height"]
    return ElementTree.tostring(tree, encoding="unicode")
