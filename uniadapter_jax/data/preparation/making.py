"""Makes records of annotations and media files, or brings finished ones up to date."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.progress import Progress, on_terminal
from uniadapter_jax.data.preparation import kept, planning
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.kept import Found
from uniadapter_jax.data.preparation.shards import Shard
from uniadapter_jax.data.preparation.state import State, compare, facts_of
from uniadapter_jax.data.preparation.windows import read_items
from uniadapter_jax.data.preparation.work import (
    Hold,
    clean,
    needs_recovery,
    publish,
    recover,
    remove,
    work_directory,
)
from uniadapter_jax.data.preparation.workers import decode_shards
from uniadapter_jax.data.prepared import read_prepared

PROGRESS_SECONDS = 2.0
# Counts texts that are cut, in records at a path; what it is given besides keeps others out.
CountCut = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
      input_path: directory with annotations and media, or the manifest.
      output: records directory.
      workers: number of decoding processes; 0 decodes in this one.
      sizes: entries of the tokenizers to train, by the name of their directory.
      overwrite: whether records of another input or with other settings may be replaced.
      keep: whether the records can grow later (see `kept`).
      hold: locks a directory.
      count_cut: counts texts that are cut.
    """

    settings: PrepareSettings
    input_path: str
    output: str
    workers: int
    sizes: Mapping[str, int]
    overwrite: bool
    keep: bool
    hold: Hold
    count_cut: CountCut

    @property
    def work(self) -> str:
        return f"{self.output}.work"

    def working(self) -> contextlib.AbstractContextManager[str]:
        return work_directory(self.work, self.hold)


class Making:
    """A command and what it has found: input, keys, and the state of its output."""

    def __init__(self, job: Job):
        if needs_recovery(job.output, job.work):
            with job.working() as work:
                recover(job.output, work)
        self.job = job
        self.source = read_items(job.settings, job.input_path)
        self.facts = facts_of(self.source)
        self.keys = planning.find_keys(self.source, job.settings)
        self.state: State = compare(job.output, job.settings, self.facts, self.keys, job.overwrite)

    def run(self) -> dict[str, Any]:
        """Makes what lacks; returns the content of `prepare.json`."""
        job = self.job
        if not self.state.up_to_date:
            with job.working() as work:
                self._make(work)
        else:
            print(f"{job.output} is up to date")
            self._complete()
        content = read_prepared(job.output)
        assert content is not None
        return content

    def _complete(self) -> None:
        """Adds to finished records what they lack, and removes what nobody needs."""
        job = self.job
        # Work beside finished records is left by a kill between the last rename and the end.
        if job.sizes or os.path.exists(job.work):
            from uniadapter_jax.data.preparation import vocabularies

            with job.working() as work:
                vocabularies.add(job.output, work, job.sizes)
        if not job.keep:
            remove(os.path.join(job.output, kept.NAME))
        job.count_cut(job.output, functools.partial(work_directory, job.work, job.hold))

    def _make(self, work: str) -> None:
        from uniadapter_jax.data.preparation import builder, contents, vocabularies  # TFDS, late

        job, new, found = self.job, os.path.join(work, "new"), self.state.found
        directory = clean(work)
        while True:
            plan = self.plan(found)
            shards = planning.take_up(plan.shards, directory)
            decode(shards, self.source.root, job, kept=len(plan.kept))
            there = contents.collect(plan)
            self._check_bad(there, work)
            try:
                builder.build(there, job.settings, self.facts, new, job.keep)
                break
            except contents.LostFrames as error:
                print(f"warning: {error}; what is damaged is decoded again", file=sys.stderr)
                found = contents.sound(plan)
        vocabularies.train_all(new, job.output if self.state.grows else "", job.sizes)
        job.count_cut(new)
        publish(new, job.output, work)
        print("\n".join(there.lines()))
        print(f"wrote {job.output}; everything left out is listed in {job.output}/report.jsonl")

    def plan(self, found: Mapping[str, Found]) -> planning.Plan:
        """What is decoded where these frames are there."""
        job = self.job
        made = planning.plan(self.source, job.settings, self.keys, found, job.output, job.work)
        if self.state.grows:
            new, gone = len(self.keys.of) - len(made.kept), len(found.keys() - made.keys.values())
            print(
                f"{job.output} is brought up to date: {len(made.kept):,} items as they were, "
                f"{new:,} to decode, {gone:,} no longer there",
                file=sys.stderr,
            )
        return made

    def _check_bad(self, there: Any, work: str) -> None:
        from uniadapter_jax.data.preparation import builder

        share = self.job.settings.max_bad_share
        silent = there.silent if self.source.own else 0
        bad, expected = there.bad - silent, there.expected - silent
        if bad <= share * expected and there.bad < there.expected:
            return
        report = os.path.join(work, "report.jsonl")
        builder.write_report(report, there)
        raise UserError(
            f"{bad} of {expected} items ({bad / expected:.1%}) gave no "
            f"clip, more than config.data.prepare.max_bad_share={share:.1%}: "
            f"{there.reasons}; listed in {report}. What was decoded is kept: mend the "
            f"input and run the same command again{_raising(bad, expected)}"
        )


def _raising(bad: int, expected: int) -> str:
    """How to go on without the bad items; "" where there are no others."""
    if bad == expected:
        return ""
    enough = math.ceil(100 * bad / expected) / 100
    return f", or leave them out with --config.data.prepare.max_bad_share={enough:g}"


def decode(shards: Sequence[Shard], root: str, job: Job, *, kept: int = 0) -> None:
    """Decodes shards that are not done, and shows how far it is."""
    total = kept + sum(len(shard.items) for shard in shards)
    done = kept + sum(len(shard.items) for shard in shards if shard.done)
    copied = sum(len(shard.done_before) for shard in shards if not shard.done)
    where = f"by {job.workers} processes" if job.workers else "in this process"
    print(f"decoding {total} items {where}, for {job.output}", file=sys.stderr)
    if done + copied:
        print(f"kept from an earlier run: {done + copied} of {total} items", file=sys.stderr)
    every = PROGRESS_SECONDS
    progress = Progress("prepare", total, "items", every=every, kept=done, write=on_terminal)
    bad = 0

    def report(count: int, failed: int) -> None:
        nonlocal bad
        bad += failed
        progress.note = f", {bad} bad"
        progress.advance(count)

    decode_shards(shards, root, job.settings, job.workers, report)
    if progress.done:
        progress.show()
        if sys.stderr.isatty():
            print(file=sys.stderr)
