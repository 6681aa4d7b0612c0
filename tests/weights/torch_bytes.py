"""A state dict as the torch file that `torch.save` would make of it."""

import fake_torch as ft
import numpy as np


def torch_file(tensors, layout="zip"):
    """The bytes of a torch file of float32, float16 or int64 arrays."""
    entries, storages = {}, {}
    for i, (name, value) in enumerate(tensors.items()):
        strides = tuple(s // value.itemsize for s in np.empty(value.shape, value.dtype).strides)
        storage = ft.storage(str(i), kind_of(value), value.size)
        entries[name] = ft.tensor(storage, value.shape, strides)
        storages[str(i)] = value.tobytes()
    if layout == "legacy":
        width = next(iter(tensors.values())).itemsize
        # A view's metadata takes the sixth place of a legacy storage.
        entries = {
            name: ft.tensor(
                ft.storage(str(i), kind_of(value), value.size, ft.NONE),
                value.shape,
                tuple(s // value.itemsize for s in np.empty(value.shape, value.dtype).strides),
            )
            for i, (name, value) in enumerate(tensors.items())
        }
        return ft.legacy_file(ft.dict_of(entries), storages, width)
    if layout == "script":
        return ft.script_file(modules(entries), storages)
    return ft.zip_file(ft.dict_of({"state_dict": ft.dict_of(entries)}), storages)


def kind_of(value):
    return {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}[value.dtype.str[1:]]


def modules(entries):
    """Dotted names as nested TorchScript modules."""
    parts, inner = {}, {}
    for name, value in entries.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            parts[head] = value
    parts |= {head: modules(below) for head, below in inner.items()}
    return ft.record("__torch__.Module", parts)
