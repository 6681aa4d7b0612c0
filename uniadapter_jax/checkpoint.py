"""Checkpoints: trainables, optimizer state, step, and what they belong to. Never the backbone."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.errors import UserError
from uniadapter_jax.types import PyTree


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_identity(where: pathlib.Path, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raises `UserError` with every field in which what lies in `where` is not this run's."""
    fields = sorted(set(saved) | set(mine))
    differing = [
        f"\n  {f}: there {saved.get(f)!r}, in this run {mine.get(f)!r}"
        for f in fields
        if saved.get(f) != mine.get(f)
    ]
    if differing:
        raise UserError(
            f"{where} belongs to another run:{''.join(differing)}\n"
            "Nothing was changed. Choose another --workdir, or restore these settings"
        )


def last_step(directory: pathlib.Path) -> int | None:
    """The step of the newest complete checkpoint; looks, and changes nothing."""
    names = os.listdir(directory) if directory.is_dir() else ()
    return max((int(name) for name in names if name.isdigit()), default=None)


def restore_trainable(directory: pathlib.Path, step: int, like: PyTree) -> PyTree:
    """The trainables of a run's checkpoint without the optimizer's state, as host arrays.

    `like` has their structure, shapes and dtypes. Raises `UserError` if there is no such step.
    """
    state = directory / str(step) / "state"
    if not state.is_dir():
        there = sorted(int(name) for name in os.listdir(directory) if name.isdigit())
        raise UserError(f"{directory} has no checkpoint of step {step}, it has {there}")
    wanted = {"trainable": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)}
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    return ocp.PyTreeCheckpointer().restore(state.absolute(), args=arguments)["trainable"]


class Checkpoints:
    """The checkpoints of one run, kept by latest and by best.

    identity: what the numbers of the run depend on (backbone, data, method, batch size, ...);
      a directory that holds another identity is not resumed.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int, identity: Mapping[str, Any]):
        self.directory = directory
        self.identity = dict(identity)
        best = policies.BestN(n=1, get_metric_fn=_selection, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=keep), best]),
            best_fn=_selection,
            best_mode="max",
        )
        with disk_errors(directory, 0):
            self._manager = ocp.CheckpointManager(
                directory.absolute(), options=options, item_names=("state", "meta")
            )
        self._bytes = 0

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        selection: float | None = None,
        wait: bool = False,
    ) -> None:
        """Starts writing; a save that is still under way is finished first."""
        self._bytes = tree_bytes(state)
        with disk_errors(self.directory, self._bytes):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave({"step": step, "identity": self.identity}),
                ),
                metrics={} if selection is None else {"selection": selection},
                force=True,
            )
            if wait:
                self._manager.wait_until_finished()

    def set_selection(self, step: int, selection: float) -> None:
        """Adds the value to a checkpoint that was saved without one; all processes do the same."""
        if jax.process_index() == 0:
            path = self.directory / str(step) / "metrics" / "metrics"  # as orbax reads it
            text = json.dumps({"selection": selection})
            with disk_errors(path, len(text)):
                scratch = path.with_name("metrics.tmp")
                scratch.write_text(text)
                scratch.replace(path)
        multihost_utils.sync_global_devices(f"selection of step {step}")
        self._manager.reload()

    def has_selection(self, step: int) -> bool:
        """Whether the checkpoint of `step` was saved with a value."""
        return bool(self._manager.metrics(step))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the best selection metric (of equals the last), None without any."""
        step = self._manager.best_step()
        return None if step is None or not self.has_selection(step) else step

    def restore(self, step: int, abstract: PyTree) -> PyTree:
        """The state of `step`, laid out as `abstract` (ShapeDtypeStructs with shardings) says.

        Raises:
          UserError: the checkpoint belongs to another run; every difference with both sides.
        """
        meta = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        check_identity(self.directory, meta["identity"], self.identity)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored.state

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with disk_errors(self.directory, self._bytes):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and closes."""
        with disk_errors(self.directory, self._bytes):
            self._manager.close()


def _selection(metrics: Mapping[str, float]) -> float:
    """The value that is to be high; checkpoints where none was measured come last."""
    return metrics.get("selection", -math.inf)


def abstract_like(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of the arrays of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
