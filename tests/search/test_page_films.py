"""The search page plays films from a second, or says in words why it cannot."""

from __future__ import annotations

from fractions import Fraction

import browser
import media
import pytest
import search_case
import serve_case

from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index

pytestmark = pytest.mark.browser
TYPES = {"webm": 'video/webm; codecs="vp8"', "mp4": 'video/mp4; codecs="avc1.42E01E"'}
WINDOW = "0:02 \u2013 0:04"
FAR = 16 << 20  # bytes between the pictures of a film and the list of where they are
# Noted when it begins: what comes later depends on how busy the machine is.
NOTE_START = """document.addEventListener("playing", (event) => {
    window.began ??= event.target.currentTime;
}, true)"""
GOES_ON = """() => {
    const film = document.querySelector("#stage video");
    return film?.readyState >= 1 && !film.paused && film.currentTime > window.began;
}"""


def lengthen(path, size):
    """Puts bytes that players skip before the last part of an MP4 file."""
    content = path.read_bytes()
    last = content.index(b"moov") - 4
    box = size.to_bytes(4, "big") + b"free"
    path.write_bytes(content[:last] + box + bytes(size - 8) + content[last:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    clips = tmp_path_factory.mktemp("films") / "clips"
    media.write_video(clips / "film.webm", frames=60, codec="libvpx")
    media.write_video(clips / "film.mp4", frames=60)
    media.write_video(clips / "long.mp4", frames=60)
    lengthen(clips / "long.mp4", FAR)
    media.write_video(clips / "old.avi", frames=60, codec="mpeg4")
    stamps = range(0, 6000, 100)
    media.write_frames(clips / "heard.mp4", stamps, codec="mpeg4", sound=(0, 6.0))
    media.write_frames(
        clips / "moving.gif", range(0, 600, 10), "gif", Fraction(1, 100), pix_fmt="rgb8"
    )
    return clips


@pytest.fixture(scope="module")
def address(folder):
    model, where = search_case.Colours(), folder.parent / "index"
    build(str(folder), where, model, windows=Windows(2.0, 2.0))
    with serve_case.served(Index.open(where, model=model)) as address:
        yield address


def result(page, address, name):
    """The result that is the film's window from its 2nd second."""
    page.goto(f"{address}?q=rgb")
    page.wait_for_selector("#grid li:nth-child(24)")
    of_film = page.locator("#grid button").filter(has=page.get_by_text(name, exact=True))
    return of_film.filter(has_text=WINDOW)


@pytest.mark.parametrize(
    ("name", "act"), [("film.webm", "click"), ("film.webm", "Enter"), ("film.mp4", "click")]
)
def test_a_film_plays_from_its_second(chromium, address, name, act):
    kind = TYPES[name.rpartition(".")[2]]
    with browser.opened(chromium) as page:
        page.add_init_script(NOTE_START)
        found = result(page, address, name)
        if not page.evaluate("kind => document.createElement('video').canPlayType(kind)", kind):
            pytest.skip(f"this browser does not play {kind}")
        if act == "click":
            found.click()
        else:
            found.press(act)
        page.wait_for_function(GOES_ON)
        assert 2 <= page.evaluate("began") < 3
        assert page.locator("#trouble").is_hidden()
        page.click("#close")
        page.wait_for_selector("#player", state="hidden")
        page.wait_for_selector("video", state="detached")


def test_a_part_of_a_long_film_is_fetched(chromium, address):
    with browser.opened(chromium) as page:
        if not page.evaluate(f"document.createElement('video').canPlayType('{TYPES['mp4']}')"):
            pytest.skip("this browser does not play H.264")
        ranges = []
        page.on("response", lambda response: ranges.append(response.headers.get("content-range")))
        page.add_init_script(NOTE_START)
        result(page, address, "long.mp4").click()
        page.wait_for_function(GOES_ON)
        assert 2 <= page.evaluate("began") < 3
        begins = [int(line.split()[1].partition("-")[0]) for line in ranges if line]
        assert max(begins) >= FAR


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("old.avi", "This browser cannot show files of this kind."),
        ("heard.mp4", "This browser cannot show the pictures of this film, only play its sound."),
    ],
)
def test_what_cannot_be_played_is_said(chromium, address, name, words):
    with browser.opened(chromium) as page:
        result(page, address, name).click()
        page.wait_for_selector("#trouble:visible")
        assert page.text_content("#trouble") == words


def test_a_film_that_is_gone_is_said(chromium, address, folder):
    with browser.opened(chromium, expected="410 (Gone)") as page:
        found = result(page, address, "film.mp4")
        (folder / "film.mp4").rename(folder.parent / "elsewhere")
        found.click()
        page.wait_for_selector("#trouble:visible")
        (folder.parent / "elsewhere").rename(folder / "film.mp4")
        assert "The file is no longer there; index the folder again" in page.inner_text("#trouble")


def test_an_animation_moves_as_a_picture(chromium, address):
    with browser.opened(chromium) as page:
        result(page, address, "moving.gif").click()
        page.wait_for_function("() => document.querySelector('#stage img')?.naturalWidth > 0")
        assert page.locator("#trouble").is_hidden()
