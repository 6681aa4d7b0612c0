"""Opens a report's page from disk in Chromium and prints what is wrong with it.

    python tests/benchmark/check_page.py OUT/report/index.html [axe.min.js]

It needs `pip install playwright` and a browser, /usr/bin/chromium by default (CHROMIUM names
another). With the file of axe-core it looks for barriers, too.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

BROWSER = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDTHS, THEMES = (1280, 360), ("light", "dark")
AXE = "async () => (await axe.run()).violations.map(v => `${v.impact}: ${v.id}, ${v.nodes.length}`)"


def problems(page_file: pathlib.Path, axe: str = "") -> Iterator[str]:
    """What a reader would meet, in both themes and at the widths of a screen and a phone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for theme in THEMES:
            for width in WIDTHS:
                page = browser.new_context(
                    viewport={"width": width, "height": 800},
                    color_scheme=theme,
                    bypass_csp=bool(axe),
                ).new_page()
                for found in _of_page(page, page_file, axe):
                    yield f"{theme}, {width} pixels: {found}"
        browser.close()


def _of_page(page: Any, page_file: pathlib.Path, axe: str) -> Iterator[str]:
    told: list[str] = []
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: told.append("a dialog opened"))
    page.on("request", lambda request: told.append(f"request: {request.url:.80}"))
    page.goto(page_file.absolute().as_uri())
    own = f"request: {page_file.absolute().as_uri():.80}"
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        yield "the page scrolls sideways"
    for _ in range(1000):  # with keys only: to the first head, and sort
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('th') !== null"):
            break
    for key, order in (("Enter", "ascending"), ("Space", "descending"), ("Enter", None)):
        page.keyboard.press(key)
        now = page.evaluate("document.activeElement.closest('th')?.getAttribute('aria-sort')")
        if now != order:
            yield f"after {key} the order is {now}, not {order}"
    if axe:
        page.evaluate(axe)
        yield from page.evaluate(AXE)
    yield from (line for line in told if line != own and "request: data:" not in line)


if __name__ == "__main__":
    script = pathlib.Path(sys.argv[2]).read_text() if len(sys.argv) > 2 else ""
    found = list(problems(pathlib.Path(sys.argv[1]), script))
    print("\n".join(found) or "nothing is wrong")
    sys.exit(bool(found))
