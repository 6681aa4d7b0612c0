"""A served folder of tiny media, and what tests of it share."""

from __future__ import annotations

import contextlib
import threading
import time

import media
import search_case
from starlette.testclient import TestClient

from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index
from uniadapter_jax.inference.serving import server
from uniadapter_jax.inference.serving.app import make_app

HOSTILE = ("<img src=x onerror=alert(1)>.png", "odd\udcff.png", "\x1b[2J\n\u202egnp.png")


def fill(folder):
    """A film, a picture, and names that would act in a page or on a terminal."""
    media.write_video(folder / "deep" / "film.mp4", frames=25)
    media.write_picture(folder / "grey.png", grey=90)
    for name in HOSTILE:
        media.write_picture(folder / name)
    return folder


def index_of(where, windows=None):
    """An index below a directory of the media in its `clips`."""
    model = search_case.Colours()
    build(str(fill(where / "clips")), where / "index", model, windows=windows)
    return Index.open(where / "index", model=model)


def client_of(index, hosts=("127.0.0.1",)):
    return TestClient(make_app(index, hosts), "http://127.0.0.1", follow_redirects=False)


@contextlib.contextmanager
def served(index):
    """The address at which an index is served by a thread."""
    bound = server.listen("127.0.0.1", 0)
    serving = server.server_of(make_app(index, ("127.0.0.1",)))
    thread = threading.Thread(target=serving.run, args=([bound],), daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    yield server.address(bound)
    serving.should_exit = True
    thread.join(10)


def id_of(index, name, whole=True):
    return next(i.id for i in index.items() if i.name.endswith(name) and i.whole is whole)


def refused(response, status, words):
    assert response.status_code == status, response.text
    assert words in response.json()["error"] and response.json()["error"].endswith(".")
    return True
