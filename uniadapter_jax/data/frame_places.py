"""Where each frame lies in the record files, so that reading takes the chosen ones alone.

`places-<split>.bin` has a row for each stored frame of a split, clip after clip: which file, where
in it, how many bytes, and their CRC-32, which every reading checks.

A record file is a Riegeli file (its format is documented with the library): blocks of 64 KiB, each
with a header of 24 bytes. What is between the headers, one block after the other, is the *content*,
and every place here counts bytes of it. The content is a row of chunks, which have a header of 40
bytes and, as `prepare` writes them, hold one record that is not compressed.
"""

from __future__ import annotations

import io
import os
import weakref
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from uniadapter_jax.common.files import FileError, open_regular
from uniadapter_jax.data.examples import read_example

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
ROW = np.dtype([("file", "<u4"), ("size", "<u4"), ("place", "<u8"), ("crc", "<u4")])
_ROOM = BLOCK - BLOCK_HEADER  # bytes of content in a block
_PARTS = 1000  # of a reading; systems take at most 1,024


def places_name(split: str) -> str:
    """Of the file with the places of a split's frames."""
    return f"places-{split}.bin"


class FramePlaces:
    """Reads frames of a split by their number in it. Picklable; files are opened when needed.

    Args:
      path: the file of rows.
      files: the record files that the rows number.
    """

    def __init__(self, path: str, files: Sequence[str]):
        self._paths = [*files, path]
        self._opened: dict[int, _Opened] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": {}}

    def read(self, first: int, chosen: Sequence[int]) -> list[memoryview]:
        """Frames `first + chosen[j]` of the split.

        Raises:
          FileError: a file is missing, ends too early, or holds other bytes than it did.
        """
        least = min(chosen)
        rows = np.empty(max(chosen) + 1 - least, ROW)
        begin = (first + least) * ROW.itemsize
        self._fill(len(self._paths) - 1, [rows.view(np.uint8).data], begin)
        return [self._frame(*rows[i - least].item()) for i in chosen]

    def _frame(self, file: int, size: int, place: int, crc: int) -> memoryview:
        frame = np.empty(size, np.uint8).data
        self._fill(file, _scattered(frame, place), _in_file(place))
        if zlib.crc32(frame) != crc:
            raise FileError(
                self._paths[file], f"the frame at byte {_in_file(place)} lacks its CRC-32"
            )
        return frame

    def _fill(self, file: int, parts: list[memoryview], begin: int) -> None:
        path = self._paths[file]
        try:
            if (opened := self._opened.get(file)) is None:
                opened = self._opened[file] = _Opened(path)
            for i in range(0, len(parts), _PARTS):
                some = parts[i : i + _PARTS]
                begin += (count := os.preadv(opened.descriptor, some, begin))
                if missing := sum(map(len, some)) - count:
                    raise FileError(path, f"ends before byte {begin + missing}")
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror}") from error


class _Opened:
    """A file that is closed when nothing refers to it any more."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


def find(path: str, records: int, file: int) -> Iterator[tuple[np.ndarray, list[memoryview]]]:
    """(rows, frames) of each record of a record file that is number `file` of its split.

    Raises:
      FileError: the file does not have so many records that are stored as they are.
    """
    with open_regular(path) as opened:
        for place, value in _values(opened, path, records):
            frames = read_example(value)["frames"]
            begin = _address(memoryview(value))
            rows = [
                (file, len(frame), place + _address(frame) - begin, zlib.crc32(frame))
                for frame in frames
            ]
            yield np.array(rows, ROW), frames


def _values(opened: io.BufferedReader, path: str, records: int) -> Iterator[tuple[int, bytes]]:
    """(place, bytes) of the first records of a file."""
    place = 0
    while records:
        header = _content(opened, place, CHUNK_HEADER + 1)  # and the kind of compression
        size, decoded = (int.from_bytes(header[i : i + 8], "little") for i in (8, 32))
        end = place + CHUNK_HEADER + size
        if len(header) <= CHUNK_HEADER:
            raise FileError(path, f"lacks {records} of its records")
        if header[24:25] == b"r":
            if header[25:32] != b"\1\0\0\0\0\0\0" or header[-1] or decoded > size:
                raise FileError(
                    path,
                    f"the chunk at byte {_in_file(place)} is compressed or has several records",
                )
            yield end - decoded, _content(opened, end - decoded, decoded)
            records -= 1
        place = end


def _content(opened: io.BufferedReader, place: int, size: int) -> bytes:
    """As many of these bytes as the file has."""
    begin, end = _in_file(place), _in_file(place + size - 1) + 1
    data = os.pread(opened.fileno(), end - begin, begin)
    first = _ROOM - place % _ROOM
    later = range(first + BLOCK_HEADER, len(data), BLOCK)
    return b"".join([data[:first], *(data[i : i + _ROOM] for i in later)])


def _scattered(content: memoryview, place: int) -> list[memoryview]:
    """The parts of what `content` is read into, and of what block headers between them are."""
    parts = [content[: _ROOM - place % _ROOM]]
    for begin in range(len(parts[0]), len(content), _ROOM):
        parts += [memoryview(bytearray(BLOCK_HEADER)), content[begin : begin + _ROOM]]
    return parts


def _in_file(place: int) -> int:
    """The byte of the file that a byte of the content is."""
    return place + BLOCK_HEADER * (place // _ROOM + 1)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)
