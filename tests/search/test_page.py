"""The search page in a browser: no barriers in its states, keys are enough, names stay text."""

from __future__ import annotations

import re

import browser
import media
import pytest
import search_case
import serve_case

from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index

pytestmark = pytest.mark.browser
ACTS = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",  # a folder and a file
    "'\"><b onclick=alert(3)>&lt;i&gt;",
    "<svg onload=alert(4)> ${alert(5)} {{alert(6)}}",
    "javascript:alert(7)",
    "a line\nand another\r\tand \x1b[2J",
    "\u202egnp.\u2066 \u200f \u061c",
    "odd \udcff%3Cscript%3E%00",
    "long" * 50,
    "  \u05e9\u05dc\u05d5\u05dd \u0301\u0301\u0301 a .. .. etc passwd",
)
HOSTILE = [f"{acts} {number}.png" for number in range(4) for acts in ACTS]
ADDED = """() => [...document.querySelectorAll("body *")].filter((element) =>
    ["b", "i", "svg", "script", "iframe"].includes(element.localName) ||
    element.getAttributeNames().some((name) => name.startsWith("on"))).length"""


def safe(text):
    """How the page shows a text, without characters that act."""
    return re.sub("[\x00-\x1f\u061c\u200f\u202e\u2066\ud800-\udfff]", "\ufffd", text)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the index of a folder with hostile names is served."""
    folder, model = tmp_path_factory.mktemp("page") / ACTS[0], search_case.Colours()
    media.write_video(folder / "film.mp4", frames=15)
    for name in HOSTILE:
        media.write_picture(folder / name)
    build(str(folder), folder.parent / "index", model, windows=Windows(1.0, 1.0))
    with serve_case.served(Index.open(folder.parent / "index", model=model)) as address:
        yield address


def searched(page, address):
    page.goto(f"{address}?q=rgb")
    page.wait_for_selector("#grid li")
    page.click("#more")
    page.wait_for_selector("#grid li:nth-child(40)")
    return page


def leave(page):
    """Closes the player, and waits until the page has taken leave of it, too."""
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    page.wait_for_selector("#stage > *", state="detached")


@pytest.mark.parametrize("theme", browser.THEMES)
def test_every_state_is_readable(chromium, address, theme):
    with browser.opened(chromium, theme) as page:
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        assert browser.faults(page) == []
        page.click("#form .main")
        page.wait_for_selector("#error:visible")
        assert "Say in words" in page.text_content("#error")
        assert browser.faults(page) == []
        searched(page, address)
        assert browser.faults(page) == []
        page.locator("#grid button", has_text="film.mp4").first.click()
        page.wait_for_selector("#player[open] video")
        assert browser.faults(page) == []


def test_more_is_offered_when_the_answer_is_first(chromium, address):
    """Before it is known how many can be shown at most."""
    with browser.opened(chromium) as page:
        held = []
        page.route("**/api/info", lambda route: held.append(route))
        page.goto(f"{address}?q=rgb")
        page.wait_for_selector("#grid li")
        held[0].continue_()
        page.wait_for_selector("#about:not(:empty)")
        assert page.locator("#more").is_visible()


@pytest.mark.parametrize("unfinished", [False, True])
def test_an_unfinished_index_is_told(chromium, address, unfinished):
    def tell(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"unfinished": unfinished})

    with browser.opened(chromium) as page:
        page.route("**/api/info", tell)
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        assert ("The index is unfinished" in page.text_content("#about")) is unfinished


def test_hostile_names_are_text(chromium, address):
    with browser.opened(chromium) as page:
        names = searched(page, address).locator("#grid .name")
        assert set(map(safe, HOSTILE)) <= set(names.all_text_contents())
        assert page.text_content("#folder") == ACTS[0]
        for name in map(safe, HOSTILE[: len(ACTS)]):
            names.get_by_text(name, exact=True).click()
            page.wait_for_selector("#stage img")
            assert page.text_content("#title") == name
            leave(page)
        assert page.evaluate(ADDED) == 0


def test_hostile_queries_and_answers_are_text(chromium, address):
    """The model repeats a question in its answer."""
    with browser.opened(chromium) as page:
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        for words in ACTS[:7]:
            page.fill("#words", words)
            page.keyboard.press("Enter")
            typed = safe(page.input_value("#words"))  # on one line
            page.get_by_text(f"for \u201c{typed}\u201d, compared").wait_for()
            assert page.title() == f"{' '.join(typed.split())} \u2013 Search"
            page.click("#grid li:first-child button")
            page.fill("#question", words)
            page.keyboard.press("Enter")
            page.wait_for_selector("#answer:not(:empty):not(:has-text('Looking'))")
            assert page.text_content("#answer").startswith(typed)
            leave(page)
        assert page.evaluate(ADDED) == 0


def test_keys_are_enough(chromium, address):
    """The page begins in the query; Enter plays, and Escape leads back to where one was."""
    with browser.opened(chromium) as page:
        page.on("filechooser", lambda chooser: None)  # so that none opens before it is waited for
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        browser.tab_to(page, "#choose", 3)
        with page.expect_file_chooser():
            page.keyboard.press("Enter")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.id") == "words"
        page.keyboard.type("rgb")
        page.keyboard.press("Enter")
        page.wait_for_selector("#grid li")
        browser.tab_to(page, "#grid button", 5)
        page.keyboard.press("Tab")
        chosen = page.evaluate("document.activeElement.textContent")
        assert chosen == page.text_content("#grid li:nth-child(2) button")
        page.keyboard.press("Enter")
        page.wait_for_selector("#player[open]")
        assert page.evaluate("document.activeElement.closest('#player') !== null")
        leave(page)
        assert page.evaluate("document.activeElement.textContent") == chosen
