"""Films and pictures for the page: whole or by ranges of bytes, and as thumbnails."""

from __future__ import annotations

import collections
import functools
import os
import re
from collections.abc import AsyncIterator
from typing import BinaryIO

import anyio
import numpy as np
from anyio import to_thread
from PIL import Image
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from uniadapter_jax.data import images
from uniadapter_jax.data.media import kinds, pictures, video
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.inference.clip_files import told
from uniadapter_jax.inference.search.index import Index, Item
from uniadapter_jax.inference.serving.answers import Problem
from uniadapter_jax.inference.serving.files import open_indexed

CHUNK = 1 << 18  # bytes that are read at once
THUMB_SIDE, THUMB_QUALITY = 480, 80
THUMB_BYTES = 64 << 20  # of thumbnails that are kept
_TYPES = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".f4v"), "video/mp4"),
    **{".webm": "video/webm", ".mkv": "video/x-matroska", ".ogv": "video/ogg"},
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "video/mp2t"),
    **dict.fromkeys((".mpg", ".mpeg", ".vob"), "video/mpeg"),
    **dict.fromkeys((".wmv", ".asf"), "video/x-ms-wmv"),
    **{".avi": "video/x-msvideo", ".flv": "video/x-flv", ".3gp": "video/3gpp"},
    **{".mxf": "application/mxf", ".nut": "video/x-nut"},
    **{".tif": "image/tiff", ".tiff": "image/tiff"},
    **{".heic": "image/heic", ".heif": "image/heif"},
    **dict.fromkeys((".jpg", ".jpeg", ".jfif"), "image/jpeg"),
    **{".png": "image/png", ".apng": "image/png", ".gif": "image/gif", ".webp": "image/webp"},
    **{".avif": "image/avif", ".bmp": "image/bmp"},
}
_RANGE = re.compile(r"bytes=\s*(\d{0,99})\s*-\s*(\d{0,99})\s*", re.ASCII | re.IGNORECASE)


def media_type(name: str) -> str:
    """What browsers are told of a file, by its name."""
    return _TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, behind the last) of a Range header; None is all: there is no range, or several.

    Raises:
      Problem: nothing of the file is in the range.
    """
    match = _RANGE.fullmatch(header or "")
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    if first:
        begin, end = int(first), min(int(last) + 1, size) if last else size
    else:
        begin, end = size - min(int(last), size), size
    if begin >= size:
        headers = {"content-range": f"bytes */{size}"}
        raise Problem(416, f"The file has {size} bytes; none is in the range.", headers)
    return begin, end


async def media(index: Index, item: Item, headers: Headers) -> Response:
    """The file of a clip, or a range of its bytes."""
    file = await to_thread.run_sync(open_indexed, index, item)
    status = os.fstat(file.fileno())
    tag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
    asked = headers.get("range") if headers.get("if-range", tag) == tag else None
    try:
        part = byte_range(asked, status.st_size)
    except Problem:
        file.close()
        raise
    begin, end = part or (0, status.st_size)
    told = {
        **{"accept-ranges": "bytes", "content-length": str(end - begin), "etag": tag},
        **{"cache-control": "private, no-cache"},
    }
    if part:
        told["content-range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
    return _Bytes(file, begin, end, 206 if part else 200, told, media_type(item.name))


class _Bytes(StreamingResponse):
    """Bytes of an open file, which is closed whatever happens."""

    def __init__(
        self,
        file: BinaryIO,
        begin: int,
        end: int,
        status: int,
        headers: dict[str, str],
        kind: str,
    ):
        super().__init__(_read(file, begin, end), status, headers, kind)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            if scope["method"] == "HEAD":
                self.body_iterator = _nothing()
            await super().__call__(scope, receive, send)


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def _read(file: BinaryIO, begin: int, end: int) -> AsyncIterator[bytes]:
    while begin < end:
        size = min(CHUNK, end - begin)
        data = await to_thread.run_sync(os.pread, file.fileno(), size, begin)
        if not data:  # the file was cut meanwhile; the length that was promised tells the client
            return
        begin += len(data)
        yield data


class Thumbnails:
    """Small JPEGs of clips; the last ones are kept in memory."""

    def __init__(self, index: Index, threads: int):
        self._index = index
        self._limiter = anyio.CapacityLimiter(threads)
        self._kept: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._bytes = 0

    async def get(self, item: Item) -> bytes:
        """The thumbnail of a clip: of a film its frame in the middle.

        Raises:
          Problem: the file cannot be opened or decoded.
        """
        make = functools.partial(self._make, item, item.id in self._kept)
        data = await to_thread.run_sync(make, limiter=self._limiter) or self._kept.get(item.id)
        if data is None:  # it was dropped meanwhile
            data = await to_thread.run_sync(self._make, item, False, limiter=self._limiter)
        assert data is not None
        self._keep(item.id, data)
        return data

    def _make(self, item: Item, kept: bool) -> bytes | None:
        """Makes a thumbnail; of one that is kept only the file is checked."""
        with open_indexed(self._index, item) as file:
            if kept:
                return None
            # By its descriptor: another file may take the path's place at any time.
            path = f"/dev/fd/{file.fileno()}"
            try:
                picture = _frame(path, item)
            except DecodeError as error:
                raise Problem(422, f"The file cannot be decoded: {told(error)}.") from error
            picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
            return images.encode_jpeg(picture, THUMB_QUALITY)

    def _keep(self, id: str, data: bytes) -> None:
        self._bytes += len(data) - len(self._kept.pop(id, b""))
        self._kept[id] = data
        while self._bytes > THUMB_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def _frame(path: str, item: Item) -> Image.Image:
    if (medium := kinds.identify(path)).kind == "picture":
        return pictures.read_picture(path, medium)
    times = (None, None) if item.whole else (item.start, item.end)
    frames, _ = video.read_frames(path, lambda t: np.array([len(t.stamps) // 2]), *times)
    return frames[0]
