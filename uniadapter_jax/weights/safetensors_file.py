"""safetensors files as read-only views of the mapped file, and a writer that takes one tensor
at a time, so that neither way needs the file's size in memory."""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors

from uniadapter_jax.weights.errors import WeightFileError

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
    """{name: read-only array}; pages of the file come in when an array is used.

    Raises:
      WeightFileError: the file is not there or damaged, or a tensor has a dtype not in `DTYPES`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks header, overlaps, size
            pass
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightFileError(path, f"cannot be read as safetensors ({error})") from error
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise WeightFileError(path, f"{name} has the unknown dtype {entry['dtype']}")
        shape = tuple(entry["shape"])
        start = 8 + length + entry["data_offsets"][0]
        flat = np.frombuffer(data, DTYPES[entry["dtype"]], math.prod(shape), start)
        arrays[name] = flat.reshape(shape)
    return arrays


def read_safetensors_directory(
    directory: str | os.PathLike[str], stem: str = "model"
) -> dict[str, np.ndarray]:
    """The tensors of `stem`.safetensors, or of the shards that its index file lists."""
    root = pathlib.Path(directory)
    single, index = root / f"{stem}.safetensors", root / f"{stem}.safetensors.index.json"
    if single.is_file():
        return read_safetensors(single)
    if not index.is_file():
        raise WeightFileError(root, f"neither {single.name} nor {index.name} is there")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards_of(index):
        found = read_safetensors(shard)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise WeightFileError(shard, f"holds tensors of another shard again: {twice}")
        tensors.update(found)
    return tensors


def shards_of(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index of HuggingFace's (`*.index.json`) names, all beside it."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(index, f"is no index of shards ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or pathlib.Path(name).name != name:
            raise WeightFileError(index, f"names the shard {name!r}, which is no plain file name")
        if not (index.parent / name).is_file():
            raise WeightFileError(index, f"names the shard {name}, which is not there")
    return [index.parent / name for name in sorted(names)]


def write_safetensors(
    path: str | os.PathLike[str],
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes `tensors` one by one, in the order in which they come.

    `specs` gives shape and dtype of each by name, in the same order; a tensor of another name or
    shape raises `ValueError`. Tensors are cast to that dtype and need not be contiguous.
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
