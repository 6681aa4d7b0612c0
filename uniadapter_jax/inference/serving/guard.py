"""What stands before every request: who may ask, strict headers, and no traceback for anyone."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uniadapter_jax.inference.serving.answers import Problem
from uniadapter_jax.weights.errors import printable

HERE = frozenset(("127.0.0.1", "localhost", "::1"))
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; media-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Wraps an application.

    Args:
      hosts: names by which browsers may call this server; None is any. Another site, whose name is
        made to lead to this machine, could otherwise read what is served.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None):
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in {"cache-control": "no-store", **HEADERS}.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Headers(scope=scope), scope["path"])
            await self._app(scope, receive, guarded)
        except Exception as error:
            problem = error if isinstance(error, Problem) else _unexpected(error)
            if started:  # uvicorn closes the connection
                raise
            await problem.answer()(scope, receive, guarded)

    def _check(self, headers: Headers, path: str) -> None:
        called = headers.get("host", "")
        if self._hosts is not None and _name(called) not in self._hosts:
            raise Problem(403, "This server does not answer to that name; call it by its address.")
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if origin is not None and _netloc(origin) != called.lower():
            raise Problem(403, "Other sites may not ask this server.")
        if path != "/" and site not in ("none", "same-origin"):
            raise Problem(403, "Other sites may not ask this server.")


def _netloc(origin: str) -> str:
    """The name and port of an Origin header, "" of one that has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host header without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _unexpected(error: Exception) -> Problem:
    logging.getLogger(__name__).error("%s", printable(f"{type(error).__name__}: {error}", 500))
    return Problem(500, "The server failed on this request; its terminal says more.")
