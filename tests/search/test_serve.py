"""A served index: search, thumbnails, and files by ranges."""

from __future__ import annotations

import json
import os
import sys

import pytest
from serve_case import client_of, id_of, index_of, refused

from uniadapter_jax import serve
from uniadapter_jax.data.preparation.folder import MEDIA
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.serving import server
from uniadapter_jax.inference.serving.answers import Problem
from uniadapter_jax.inference.serving.app import warm
from uniadapter_jax.inference.serving.media import _TYPES, byte_range


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(tmp_path_factory.mktemp("served"), Windows(1.0, 0.5))


@pytest.fixture
def client(index):
    return client_of(index)


def test_search_is_that_of_the_index(client, index):
    found = client.get("/api/search", params={"q": "rgbxyz", "k": 5}).json()
    hits = index.search("rgbxyz", k=5)
    assert [(h["id"], h["score"]) for h in found["hits"]] == [(h.id, h.score) for h in hits]
    assert [(h["name"], h["start"], h["end"]) for h in found["hits"]] == [
        (h.name, h.start, h.end) for h in hits
    ]
    assert found["clips"] == len(index)
    path = os.path.join(index.root, "grey.png")
    with open(path, "rb") as picture:
        found = client.post("/api/search?k=3", content=picture.read()).json()
    assert [h["id"] for h in found["hits"]] == [h.id for h in index.search(image=path, k=3)]
    assert index.root not in json.dumps(found)
    info = client.get("/api/info").json()
    assert (info["folder"], info["files"], info["window"]) == ("clips", 5, [1.0, 0.5])
    assert info["unfinished"] is False


def test_every_kind_of_media_has_a_type():
    assert MEDIA <= set(_TYPES) and _TYPES[".avi"] == "video/x-msvideo"


@pytest.mark.parametrize("k", ["0", "-1", "201", "1.5", "x", "", "9" * 50, "\u0663"])
def test_k_out_of_range_is_refused(client, k):
    assert refused(client.get("/api/search", params={"q": "r", "k": k}), 400, "from 1 to 200")


def test_wrong_queries_are_refused(client):
    assert refused(client.get("/api/search", params={"q": " "}), 400, "empty")
    assert refused(client.get("/api/search"), 400, "empty")
    assert refused(client.get("/api/search", params={"q": "r" * 2001}), 400, "longer")
    assert refused(client.post("/api/search", content=b""), 400, "empty")
    assert refused(client.post("/api/search", content=b"<svg/>"), 415, "no picture")
    assert refused(client.post("/api/search", content=b"GIF89a" + b"x" * 99), 415, "is GIF")
    cut = b"\x89PNG\r\n\x1a\n" + b"x" * 99
    answer = client.post("/api/search", content=cut)
    assert refused(answer, 422, "the picture") and "/tmp" not in answer.text
    assert refused(client.put("/api/search"), 405, "other methods")


def test_a_file_is_served_whole_and_by_ranges(client, index):
    item = index.item(id_of(index, "film.mp4"))
    with open(item.path, "rb") as file:
        whole = file.read()
    size, address = len(whole), f"/media/{item.id}"

    def get(**headers):
        return client.get(address, headers={k.replace("_", "-"): v for k, v in headers.items()})

    answer = get()
    assert (answer.status_code, answer.content) == (200, whole)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "video/mp4"
    for asked, begin, end in (
        ("bytes=0-", 0, size), ("bytes=5-9", 5, 10), ("bytes=-7", size - 7, size),
        (f"bytes=9-{size * 9}", 9, size), (f"bytes=-{size * 9}", 0, size), ("Bytes=1-1", 1, 2),
    ):  # fmt: skip
        answer = get(range=asked)
        assert (answer.status_code, answer.content) == (206, whole[begin:end]), asked
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - begin)
    for asked in (f"bytes={size}-", "bytes=-0", f"bytes={'9' * 90}-"):
        answer = get(range=asked)
        assert refused(answer, 416, f"{size} bytes"), asked
        assert answer.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=9-5", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=x-y"):
        assert get(range=asked).content == whole, asked
    tag = answer.headers.get("etag") or get().headers["etag"]
    assert get(range="bytes=0-1", if_range=tag).status_code == 206
    assert get(range="bytes=0-1", if_range='"other"').content == whole
    head = client.head(address, headers={"range": "bytes=0-3"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "4")


def test_ranges_by_numbers():
    assert byte_range(None, 10) is None and byte_range("bytes=3-4", 10) == (3, 5)
    with pytest.raises(Problem):
        byte_range("bytes=10-10", 10)


def test_thumbnails_show_the_clip(client, index):
    for name, whole in (("film.mp4", True), ("film.mp4", False), ("grey.png", True)):
        for _ in range(2):
            answer = client.get(f"/api/item/{id_of(index, name, whole)}/thumb")
            assert answer.status_code == 200 and answer.content[:3] == b"\xff\xd8\xff"
    whole, window = (
        client.get(f"/api/item/{id_of(index, 'film.mp4', w)}/thumb").content for w in (True, False)
    )
    assert whole != window  # each of its own middle


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none holds no index.json"),
        (["none", "--port=-1"], "--port=-1: from 0 to 65535"),
        (["i", "--host=256.0.0.1"], "--host=256.0.0.1 --port=8000"),
    ],
)
def test_wrong_flags_are_named(index, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(serve.launch, "use_compile_cache", lambda: None)
    if arguments[0] == "i":
        arguments = [str(index.path), *arguments[1:]]
    assert serve.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_missing_extra_is_named(index, capsys, monkeypatch):
    monkeypatch.setattr(serve.launch, "use_compile_cache", lambda: None)
    monkeypatch.setitem(sys.modules, "uniadapter_jax.inference.serving.server", None)
    monkeypatch.delattr("uniadapter_jax.inference.serving.server")
    assert serve.main([str(index.path)]) == 2
    assert "pip install 'uniadapter_jax[serve]'" in capsys.readouterr().err


def test_it_is_warm_before_it_serves(index):
    warm(index)
    assert server.address(server.listen("127.0.0.1", 0)).startswith("http://127.0.0.1:")
