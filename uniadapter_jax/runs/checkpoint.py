"""The checkpoints of a run: trainables, optimizer state, step, and the run's identity.

The backbone is never saved. `stored_checkpoint` describes one checkpoint on disk.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs import stored_checkpoint as stored
from uniadapter_jax.runs.identity import check_identity
from uniadapter_jax.runs.stored_checkpoint import Damaged

# Suffixes of directories that are not checkpoints yet, or no longer.
_UNFINISHED, _DELETED, _DAMAGED = ".orbax-checkpoint-tmp", ".deleted", ".damaged"


def tree_bytes(tree: PyTree) -> int:
    """The bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def last_step(directory: pathlib.Path) -> int | None:
    """The step of the newest complete checkpoint; changes nothing."""
    return max(_steps(directory), default=None)


def restore_trainable(
    directory: pathlib.Path, step: int, like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """(Trainables of a run's checkpoint as host arrays, the identity it was saved with).

    `like` has their structure, shapes and dtypes. Raises `UserError` if there is no such step, or
    if it is damaged.
    """
    place = directory / str(step)
    steps = _steps(directory)
    if step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}, it has {steps}")
    try:
        meta = stored.read_meta(place)
        state = stored.read_state(place, meta, {"trainable": like})
    except Damaged as error:
        others = [other for other in steps if other != step]
        raise UserError(
            f"the checkpoint of step {step} is damaged: {error}. The others in {directory} are of "
            f"steps {others}: name one with --step, or run the training again, which goes on from "
            "the newest that is sound"
        ) from error
    return state["trainable"], meta["identity"]


def _steps(directory: pathlib.Path) -> list[int]:
    places = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(p.name) for p in places if p.name.isdecimal() and p.is_dir())


class Checkpoints:
    """The checkpoints of one run; the latest `keep` and the best are kept.

    A checkpoint is read back before the next is saved. None is deleted until a newer one has been
    read back and compared, so with `keep` = 1 there are two of them during training.

    identity: the values that the run's numbers depend on (backbone, data, method, batch size, ...);
      a directory with another identity is not resumed.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int, identity: Mapping[str, Any]):
        self.directory = directory.absolute()
        self.identity = dict(identity)
        self._keep = keep
        self._first = jax.process_index() == 0
        with disk_errors(directory):
            steps = self._look() if self._first else []
        steps = launch.exchange(steps)[0]
        self._selections: dict[int, float | None] = dict(steps)
        self._proven: int | None = None  # newest that was read and compared
        self._unproven: tuple[int, PyTree] | None = None  # saved later, with its state's shapes
        self._bytes = 0
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                meta=ocp.JsonCheckpointHandler(),
                metrics=ocp.JsonCheckpointHandler("metrics"),
            )
        )

    def _look(self) -> list[tuple[int, float | None]]:
        """Removes leftovers of a killed process; returns (step, selection) of every checkpoint."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for place in self.directory.iterdir():
            if _UNFINISHED in place.name or place.name.endswith(_DELETED):
                shutil.rmtree(place)
        return [(step, self._selection(step)) for step in _steps(self.directory)]

    def _selection(self, step: int) -> float | None:
        try:
            return stored.read_selection(self._place(step))
        except Damaged as error:
            say(f"warning: {error}; taken as not measured")
            return None

    def _place(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        selection: float | None = None,
        wait: bool = False,
    ) -> None:
        """Starts to write, once the save under way is finished and read back."""
        self.wait()
        self._bytes = tree_bytes(state)
        host = jax.tree.map(_on_host, state)
        with disk_errors(self.directory, self._bytes):
            self._writer.save(
                self._place(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave(stored.make_meta(step, self.identity, host)),
                    metrics=ocp.args.JsonSave(stored.make_selection(step, selection)),
                ),
            )
        self._selections[step] = selection
        self._unproven = step, abstract_like(state)
        if wait:
            self.wait()

    def set_selection(self, step: int, selection: float) -> None:
        """Adds the value to a checkpoint that was saved without one; all processes call this."""
        if self._first:
            (self._place(step) / "metrics").mkdir(exist_ok=True)
            stored.write_selection(self._place(step), selection)
        multihost_utils.sync_global_devices(f"selection of step {step}")
        self._selections[step] = selection
        if step == self._proven:
            self._remove_old()  # the best may have changed

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest last."""
        return sorted(self._selections)

    def has_selection(self, step: int) -> bool:
        """Whether the checkpoint has a selection value."""
        return self._selections[step] is not None

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written; it gets its final name when it is complete."""
        return self._unproven is not None and not self._place(self._unproven[0]).exists()

    def best(self) -> int | None:
        """The step with the best selection metric, None without any; ties go to the last step."""
        values = {step: value for step, value in self._selections.items() if value is not None}
        return max(values, key=lambda step: (values[step], step), default=None)

    def forget(self, step: int) -> None:
        """Leaves a checkpoint out of the choice of the best."""
        self._selections[step] = None

    def restore_newest(self, abstract: PyTree) -> tuple[int, PyTree] | None:
        """(step, state) of the newest sound checkpoint; None if there is none at all.

        Damaged ones are reported and set aside until a newer one is sound.

        Raises:
          UserError: all are damaged, or they belong to another run.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                state = self.restore(step, abstract)
            except Damaged as error:
                damaged[step] = str(error)
                say(f"warning: the checkpoint of step {step} is damaged: {error}")
                continue
            for other in damaged:
                self._set_aside(other)
            self._proven = step
            return step, state
        if damaged:
            raise UserError(
                f"{self.directory}: every checkpoint is damaged: {'; '.join(damaged.values())}. "
                "Nothing was changed. To begin anew, remove the workdir or choose another"
            )
        return None

    def restore(self, step: int, abstract: PyTree) -> PyTree:
        """The state of `step`, laid out like `abstract` (ShapeDtypeStructs with shardings).

        Raises:
          Damaged: on all processes, if the state is not the one that was saved.
          UserError: the checkpoint belongs to another run; lists every difference.
        """
        meta = self._together(lambda: stored.read_meta(self._place(step)))
        check_identity(self.directory, meta["identity"], self.identity)
        state = self._together(lambda: stored.read_state(self._place(step), meta, abstract))
        if not meta["digests"]:
            say(f"the checkpoint of step {step} was saved without digests; it is taken as it is")
        return jax.tree.map(_put, state, abstract)

    def _together(self, read: Callable[[], Any]) -> Any:
        """Calls `read` on each process; raises `Damaged` on all of them if one does."""
        content, reason = None, None
        try:
            content = read()
        except Damaged as error:
            reason = str(error)
        if reasons := [reason for reason in launch.exchange(reason) if reason]:
            raise Damaged(reasons[0])
        return content

    def wait(self) -> None:
        """Returns when everything is on disk and has been read back."""
        saved, self._unproven = self._unproven, None
        with disk_errors(self.directory, self._bytes):
            self._writer.wait_until_finished()
        if saved is not None:
            self._prove(*saved)

    def _prove(self, step: int, abstract: PyTree) -> None:
        """Reads a checkpoint back; only if it is sound are older ones removed."""
        reason = None
        if self._first:
            try:
                stored.read_state(self._place(step), stored.read_meta(self._place(step)), abstract)
            except Damaged as error:
                reason = str(error)
        if (reason := launch.exchange(reason)[0]) is None:
            self._proven = step
            self._remove_old()
        else:
            say(f"warning: the checkpoint of step {step} was not written well: {reason}")
            self._set_aside(step)

    def _set_aside(self, step: int) -> None:
        if self._first:
            place = self._place(step)
            aside = place.with_name(f"{step}{_DAMAGED}")
            with disk_errors(aside):
                shutil.rmtree(aside, ignore_errors=True)
                place.rename(aside)
            say(f"it is kept as {aside} until a newer one is sound")
        multihost_utils.sync_global_devices(f"set aside step {step}")
        del self._selections[step]

    def _remove_old(self) -> None:
        """Removes checkpoints older than the newest proven one, except the latest and the best."""
        assert self._proven is not None
        kept = {*self.steps[-self._keep :], self.best(), self._proven}
        old = [step for step in self.steps if step < self._proven and step not in kept]
        for step in old:
            del self._selections[step]
        if self._first:
            names = [str(step) for step in old]
            for place in self.directory.glob(f"*{_DAMAGED}"):
                number = place.name.removesuffix(_DAMAGED)
                if number.isdecimal() and int(number) <= self._proven:
                    names.append(place.name)
            with disk_errors(self.directory):
                for name in names:
                    # Renamed first: a half-deleted checkpoint must not be taken for a complete one.
                    gone = self.directory / f"{name}{_DELETED}"
                    (self.directory / name).rename(gone)
                    shutil.rmtree(gone)

    def close(self) -> None:
        """Waits for the last save and closes the writer."""
        self.wait()
        self._writer.close()


def _on_host(array: jax.Array) -> np.ndarray:
    """The complete array, even if other processes hold shards of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _put(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])


def abstract_like(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of the arrays of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
