"""An approximate index beside a large exact one: inverted lists of faiss, whose hits are rescored.

    INDEX/approximate.faiss    lists of clips by their nearest centre, rows as float16
    INDEX/approximate.json     of which parts it is, how many lists a query looks into, its recall

A query compares a small share of all clips; those that come out are compared again with the rows of
the index, so that scores are the exact search's. It pays from some hundred thousand clips on.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, sync_directory, write_json
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.common.types import Float
from uniadapter_jax.inference.search import ranking
from uniadapter_jax.inference.search.ranking import Block, Found

INDEX_FILE, NOTE = "approximate.faiss", "approximate.json"
FEWEST = 10_000  # clips; fewer are compared one by one before a list is found
RECALL, BEST = 0.95, 10  # share of the exact 10 best that is aimed at
_QUERIES = 200  # clips that the recall is measured with
_LISTS = 2.0  # times the root of the number of clips
_TRAINED = 40  # clips of each list that its centre is trained on
_ROUNDS = 10  # of k-means
_FURTHER = 4  # times as many clips as asked for are rescored


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"an approximate search needs {error.name}: pip install 'uniadapter_jax[faiss]'"
        ) from error
    return faiss


def is_there(index: pathlib.Path) -> bool:
    """Whether an index has an approximate one."""
    return (index / NOTE).exists()


def make(
    index: pathlib.Path, state: Sequence[int], blocks: Sequence[Block], say: Callable[[str], None]
) -> float | None:
    """Makes the approximate index of all clips; returns its recall, None where it does not pay.

    Args:
      state: what tells the parts of the index from later ones.
    """
    count = sum(len(block.first) for block in blocks)
    if count < FEWEST:
        say(f"{count} clips: compared one by one; an approximate index pays from {FEWEST} on")
        for name in (NOTE, INDEX_FILE):
            (index / name).unlink(missing_ok=True)
        return None
    faiss = _faiss()
    width = blocks[0].part.rows.shape[1]
    lists = int(_LISTS * math.sqrt(count))
    made = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    made.by_residual = False
    made.cp.niter, made.cp.seed = _ROUNDS, 0
    draw = generator(0, "approximate")
    sample = np.sort(draw.permutation(count)[: _TRAINED * lists])
    say(f"approximate index: {lists} lists of {count} clips")
    made.train(_rows_of(blocks, sample))
    for rows in _blocks_of_rows(blocks):
        made.add(rows)
    queries = _rows_of(blocks, np.sort(draw.permutation(count)[:_QUERIES]))
    recall = _choose_probes(made, blocks, queries)
    with disk_errors(index):
        scratch = index / f".{INDEX_FILE}.tmp"
        faiss.write_index(made, os.fspath(scratch))
        scratch.replace(index / INDEX_FILE)
        sync_directory(index)
    note = {"state": list(state), "probes": made.nprobe, "lists": lists, "recall": recall}
    write_json(index / NOTE, note)
    return recall


def _choose_probes(made: Any, blocks: Sequence[Block], queries: np.ndarray) -> float:
    """Sets how many lists a query looks into, the fewest that give the recall; returns that."""
    exact = _exact(blocks, queries)
    made.nprobe = 4
    while True:
        _, labels = made.search(queries, _FURTHER * BEST)
        # The exact best that are among these come out, as rescoring orders them rightly.
        found = [len(np.intersect1d(near, best)) for near, best in zip(labels, exact, strict=True)]
        recall = float(np.mean(found)) / BEST
        if recall >= RECALL or made.nprobe >= made.nlist:
            return recall
        made.nprobe = min(2 * made.nprobe, made.nlist)


def _exact(blocks: Sequence[Block], queries: np.ndarray) -> np.ndarray:
    """The places "q 10" of the best clips of each query, in one pass over all rows."""
    scores = np.full((len(queries), BEST), -np.inf, np.float32)
    places = np.full((len(queries), BEST), -1)
    start = 0
    for rows in _blocks_of_rows(blocks):
        here = np.arange(start, start + len(rows))
        all_scores = np.concatenate([scores, queries @ rows.T], axis=1)
        all_places = np.concatenate([places, np.broadcast_to(here, (len(queries), len(here)))], 1)
        best = np.argpartition(-all_scores, BEST - 1, axis=1)[:, :BEST]
        scores, places = (np.take_along_axis(x, best, 1) for x in (all_scores, all_places))
        start += len(rows)
    return places


class Approximate:
    """A finished approximate index."""

    def __init__(self, made: Any, blocks: Sequence[Block], recall: float):
        self._made, self._blocks, self.recall = made, blocks, recall

    @classmethod
    def open(
        cls, index: pathlib.Path, state: Sequence[int], blocks: Sequence[Block]
    ) -> Approximate:
        """The approximate index of these parts.

        Raises:
          UserError: there is none, it is of earlier parts, or damaged.
        """
        again = f"make it: python -m uniadapter_jax.index --input=FOLDER --output={index} "
        try:
            note = read_json(index / NOTE)
        except FileNotFoundError:
            raise UserError(f"{index} has no approximate index; {again}--approximate") from None
        if note.get("state") != list(state):
            raise UserError(f"{index / INDEX_FILE} is of an earlier state of the index; {again}")
        try:
            made = _faiss().read_index(os.fspath(index / INDEX_FILE), _faiss().IO_FLAG_MMAP)
            made.nprobe = int(note["probes"])
            recall = float(note["recall"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise FileError(index / INDEX_FILE, f"is damaged: {error!s:.200}; {again}") from error
        if made.ntotal != sum(len(block.first) for block in blocks):
            raise FileError(index / INDEX_FILE, f"is of {made.ntotal} clips; {again}")
        return cls(made, blocks, recall)

    def best(self, query: Float[np.ndarray, " c"], k: int) -> list[Found]:
        """About the `k` best clips, best first, with the scores of the exact search."""
        row = np.ascontiguousarray(query[None], np.float32)
        _, labels = self._made.search(row, _FURTHER * k)
        return rescored(self._blocks, row[0], labels[0], k)


def rescored(blocks: Sequence[Block], query: np.ndarray, places: np.ndarray, k: int) -> list[Found]:
    """The `k` best of the clips at these places, by their rows; -1 is none."""
    places = np.sort(places[places >= 0])
    scores = _rows_of(blocks, places) @ np.asarray(query, np.float32)
    starts = _starts(blocks)
    found = []
    for place, score in zip(places.tolist(), scores.tolist(), strict=True):
        block = int(np.searchsorted(starts, place, "right")) - 1
        found.append(Found(blocks[block].part.clips[place - starts[block]], score))
    return sorted(found, key=ranking.order)[:k]


def _starts(blocks: Sequence[Block]) -> np.ndarray:
    """The place of each block's first clip among all clips."""
    return np.cumsum([0, *(len(block.first) for block in blocks)])[:-1]


def _rows_of(blocks: Sequence[Block], places: np.ndarray) -> np.ndarray:
    """The rows of clips, as float32; the places are in order."""
    starts = _starts(blocks)
    edges = np.searchsorted(places, [*starts.tolist(), np.iinfo(np.int64).max])
    width = blocks[0].part.rows.shape[1]
    rows = [np.empty((0, width), np.float32)]
    for block, start, first, last in zip(blocks, starts, edges, edges[1:], strict=False):
        if last > first:
            chosen = block.first[places[first:last] - start]
            rows.append(np.asarray(block.part.rows[chosen], np.float32))
    return np.concatenate(rows)


def _blocks_of_rows(blocks: Sequence[Block]) -> Iterator[np.ndarray]:
    """The rows of all clips, some at a time."""
    for block in blocks:
        for start in range(0, len(block.first), ranking.ROWS):
            chosen = block.first[start : start + ranking.ROWS]
            yield np.asarray(block.part.rows[chosen], np.float32)
