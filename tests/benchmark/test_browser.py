"""Pages that are opened from disk in a browser: a report of the benchmark, a sheet of clips."""

from __future__ import annotations

import contextlib

import browser
import grids
import media
import pytest

from uniadapter_jax.benchmark import report
from uniadapter_jax.look import look
from uniadapter_jax.prepare import prepare

pytestmark = pytest.mark.browser
SHARES = {"zero_shot": 0.2, "lora": 0.8, "bitfit": 0.5}
# Marks that a screen reader would pass over: all but those that repeat another one.
NAMELESS = """() => [...document.querySelectorAll(
    ".role-mark:is(.mark-symbol, .mark-line, .mark-rect, .mark-rule):not([aria-hidden]) > *"
)].filter((mark) => mark.getAttribute("role") !== "img" ||
    !mark.querySelector("title")?.textContent.trim())
  .map((mark) => mark.outerHTML.slice(0, 200))"""
FIRST_CELLS = """() => [...document.querySelectorAll("table.table tbody tr")].map(
    (row) => row.cells[0].textContent)"""


@contextlib.contextmanager
def offline(chromium, path, theme="light"):
    """A page from disk, which asks for nothing but itself."""
    with browser.opened(chromium, theme, offline=True) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report with real charts, of names that would act."""
    out, hostile = tmp_path_factory.mktemp("report") / "out", grids.HOSTILE
    settings = {"clips": {"title": f"Clips {hostile}", "metric": "t2v/R@1"}}
    claims = [grids.claim(statement=hostile, source=hostile)]
    grids.made(out, SHARES, settings=settings, claims=claims)
    return report.write_report(out) / "index.html"


@pytest.mark.parametrize("theme", browser.THEMES)
def test_a_report_is_readable(chromium, written, theme):
    with offline(chromium, written, theme) as page:
        assert browser.faults(page) == []


def test_every_mark_of_a_chart_has_a_name(chromium, written):
    with offline(chromium, written) as page:
        assert page.locator("figure svg:visible").count() == 9
        assert page.locator("svg .role-mark [role=img] title").count() > 40
        assert page.evaluate(NAMELESS) == []


def test_a_report_sorts_by_keys(chromium, written):
    with offline(chromium, written) as page:
        first = page.evaluate(FIRST_CELLS)
        browser.tab_to(page, "table.table thead th:first-child button")
        for key, order, rows in (
            ("Enter", "ascending", sorted(first)),
            ("Space", "descending", sorted(first)[::-1]),
            ("Enter", None, first),
        ):
            page.keyboard.press(key)
            head = page.locator("table.table thead th").first
            assert head.get_attribute("aria-sort") == order
            assert page.evaluate(FIRST_CELLS) == rows


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """The page of `look` on clips whose ids and captions would act."""
    place = tmp_path_factory.mktemp("look")
    # Ids of a manifest have no more than that.
    hostile = grids.HOSTILE.encode("ascii", "ignore").decode().replace("\0", "").strip()
    # Its frames are wider than a phone.
    media.write_video(place / "media" / "film.mp4", frames=40, size=(96, 32))
    lines = [{"id": "film", "path": "media/film.mp4", "captions": ["a film"]}]
    for i in range(39):
        media.write_picture(place / "media" / f"{i}.png", grey=6 * i)
        line = {"id": f"{i} {hostile}", "path": f"media/{i}.png"}
        line["captions"] = [f"{i} \u202e{hostile}\nnext line", f"{i} {'long' * 200}"]
        lines.append({**line, "qa": [{"question": hostile, "answer": hostile}]})
    manifest = media.write_manifest(place / "manifest.jsonl", lines)
    prepare(media.settings(), str(manifest), str(place / "out"))
    look(str(place / "out"), "train", [], 40, str(place / "sheet.html"))
    return place / "sheet.html"


@pytest.mark.parametrize("theme", browser.THEMES)
def test_a_sheet_is_readable_and_its_texts_are_text(chromium, sheet, theme):
    with offline(chromium, sheet, theme) as page:
        assert page.locator("section").count() == 40
        assert page.get_by_text("<script>alert(1)</script>").count() >= 78
        assert page.evaluate("document.scripts.length") == 0
        assert browser.faults(page) == []
        dark = page.evaluate("getComputedStyle(document.body).color") != "rgb(30, 30, 30)"
        assert dark == (theme == "dark")
