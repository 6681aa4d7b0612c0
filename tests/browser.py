"""An installed Chromium for tests of pages, and what is wrong with the page that it shows."""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 10_000  # milliseconds, of every wait
WIDTHS, THEMES = (1280, 360), ("light", "dark")
SERIOUS = """async () => (await axe.run()).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .map(found => `${found.id}: ${found.nodes.map(node => node.html).join(" ")}`)"""
# Controls that a finger does not hit: off the screen, below something else, or smaller than 24
# pixels, as WCAG 2.2 has it (2.5.8; links in a text may be).
UNREACHABLE = """() => {
    const within = document.querySelector("dialog[open]") ?? document.body;
    const controls = within.querySelectorAll("a[href], button, input, video, [tabindex='0']");
    const lost = document.documentElement.scrollWidth > innerWidth ? ["the page is too wide"] : [];
    for (const control of controls) {
        if (control.tabIndex < 0 || !control.checkVisibility()) continue;
        control.scrollIntoView({ block: "center", inline: "center" });
        const box = control.getBoundingClientRect();
        const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        const own = control.closest("label") ?? control;
        const { width, height } = own.getBoundingClientRect();
        const named = control.outerHTML.slice(0, 200);
        if (!own.contains(top)) lost.push(`covered: ${named}`);
        if (Math.min(width, height) < 24 && !control.matches("a")) lost.push(`too small: ${named}`);
    }
    scrollTo(0, 0);
    return lost;
}"""
STATE = """() => ({
    address: location.href,
    focus: document.activeElement?.outerHTML.slice(0, 200),
    films: [...document.querySelectorAll("video")].map((film) =>
        [film.currentSrc, film.readyState, film.currentTime, film.error?.message]),
    text: document.body.innerText.slice(0, 2000),
})"""


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """One browser; a test without Playwright or without Chromium is skipped, and says so."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, theme: str = "light", expected: str = "", **more: Any) -> Iterator[Any]:
    """An empty page; at the end nothing was on its console, and no dialog had opened.

    Args:
      expected: a part of every line that may be on the console, and is.
    """
    context = browser.new_context(color_scheme=theme, **more)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append("a dialog opened"), dialog.dismiss()))
    try:
        yield page
    except BaseException:
        print(json.dumps({"console": told, **page.evaluate(STATE)}, indent=1))
        raise
    finally:
        context.close()
    if expected:
        assert told and all(expected in line for line in told), told
    else:
        assert told == []


@functools.cache
def axe_script() -> str:
    """The source of axe-core, which looks for barriers."""
    files = importlib.resources.files("axe_playwright_python")
    return next(f for f in files.iterdir() if f.name == "axe.min.js").read_text("utf-8")


def faults(page: Any) -> list[str]:
    """What keeps readers from the present state of a page, on a screen and on a phone.

    Barriers are looked for once, which takes time: on a screen in light, on a phone in dark.
    """
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    found = []
    for width in sorted(WIDTHS, reverse=dark):
        page.set_viewport_size({"width": width, "height": 800})
        found += page.evaluate(UNREACHABLE)
    page.evaluate(axe_script())
    return found + page.evaluate(SERIOUS)


def tab_to(page: Any, what: str, most: int = 100) -> None:
    """Presses Tab until an element that a selector names has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("what => document.activeElement.matches(what)", what):
            return
    raise AssertionError(f"{most} times Tab do not lead to {what}")
