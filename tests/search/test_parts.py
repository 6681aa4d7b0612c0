"""Parts of an index: the best of them, damage, and what a hostile one may say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from uniadapter_jax.common.files import FileError
from uniadapter_jax.inference.search import ranking
from uniadapter_jax.inference.search.parts import Clip, Part, Stamp, Store, clip_line

STAMP = Stamp(1, 2, "x")


def write(store, number, rows, counts=None, name="c"):
    counts = counts or [1] * len(rows)
    first = np.cumsum([0, *counts[:-1]]).tolist()
    clips = [
        Clip(f"{name}{i}", f"{name}{i:04d}.png", None, None, True, row, count)
        for i, (row, count) in enumerate(zip(first, counts, strict=True))
    ]
    store.write(number, rows, [clip_line(clip, STAMP) for clip in clips])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, 0)


def test_the_best_are_those_of_all_rows_and_ties_go_by_path(store, monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 7)
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (90, 4)).astype(np.float32)  # many ties
    for number in range(3):
        write(store, number, rows[30 * number : 30 * number + 30], name="cab"[number])
    table = store.read(4)
    query = np.array([1, 2, 0, -1], np.float32)
    blocks = [ranking.Block.of(part) for part in table.parts]
    paths = [f"{'cab'[i // 30]}{i % 30:04d}.png" for i in range(90)]
    order = sorted(range(90), key=lambda i: (-float(rows[i] @ query), paths[i]))
    for k in (1, 5, 40, 90, 200):
        found = ranking.best(blocks, query, k, None)
        assert [f.clip.path for f in found] == [paths[i] for i in order[:k]]


def test_products_of_every_half_are_those_of_its_float32(monkeypatch):
    monkeypatch.setattr(ranking, "CACHED", 1000)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rows = halves[np.isfinite(halves)].reshape(-1, 2)
    clips = [Clip("", "", None, None, True, i, 1) for i in range(len(rows))]
    for query in np.array([[1, 0], [0, -3], [0.25, 1e-3]], np.float32):
        ((_, scores),) = ranking._by_product(ranking.Block.of(Part(rows, clips)), query)
        np.testing.assert_allclose(scores, rows.astype(np.float32) @ query, rtol=1e-6)


def test_clips_of_several_frames_are_compared_by_the_similarity(store, monkeypatch):
    monkeypatch.setattr(ranking, "CLIPS", 3)
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 5, 10).tolist()
    rows = rng.normal(size=(sum(counts), 4)).astype(np.float16)
    write(store, 0, rows, counts)
    query = rng.normal(size=4).astype(np.float32)

    def similarity(query, frames, mask):
        assert frames.dtype == np.float32 and frames.shape[1:] == (4, 4)
        return np.where(mask, frames @ query, np.inf).min(axis=1)

    blocks = [ranking.Block.of(part) for part in store.read(4).parts]
    found = ranking.best(blocks, query, 10, similarity)
    starts = np.cumsum([0, *counts[:-1]])
    expected = {
        f"c{i:04d}.png": float((rows[s : s + n].astype(np.float32) @ query).min())
        for i, (s, n) in enumerate(zip(starts, counts, strict=True))
    }
    np.testing.assert_allclose([f.score for f in found], sorted(expected.values())[::-1], rtol=1e-5)


def test_what_a_later_part_says_of_a_path_replaces_the_earlier(store):
    write(store, 0, np.ones((3, 2), np.float32))
    write(store, 1, np.full((1, 2), 2, np.float32))  # c0000.png again
    store.write(2, np.empty((0, 2), np.float32), [{"path": "c0001.png", "gone": True}])
    table = store.read(2)
    assert sorted(table.files) == ["c0000.png", "c0002.png"] and table.dead == 2
    assert [(c.path, p.rows[c.row, 0]) for p in table.parts for c in p.clips] == [
        ("c0002.png", 1),
        ("c0000.png", 2),
    ]


def test_a_part_without_its_table_does_not_count(store):
    write(store, 0, np.ones((3, 2), np.float32))
    write(store, 1, np.ones((3, 2), np.float32), name="d")
    (store.folder / "000001.jsonl").unlink()
    assert store.numbers() == [0] and len(store.read(2).files) == 3


@pytest.mark.parametrize(
    "harm",
    [
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": None},
        {"row": 3},
        {"row": -1},
        {"rows": 0},
        {"row": "0"},
        {"start": "<script>"},
        {"size": ...},
    ],
    ids=str,
)
def test_a_damaged_line_is_named(store, harm):
    write(store, 0, np.ones((3, 2), np.float32))
    file = store.folder / "000000.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1] = {k: v for k, v in (lines[1] | harm).items() if v is not ...}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FileError, match=r"000000.jsonl, line 2: is damaged"):
        store.read(2)


def test_damaged_rows_are_named(store):
    write(store, 0, np.ones((3, 2), np.float32))
    file = store.folder / "000000.npy"
    with pytest.raises(FileError, match="is 2 wide, not 3"):
        store.read(3)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FileError, match=r"000000.npy: is damaged"):
        store.read(2)
    file.unlink()
    with pytest.raises(FileError, match=r"000000.npy: is missing"):
        store.read(2)
