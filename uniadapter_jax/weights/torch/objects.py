"""The globals of a torch pickle as data: storages, tensors, and the calls that rebuild them.

Only the globals in `ALLOWED` below and `__torch__.*` in TorchScript archives are accepted. A tensor
stays a recipe (storage, offset, shape, strides) until its storage is found in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from uniadapter_jax.weights.errors import Refused, printable
from uniadapter_jax.weights.torch.pickle_machine import Global, Record

MOST_AXES = 64  # what numpy can hold
LARGEST = 2**63 - 1

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}
STORAGES = {Global(m, name): d for name, d in _STORAGES.items() for m in ("torch", "torch.storage")}
DTYPES = {
    Global("torch", name): np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
}


@dataclass(frozen=True, slots=True)
class Storage:
    """`size` bytes that begin at byte `start` of the storage that the file calls `key`."""

    key: str
    dtype: np.dtype[Any]
    start: int
    size: int
    total: int  # bytes of the complete storage, of which this may be a view


@dataclass(frozen=True, slots=True)
class Tensor:
    """A checked recipe: no element lies outside the storage; offset and strides count elements."""

    storage: Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of a contiguous copy."""
        return math.prod(self.shape) * self.dtype.itemsize


class TorchWorld:
    """The `World` of an inert pickle that torch wrote; see `pickle_machine.World`."""

    def __init__(self, script: bool):
        self.script = script  # a TorchScript archive: `__torch__.*` classes become records
        self.storages: dict[str, Storage] = {}

    def admit(self, name: Global) -> None:
        if name in ALLOWED or (self.script and is_script_class(name)):
            return
        shown = printable(name)
        raise Refused(
            f"the pickle asks for {shown}, which no state dict needs; nothing was executed. If you"
            " trust the file, load it where it was made and save the model's `state_dict()` alone",
            name=shown,
        )

    def reduce(self, function: Global, args: tuple[Any, ...]) -> Any:
        rule = _RULES.get(function)
        if rule is not None:
            return rule(args)
        if is_script_class(function):  # a named tuple or an enum of a TorchScript module
            return Record(function, args)
        raise Refused(f"the pickle calls {printable(function)}, which is no function")

    def new(self, kind: Global, args: tuple[Any, ...]) -> Record | dict[Any, Any]:
        if kind == _NAMESPACE and not args:
            return {}  # BUILD drops its contents: settings of the trainer, no weights
        if not is_script_class(kind) or args:
            raise Refused(f"the pickle makes an instance of {printable(kind)}")
        return Record(kind)

    def persistent(self, identity: Any) -> Storage:
        """A storage, from ('storage', type, key, device, elements[, view])."""
        match identity:
            case ("storage", Global() as kind, str(key), _, int(count), *rest) if kind in STORAGES:
                dtype = STORAGES[kind]
            case _:
                raise Refused("a persistent id that does not describe a storage")
        if not 0 <= count <= LARGEST // dtype.itemsize or len(rest) > 1:
            raise Refused(f"storage {printable(key)} claims {count} elements")
        total = count * dtype.itemsize
        known = self.storages.setdefault(key, Storage(key, dtype, 0, total, total))
        if known.dtype != dtype or known.size != total:
            raise Refused(f"storage {printable(key)} is described in two ways")
        match rest:
            case [] | [None]:
                return known
            case [(str(), int(first), int(length))] if first >= 0 and 0 <= length <= count - first:
                start, size = first * dtype.itemsize, length * dtype.itemsize
                return Storage(key, dtype, start, size, total)
        raise Refused(f"storage {printable(key)} has a view that does not fit into it")


def is_script_class(name: Global) -> bool:
    return name.module == "__torch__" or name.module.startswith("__torch__.")


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype[Any] | None = None
) -> Tensor:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise Refused("a tensor without a storage, shape or strides")
    dtype = dtype or storage.dtype
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise Refused(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number <= LARGEST:
            raise Refused("a tensor whose offset, shape or strides are negative or absurd")
    recipe = Tensor(storage, dtype, offset, shape, strides)
    if math.prod(n for n in shape if n) * dtype.itemsize > LARGEST:
        raise Refused(f"a tensor of the absurd shape {printable(shape)}")
    if 0 not in shape:
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if (last + 1) * dtype.itemsize > storage.size:
            raise Refused(
                f"a tensor of shape {printable(shape)} reaches behind the {storage.size} bytes of"
                f" storage {printable(storage.key)}"
            )
    return recipe


def _plain_metadata(metadata: Any) -> None:
    """Refuses metadata: conjugate and negative bits would change the numbers."""
    if metadata:
        raise Refused("a tensor with conjugate, negative or backend metadata")


def _rebuild_tensor(args: tuple[Any, ...]) -> Tensor:
    match args:
        case (storage, offset, shape, strides):
            return _tensor(storage, offset, shape, strides)
    raise Refused(f"_rebuild_tensor with {len(args)} arguments")


def _rebuild_tensor_v2(args: tuple[Any, ...]) -> Tensor:
    match args:
        case (storage, offset, shape, strides, _, _, *metadata) if len(metadata) <= 1:
            _plain_metadata(metadata and metadata[0])
            return _tensor(storage, offset, shape, strides)
    raise Refused(f"_rebuild_tensor_v2 with {len(args)} arguments")


def _rebuild_tensor_v3(args: tuple[Any, ...]) -> Tensor:
    match args:
        case (storage, offset, shape, strides, _, _, Global() as dtype, *metadata) if (
            dtype in DTYPES and len(metadata) <= 1
        ):
            _plain_metadata(metadata and metadata[0])
            return _tensor(storage, offset, shape, strides, DTYPES[dtype])
    raise Refused(f"_rebuild_tensor_v3 with {len(args)} arguments or an unknown dtype")


def _rebuild_parameter(args: tuple[Any, ...]) -> Tensor:
    if len(args) not in (3, 4) or type(args[0]) is not Tensor:
        raise Refused("a parameter without a tensor")
    return args[0]


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty dict; SETITEMS fills it later."""
    if args:
        raise Refused("an OrderedDict that is made of something")
    return {}


def _first(args: tuple[Any, ...]) -> Any:
    """The first argument: a size, a device, or a value that its TorchScript type follows."""
    if not args:
        raise Refused("a call without arguments")
    return args[0]


_RULES: dict[Global, Callable[[tuple[Any, ...]], Any]] = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    Global("torch", "Size"): _first,
    Global("torch", "device"): _first,
    Global("torch.jit._pickle", "build_intlist"): _first,
    Global("torch.jit._pickle", "build_doublelist"): _first,
    Global("torch.jit._pickle", "build_boollist"): _first,
    Global("torch.jit._pickle", "build_tensorlist"): _first,
    Global("torch.jit._pickle", "restore_type_tag"): _first,
}
# Cross-Modal Adapter's trainer saves its command line beside the model.
_NAMESPACE = Global("argparse", "Namespace")
ALLOWED = frozenset(_RULES) | frozenset(STORAGES) | frozenset(DTYPES) | {_NAMESPACE}
