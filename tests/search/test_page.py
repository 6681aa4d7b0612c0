"""The search page in a browser: no barriers in its states, hostile names stay text."""

from __future__ import annotations

import threading
import time

import browser
import media
import pytest
import search_case

from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index
from uniadapter_jax.inference.serving import server
from uniadapter_jax.inference.serving.app import make_app

pytestmark = pytest.mark.browser
ACTS = (
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(2)>",
    "'\"><b onclick=alert(3)>",
    "${alert(4)}",
)
HOSTILE = [f"{acts} {number}.png" for number in range(10) for acts in ACTS]


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    clips = tmp_path_factory.mktemp("page") / "clips"
    media.write_video(clips / "film.mp4", frames=75)
    for name in ("grey.png", *HOSTILE):
        media.write_picture(clips / name)
    return clips


@pytest.fixture(scope="module")
def address(folder):
    """Where the index of the folder is served."""
    model, where = search_case.Colours(), folder.parent / "index"
    build(str(folder), where, model, windows=Windows(1.0, 1.0))
    bound = server.listen("127.0.0.1", 0)
    serving = server.server_of(make_app(Index.open(where, model=model), None))
    thread = threading.Thread(target=serving.run, args=([bound],), daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    yield "http://{}:{}".format(*bound.getsockname())
    serving.should_exit = True
    thread.join(10)


def searched(page, address):
    page.goto(f"{address}/?q=rgb")
    page.wait_for_selector("#grid li")
    page.click("#more")
    page.wait_for_selector("#grid li:nth-child(40)")
    return page


def test_every_state_is_readable(chromium, address):
    with browser.opened(chromium) as page:
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        assert browser.barriers(page) == [] and not page.evaluate(browser.WIDER)
        page.click("#form .main")
        page.wait_for_selector("#error:visible")
        assert browser.barriers(page) == [] and not page.evaluate(browser.WIDER)
        searched(page, address)
        assert browser.barriers(page) == [] and not page.evaluate(browser.WIDER)
        page.click("#grid li:first-child button")
        page.wait_for_selector("#player[open]")
        assert browser.barriers(page) == [] and not page.evaluate(browser.WIDER)


def test_more_is_offered_when_the_answer_is_first(chromium, address):
    """Before it is known how many can be shown at most."""
    with browser.opened(chromium) as page:
        held = []
        page.route("**/api/info", lambda route: held.append(route))
        page.goto(f"{address}/?q=rgb")
        page.wait_for_selector("#grid li")
        held[0].continue_()
        page.wait_for_selector("#about:not(:empty)")
        assert page.locator("#more").is_visible()


def test_hostile_names_are_text(chromium, address):
    with browser.opened(chromium) as page:
        names = searched(page, address).locator("#grid .name").all_text_contents()
        assert set(HOSTILE) <= set(names)
        assert page.locator("#grid svg, #grid b, #grid [onerror]").count() == 0
