"""From a loader, which makes the batch of a step, to batches made ahead by threads or processes.

A batch's frames are one array, filled in place by threads, and at most `prefetch_mb` of batches
wait in buffers beside those being made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl import flags
from jaxtyping import Int

from uniadapter_jax.common.cores import cores_of_process
from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.common.signals import hidden_from_children
from uniadapter_jax.data.child import end_with_parent

if TYPE_CHECKING:  # a second to import, with Orbax; who makes no batches does not need it
    import grain

ENDLESS = 2**40  # steps
MOST_WAITING = 64  # batches: more of small ones would only delay the first

Batch = dict[str, np.ndarray]


class WorkerDied(MachineError):
    """A process that makes batches is gone."""


class Reader(Protocol):
    """Clips to the rows of a batch: `FrameReader` by decoding, `KnownFrames` from a cache."""

    @property
    def row_bytes(self) -> int: ...

    def empty(self, rows: int) -> Batch: ...

    def fill(
        self,
        batch: Batch,
        items: Sequence[int],
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> None: ...


class Loader(Protocol):
    """Step -> this host's rows of its batch; picklable."""

    reader: Any
    rows: Int[np.ndarray, " b"]

    def __call__(self, step: int) -> Batch: ...


class Batches(Iterator[Batch]):
    """An iterator whose threads and processes end with `close`, or with the object."""

    def __init__(self, iterator: Any):
        self._iterator = iterator
        self._begun = False

    def __next__(self) -> Batch:
        if not self._begun:  # the first batch starts the processes
            self._begun = True
            with hidden_from_children():
                return self._next()
        return self._next()

    def _next(self) -> Batch:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):  # grain's words, it has no type
                raise
            raise WorkerDied(
                "a data worker died (killed, or out of memory: config.data.workers, "
                f"config.data.prefetch_mb): {error}"
            ) from error

    def close(self) -> None:
        self._iterator.close()


def endless(loader: Loader, data_config: Any, start_step: int) -> Batches:
    """Steps start_step, start_step + 1, ...; in `data_config.workers` processes if above 0."""
    import grain

    batches = grain.MapDataset.range(start_step, start_step + ENDLESS).map(loader)
    buffers, workers = _buffers(loader, data_config), data_config.workers
    return _in_processes(batches, buffers, workers) if workers else _threaded(batches, buffers)


def finite(loader: Loader, data_config: Any, steps: int) -> Batches:
    """Steps 0 to steps - 1, by threads of this process."""
    import grain

    return _threaded(grain.MapDataset.range(steps).map(loader), _buffers(loader, data_config))


def chosen_rows(global_batch: int, rows: Int[np.ndarray, " b"] | None) -> Int[np.ndarray, " b"]:
    """The rows of a global batch that are to be made, in this order; None: all of them.

    Raises:
      UserError: none, one twice, or one that the batch does not have.
    """
    if rows is None:
        return np.arange(global_batch)
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise UserError(f"rows of a global batch are whole numbers, at least one: {rows!r}")
    wrong = chosen[(chosen < 0) | (chosen >= global_batch)]
    if len(wrong):
        raise UserError(f"row {wrong[0]} is none of a global batch of {global_batch}")
    if len(np.unique(chosen)) < len(chosen):
        raise UserError(f"rows of a global batch are wanted twice: {rows!r}")
    return chosen


def decoding_threads(data_config: Any) -> int:
    """Threads of this process; 0 in the config means all its cores."""
    return data_config.threads or cores_of_process()


def threads_of_worker(data_config: Any) -> int:
    """Of one training worker: the workers share them out."""
    return max(1, decoding_threads(data_config) // max(1, data_config.workers))


def _buffers(loader: Loader, data_config: Any) -> int:
    """Batches that fit into `prefetch_mb`, 1 to MOST_WAITING."""
    batch_bytes = len(loader.rows) * loader.reader.row_bytes
    return min(max(1, int(data_config.prefetch_mb * 2**20) // batch_bytes), MOST_WAITING)


def _threaded(batches: grain.MapDataset, buffers: int) -> Batches:
    """Made ahead by one thread, which shares out the rows of a batch among others."""
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffers)
    return Batches(iter(batches.to_iter_dataset(options)))


def _in_processes(batches: grain.MapDataset, buffers: int, workers: int) -> Batches:
    """Made ahead by worker processes. For endless data only: grain 0.2.18 can hang at an end."""
    import grain

    if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, also where there is no app
        flags.FLAGS.mark_as_parsed()
    # grain keeps two buffers of this size per worker: the worker's own, and one on the way to us
    workers = min(workers, max(1, buffers // 2))
    size = max(1, buffers // (2 * workers))
    here = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(workers, size)
    return Batches(iter(here.mp_prefetch(options, lambda index, count: end_with_parent())))
