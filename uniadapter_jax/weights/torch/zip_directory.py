"""Finds the stored entries of a zip archive and checks everything about them.

Torch stores tensors uncompressed, so an entry is a slice of the file and can be mapped. `zipfile`
would copy, inflate bombs and trust the directory; this module reads the directory only.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from dataclasses import dataclass

from uniadapter_jax.weights.errors import Refused, printable

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_FULL = 0xFFFFFFFF  # "see the 64-bit field"
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry's bytes are `data[start : start + size]`, unless it is compressed."""

    start: int
    size: int
    crc: int
    stored: bool


def read_directory(data: mmap.mmap) -> dict[str, Entry]:
    """All entries by name.

    Raises:
      Refused: the directory is incomplete; a name is doubled, not UTF-8 or leaves the archive; an
        entry overlaps another, is encrypted, or contradicts its local header.
    """
    at, end, count = _find_directory(data)
    first_free = at
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int]] = []
    for _ in range(count):
        name, entry, header, at = _read_entry(data, at, end)
        if name in entries:
            raise Refused(f"two zip entries are named {printable(name)}")
        entries[name] = entry
        spans.append((header, entry.start + entry.size))
    spans = [*sorted(spans), (first_free, first_free)]
    for (_, stop), (start, _) in itertools.pairwise(spans):
        if stop > start:
            raise Refused("zip entries overlap, or reach behind the end of the archive")
    return entries


def _unpack(layout: struct.Struct, data: mmap.mmap, at: int, magic: bytes, what: str) -> list[int]:
    """The fields after a record's magic bytes."""
    if not 0 <= at <= len(data) - layout.size or data[at : at + 4] != magic:
        raise Refused(f"the zip archive is truncated or damaged: no {what} at byte {at}")
    return list(layout.unpack_from(data, at)[1:])


def _find_directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Start and end of the central directory, and its number of entries."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _LONGEST_COMMENT - _END.size))
    if at < 0:
        raise Refused("the zip archive is truncated: its directory is missing")
    _, _, _, count, size, start, _ = _unpack(_END, data, at, b"PK\x05\x06", "end record")
    locator = at - _LOCATOR64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        at = _unpack(_LOCATOR64, data, locator, b"PK\x06\x07", "64-bit locator")[1]
        *_, count, size, start = _unpack(_END64, data, at, b"PK\x06\x06", "64-bit end record")
    if start + size > at:
        raise Refused("the zip archive is damaged: its directory reaches behind the end")
    if count * _CENTRAL.size > size:
        raise Refused(f"the zip archive is damaged: {count} entries in {size} bytes")
    return start, start + size, count


def _read_entry(data: mmap.mmap, at: int, end: int) -> tuple[str, Entry, int, int]:
    """One directory record: name, entry, place of its local header, place of the next record."""
    fields = _unpack(_CENTRAL, data, at, b"PK\x01\x02", "directory record")
    _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len = fields[:12]
    header = fields[-1]
    names_at = at + _CENTRAL.size
    extra_at = names_at + name_len
    following = extra_at + extra_len + comment_len
    if following > end:
        raise Refused("the zip archive is damaged: a directory record is cut short")
    raw_name = data[names_at:extra_at]
    name = _checked_name(raw_name)
    size, packed, header = _wide(data[extra_at : extra_at + extra_len], size, packed, header)
    if flags & _ENCRYPTED:
        raise Refused(f"zip entry {printable(name)} is encrypted")
    local = _unpack(_LOCAL, data, header, b"PK\x03\x04", "local header")
    local_method, local_name_len, local_extra_len = local[2], local[-2], local[-1]
    local_name = data[header + _LOCAL.size : header + _LOCAL.size + local_name_len]
    if local_method != method or local_name != raw_name:
        raise Refused(f"zip entry {printable(name)} contradicts its local header")
    if method == 0 and packed != size:
        raise Refused(f"zip entry {printable(name)} is stored, yet has two sizes")
    start = header + _LOCAL.size + local_name_len + local_extra_len
    return name, Entry(start, packed, crc, method == 0), header, following


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("a zip entry's name is not UTF-8") from None
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise Refused(f"zip entry {printable(name)} has a name that leaves the archive")
    return name


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replaces full 32-bit fields by those of the zip64 extra field, in their fixed order."""
    values = [size, packed, header]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != 1:
            continue
        for i in (i for i, value in enumerate(values) if value == _FULL):
            if len(body) < 8:
                raise Refused("the zip archive is damaged: a 64-bit field is cut short")
            values[i], body = struct.unpack_from("<Q", body)[0], body[8:]
    return values[0], values[1], values[2]
