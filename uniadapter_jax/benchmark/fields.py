"""Fields of the benchmark's files, each checked; a wrong one is named with its file."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from uniadapter_jax.common.errors import unknown
from uniadapter_jax.common.files import FileError, read_json, unsealed

SCHEMA = 1
CELL_BYTES = 2**28  # ranks of many queries
# Of a setting or a row, which name files; "lora@3000" is a row within a budget.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,99}")
NUMBER = (int, float)
NONE = type(None)


class Reader:
    """Fields of a JSON object, each with a check of its kind."""

    def __init__(self, content: Any, path: pathlib.Path, prefix: str = ""):
        self.content, self.path, self.prefix = content, path, prefix

    def get(self, name: str, *kinds: type) -> Any:
        if name not in self.content:
            raise FileError(self.path, f"has no field {self.prefix}{name}")
        value = self.content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if kind is NONE else kind.__name__ for kind in kinds)
            raise FileError(self.path, f"{self.prefix}{name} should be {names}, is {value!r:.80}")
        return value

    def inner(self, name: str) -> Reader:
        return Reader(self.get(name, dict), self.path, f"{self.prefix}{name}.")

    def each(self, name: str) -> Iterator[Reader]:
        for place, value in enumerate(self.get(name, list)):
            where = f"{self.prefix}{name}[{place}]"
            if not isinstance(value, dict):
                raise FileError(self.path, f"{where} should be an object, is {value!r:.80}")
            yield Reader(value, self.path, f"{where}.")

    def all(self, name: str, *kinds: type) -> tuple[Any, ...]:
        """A list with values of these kinds only."""
        values = self.get(name, list)
        for place, value in enumerate(values):
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise self.wrong(f"{name}[{place}]", f"is {value!r:.80}")
        return tuple(values)

    def named(self, name: str, known: Sequence[str] | None = None) -> str:
        """The name of a row or setting, one of `known` if that is given."""
        value = str(self.get(name, str))
        if known is not None and value not in known:
            raise FileError(self.path, unknown(f"{self.prefix}{name}", value, known))
        return self.file_name(name, value)

    def file_name(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            why = "names are letters, digits and ._+=,@- (it names files)"
            raise self.wrong(name, f"is {value!r:.80}; {why}")
        return value

    def wrong(self, name: str, why: str) -> FileError:
        return FileError(self.path, f"{self.prefix}{name} {why}")


def open_sealed(path: pathlib.Path) -> Reader:
    """The fields of a sealed file of this schema; raises `FileError` for another."""
    content, had_seal = unsealed(read_json(path, limit=CELL_BYTES), path)
    if not had_seal:
        raise FileError(path, "has no sha256, so nothing tells whether it is whole")
    if content.get("schema") != SCHEMA:
        found = f"{content.get('schema')!r:.80}"
        raise FileError(path, f"schema is {found}; this version reads {SCHEMA}")
    return Reader(content, path)
