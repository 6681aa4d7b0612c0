"""Reads files that may be damaged or malicious, within bounds; writes files atomically."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError

JSON_BYTES = 2**24  # more than our configs, identities and results; parsing takes 30 times it

_NAMES = {
    dict: "a JSON object",
    list: "a JSON array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}

AnyPath = str | os.PathLike[str]


class FileError(UserError):
    """A file that cannot be used.

    Attributes:
      path: the file.
      reason: what is wrong with it and what to do; the message is `path: reason`.
    """

    def __init__(self, path: AnyPath, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # a data worker sends it to its parent
        return type(self), (self.path, self.reason)


def read_bytes(path: AnyPath, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no regular file (reading a pipe might never end), is larger, or cannot be
        read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileError(path, f"has {size:,} bytes, more than {limit:,}")
        return file.read(limit + 1)


@contextlib.contextmanager
def open_regular(path: AnyPath) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading; raises the errors of `read_bytes`."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileError(path, "is no regular file")
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        if "null byte" not in str(error):  # in the path
            raise
        raise FileError(path, f"cannot be read: {error}") from error


def read_lines(path: AnyPath, limit: int) -> Iterator[tuple[int, bytes]]:
    """(number, line with its end) of a regular file, none longer than `limit` bytes."""
    with open_regular(path) as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise FileError(path, f"line {number} has more than {limit:,} bytes")
            yield number, line


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: AnyPath, kind: type = dict, *, limit: int = JSON_BYTES) -> Any:
    """The JSON value of a file, which must be of `kind`, such as `dict`.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no JSON of that kind, too large, too deep, or holds NaN or infinity.
    """
    return parse_json(read_bytes(path, limit), path, kind)


def parse_json(data: bytes | str, path: AnyPath, kind: type = dict) -> Any:
    """The JSON value of `data`, the content of `path`; see `read_json`."""
    try:
        value = parse_line(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FileError(path, f"is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise FileError(path, f"is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise FileError(path, f"should hold {_name(kind)}, holds {_name(type(value))}")
    return value


def parse_line(text: bytes | str) -> Any:
    """The JSON value of a text.

    Raises:
      ValueError: it is not JSON, too deep, or holds NaN, infinity, a number beyond float64 or a
        key twice.
    """
    try:
        return json.loads(
            text,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return value


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond float64")
    return value


def _whole(text: str) -> int:
    if len(text) > 308:  # float() and format() of it would raise later
        raise ValueError(f"{text[:40]}... is beyond float64")
    return int(text)


def _name(kind: type) -> str:
    return _NAMES.get(kind, kind.__name__)


def write_whole(path: AnyPath, data: bytes | str) -> None:
    """Replaces a file atomically: it is the old or the new one even if the machine dies.

    The next write of `path` overwrites the scratch file of a process that died. Raises `UserError`
    if the disk is full or refuses the write.
    """
    path = pathlib.Path(path)
    content = data.encode() if isinstance(data, str) else data
    scratch = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, len(content)):
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_directory(path.parent)


def write_json(path: AnyPath, value: Any) -> None:
    """Writes JSON for `read_json` atomically; NaN and infinity raise."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of its content under "sha256"."""
    return {**value, "sha256": _seal(value)}


def unsealed(value: Mapping[str, Any], path: AnyPath) -> tuple[dict[str, Any], bool]:
    """(The object without its "sha256", whether it had one); `path` is its file.

    Raises:
      FileError: the content has changed since it was sealed.
    """
    content = {name: field for name, field in value.items() if name != "sha256"}
    if "sha256" not in value:
        return content, False
    if value["sha256"] != _seal(content):
        raise FileError(path, "is damaged: its content does not have the SHA-256 that it names")
    return content, True


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sync_directory(path: AnyPath) -> None:
    """Makes a rename in the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
