"""One checkpoint on disk: its arrays and its metadata, both checked by digests.

Nothing here waits for other processes: each reads and compares by itself.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from uniadapter_jax.common.files import FileError, read_json, sealed, unsealed, write_json
from uniadapter_jax.common.types import PyTree

# Fields of `meta` before checkpoints carried digests.
_WITHOUT_DIGESTS = {"step", "identity"}


class Damaged(Exception):
    """A checkpoint differs from what was saved; the message says what is wrong, and where."""


def digests(state: PyTree) -> dict[str, str]:
    """{path of a leaf: SHA-256 of its dtype, shape and bytes} of host arrays."""
    return {name: _digest(leaf) for name, leaf in _by_name(state).items()}


def make_meta(step: int, identity: Mapping[str, Any], state: PyTree) -> dict[str, Any]:
    """The metadata of a checkpoint; `state` holds host arrays."""
    return sealed({"step": step, "identity": dict(identity), "digests": digests(state)})


def read_meta(place: pathlib.Path) -> dict[str, Any]:
    """{"step", "identity", "digests"} of the checkpoint in `place`, checked.

    The digests are {} in a checkpoint made before there were any. Raises `Damaged`.
    """
    path = place / "meta" / "metadata"
    content, seal = _read_object(path)
    if not seal:
        if content.keys() != _WITHOUT_DIGESTS:
            raise Damaged(f"{path} is no description of a checkpoint")
        content["digests"] = {}
    if content.get("step") != int(place.name):
        raise Damaged(f"{path} is of step {content.get('step')}")
    if not isinstance(content.get("identity"), dict) or not isinstance(content["digests"], dict):
        raise Damaged(f"{path} is no description of a checkpoint")
    return content


def read_state(place: pathlib.Path, meta: Mapping[str, Any], like: PyTree) -> PyTree:
    """The state, or the subtree that `like` has, as host arrays, checked.

    `like` has their structure, shapes and dtypes. Raises `Damaged`.
    """
    wanted = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    try:
        state = ocp.PyTreeCheckpointHandler().restore((place / "state").absolute(), args=arguments)
    except Exception as error:  # orbax, tensorstore, json and zstd each raise their own types
        raise Damaged(f"{place / 'state'} cannot be read: {_first_line(error)}") from error
    _compare(place, meta, state, wanted)
    return state


def write_selection(place: pathlib.Path, selection: float) -> None:
    """Adds the selection value to a checkpoint that was saved without one."""
    write_json(place / "metrics" / "metrics", make_selection(int(place.name), selection))


def make_selection(step: int, selection: float | None) -> dict[str, Any]:
    """The content of a checkpoint's `metrics`."""
    if selection is None:
        return {}
    return {"selection": selection, "sha256": _of_selection(step, selection)}


def read_selection(place: pathlib.Path) -> float | None:
    """The selection value, None where it was not measured. Raises `Damaged`."""
    path = place / "metrics" / "metrics"
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except FileError as error:
        raise Damaged(str(error)) from error
    if not content:
        return None
    value = content.get("selection")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"{path} holds no selection")
    old = content.keys() == {"selection"} and not read_meta(place)["digests"]
    if not old and content != make_selection(int(place.name), value):
        raise Damaged(f"{path} does not have the SHA-256 that it names")
    return float(value)


def _of_selection(step: int, selection: float) -> str:
    return hashlib.sha256(f"{step} {float(selection)!r}".encode()).hexdigest()


def _read_object(path: pathlib.Path) -> tuple[dict[str, Any], bool]:
    try:
        return unsealed(read_json(path), path)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except FileError as error:
        raise Damaged(str(error)) from error


def _compare(place: pathlib.Path, meta: Mapping[str, Any], state: PyTree, like: PyTree) -> None:
    arrays, wanted = _by_name(state), _by_name(like)
    expected = meta["digests"]
    for name, model in wanted.items():
        array = arrays.get(name)
        if not isinstance(array, np.ndarray) or array.shape != model.shape:
            raise Damaged(f"{place}: {name} does not have the shape {model.shape}")
        if array.dtype != model.dtype:
            raise Damaged(f"{place}: {name} is {array.dtype}, not {model.dtype}")
        if expected and _digest(array) != expected.get(name):
            raise Damaged(f"{place}: {name} does not have the bytes that were saved")


def _by_name(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
