"""Reads the two layouts of torch files: finds the value's pickle and each storage's bytes."""

from __future__ import annotations

import io
import mmap
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from uniadapter_jax.weights.errors import Refused, printable
from uniadapter_jax.weights.torch.inert_pickle import interpret
from uniadapter_jax.weights.torch.objects import Storage, Tensor, TorchWorld
from uniadapter_jax.weights.torch.pickle_machine import DICT_ITEM_COST, Allowance, Machine
from uniadapter_jax.weights.torch.zip_directory import Entry, read_directory

CHUNK = 2**20  # bytes read at once for a checksum
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class Storages:
    """The places of storages in the file; bytes are handed out in this machine's order."""

    def __init__(self, data: mmap.mmap, swapped: bool):
        self.data = data
        self.swapped = swapped
        self.places: dict[str, tuple[int, int]] = {}
        self.copies: dict[tuple[str, int], bytes] = {}

    def place(self, storage: Storage) -> tuple[int, int]:
        """First byte and length of the complete storage."""
        if storage.key not in self.places:
            raise Refused(f"the file is truncated or damaged: no storage {printable(storage.key)}")
        return self.places[storage.key]

    def view(self, tensor: Tensor) -> tuple[mmap.mmap | bytes, int]:
        """A buffer, and the byte in it where the tensor's storage begins."""
        start, size = self.place(tensor.storage)
        if size < tensor.storage.total:
            raise Refused(
                f"storage {printable(tensor.storage.key)} has {size} bytes instead of"
                f" {tensor.storage.total}"
            )
        width = tensor.dtype.itemsize
        if not self.swapped or width == 1:
            return self.data, start + tensor.storage.start
        key = (tensor.storage.key, width)
        if key not in self.copies:
            words = np.frombuffer(self.data, f"u{width}", size // width, start)
            self.copies[key] = words.byteswap().tobytes()
        return self.copies[key], tensor.storage.start


class ZipStorages(Storages):
    """Storages that are entries of an archive; the checksum of each is checked once."""

    def __init__(
        self, file: io.BufferedReader, data: mmap.mmap, folder: str, entries: Mapping[str, Entry]
    ):
        order = _content(data, entries, f"{folder}/byteorder") or b"little"
        super().__init__(data, _is_swapped(order.decode("ascii", "replace")))
        self.file, self.folder, self.entries = file, folder, entries

    def place(self, storage: Storage) -> tuple[int, int]:
        if storage.key not in self.places:
            name = f"{self.folder}/data/{storage.key}"
            entry = self.entries.get(name)
            if entry is None:
                raise Refused(f"the archive has no entry {printable(name)}")
            _require_stored(name, entry)
            self.check_sum(name, entry)
            self.places[storage.key] = entry.start, entry.size
        return self.places[storage.key]

    def check_sum(self, name: str, entry: Entry) -> None:
        """Reads the file, not the map: the map's pages would count as this process's memory."""
        if not entry.crc:  # saved with torch.serialization.set_crc32_options(False)
            return
        self.file.seek(entry.start)
        left, crc = entry.size, 0
        while left:
            chunk = self.file.read(min(CHUNK, left))
            if not chunk:
                raise Refused("the file shrank while it was read")
            left, crc = left - len(chunk), zlib.crc32(chunk, crc)
        if crc != entry.crc:
            raise Refused(f"entry {printable(name)} does not match its checksum; get the file anew")


def _is_swapped(order: str) -> bool:
    if order not in ("little", "big"):
        raise Refused(f"the byte order {printable(order)} is unknown")
    return (order == "little") != np.little_endian


def _require_stored(name: str, entry: Entry) -> None:
    if not entry.stored:
        raise Refused(
            f"entry {printable(name)} is compressed, which torch never does; write the file with"
            " torch.save again"
        )


def _content(data: mmap.mmap, entries: Mapping[str, Entry], name: str) -> bytes | None:
    """The bytes of a short entry, or None if it is missing."""
    entry = entries.get(name)
    if entry is None:
        return None
    _require_stored(name, entry)
    if entry.size > 16:
        raise Refused(f"entry {printable(name)} has {entry.size} bytes")
    return data[entry.start : entry.start + entry.size]


def read_zip(
    file: io.BufferedReader, data: mmap.mmap, objects: Allowance
) -> tuple[Any, bool, Storages]:
    """The pickled value, whether it is a TorchScript module, and where its storages are."""
    entries = read_directory(data)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(f"is a zip archive with {len(pickles)} entries NAME/data.pkl instead of one")
    folder = pickles[0].partition("/")[0]
    script = f"{folder}/constants.pkl" in entries
    entry = entries[pickles[0]]
    _require_stored(pickles[0], entry)
    storages = ZipStorages(file, data, folder, entries)
    storages.check_sum(pickles[0], entry)
    machine = Machine(data, entry.start, entry.start + entry.size, TorchWorld(script), objects)
    return interpret(machine), script, storages


def read_legacy(data: mmap.mmap, objects: Allowance) -> tuple[Any, bool, Storages]:
    """Reads five pickles (magic, protocol, system, value, storage keys), then sized storages."""
    world, at = TorchWorld(script=False), 0

    def next_pickle() -> Any:
        nonlocal at
        machine = Machine(data, at, len(data), world, objects)
        value, at = interpret(machine), machine.at
        return value

    try:
        magic = next_pickle()
    except Refused as refused:
        if refused.name:
            raise
        raise Refused(
            f"is no torch file: neither a zip archive nor a legacy file ({refused})"
        ) from None
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise Refused("is no torch file: neither a zip archive nor a legacy file")
    if next_pickle() != LEGACY_PROTOCOL:
        raise Refused("is a legacy torch file of an unknown protocol")
    system, value, keys = next_pickle(), next_pickle(), next_pickle()
    if type(system) is not dict or type(keys) is not list:
        raise Refused("the legacy torch file is damaged: no system or storage keys")
    order = "little" if system.get("little_endian", True) is True else "big"
    storages = Storages(data, _is_swapped(order))
    for key in keys:
        if type(key) is not str or key not in world.storages or key in storages.places:
            raise Refused(
                "the legacy torch file is damaged: a storage key that is unknown or doubled"
            )
        count = struct.unpack(">q" if order == "big" else "<q", _take(data, at, 8))[0]
        storage = world.storages[key]
        if count * storage.dtype.itemsize != storage.total:
            raise Refused(
                f"storage {printable(key)} has {count} elements; its tensors say otherwise"
            )
        if storage.total > len(data) - at - 8:
            raise Refused(f"the file is truncated: it ends within storage {printable(key)}")
        storages.places[key] = at + 8, storage.total
        objects.spend(DICT_ITEM_COST)
        at += 8 + storage.total
    return value, False, storages


def _take(data: mmap.mmap, at: int, count: int) -> bytes:
    if count > len(data) - at:
        raise Refused(f"the file is truncated: it ends at byte {len(data)}")
    return data[at : at + count]
