"""Retrieval metrics as pure NumPy: one rank per query, ties by a stated rule.

A similarity matrix has a row per text and a column per clip; `text_item` says which clip a text
describes, any number of texts per clip. docs/protocols.md explains the protocols by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from uniadapter_jax.common.errors import UserError

V2T = Literal["best_caption", "max_pool"]
Ties = Literal["optimistic", "expected", "pessimistic"]
V2T_RULES: tuple[str, ...] = get_args(V2T)
TIES: tuple[str, ...] = get_args(Ties)
DIRECTIONS = ("t2v", "v2t")
RECALLS = (1, 5, 10)
SUMMARY = (*(f"R@{k}" for k in RECALLS), "MdR", "MnR")

CHUNK_BYTES = 32 * 2**20  # of one comparison; bounds the extra memory of every function here


class Counts(NamedTuple):
    """For each query: rivals above its own match, rivals that tie with it, own matches that tie.

    Only the best caption of a clip competes in v2t; `own` counts how many captions are that best.
    """

    better: np.ndarray
    equal: np.ndarray
    own: np.ndarray


def retrieval_ranks(
    similarity: Any, text_item: Any, v2t: V2T = "best_caption", ties: Ties = "optimistic"
) -> dict[str, Any]:
    """{'t2v': ranks, 'v2t': ranks, 'pessimistic': {..., ...}, 'tied_queries': {'t2v': count, ...}}.

    Ranks count from 1. `similarity` "n m", `text_item` "n" with values in [0, m). 't2v' has one
    rank per text, in order, among all clips. 'v2t' has one rank per clip that has a text, in the
    order of `clips_with_text`; clips without text are no queries but compete in t2v. 'pessimistic'
    holds the ranks by that rule, whatever `ties` is.

    A query is tied where its own match, of several the best, scores exactly as a rival does, so
    that `ties` decides its rank. Captions of the clip that is asked for are no rivals of each
    other; another clip, or a caption of it, is one even if it is a copy.

    v2t='best_caption': the best rank among a clip's own captions, over all texts (BLIP).
    v2t='max_pool': rank among clips, a clip scoring its best caption (CLIP4Clip).
    ties='optimistic': 1 + rivals strictly better; 'pessimistic': rivals that tie count as better;
    'expected': mean rank over all orders of what ties (a float).

    A NaN raises `UserError` with its row and column.
    """
    similarity, text_item = _checked(similarity, text_item)
    if v2t not in ("best_caption", "max_pool"):
        raise UserError(f"task.v2t={v2t!r}; choose 'best_caption' or 'max_pool'")
    counts = {"t2v": _count_by_text(similarity, text_item)}
    if v2t == "best_caption":
        counts["v2t"] = _count_by_clip(similarity, text_item)
    else:
        pooled = _pool_captions(similarity, text_item)
        counts["v2t"] = _count_by_text(pooled.T, np.arange(len(pooled)))
    tied = {name: int(np.sum(count.equal > 0)) for name, count in counts.items()}
    return {
        **{name: _ranks(count, ties) for name, count in counts.items()},
        "pessimistic": {name: _ranks(count, "pessimistic") for name, count in counts.items()},
        "tied_queries": tied,
    }


def clips_with_text(text_item: Any) -> np.ndarray:
    """Sorted columns that some text describes: the queries of v2t."""
    return np.unique(np.asarray(text_item))


def summarize(ranks: Any) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median rank MdR and mean rank MnR."""
    ranks = np.asarray(ranks, np.float64)
    if ranks.size == 0:
        raise UserError("no queries, so no metrics; is the test split empty?")
    recall = {f"R@{k}": 100.0 * float(np.mean(ranks <= k)) for k in RECALLS}
    return {**recall, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def close_pairs(
    similarity: Any, text_item: Any, v2t: V2T = "best_caption", rel: float = 1e-6
) -> dict[str, np.ndarray]:
    """Pairs whose order rounding may turn: rivals within `rel` (relative) of the own match.

    Per direction an array "k 2" of (query, rival): (text, clip) for t2v, (clip, text) for v2t, or
    (clip, clip) with v2t='max_pool'. Exact ties are among them. Ranks from two meshes may differ
    only for queries listed here.
    """
    similarity, text_item = _checked(similarity, text_item)
    pairs = {"t2v": _close(similarity, text_item, rel)}
    clips = clips_with_text(text_item)
    if v2t == "max_pool":
        pooled = _pool_captions(similarity, text_item)
        pairs["v2t"] = clips[_close(pooled.T, np.arange(len(clips)), rel)]
        return pairs
    best = _best_caption(similarity, text_item).astype(np.float64)
    found = [np.zeros((0, 2), np.int64)]
    for rows in _chunks(similarity):
        block = similarity[rows].astype(np.float64)
        near = _near(block, best, rel)
        near[np.arange(len(block)), text_item[rows]] = False
        texts, columns = np.nonzero(near)
        found.append(np.stack([columns, texts + rows.start], axis=1))
    pairs["v2t"] = np.concatenate(found)
    return pairs


def paired_bootstrap(
    ranks_a: Any, ranks_b: Any, samples: int = 10_000, seed: int = 0, clips: Any = None
) -> dict[str, float]:
    """mean(a) - mean(b) over the same queries, with its 95 % interval over clips.

    Ranks are "q", or "seeds q" (the two may differ in seeds): a query's rank is first averaged
    over seeds, so the interval tells how another test set, not another seed, would move it.
    `clips` names the clip of each query, for several captions per clip are not independent: what
    is drawn with replacement are clips, with all of their queries. Percentiles 2.5 and 97.5.
    """
    difference, means = paired_draws(ranks_a, ranks_b, samples, seed, clips)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"difference": difference, "low": float(low), "high": float(high)}


def paired_draws(
    values_a: Any, values_b: Any, samples: int = 10_000, seed: int = 0, clips: Any = None
) -> tuple[float, np.ndarray]:
    """(mean(a) - mean(b), that difference in each of the draws); see `paired_bootstrap`."""
    mean = [np.atleast_2d(np.asarray(v, np.float64)).mean(axis=0) for v in (values_a, values_b)]
    if mean[0].shape != mean[1].shape:
        raise ValueError(f"not the same queries: {mean[0].size} and {mean[1].size} ranks")
    gap = mean[0] - mean[1]
    groups = np.arange(gap.size) if clips is None else np.unique(clips, return_inverse=True)[1]
    sums, sizes = np.bincount(groups, gap), np.bincount(groups)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, CHUNK_BYTES // (8 * sums.size))
    for start in range(0, samples, step):
        drawn = rng.integers(sums.size, size=(min(step, samples - start), sums.size))
        means[start : start + step] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return float(gap.mean()), means


def clip_of(query: str, way: str) -> str:
    """The clip of a query; a text is named by its clip and a number, as in 'video7#0'."""
    return query.rpartition("#")[0] if way == "t2v" and "#" in query else query


def _checked(similarity: Any, text_item: Any) -> tuple[np.ndarray, np.ndarray]:
    similarity, text_item = np.asarray(similarity), np.asarray(text_item)
    if similarity.ndim != 2 or text_item.shape != similarity.shape[:1]:
        raise ValueError(
            f"similarity {similarity.shape} needs one row per text, text_item is {text_item.shape}"
        )
    if not np.issubdtype(text_item.dtype, np.integer):
        raise ValueError(f"text_item holds column numbers, got {text_item.dtype}")
    if text_item.size and not 0 <= text_item.min() <= text_item.max() < similarity.shape[1]:
        raise ValueError(f"text_item must be in [0, {similarity.shape[1]}), see {text_item}")
    for rows in _chunks(similarity):
        bad = np.argwhere(np.isnan(similarity[rows]))
        if len(bad):
            row, column = bad[0] + [rows.start, 0]
            raise UserError(
                f"similarity of text {row} and clip {column} is NaN (row {row}, column {column}); "
                "ranks would mean nothing. Look for non-finite features or weights"
            )
    return similarity, text_item


def _chunks(matrix: np.ndarray) -> Iterator[slice]:
    """Slices of rows, so that a float64 copy of one stays under CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // (8 * max(1, matrix.shape[1])))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _count_by_text(similarity: np.ndarray, item: np.ndarray) -> Counts:
    better, equal = (np.zeros(len(similarity), np.int64) for _ in range(2))
    for rows in _chunks(similarity):
        block = similarity[rows]
        own = np.take_along_axis(block, item[rows, None], axis=1)
        better[rows] = np.sum(block > own, axis=1)
        equal[rows] = np.sum(block == own, axis=1) - 1
    return Counts(better, equal, np.ones(len(similarity), np.int64))


def _best_caption(similarity: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Best score of each clip among its own captions, +inf without caption (nothing beats it)."""
    best = np.full(similarity.shape[1], -np.inf, np.result_type(similarity.dtype, np.float32))
    np.maximum.at(best, item, similarity[np.arange(len(item)), item])
    absent = np.ones(similarity.shape[1], bool)
    absent[item] = False
    best[absent] = np.inf
    return best


def _count_by_clip(similarity: np.ndarray, item: np.ndarray) -> Counts:
    best = _best_caption(similarity, item)
    better, equal = (np.zeros(similarity.shape[1], np.int64) for _ in range(2))
    for rows in _chunks(similarity):
        block = similarity[rows]
        better += np.sum(block > best, axis=0)
        equal += np.sum(block == best, axis=0)
    own = np.zeros_like(equal)
    np.add.at(own, item, similarity[np.arange(len(item)), item] == best[item])
    clips = clips_with_text(item)
    return Counts(better[clips], (equal - own)[clips], own[clips])


def _pool_captions(similarity: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Best caption of each clip against each clip, "candidate query", both `clips_with_text`."""
    order = np.argsort(item, kind="stable")
    clips, starts = np.unique(item[order], return_index=True)
    pooled = np.empty((len(clips), len(clips)), similarity.dtype)
    step = max(1, CHUNK_BYTES // (8 * max(1, len(similarity))))
    for start in range(0, len(clips), step):
        columns = clips[start : start + step]
        block = similarity[order[:, None], columns]
        pooled[:, start : start + step] = np.maximum.reduceat(block, starts, axis=0)
    return pooled


def _ranks(counts: Counts, ties: Ties) -> np.ndarray:
    if ties == "optimistic":
        return 1 + counts.better
    if ties == "pessimistic":
        return 1 + counts.better + counts.equal
    if ties == "expected":
        # The first of `own` among own + equal in random order stands behind equal / (own + 1).
        return 1 + counts.better + counts.equal / (counts.own + 1)
    raise UserError(f"task.ties={ties!r}; choose 'optimistic', 'expected' or 'pessimistic'")


def _near(scores: np.ndarray, own: np.ndarray, rel: float) -> np.ndarray:
    """Equal, or closer than `rel` of the larger; an infinite score is close to its equal only."""
    with np.errstate(invalid="ignore"):
        size = np.maximum(np.abs(scores), np.abs(own))
        near = np.abs(scores - own) <= rel * size
    return (near & np.isfinite(size)) | (scores == own)


def _close(similarity: np.ndarray, item: np.ndarray, rel: float) -> np.ndarray:
    found = [np.zeros((0, 2), np.int64)]
    for rows in _chunks(similarity):
        block = similarity[rows].astype(np.float64)
        near = _near(block, np.take_along_axis(block, item[rows, None], axis=1), rel)
        near[np.arange(len(block)), item[rows]] = False
        found.append(np.argwhere(near) + [rows.start, 0])
    return np.concatenate(found)
