"""Reads safetensors files as read-only views of the mapped file, and writes them one tensor at a
time; neither needs the file's size in memory."""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from uniadapter_jax.common.files import FileError, open_regular, parse_json, read_json
from uniadapter_jax.weights.errors import WeightFileError, printable

HEADER_BYTES = 2**22  # CLIP's largest has 0.2 MB; parsing takes up to 30 times it
INDEX_BYTES = 2**22
# A file name without folders, which cannot be another index.
_PLAIN = re.compile(r"[\w][\w .+=@()-]{0,250}\.(safetensors|bin)", re.ASCII)

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 2**22  # bytes that are made contiguous at a time

Spec = tuple[tuple[int, ...], np.dtype]


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{name: read-only array}; pages of the file are read when an array is used.

    Raises:
      WeightFileError: the file is not there or damaged, or a tensor has a dtype not in `DTYPES`.
    """
    return open_safetensors(path)[0]


def open_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: read-only array}, the header's metadata); see `read_safetensors`."""
    data = _map(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks overlaps, gaps and sizes
            pass
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, printable(error)) from error
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = parse_json(data[8 : 8 + length], path)
    except FileError as error:
        raise _unreadable(path, f"its header {error.reason}") from error
    metadata = header.pop("__metadata__", None) or {}
    arrays = {name: _array(path, data, 8 + length, name, header[name]) for name in header}
    return arrays, metadata


def _map(path: str | os.PathLike[str]) -> mmap.mmap:
    """The mapped file, if its header is no longer than the file and `HEADER_BYTES`."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(HEADER_BYTES, size - 8):
                raise _unreadable(path, f"{size:,} bytes, with a header of {length:,}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file") from error
    except FileError as error:
        raise _unreadable(path, error.reason) from error


def _array(
    path: str | os.PathLike[str], data: mmap.mmap, start: int, name: str, entry: Mapping[str, Any]
) -> np.ndarray:
    """One tensor of a file with a checked header; its tensors begin at byte `start`."""
    if entry["dtype"] not in DTYPES:
        raise WeightFileError(path, f"{printable(name)} has the unknown dtype {entry['dtype']}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    try:
        if 0 in shape:
            return np.empty(shape, dtype)
        flat = np.frombuffer(data, dtype, math.prod(shape), start + entry["data_offsets"][0])
        return flat.reshape(shape)
    except ValueError as error:  # more axes, or a larger one, than numpy has
        raise WeightFileError(
            path, f"{printable(name)} has an impossible shape: {error}"
        ) from error


def _unreadable(path: str | os.PathLike[str], why: str) -> WeightFileError:
    return WeightFileError(path, f"cannot be read as safetensors ({why})")


def weight_file(directory: str | os.PathLike[str], stem: str = "model") -> pathlib.Path:
    """`stem`.safetensors of a directory, or the index of its shards.

    Raises:
      WeightFileError: neither is there.
    """
    root = pathlib.Path(directory)
    single, index = root / f"{stem}.safetensors", root / f"{stem}.safetensors.index.json"
    for file in (single, index):
        if file.exists():
            return file
    raise WeightFileError(root, f"neither {single.name} nor {index.name} is there")


def read_weights(
    file: pathlib.Path,
    read: Callable[[pathlib.Path], Mapping[str, np.ndarray]] = read_safetensors,
) -> dict[str, np.ndarray]:
    """The tensors of a file, or of all shards if it is an index of them; `read` reads one."""
    if not file.name.endswith(".index.json"):
        return dict(read(file))
    tensors: dict[str, np.ndarray] = {}
    for shard in shards_of(file):
        held = read(shard)
        if twice := sorted(set(held) & set(tensors)):
            shown = printable(", ".join(twice), 500)
            raise WeightFileError(shard, f"holds tensors of another shard again: {shown}")
        tensors.update(held)
    return tensors


def shard_names(index: pathlib.Path) -> list[str]:
    """The names of files that HuggingFace's index (`*.index.json`) has, all of its own folder.

    Raises:
      WeightFileError: it is no such index, or names something else than weight files beside it.
    """
    try:
        names = read_json(index, limit=INDEX_BYTES).get("weight_map")
    except (FileNotFoundError, FileError) as error:
        reason = getattr(error, "reason", "it is not there")
        raise WeightFileError(index, f"is no index of shards ({reason})") from error
    if not isinstance(names, dict) or not names:
        raise WeightFileError(index, "is no index of shards (weight_map should hold file names)")
    for tensor, name in names.items():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            shown = printable(name)
            raise WeightFileError(
                index,
                f"weight_map names the shard {shown!r} for {printable(tensor)!r}, which is no "
                "plain file name NAME.safetensors or NAME.bin",
            )
    return sorted(set(names.values()))


def shards_of(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names; raises `WeightFileError` where one is not there, too."""
    shards = [index.parent / name for name in shard_names(index)]
    for shard in shards:
        if not shard.is_file():
            raise WeightFileError(index, f"names the shard {shard.name}, which is not there")
    return shards


def write_safetensors(
    path: str | os.PathLike[str],
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes `tensors` one by one, in the order in which they come.

    `specs` maps each name to shape and dtype, in the same order; a tensor of another name or shape
    raises `ValueError`. Tensors are cast to that dtype and need not be contiguous.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in specs.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    expected = iter(specs.items())
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            wanted = next(expected, None)
            if wanted is None or (name, tensor.shape) != (wanted[0], wanted[1][0]):
                raise ValueError(f"{name} {tensor.shape} where {wanted} is due")
            for piece in pieces(tensor, wanted[1][1]):
                file.write(piece.view(np.uint8).data)
        if next(expected, None) is not None:
            raise ValueError("fewer tensors than specs")


def pieces(tensor: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tensor, cast to `dtype`, in C order as flat contiguous arrays of a few MB."""
    if not tensor.size:
        return
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    step = max(1, _PIECE // (math.prod(rows.shape[1:]) * dtype.itemsize))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step], dtype).reshape(-1)
