"""Reads text files of annotations: JSON, tables with a header, lists of names.

Only line feeds and carriage returns end a line. U+2028, U+0085, a form feed and the like, at which
`str.splitlines` also breaks, may be part of a caption.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

from uniadapter_jax.common.files import FileError, read_bytes

LARGEST = 2**33  # bytes of an annotation file; VQAv2's have less than 2**29


def read_text(path: str) -> str:
    """The content of a UTF-8 file with its line ends unchanged.

    Raises:
      FileError: the file is missing or cannot be read.
    """
    try:
        return read_bytes(path, LARGEST).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise FileError(path, "no such file") from error
    except UnicodeDecodeError as error:
        raise FileError(path, f"not readable as text: not UTF-8 at byte {error.start}") from error


def read_json(path: str) -> Any:
    """The JSON value of a file; NaN is accepted, since some sets have it in unused fields."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"not readable as JSON: {error}") from error


def read_names(path: str) -> list[str]:
    """The names in a file, one per line, stripped; empty lines are skipped."""
    lines = (line.strip() for line in io.StringIO(read_text(path), newline=None))
    return [line for line in lines if line]


def read_columns(path: str, *columns: str, delimiter: str = ",") -> list[tuple[str, ...]]:
    """The named columns of a table with a header, row by row, by the rules of the module csv.

    A quoted field may hold delimiters, doubled quotes and line breaks.

    Raises:
      FileError: no such column, a row that is shorter or longer than the header, or a quote that
        is never closed.
    """
    rows = _rows(path, delimiter)
    header = next(rows, (0, []))[1]
    for column in columns:
        if header.count(column) != 1:
            count = f"{header.count(column)} times" if column in header else "no"
            raise FileError(path, f"{count} column {column!r} in the header {str(header)[:400]}")
    places = [header.index(column) for column in columns]
    values = []
    for line, row in rows:
        if len(row) < len(header) or any(row[len(header) :]):
            few = "few" if len(row) < len(header) else "many"
            raise FileError(path, f"line {line}: too {few} columns: {len(row)}, not {len(header)}")
        values.append(tuple(row[place] for place in places))
    return values


def _rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line of the file that it ends on, fields) of every row that is not empty."""
    # A line that no file has: if a quote is still open, its field swallows this line.
    last = uuid.uuid4().hex
    text = io.StringIO(read_text(path), newline="")
    reader = csv.reader(itertools.chain(text, [last]), delimiter=delimiter)
    line = 0
    try:
        for row in reader:
            if row == [last]:
                return
            if last in "".join(row):
                raise FileError(path, f"line {line + 1}: a quote in this row is never closed")
            line = reader.line_num
            if row:
                yield line, row
    except csv.Error as error:
        raise FileError(path, f"line {reader.line_num}: {error}") from error
