"""The search page is asked by pictures, and by words that a BLIP matches again and answers."""

from __future__ import annotations

import browser
import doors
import media
import pytest
import search_case
import serve_case

from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index
from uniadapter_jax.inference.serving.app import UPLOAD_BYTES

pytestmark = pytest.mark.browser
GIVE = """([event, name, type, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    const how = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
    const kind = event === "paste" ? ClipboardEvent : DragEvent;
    document.dispatchEvent(new kind(event, how));
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    clips = tmp_path_factory.mktemp("queries") / "clips"
    for i in range(3):
        media.write_picture(clips / f"{i}.png", grey=90 * i)
    media.write_video(clips / "film.mp4", frames=15)
    return clips


def indexed(folder, model, name):
    build(str(folder), folder.parent / name, model)
    return Index.open(folder.parent / name, model=model)


@pytest.fixture(scope="module")
def address(folder):
    with serve_case.served(indexed(folder, search_case.Colours(), "colours")) as address:
        yield address


def ready(page, address):
    page.goto(address)
    page.wait_for_selector("#about:not(:empty)")


def give(page, how, path, kind="image/png"):
    """Hands a file to the page, as people do."""
    if how == "choose":
        page.set_input_files("#file", path)
        return
    file = [path.name, kind, list(path.read_bytes())]
    if how == "drop":
        page.evaluate(GIVE, ["dragover", *file])
        assert page.locator("#drop").is_visible()
    page.evaluate(GIVE, [how, *file])
    assert page.locator("#drop").is_hidden()


@pytest.mark.parametrize("how", ["choose", "drop", "paste"])
def test_a_picture_is_a_query(chromium, address, folder, how):
    with browser.opened(chromium) as page:
        ready(page, address)
        give(page, how, folder / "1.png")
        page.wait_for_selector("#grid li")
        said = page.text_content("#note")
        assert said.startswith("The best 4 of 4 clips for the picture, compared one by one in ")
        page.wait_for_function("() => document.querySelector('#shown').naturalWidth === 40")
        assert page.title() == "A picture \u2013 Search"
        page.click("#forget")
        assert page.locator("#query").is_hidden() and page.locator("#grid li").count() == 0
        assert page.evaluate("document.activeElement.id") == "words"


@pytest.mark.parametrize("how", ["choose", "drop"])
def test_a_file_that_is_no_picture_is_refused_in_words(chromium, address, folder, tmp_path, how):
    (tmp_path / "notes.png").write_text("<script>alert(1)</script>")
    with browser.opened(chromium, expected="415") as page:
        ready(page, address)
        give(page, "choose", folder / "1.png")
        page.wait_for_selector("#grid li")
        give(page, how, tmp_path / "notes.png")
        page.wait_for_selector("#error:visible")
        assert page.text_content("#error").startswith("This is no picture: it ")
        assert page.locator("#grid li").count() == 0 and page.locator("#query").is_hidden()
        assert page.text_content("#note") == ""


def test_a_film_is_no_query(chromium, address, folder):
    with browser.opened(chromium, expected="415") as page:
        ready(page, address)
        give(page, "drop", folder / "film.mp4", "video/mp4")
        page.wait_for_selector("#error:visible")
        assert page.text_content("#error") == "This is video; search with a still picture."
        assert browser.faults(page) == []


def test_what_is_too_large_is_not_sent(chromium, address, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(UPLOAD_BYTES + 1))
    with browser.opened(chromium) as page:
        ready(page, address)
        give(page, "choose", tmp_path / "large.png")
        page.wait_for_selector("#error:visible")
        assert page.text_content("#error") == "The picture is larger than 16 MB."


def test_text_that_is_dropped_is_no_query(chromium, address):
    with browser.opened(chromium) as page:
        ready(page, address)
        page.evaluate(
            "document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"
        )
        assert page.locator("#query").is_hidden() and page.locator("#error").is_hidden()


def test_a_server_that_is_gone_is_told(chromium, address):
    with browser.opened(chromium, expected="ERR_FAILED") as page:
        ready(page, address)
        page.route("**/api/search*", lambda route: route.abort())
        page.fill("#words", "rgb")
        page.keyboard.press("Enter")
        page.wait_for_selector("#error:visible")
        assert "The server does not answer" in page.text_content("#error")


def test_a_blip_matches_again_and_answers(chromium, folder):
    index = indexed(folder, doors.blip(), "blip")
    words = "is it grey"
    first, again = index.search(words, k=4), index.search(words, k=4, rerank=4)
    answer = index.ask(first[0], "what is it") or "No answer."
    with serve_case.served(index) as address, browser.opened(chromium) as page:
        ready(page, address)
        names = page.locator("#grid .name")
        page.fill("#words", words)
        page.keyboard.press("Enter")
        page.wait_for_selector("#grid li")
        assert names.all_text_contents() == [hit.name for hit in first]
        page.get_by_label("Match the best again").check()
        page.wait_for_selector("#note:has-text('the best 4 matched again')")
        assert names.all_text_contents() == [hit.name for hit in again]
        scores = page.locator("#grid .score").all_text_contents()
        assert scores == [f"{hit.score:.3f}" for hit in again]
        names.get_by_text(first[0].name, exact=True).click()
        page.get_by_label("A question about the clip").fill("what is it")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector("#answer:not(:empty):not(:has-text('Looking'))")
        assert page.text_content("#answer") == answer
