"""metrics.jsonl: writes lines with a checksum, and reads them back.

A line ends with the CRC-32 of the text before it, which shows a changed digit. Lines of earlier
versions have none and are not checked.
"""

from __future__ import annotations

import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from uniadapter_jax.common.files import FileError, parse_json

LONGEST = 1 << 20  # bytes of a line; ours have a few hundred
_TRAIN = {"loss", "seconds", "wait_seconds", "since_start"}  # a result is made of these
_CHECKED = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)


def make_line(values: Mapping[str, Any]) -> str:
    """One line with its CRC."""
    text = json.dumps(dict(values), allow_nan=False)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """(number, bytes, values) of every line, values None where the line is damaged.

    The last line is left out where a kill has cut it short.
    """
    if not path.is_file():
        return
    checked = False  # after the first line with a CRC, all have one
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if not line.endswith(b"\n") and len(line) < LONGEST:
                return
            values, has_crc = _parse(line.rstrip(b"\n"), path)
            checked = checked or has_crc
            yield number, line, values if has_crc or not checked else None


def _parse(line: bytes, path: pathlib.Path) -> tuple[dict[str, Any] | None, bool]:
    match = _CHECKED.fullmatch(line)
    body = match[1] + b"}" if match else line
    if match and zlib.crc32(body) != int(match[2], 16):
        return None, True
    try:
        values = parse_json(body, path)
    except FileError:
        return None, False
    kind, step = values.get("kind"), values.get("step")
    numbers = all(isinstance(v, int | float) for name, v in values.items() if name != "kind")
    good = isinstance(kind, str) and type(step) is int and step >= 0 and numbers
    good = good and (kind != "train" or values.keys() >= _TRAIN)
    return (values if good else None), bool(match)
