"""An installed Chromium for tests of pages, and what is wrong with the page that it shows."""

from __future__ import annotations

import contextlib
import importlib.resources
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SERIOUS = """async () => (await axe.run()).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .map(found => `${found.id}: ${found.nodes.map(node => node.html).join(" ")}`)"""
WIDER = "document.documentElement.scrollWidth > innerWidth"


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
def opened(browser: Any, width: int = 1280, theme: str = "light") -> Iterator[Any]:
    """An empty page; at the end nothing was on its console, and no dialog had opened."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append("a dialog opened"), dialog.dismiss()))
    yield page
    context.close()
    assert told == []


def axe_script() -> str:
    """The source of axe-core, which looks for barriers."""
    files = importlib.resources.files("axe_playwright_python")
    return next(f for f in files.iterdir() if f.name == "axe.min.js").read_text("utf-8")


def barriers(page: Any) -> list[str]:
    """The serious and critical findings of axe-core in the present state of a page."""
    page.evaluate(axe_script())
    return page.evaluate(SERIOUS)
