"""Reads files of `torch.save` and `torch.jit.save`, without torch and without trusting them.

For any file, `read_torch_file` returns plain data or raises `WeightFileError`; it never runs
anything that the file contains. It knows three layouts:

    zip          NAME/data.pkl, NAME/data/KEY per storage, NAME/byteorder       torch >= 1.6
    TorchScript  the same plus NAME/constants.pkl and NAME/code/, never read    OpenAI's CLIP files
    legacy       five pickles in a row, then the storages one after another     torch < 1.6

Arrays are read-only views of the mapped file, so reading takes hardly any memory whatever the
file's size; pages are read when an array is used, and an array need not be aligned. Only storages
of the other byte order are copied. The memory that a file may claim is bounded by a multiple of
its size: `OBJECTS_PER_BYTE` for Python objects, `ARRAYS_PER_BYTE` for the sum of all arrays if
each was copied (tied weights appear several times, an expanded tensor is larger than its storage).
"""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from uniadapter_jax.weights.errors import Refused, WeightFileError
from uniadapter_jax.weights.torch.layouts import Storages, read_legacy, read_zip
from uniadapter_jax.weights.torch.objects import Storage, Tensor
from uniadapter_jax.weights.torch.pickle_machine import DICT_ITEM_COST, Allowance, Global, Record

OBJECTS_PER_BYTE = 8  # a state dict of nothing but scalars takes 6 (zip) or 15 (legacy)
ARRAYS_PER_BYTE = 16
GRACE = 2**23  # bytes that even the smallest file may claim
DEEPEST = 64  # levels of containers or modules
ARRAY_COST = 200  # bytes of an array object, without its elements

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file as nested dicts, lists, tuples and scalars, with read-only arrays for tensors.

    A TorchScript archive yields its parameters and buffers by their dotted names, as its
    `state_dict()` would (plus tensors that are plain attributes: only the code, which is not read,
    could tell them apart).

    Raises:
      WeightFileError: the file is no torch file, is damaged, claims more memory than its size
        allows, or contains anything but tensors and plain data.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Refused("is not a regular file")
        with open(path, "rb") as file:
            return _read(file)
    except Refused as refused:
        failure = WeightFileError(path, str(refused), refused.name)
    except OSError as error:
        failure = WeightFileError(path, error.strerror or str(error))
    raise failure  # outside `except`, so that it does not keep the data read so far alive


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of the model in a torch file, by name; see `read_torch_file` and `state_dict`."""
    return state_dict(read_torch_file(path), path)


def state_dict(content: Any, path: str | os.PathLike[str] = "weights") -> dict[str, np.ndarray]:
    """Finds a model's tensors in what `read_torch_file` returned.

    Looks into wrapping dicts under the keys `WRAPPERS`, takes the first that leads to tensors, and
    drops the `module.` that DistributedDataParallel puts before every name. Values that are not
    tensors are left out.

    Raises:
      WeightFileError: there are no tensors, or they have no names.
    """
    tensors = _find_tensors(content, depth=0)
    if not tensors:
        raise WeightFileError(
            path, f"holds no state dict, neither at the top nor under {', '.join(WRAPPERS)}"
        )
    if not all(type(name) is str for name in tensors):
        raise WeightFileError(path, "holds tensors whose names are not strings")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _find_tensors(content: Any, depth: int) -> dict[Any, np.ndarray]:
    if not isinstance(content, Mapping) or depth > 4:
        return {}
    for key in WRAPPERS:
        if tensors := _find_tensors(content.get(key), depth + 1):
            return tensors
    return {key: value for key, value in content.items() if isinstance(value, np.ndarray)}


def _read(file: io.BufferedReader) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise Refused("is empty")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    objects = Allowance(OBJECTS_PER_BYTE * size + GRACE)
    arrays = Allowance(ARRAYS_PER_BYTE * size + GRACE)
    if data[:4] == b"PK\x03\x04":
        value, script, bytes_of = read_zip(file, data, objects)
    else:
        value, script, bytes_of = read_legacy(data, objects)
    builder = _Builder(bytes_of, objects, arrays)
    if script:
        return dict(builder.modules(value, "", DEEPEST))
    if type(value) is not dict:
        raise Refused(f"holds a {type(value).__name__.lower()}, not a dict of tensors")
    return builder.plain(value, DEEPEST)


class _Builder:
    """Makes plain data of a pickle's value; shared or cyclic containers become bounded trees."""

    def __init__(self, storages: Storages, objects: Allowance, arrays: Allowance):
        self.storages, self.objects, self.arrays = storages, objects, arrays

    def plain(self, value: Any, levels: int) -> Any:
        if not levels:
            raise Refused(f"holds containers nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            self.objects.spend(ARRAY_COST + DICT_ITEM_COST * len(value))
            return {key: self.plain(item, levels - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            self.objects.spend(ARRAY_COST + 8 * len(value))
            return type(value)(self.plain(item, levels - 1) for item in value)
        if isinstance(value, Tensor):
            return self.array(value)
        if isinstance(value, Global):  # such as a dtype
            return str(value)
        if isinstance(value, (Storage, Record)):
            raise Refused(f"holds a bare {type(value).__name__.lower()} where a tensor is expected")
        return value

    def modules(self, module: Any, prefix: str, levels: int) -> Iterator[tuple[str, np.ndarray]]:
        """Dotted names and arrays of the tensors of a TorchScript module and its submodules."""
        if not levels:
            raise Refused(f"holds modules nested deeper than {DEEPEST} levels")
        if type(module) is not Record:
            raise Refused(f"is a TorchScript archive of a {type(module).__name__}, not of a module")
        if type(module.state) is not dict:
            return  # a class with its own __getstate__: packed parameters, not a state dict's
        for key, item in module.state.items():
            self.objects.spend(DICT_ITEM_COST + len(prefix))
            if type(key) is not str:
                raise Refused("a TorchScript module has an attribute whose name is not a string")
            if type(item) is Tensor:
                self.objects.spend(len(prefix) + len(key) + DICT_ITEM_COST)
                yield prefix + key, self.array(item)
            elif type(item) is Record:
                yield from self.modules(item, f"{prefix}{key}.", levels - 1)

    def array(self, tensor: Tensor) -> np.ndarray:
        """A read-only array over the storage's bytes."""
        self.objects.spend(ARRAY_COST + 16 * len(tensor.shape))
        self.arrays.spend(tensor.size)
        if not tensor.size:
            empty = np.empty(tensor.shape, tensor.dtype)
            empty.flags.writeable = False
            return empty
        buffer, start = self.storages.view(tensor)
        width = tensor.dtype.itemsize
        axes = zip(tensor.shape, tensor.strides, strict=True)
        strides = tuple(width * stride if count > 1 else 0 for count, stride in axes)
        start += width * tensor.offset
        array: np.ndarray = np.ndarray(tensor.shape, tensor.dtype, buffer, start, strides)
        if tensor.dtype == np.bool_ and array.view(np.uint8).max() > 1:
            raise Refused("a tensor of booleans holds other bytes than 0 and 1")
        return array
