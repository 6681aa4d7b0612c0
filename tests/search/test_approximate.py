"""An approximate index finds most of what the exact search does, with the same scores."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import search_case

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.search import approximate, parts
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.description import Description
from uniadapter_jax.inference.search.index import Index

WIDTH = 16


def made_up(folder: pathlib.Path, clips: int, sizes=(700, 0, 300), dtype="float32", **options):
    """An index of random unit rows in several parts; a row of each part is dead."""
    draw = np.random.default_rng(0)
    description = Description(str(folder), "", "", {}, WIDTH, options.get("frames", False))
    description.write(folder)
    store = parts.Store(folder, 0)
    shares = [clips * size // sum(sizes) for size in sizes]
    for number, count in enumerate(shares):
        rows = draw.normal(size=(count + 1, WIDTH))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        lines = []
        for i in range(count):
            path = f"{number}-{i}.mp4"
            clip = parts.Clip(parts.clip_id(path, 0.0, 1.0, True), path, 0.0, 1.0, True, i + 1, 1)
            lines.append(parts.clip_line(clip, parts.Stamp(1, 1, path)))
        store.write(number, rows.astype(dtype), lines)
    return folder


def queries(count=20):
    return np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(approximate, "FEWEST", 100)
    monkeypatch.setattr(approximate, "_QUERIES", 20)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_finds_nearly_all_with_exact_scores(tmp_path, dtype):
    folder, said = made_up(tmp_path / "index", 1000, dtype=dtype), []
    recall = Index.open(folder).make_approximate(said.append)
    assert recall >= approximate.RECALL and "63 lists of 1000 clips" in said[0]
    exact, near = Index.open(folder), Index.open(folder, approximate=True)
    shares = []
    for query in queries():
        right = {hit.id: hit.score for hit in exact.search(vector=query)}
        found = {hit.id: hit.score for hit in near.search(vector=query)}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        shares.append(len(right.keys() & found.keys()) / 10)
        np.testing.assert_allclose(
            [found[i] for i in right if i in found], [right[i] for i in right if i in found], 1e-5
        )
    assert 0.7 < np.mean(shares) <= 1
    note = json.loads((folder / approximate.NOTE).read_text())
    assert note["probes"] < note["lists"] and note["recall"] == recall


def test_what_is_stale_missing_or_damaged_is_refused(tmp_path):
    folder = made_up(tmp_path / "index", 500)
    with pytest.raises(UserError, match="has no approximate index; make it"):
        Index.open(folder, approximate=True)
    Index.open(folder).make_approximate()
    file = folder / approximate.INDEX_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        Index.open(folder, approximate=True)
    file.write_bytes(whole)
    parts.Store(folder, 0).write(3, np.empty((0, WIDTH), np.float32), [parts.gone_line("0-1.mp4")])
    with pytest.raises(UserError, match="earlier state"):
        Index.open(folder, approximate=True)


def test_where_it_does_not_pay_or_cannot_be(tmp_path, monkeypatch):
    few, said = made_up(tmp_path / "few", 50), []
    assert Index.open(few).make_approximate(said.append) is None
    assert "compared one by one" in said[0] and not approximate.is_there(few)
    frames = made_up(tmp_path / "frames", 200, frames=True)
    with pytest.raises(UserError, match="frame by frame"):
        Index.open(frames).make_approximate()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"uniadapter_jax\[faiss\]"):
        Index.open(made_up(tmp_path / "many", 200)).make_approximate()


def test_the_recall_for_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "FEWEST", 1)
    monkeypatch.setattr(approximate, "_LISTS", 0.5)
    (tmp_path / "clips").mkdir()
    search_case.make_folder(tmp_path / "clips")
    model = search_case.Colours()
    build(str(tmp_path / "clips"), tmp_path / "index", model)
    exact = Index.open(tmp_path / "index", model=model)
    with pytest.raises(UserError, match="approximate=True"):
        exact.recall(["rgb"])
    exact.make_approximate()
    near = Index.open(tmp_path / "index", model=model, approximate=True)
    assert near.recall(["rgb", "xyz"], k=5) == 1
    assert near.search("rgb", k=3) == exact.search("rgb", k=3)


def test_the_exact_best_in_one_pass(tmp_path):
    index = Index.open(made_up(tmp_path / "index", 300))
    clips = list(parts.clips_of(index._table.parts))
    for query, places in zip(
        queries(5), approximate._exact(index._blocks, queries(5)), strict=True
    ):
        assert {clips[i].id for i in places} == {hit.id for hit in index.search(vector=query)}
