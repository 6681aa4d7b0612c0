"""Which sample stands at which position of an endless training run.

A sample is a (clip, caption) pair, or a clip whose caption is drawn when it comes up. Where a clip
has several captions in a batch, a sample is a clip with a group of them. An epoch is
floor(samples / batch) whole batches of a new permutation, so no sample comes twice in an epoch and
no batch spans two. Everything follows from the seed and the position: any process can compute any
batch, and the number of processes has no say in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from uniadapter_jax.common.errors import UserError

CAPTION_POLICIES = ("all", "random")
REPAIR_TRIES = 64  # random partners tried per doubled clip before the dense layout is used

_EPOCH_STREAM, _ROW_STREAM = 0, 1


class SampleOrder:
    """The samples of a run, by epoch.

    Args:
      caption_counts: captions of each clip.
      captions: 'all': each caption is a sample; 'random': each clip is one.
      batch: global batch size.
      seed: at least 0.
      avoid_duplicates: plan epochs in which no batch holds a clip twice.
      together: captions of a sample. With 'all' a clip's captions are dealt to groups of that size,
        and those left over are left out; a clip that has fewer is one sample.
    """

    def __init__(
        self,
        caption_counts: Sequence[int],
        captions: str,
        batch: int,
        seed: int,
        avoid_duplicates: bool = False,
        together: int = 1,
    ):
        if captions not in CAPTION_POLICIES:
            raise UserError(
                f"config.data.captions={captions!r} is not one of {', '.join(CAPTION_POLICIES)}"
            )
        if batch < 1:
            raise UserError(f"the global batch should be at least 1, is {batch}")
        if seed < 0:
            raise UserError(f"config.seed={seed} should be at least 0")
        counts = np.asarray(caption_counts, dtype=np.int64)
        if not (counts > 0).all():
            raise UserError(f"clip {int(np.argmin(counts))} has no caption to train on")
        groups = np.maximum(counts // together, 1)
        per_clip = groups if captions == "all" else np.ones_like(counts)
        first = np.cumsum(per_clip) - per_clip
        self.clips = np.repeat(np.arange(len(counts)), per_clip)  # of each sample
        self.groups, self.together = per_clip, together
        self.caption = np.arange(len(self.clips)) - first[self.clips]  # -1: to be drawn
        if captions == "random":
            self.caption = np.full(len(self.clips), -1)
        self.batch, self.seed = batch, seed
        self.steps = len(self.clips) // batch
        if not self.steps:
            raise UserError(
                f"config.train.batch_size={batch}: {len(self.clips)} samples "
                f"(captions={captions!r}) do not fill one global batch of {batch}; take a smaller "
                "batch or more data"
            )
        self.avoid = avoid_duplicates and captions == "all"
        if self.avoid:
            usable = int(np.minimum(groups, self.steps).sum())
            if usable < self.steps * batch:
                raise UserError(
                    f"{len(counts)} clips cannot fill {self.steps} batches of {batch} without a "
                    "clip twice in one (config.task.duplicates='avoid'); take a smaller batch, "
                    "captions='random' or another rule for duplicates"
                )
        self.epoch = functools.lru_cache(maxsize=2)(self._plan)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "epoch"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.epoch = functools.lru_cache(maxsize=2)(self._plan)

    def rows(self, step: int) -> Int[np.ndarray, "b"]:
        """Samples of global batch `step`."""
        epoch, within = divmod(step, self.steps)
        return self.epoch(epoch)[within]

    def captions(
        self, sample: int, count: int, rng: np.random.Generator
    ) -> int | Int[np.ndarray, "c"]:
        """The caption of a sample whose clip has `count`; of several together, all of them.

        Every so many captions apart, so that groups differ; a clip that has too few repeats some.
        """
        fixed = int(self.caption[sample])
        if self.together == 1:
            drawn = int(rng.integers(count))
            return drawn if fixed < 0 else fixed
        if fixed < 0:
            return np.resize(rng.permutation(count), self.together)
        apart = int(self.groups[self.clips[sample]])
        return (fixed + apart * np.arange(self.together)) % count

    def row_rng(self, step: int, row: int) -> np.random.Generator:
        """The row's own randomness: keyed by its position in the run."""
        return _rng(self.seed, _ROW_STREAM, step * self.batch + row)

    def _plan(self, epoch: int) -> Int[np.ndarray, "s b"]:
        rng = _rng(self.seed, _EPOCH_STREAM, epoch)
        order = rng.permutation(len(self.clips))
        if self.avoid and not _repair(order, self.clips, self.steps, self.batch, rng):
            order = self._dense(rng)
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)

    def _dense(self, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        """A layout without doubles for sets where chance would hardly find one.

        Samples laid out clip by clip, at most `steps` of each, and dealt round to the batches: two
        of one clip are never `steps` apart, so they never meet. Clips, captions, batches and rows
        are in random order.
        """
        shuffled = rng.permutation(len(self.clips))
        clip_rank = rng.permutation(int(self.clips[-1]) + 1)[self.clips[shuffled]]
        by_clip = shuffled[np.argsort(clip_rank, kind="stable")]
        place = _occurrence(self.clips[by_clip])
        dealt = by_clip[place < self.steps][: self.steps * self.batch]
        batches = dealt.reshape(self.batch, self.steps).T[rng.permutation(self.steps)]
        return rng.permuted(batches, axis=1).reshape(-1)


def _rng(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, stream, number]))


def _occurrence(grouped: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(grouped))
    starts = np.r_[True, grouped[1:] != grouped[:-1]]
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def _repair(
    order: Int[np.ndarray, "n"],
    clips: Int[np.ndarray, "n"],
    steps: int,
    batch: int,
    rng: np.random.Generator,
) -> bool:
    """Swaps doubled clips of a random order into other batches, in place; False if stuck.

    Samples beyond the last whole batch are partners too. Expected work is linear: few rows are
    doubled where clips are many, and a random partner then nearly always fits.
    """
    whole = steps * batch
    members = [set(rows) for rows in clips[order[:whole]].reshape(steps, batch).tolist()]
    if all(len(group) == batch for group in members):
        return True
    doubled = _doubled(clips[order[:whole]].reshape(steps, batch))
    for place in doubled:
        mine, home = int(clips[order[place]]), place // batch
        for other in rng.integers(len(order), size=REPAIR_TRIES).tolist():
            theirs, away = int(clips[order[other]]), other // batch
            if away == home or theirs in members[home]:
                continue
            if other < whole:
                if mine in members[away] or _is_double(order, clips, other, batch):
                    continue
                members[away].remove(theirs)
                members[away].add(mine)
            members[home].add(theirs)
            order[place], order[other] = order[other], order[place]
            break
        else:
            return False
    return True


def _doubled(rows: Int[np.ndarray, "s b"]) -> list[int]:
    """Places (row-major) whose clip stands in the same batch further left."""
    by_clip = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, by_clip, axis=1)
    step, column = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    return sorted((step * rows.shape[1] + by_clip[step, column + 1]).tolist())


def _is_double(
    order: Int[np.ndarray, "n"], clips: Int[np.ndarray, "n"], place: int, batch: int
) -> bool:
    """Whether the clip at `place` stands in its batch more than once; such a row stays."""
    first = place - place % batch
    return int((clips[order[first : first + batch]] == clips[order[place]]).sum()) > 1
