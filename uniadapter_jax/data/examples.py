"""Reads a serialised `tf.train.Example` without copying the bytes that it holds.

Protobuf's own parser copies every frame of a clip, and Python once more; of a clip's frames loading
often takes a few. The messages are nested fields of (number, length, content):

    Example {1: Features {1: entry {1: name, 2: Feature {1: BytesList {1: value ...},
                                                         2: FloatList {1: numbers ...}}} ...}}
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BYTES = 2  # wire type of what has a length
_FLOAT = 5  # of 4 bytes


def read_example(data: bytes) -> dict[str, list[memoryview]]:
    """The values of each feature: views of byte strings, or of packed little-endian floats.

    Raises:
      ValueError: the bytes are no such message.
    """
    values: dict[str, list[memoryview]] = {}
    for features in _all(memoryview(data), 1):
        for entry in _all(features, 1):
            fields = dict(_fields(entry))  # of two values the last one counts, as in protobuf
            name = str(fields.get(1, b""), "utf-8")
            kinds = _fields(fields.get(2, memoryview(b"")))
            values[name] = [value for _, several in kinds for value in _all(several, 1)]
    return values


def floats(values: list[memoryview]) -> np.ndarray:
    """A feature's numbers as float32."""
    return np.frombuffer(b"".join(values), "<f4").astype(np.float32)


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in _fields(message) if found == number)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of the fields of a message."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        length, kind = 4, tag & 7
        if kind == _BYTES:
            length, place = _varint(message, place)
        elif kind != _FLOAT:
            raise ValueError(f"a field of wire type {kind}")
        if place + length > end:
            raise ValueError(f"a field of {length} bytes where {end - place} are left")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    number = shift = 0
    for byte in message[place : place + 10]:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, place + shift // 7
    raise ValueError("a number that does not end")
