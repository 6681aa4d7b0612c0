"""Which pairs the second stage scores, and in which calls of one program. Pure NumPy.

A pair (text, item) that the texts' top k and the items' top k both hold is scored once. Pairs are
grouped by item, because an item's keys and values serve all texts of a group; a group has a fixed
number of texts, of similar length, and a call a fixed number of groups. So a program is compiled
for each bucket of text lengths and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Bool, Float, Int, Int32
from uniadapter_jax.tasks.retrieval.metrics import CHUNK_BYTES

LENGTHS = 8  # texts are cut to the next multiple of this
# Products of a token of an item (key, value) in those of a text's token (14 squares of the width,
# and what a method adds): about an eighth.
TOKEN_COST = 1 / 8


class Pairs(NamedTuple):
    """Pairs to be scored, each once, in the order of items and, within an item, of texts.

    t2v, v2t: whether the item is in the top k of the text, the text in the top k of the item.
    """

    text: Int32[np.ndarray, " w"]
    item: Int32[np.ndarray, " w"]
    t2v: Bool[np.ndarray, " w"]
    v2t: Bool[np.ndarray, " w"]

    def of_items(self, start: int, stop: int) -> slice:
        """The places of the pairs of items [start, stop)."""
        return slice(*np.searchsorted(self.item, [start, stop]).tolist())


class Shape(NamedTuple):
    """The shape of a call: `groups` groups of `texts` texts, each group with one item."""

    groups: int
    texts: int


class Call(NamedTuple):
    """One call: the pairs that it scores.

    length: tokens that its longest text needs, rounded up to a bucket.
    place: the item of each group, counted in its batch; 0 in a group of nothing.
    text: the texts of each group; 0 where there is nothing to score.
    pair: their places in `Pairs`; -1 where there is nothing to score.
    """

    length: int
    place: Int32[np.ndarray, " q"]
    text: Int32[np.ndarray, "q p"]
    pair: Int32[np.ndarray, "q p"]


def choose_pairs(
    similarity: Float[np.ndarray, "n m"],
    k: int,
    copies: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
) -> Pairs:
    """The k items most similar to each text, and the k texts most similar to each item.

    All of them where there are fewer than k. Of equals the first are taken. `copies` says how many
    texts and items each one stands for: it takes as many of the k, and is in where one of them is.

    Raises:
      UserError: k below 1, or a similarity that is not finite.
    """
    if k < 1:
        raise UserError(f"task.rerank_k={k}: at least 1, how many candidates a query re-ranks")
    n, m = similarity.shape
    of_texts, of_items = copies or (np.ones(n, int), np.ones(m, int))
    by_text = _codes(similarity, k, of_items)  # text * m + item
    wanted_by_text = by_text % m * n + by_text // m
    wanted_by_item = _codes(similarity.T, k, of_texts)  # item * n + text
    wanted = np.union1d(wanted_by_text, wanted_by_item)
    t2v, v2t = np.zeros(len(wanted), bool), np.zeros(len(wanted), bool)
    t2v[np.searchsorted(wanted, np.sort(wanted_by_text))] = True
    v2t[np.searchsorted(wanted, wanted_by_item)] = True
    return Pairs((wanted % n).astype(np.int32), (wanted // n).astype(np.int32), t2v, v2t)


def _codes(similarity: np.ndarray, k: int, copies: np.ndarray) -> np.ndarray:
    """row * columns + column of the k largest entries of each row, ascending."""
    columns, starts = similarity.shape[1], np.cumsum(copies) - copies
    found = [np.zeros(0, np.int64)]
    step = max(1, CHUNK_BYTES // (8 * max(1, int(copies.sum()))))
    for start in range(0, len(similarity), step):
        block = similarity[start : start + step]
        if not np.isfinite(block).all():
            raise UserError(
                "the similarity of the first stage is not finite, so its best candidates mean "
                "nothing. Look for NaN in the weights or in the features"
            )
        chosen = _largest(np.repeat(block, copies, axis=1), k)
        chosen = np.logical_or.reduceat(chosen, starts, axis=1)
        found.append(np.flatnonzero(chosen) + start * columns)
    return np.concatenate(found)


def _largest(block: np.ndarray, k: int) -> np.ndarray:
    """True at the k largest entries of each row."""
    columns = block.shape[1]
    if k >= columns:
        return np.ones(block.shape, bool)
    least = np.partition(block, columns - k, axis=1)[:, columns - k, None]
    chosen = block >= least
    tied = np.flatnonzero(chosen.sum(axis=1) > k)  # more equals at the end than there is room for
    equal = block[tied] == least[tied]
    room = k - (block[tied] > least[tied]).sum(axis=1, keepdims=True)
    chosen[tied] &= ~equal | (np.cumsum(equal, axis=1) <= room)
    return chosen


def used_lengths(mask: Bool[np.ndarray, "n l"]) -> Int32[np.ndarray, " n"]:
    """Tokens of each text up to its last that is no padding; at least 1."""
    last = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
    return np.where(mask.any(axis=1), last, 1).astype(np.int32)


def choose_shape(
    pairs: Pairs,
    lengths: Int32[np.ndarray, " n"],
    *,
    tokens: int,
    rows: int,
    devices: int,
    batch: int,
) -> Shape:
    """The shape of all calls: at most `rows` pairs on a device, and little that is not asked for.

    More texts a group means that keys and values are made less often, and more places that stay
    empty. Sizes are powers of two, or `rows`, so that similar plans share their programs.

    Args:
      lengths: tokens of each text.
      tokens: of an item.
      batch: items whose states are on the devices at once.
    """
    if rows < 1:
        raise UserError(f"task.rerank_rows={rows}: at least 1, pairs scored at once by a device")
    counts = np.bincount(pairs.item)
    length = float(np.mean(lengths[pairs.text])) if len(pairs.text) else 1.0
    sizes = sorted({rows} | {2**i for i in range(rows.bit_length())})

    def cost(texts: int) -> float:
        return float(np.sum(-(-counts // texts))) * (TOKEN_COST * tokens + texts * length)

    texts = min(sizes, key=cost)
    starts = np.arange(0, len(counts), batch)
    most = int(np.add.reduceat(-(-counts // texts), starts).max(initial=1)) if len(counts) else 1
    needed = -(-most // devices)
    return Shape(devices * min(rows // texts, 2 ** (needed - 1).bit_length()), texts)


def calls(
    pairs: Pairs,
    lengths: Int32[np.ndarray, " n"],
    shape: Shape,
    start: int,
    stop: int,
    longest: int,
) -> Iterator[Call]:
    """Calls that score all pairs of items [start, stop), long texts first.

    `longest` is the length to which texts are padded; no bucket is longer.
    """
    part = pairs.of_items(start, stop)
    size, item = lengths[pairs.text[part]], pairs.item[part] - start
    order = np.lexsort((-size, item))
    size, item = size[order], item[order]
    within = np.arange(len(item)) - np.searchsorted(item, item)  # place among those of its item
    heads = np.flatnonzero(within % shape.texts == 0)  # the first of a group is its longest
    group = np.repeat(np.arange(len(heads)), np.diff(heads, append=len(item)))
    pair = np.full((len(heads), shape.texts), -1, np.int32)
    pair[group, within % shape.texts] = order + part.start
    by_length = np.argsort(-size[heads], kind="stable")
    for at in range(0, len(heads), shape.groups):
        chosen = by_length[at : at + shape.groups]
        empty = shape.groups - len(chosen)
        place = np.pad(item[heads[chosen]], (0, empty)).astype(np.int32)
        taken = np.pad(pair[chosen], ((0, empty), (0, 0)), constant_values=-1)
        text = np.where(taken < 0, 0, pairs.text[taken])
        bucket = -(-int(size[heads[chosen[0]]]) // LENGTHS) * LENGTHS
        yield Call(min(bucket, longest), place, text, taken)
