"""Decodes work shards in parallel processes that never outlive their parent.

The parent hands one shard at a time to each worker, which reports every item that it starts, so the
parent knows the file on which a worker died. A shard whose worker died is given out again; a file
that kills a worker twice is recorded as a crash. A worker watches a pipe that closes when its
parent ends for any reason.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import cast

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.signals import hidden_from_children
from uniadapter_jax.data.child import end_with_parent
from uniadapter_jax.data.preparation.ahead import ReadAhead
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.shards import (
    Outcome,
    Shard,
    decode_item,
    read_shard,
    write_shard,
)

CRASHES_ALLOWED = 1  # per file; one may be the fault of the machine
STARTS_LOST = 3  # workers that may die before they begin a file

# Called with the number of items done and of bad ones among them; with negative numbers if a
# process died, so that its items have to be done again.
Report = Callable[[int, int], None]


def decode_shards(
    shards: Sequence[Shard], root: str, settings: PrepareSettings, workers: int, report: Report
) -> None:
    """Writes every shard that is not done; `workers` = 0 decodes in this process."""
    todo = [shard for shard in shards if not shard.done]
    if workers and todo:
        _Pool(todo, root, settings, report).run(min(workers, len(todo)))
        return
    for shard in todo:
        _decode(shard, root, settings, frozenset(), frozenset(), lambda index: None, report)


def _decode(
    shard: Shard,
    root: str,
    settings: PrepareSettings,
    crashed: frozenset[int],
    died: frozenset[int],
    start: Callable[[int], None],
    report: Report,
) -> None:
    if shard.done:  # by another host
        report(len(shard.items), 0)
        return

    # Written one by one: memory holds one clip, or those of a file that are read together.
    ahead = ReadAhead(shard, root, settings, crashed | died)

    def outcomes() -> Iterator[Outcome]:
        places = zip(shard.indices, shard.items, shard.keys, strict=True)
        for position, (index, item, key) in enumerate(places):
            start(index)
            before = shard.done_before.get(position)
            if (clip := ahead.take(position)) is not None:
                outcome = Outcome(clip=clip)
            elif before is None:
                outcome = decode_item(item, root, settings, index in crashed)
            else:
                outcome = next(itertools.islice(read_shard(before[0]), before[1], None))
            yield dataclasses.replace(outcome, key=key)
            report(1, int(bool(outcome.reason)))

    write_shard(shard.path, outcomes())


def _work(pipe: Connection, root: str, settings: PrepareSettings) -> None:
    """Runs a worker: receives shards, sends ('start', i), ('item', bad), ..., ('done', None)."""
    end_with_parent()
    while (task := pipe.recv()) is not None:
        shard, crashed, died = task
        try:
            _decode(
                shard,
                root,
                settings,
                crashed,
                died,
                lambda index: pipe.send(("start", index)),
                lambda count, bad: pipe.send(("item", bad)),
            )
        except UserError as error:
            pipe.send(("error", str(error)))
        else:
            pipe.send(("done", None))


class _Worker:
    """A process, its shard, and the item that it is decoding."""

    def __init__(self, context: multiprocessing.context.SpawnContext, args: tuple):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *args), daemon=True)
        with hidden_from_children():
            self.process.start()
        theirs.close()
        self.shard: Shard | None = None
        self.item = -1
        self.reported: list[int] = []

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    def __init__(
        self, shards: Iterable[Shard], root: str, settings: PrepareSettings, report: Report
    ):
        self.queue = collections.deque(shards)
        self.args = (root, settings)
        self.report = report
        self.deaths: collections.Counter[int] = collections.Counter()
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []

    def run(self, count: int) -> None:
        try:
            for _ in range(count):
                self._start()
            while any(worker.shard for worker in self.workers):
                pipes = {worker.pipe: worker for worker in self.workers}
                for pipe in multiprocessing.connection.wait(list(pipes)):
                    self._hear(pipes[cast(Connection, pipe)])
        finally:
            for worker in self.workers:
                worker.stop()

    def _start(self) -> None:
        worker = _Worker(self.context, self.args)
        self.workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.shard, worker.item = (self.queue.popleft() if self.queue else None), -1
        worker.reported = []
        if worker.shard:
            crashed = {index for index, n in self.deaths.items() if n > CRASHES_ALLOWED}
            try:
                worker.pipe.send((worker.shard, frozenset(crashed), frozenset(self.deaths)))
            except OSError:
                pass  # it is dead; `_hear` finds the end of its pipe

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "start":
            worker.item = value
        elif kind == "item":
            worker.reported.append(value)
            self.report(1, value)
        elif kind == "done":
            self._give(worker)
        else:
            raise UserError(value)

    def _bury(self, worker: _Worker) -> None:
        """Gives the shard of a dead worker to a new one, or stops where no worker can start."""
        worker.stop()
        self.workers.remove(worker)
        if worker.shard is None:
            return
        self.report(-len(worker.reported), -sum(worker.reported))
        self.deaths[worker.item] += 1
        if worker.item < 0 and self.deaths[worker.item] > STARTS_LOST:
            raise UserError(
                f"decoding processes do not start: {self.deaths[worker.item]} ended before their "
                f"first file, the last with exit status {worker.process.exitcode}; --workers=0 "
                "decodes without them"
            )
        self.queue.appendleft(worker.shard)
        self._start()
