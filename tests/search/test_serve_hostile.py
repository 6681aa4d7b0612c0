"""A served index gives nothing else, whatever clients ask for, and however."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import anyio
import pytest
from serve_case import HOSTILE, client_of, id_of, index_of, refused

from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search.parts import Stamp
from uniadapter_jax.inference.serving import app as serving
from uniadapter_jax.inference.serving import server
from uniadapter_jax.inference.serving.app import make_app


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(tmp_path_factory.mktemp("served"), Windows(1.0, 0.5))


@pytest.fixture
def client(index):
    return client_of(index)


@pytest.fixture
def own(tmp_path):
    """An index whose folder a test may change."""
    return index_of(tmp_path)


def test_an_upload_is_bounded_while_it_is_read(client, index, monkeypatch):
    monkeypatch.setattr(serving, "UPLOAD_BYTES", 1 << 20)
    taken = []

    def endless():
        for _ in range(200):
            taken.append(1)
            yield b"x" * (1 << 16)

    assert refused(client.post("/api/search", content=b"x" * (1 << 21)), 413, "larger than 1 MB")
    app = make_app(index, None)
    status, content = answer_of(app, "POST", "/api/search", "", [], endless())
    assert status == 413 and b"larger than 1 MB" in content and len(taken) == 17
    wrong = {"content-length": "-5"}
    assert refused(client.post("/api/search", content=b"x", headers=wrong), 413, "larger")


@pytest.mark.parametrize(
    "path",
    [
        *("/media/0000000000000000", "/media/", "/media/../../etc/passwd", "/etc"),
        *("/media/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/media/%2Fetc%2Fpasswd", "//etc/passwd"),
        *("/media/..%5c..%5cx", "/media/film.mp4", "/media/deep/film.mp4", "/media/%00", "/media"),
        *("/api/item/..%2fx/thumb", "/api/item/%ff/thumb", "/script.js/x", "/assets/script.js"),
    ],
)
def test_no_path_leads_to_a_file(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_what_took_the_place_of_a_file_is_refused(own, tmp_path):
    client = client_of(own)
    grey, film = id_of(own, "grey.png"), id_of(own, "film.mp4")
    file, folder = tmp_path / "clips" / "grey.png", tmp_path / "clips" / "deep"
    os.utime(file, (1, 1))  # the same content
    assert client.get(f"/media/{grey}").status_code == 200
    assert client.get(f"/media/{grey}").content == file.read_bytes()
    same = tmp_path / "same.png"
    file.rename(same)
    for address in (f"/media/{grey}", f"/api/item/{grey}/thumb"):
        assert refused(client.get(address), 410, "no longer there")
    file.symlink_to(same)
    for address in (f"/media/{grey}", f"/api/item/{grey}/thumb"):
        assert refused(client.get(address), 403, "link")
    file.unlink()
    os.mkfifo(file)
    assert refused(client.get(f"/media/{grey}"), 409, "changed")
    file.unlink()
    file.write_bytes(b"x" * same.stat().st_size)
    assert refused(client.get(f"/media/{grey}"), 409, "changed")
    file.unlink()
    file.mkdir()
    assert client.get(f"/media/{grey}").status_code == 409
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert refused(client.get(f"/media/{film}"), 403, "link")
    assert client.get("/api/search", params={"q": "rgb"}).status_code == 200


def test_hostile_names_are_text(client, index):
    found = client.get("/api/search", params={"q": "rgbxyz", "k": 99})
    assert found.headers["content-type"] == "application/json" and found.text.isascii()
    assert {h["name"] for h in found.json()["hits"]} >= set(HOSTILE)
    for name in HOSTILE:
        for address in ("/media/{}", "/api/item/{}/thumb"):
            assert client.get(address.format(id_of(index, name))).status_code == 200
    script = client.get("/script.js").text
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", ".style"):
        assert word not in script


def test_headers_are_strict(client, index):
    for path in ("/", "/script.js", "/api/info", f"/media/{id_of(index, 'grey.png')}", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    page = client.get("/").text
    assert "<script>" not in page and "style=" not in page and " on" + "click" not in page


def test_other_sites_may_not_ask(index):
    client = client_of(index)
    for headers in (
        {"host": "evil.example"}, {"host": "evil.example:80"}, {"host": "[::2]:80"}, {"host": ""},
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://[x"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ):  # fmt: skip
        assert client.get("/api/info", headers=headers).status_code == 403, headers
    fine = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.get("/api/info", headers=fine).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    anyone = client_of(index, hosts=None)
    assert anyone.get("/api/info", headers={"host": "box.lan:80"}).status_code == 200


def test_a_failure_has_a_sentence_and_no_traceback(index, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret\x1b")

    monkeypatch.setattr(index, "search", fail)
    answer = client_of(index).get("/api/search?q=r")
    assert refused(answer, 500, "failed") and "secret" not in answer.text
    assert "secret\\x1b" in caplog.text


@pytest.fixture
def serving_at(monkeypatch):
    """Serves an index on a socket, with little patience."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(server, "CONNECTIONS", 4)
    stops = []

    def serve_it(index):
        bound = server.listen("127.0.0.1", 0)
        stop = server.server_of(make_app(index, None))
        thread = threading.Thread(target=stop.run, args=([bound],), daemon=True)
        thread.start()
        stops.append((stop, thread))
        while not stop.started:
            time.sleep(0.01)
        return bound.getsockname()

    yield serve_it
    for stop, thread in stops:
        stop.should_exit = True
        thread.join(10)


def ends(connection):
    """Whether the server closes a connection soon."""
    connection.settimeout(3)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_slow_and_many_clients_are_bounded(index, serving_at):
    address = serving_at(index)
    silent = [socket.create_connection(address) for _ in range(4)]
    time.sleep(0.05)
    more = socket.create_connection(address)
    began = time.monotonic()
    assert ends(more) and time.monotonic() - began < 0.15
    silent[0].sendall(b"GET / HT")
    assert all(ends(connection) for connection in silent)
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /api/info HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_client_that_takes_no_answer_is_cut_off(own, tmp_path, serving_at, monkeypatch):
    name = tmp_path / "clips" / "grey.png"
    monkeypatch.setattr(own, "stamp", lambda item: Stamp(1 << 26, name.stat().st_mtime_ns, ""))
    os.truncate(name, 1 << 26)
    with socket.create_connection(serving_at(own)) as connection:
        ask = f"GET /media/{id_of(own, 'grey.png')} HTTP/1.1\r\nhost: x\r\n\r\n"
        connection.sendall(ask.encode())
        time.sleep(0.6)  # twice STALL_SECONDS
        taken = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 20):
                taken += len(data)
    assert 0 < taken < 1 << 25


@pytest.mark.slow
def test_a_signal_ends_it_with_one_line(index):
    """With a model that is no work; SIGINT is 130."""
    code = (
        "import sys, search_case; from uniadapter_jax import serve;"
        "from uniadapter_jax.inference.search import index;"
        "index.load_model = lambda *_: search_case.Colours();"
        "sys.exit(serve.main([sys.argv[1], '--port=0']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(index.path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as child:  # fmt: skip
        line = child.stdout.readline()
        host, port = line.split("http://")[1].rstrip("/\n").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            child.send_signal(signal.SIGINT)
            rest = child.communicate(timeout=30)
    assert child.returncode == 130 and rest[1] == "stopped\n"


WORDS = (
    *(
        "..",
        "%2e%2e",
        "/",
        "//",
        "\\",
        "\0",
        "%",
        "%zz",
        "{0}",
        "?",
        "#",
        ";",
        "a" * 9000,
        "\u0663",
    ),
    *(
        "media",
        "api",
        "item",
        "thumb",
        "search",
        "info",
        "etc/passwd",
        "film.mp4",
        "0" * 16,
        "\ufffd",
    ),
)
HEADERS = ("if-range", "content-length", "origin", "cookie", "host", "transfer-encoding", "x")
RANGES = ("bytes=0-", "bytes=-0", "bytes=9-1", f"bytes={'9' * 500}-", "bytes=5-9", "bytes=999999-")
HEADS = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"RIFF1234WEBPVP8 ",
    b"MM\0*",
    b"BM",
    b"GIF89a",
)


def fuzzed(chance, ids):
    """Any request: some of it right, the rest anything."""
    word = chance.choice

    def part():
        return word((*WORDS, "".join(map(chr, chance.sample(range(1, 256), 5)))))

    if chance.random() < 0.3:
        path = word(("/media/{}", "/api/item/{}/thumb")).format(word(ids))
        return word(("GET", "HEAD")), path, part(), [("range", word((*RANGES, part())))]
    path = word(("/media/", "/api/item/", "/api/search", "/api/info", "/", ""))
    path += "".join(part() for _ in range(chance.randrange(4))) + word(("", "", "/thumb"))
    query = "&".join(f"{word(('q', 'k', part()))}={word(('3', part()))}" for _ in range(3))
    values = (*RANGES, "-1", "chunked", "127.0.0.1")
    headers = [(word(HEADERS), word((*values, part()))) for _ in range(chance.randrange(3))]
    return word(("GET", "GET", "POST", "POST", "HEAD", "PUT", "X")), path, query, headers


def answer_of(app, method, path, query, headers, body):
    """(status, body) of a request that no client would send; the path is as uvicorn gives it."""
    chunks, sent, ended = iter(body), [], []
    scope = {
        **{"type": "http", "method": method, "path": path, "raw_path": b"", "root_path": ""},
        **{"query_string": query.encode("utf-8", "replace"), "http_version": "1.1"},
        **{"scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2)},
        "headers": [(b"host", b"127.0.0.1")]
        + [(a.encode(), b.encode("utf-8", "replace")) for a, b in headers],
    }

    async def receive():
        if ended:
            await anyio.sleep_forever()
        chunk = next(chunks, b"")
        ended.extend([True] * (not chunk))
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    async def send(message):
        sent.append(message)

    anyio.run(app, scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def fuzz(index, count, seed=0):
    app, chance = make_app(index, ("127.0.0.1",)), random.Random(seed)
    ids = [item.id for item in index.items()]
    files = {pathlib.Path(item.path).read_bytes() for item in index.items()}
    seen = collections.Counter()
    for _ in range(count):
        method, path, query, headers = fuzzed(chance, ids)
        body = chance.choice(HEADS) + chance.randbytes(chance.choice((0, 20, 3000)))
        status, content = answer_of(app, method, path, query, headers, [body] * bool(body))
        seen[status] += 1
        assert status < 500, (method, path, query, headers, content)
        if status >= 400:
            assert set(json.loads(content)) == {"error"}
        elif path.startswith("/media/"):
            assert not content or any(content in file for file in files)
    assert {200, 206, 404, 405, 416} <= set(seen)
    return seen


def test_some_fuzzed_requests(index):
    fuzz(index, 200)


@pytest.mark.slow
def test_ten_thousand_fuzzed_requests(index):
    fuzz(index, 300, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(fuzz(index, 10_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB
