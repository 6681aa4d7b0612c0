"""The addresses of a served index: the page, search, information, thumbnails, files.

    GET  /                     the page, with /style.css and /script.js
    GET  /api/info             what is served
    GET  /api/search?q=&k=     clips by words; with &rerank=N the best N are matched again (BLIP)
    POST /api/search?k=        clips by a picture, which is the body
    GET  /api/item/ID/thumb    a JPEG
    GET  /api/item/ID/answer?q= the answer to a question about the clip (BLIP with a decoder)
    GET  /media/ID             the file, by ranges, too

Clips are named by ids only, so that no path of a client reaches the file system.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import anyio
from anyio import to_thread
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.media import kinds
from uniadapter_jax.inference.clip_files import told
from uniadapter_jax.inference.search.index import Hit, Index, Item
from uniadapter_jax.inference.serving.answers import Problem, as_json
from uniadapter_jax.inference.serving.files import open_indexed
from uniadapter_jax.inference.serving.guard import Guard
from uniadapter_jax.inference.serving.media import Thumbnails, media, media_type
from uniadapter_jax.weights.hub.names import hub_name

ASSETS = pathlib.Path(__file__).parents[2] / "assets" / "search"
PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST, DEFAULT = 200, 24  # hits
RERANKED = 50  # clips that the page matches again, or as many as it shows
QUERY_CHARACTERS = 2000
UPLOAD_BYTES, UPLOAD_SECONDS, UPLOADS = 16 << 20, 30.0, 8  # of one; at once


def make_app(index: Index, hosts: Iterable[str] | None) -> ASGIApp:
    """The application of an index; for `hosts` see `Guard`."""
    served = _Served(index)
    routes = [
        *(Route(path, _page(*page), methods=["GET"]) for path, page in PAGE.items()),
        Route("/api/info", served.info, methods=["GET"]),
        Route("/api/search", served.search, methods=["GET"]),
        Route("/api/search", served.search_picture, methods=["POST"]),
        Route("/api/item/{id}/thumb", served.thumb, methods=["GET"]),
        Route("/api/item/{id}/answer", served.answer, methods=["GET"]),
        Route("/media/{id}", served.media, methods=["GET"]),
    ]
    # No redirects: they would repeat what a client said.
    router = ExceptionMiddleware(Router(routes, redirect_slashes=False))
    router.add_exception_handler(HTTPException, _no_route)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await router({**scope, "app": router}, receive, send)  # without "app" routes answer in text

    return Guard(app, hosts)


def warm(index: Index) -> None:
    """Loads the model and compiles what queries need, so that the first client need not wait."""
    index.search("a picture", k=1)
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (64, 64)).save(path := os.path.join(folder, "grey.png"))
        index.search(image=path, k=1)


class _Served:
    """The handlers of requests to an index."""

    def __init__(self, index: Index):
        self._index = index
        self._thumbnails = Thumbnails(index, usable_cores())
        self._searching = anyio.CapacityLimiter(1)  # the model takes all cores
        self._uploading = anyio.CapacityLimiter(UPLOADS)

    async def info(self, request: Request) -> Response:
        index = self._index
        made = index.description.made
        return as_json(
            {
                "folder": os.path.basename(os.path.normpath(index.root)),
                "clips": len(index),
                "files": index.files(),
                "model": _model(index.description.backbone),
                "adapter": str(made.get("adapter", "none")).split()[0],
                "window": made.get("window"),
                "unfinished": index.unfinished,
                "k": {"default": DEFAULT, "most": MOST},
                "upload_bytes": UPLOAD_BYTES,
                "rerank": RERANKED if index.model.matches else 0,
                "ask": index.model.answers,
            }
        )

    async def search(self, request: Request) -> Response:
        k, text = _k(request), _words(request, "query", "say in words what to look for")
        rerank = _whole(request, "rerank", 0, 0)
        if rerank and not self._index.model.matches:
            raise Problem(400, "This model cannot match clips again; leave rerank out.")
        if 0 < rerank < k:
            raise Problem(400, f"rerank should be at least k, which is {k}.")
        return await self._answer(k, text=text, rerank=rerank)

    async def search_picture(self, request: Request) -> Response:
        k = _k(request)
        try:
            self._uploading.acquire_nowait()
        except anyio.WouldBlock:
            raise Problem(503, "Too many pictures at once; try again.") from None
        try:
            with tempfile.TemporaryDirectory(prefix="query") as folder:
                path = os.path.join(folder, "picture")
                await _receive(request, path)
                await to_thread.run_sync(_check_picture, path)
                return await self._answer(k, image=path)
        finally:
            self._uploading.release()

    async def _answer(self, k: int, **query: Any) -> Response:
        def search() -> list[Hit]:
            try:
                return self._index.search(k=k, **query)
            except UserError as error:  # names the file that was written for it
                words = str(error).replace(f"--image={query.get('image')}", "the picture")
                raise Problem(422, f"Not searched: {words}.") from error

        began = time.perf_counter()
        hits = await to_thread.run_sync(search, limiter=self._searching)
        seconds = round(time.perf_counter() - began, 3)
        found = [_shown(hit) for hit in hits]
        return as_json({"hits": found, "clips": len(self._index), "seconds": seconds})

    async def answer(self, request: Request) -> Response:
        item = self._item(request)
        question = _words(request, "question", "ask something about the clip")
        if not self._index.model.answers:
            raise Problem(400, "This model cannot answer questions.")

        def ask() -> str:
            with open_indexed(self._index, item) as file:
                try:
                    return self._index.ask(item, question, f"/dev/fd/{file.fileno()}")
                except kinds.DecodeError as error:
                    raise Problem(422, f"The file cannot be decoded: {told(error)}.") from error
                except UserError as error:
                    raise Problem(422, f"Not answered: {error}.") from error

        return as_json({"answer": await to_thread.run_sync(ask, limiter=self._searching)})

    async def thumb(self, request: Request) -> Response:
        data = await self._thumbnails.get(self._item(request))
        headers = {"cache-control": "private, max-age=300"}
        return Response(data, headers=headers, media_type="image/jpeg")

    async def media(self, request: Request) -> Response:
        return await media(self._index, self._item(request), request.headers)

    def _item(self, request: Request) -> Item:
        try:
            return self._index.item(request.path_params["id"])
        except UserError:
            raise Problem(404, "No clip of this index has that id.") from None


def _model(place: str) -> str:
    """A backbone's name for clients, who do not learn where its directory is."""
    name = hub_name(place)
    return name.repository if name else os.path.basename(os.path.normpath(place))


def _shown(hit: Hit) -> dict[str, Any]:
    """A hit for clients, who learn names below the folder, not where the folder is."""
    picture = hit.start is None or media_type(hit.name).startswith("image/")  # animations, too
    return {
        **{"id": hit.id, "name": hit.name, "start": hit.start, "end": hit.end},
        **{"whole": hit.whole, "kind": "picture" if picture else "video"},
        "score": hit.score if math.isfinite(hit.score) else None,
    }


def _k(request: Request) -> int:
    return _whole(request, "k", DEFAULT, 1)


def _whole(request: Request, name: str, default: int, least: int) -> int:
    """A number of clips that a client names."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= MOST:
        raise Problem(400, f"{name} should be a whole number from {least} to {MOST}.")
    return int(text)


def _words(request: Request, what: str, advice: str) -> str:
    """The text that a client sends as `q`."""
    text = request.query_params.get("q", "")
    if not text.strip():
        raise Problem(400, f"The {what} is empty: {advice}, as q=.")
    if len(text) > QUERY_CHARACTERS:
        raise Problem(400, f"The {what} is longer than {QUERY_CHARACTERS} characters.")
    return text


async def _receive(request: Request, path: str) -> None:
    """Writes the body into a file, within bounds of bytes and time."""
    large = Problem(413, f"The picture is larger than {UPLOAD_BYTES >> 20} MB.")
    length = request.headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,18}", length) or int(length) > UPLOAD_BYTES:
        raise large
    size = 0
    try:
        with open(path, "wb") as file, anyio.fail_after(UPLOAD_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > UPLOAD_BYTES:
                    raise large
                file.write(chunk)
    except TimeoutError:
        raise Problem(408, f"The picture took longer than {UPLOAD_SECONDS:g} s.") from None
    except ClientDisconnect:
        raise Problem(400, "The picture did not arrive.") from None
    if not size:
        raise Problem(400, "The body is empty: it should be a picture.")


def _check_picture(path: str) -> None:
    try:
        medium = kinds.identify(path)
    except kinds.DecodeError as error:
        raise Problem(415, f"This is no picture: it {error.detail or error.reason}.") from error
    if medium.kind != "picture":
        raise Problem(415, f"This is {medium.name}; search with a still picture.")


def _page(name: str, kind: str) -> Any:
    content = (ASSETS / name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, headers={"cache-control": "no-cache"}, media_type=kind)

    return page


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "There is nothing at this address.", 405: "This address has other methods."}
    headers = dict(error.headers) if error.headers else None
    return as_json(
        {"error": sentences.get(error.status_code, error.detail)}, error.status_code, headers
    )
