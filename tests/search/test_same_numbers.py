"""Test clips, searched in an index of their files, have the ranks that `main` measured."""

from __future__ import annotations

import doors
import media
import numpy as np
import pytest
import small_run

from uniadapter_jax import Index, load_model
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.sources.manifest import json_lines
from uniadapter_jax.export import export
from uniadapter_jax.inference.clip_files import Windows, read_range
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.tasks.retrieval.metrics import retrieval_ranks, summarize


@pytest.mark.slow
def test_the_numbers_of_a_run_come_out_of_an_index(small, whole, tmp_path):
    export(whole, tmp_path / "adapter")
    model = load_model(f"random:{small.backbone}", tmp_path / "adapter")
    found = small_run.result(whole)
    records = open_records(str(small.records), "test")
    media_folder = small.root / "media"
    lines = json_lines(str(media_folder / "manifest.jsonl"))
    manifest = {line["id"]: line["path"] for _, line in lines}
    names = [manifest[id] for id in records.ids]
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((media_folder / name).read_bytes())
    captions = [caption for clip in records.captions for caption in clip]
    owners = np.repeat(np.arange(len(names)), [len(clip) for clip in records.captions])
    for similarity in ("q_score", "mean_pool_unit"):
        model.task["similarity"] = similarity
        build(str(folder), tmp_path / similarity, model, windows=Windows(2.0, 1.0))
        index = Index.open(tmp_path / similarity, model=model)
        scores = np.zeros((len(captions), len(names)), np.float32)
        for row, caption in enumerate(captions):
            for hit in index.search(caption, k=len(index)):
                if hit.whole:
                    scores[row, names.index(hit.name)] = hit.score
        ours = model.similarity(
            model.encode_text(captions), *model.encode_files([folder / name for name in names])
        )
        np.testing.assert_allclose(scores, ours, atol=2e-6)
        if similarity == found["config"]["task"]["similarity"]:
            ranks = retrieval_ranks(scores, owners, v2t="best_caption", ties="optimistic")
            for way in ("t2v", "v2t"):
                assert summarize(ranks[way]) == found["metrics"][way]
                assert ranks[way].tolist() == found["ranks"][way]


@pytest.mark.slow
def test_a_blip_finds_matches_and_answers(tmp_path):
    model = doors.blip()
    for i in range(5):
        media.write_picture(tmp_path / "clips" / f"{i}.png", grey=50 * i)
    media.write_video(tmp_path / "clips" / "film.mp4", frames=40)
    build(str(tmp_path / "clips"), tmp_path / "i", model)
    index = Index.open(tmp_path / "i", model=model)
    first = index.search("is it grey", k=6)
    files = [item.path for item in index.items()]
    cosines = model.similarity(model.encode_text(["is it grey"]), *model.encode_files(files))[0]
    by_path = dict(zip(files, cosines.tolist(), strict=True))
    for hit in first:
        assert abs(hit.score - by_path[hit.path]) < 1e-5
    again = index.search("is it grey", k=2, rerank=6)
    logits = {}
    for hit in first:
        pixels, mask = model.pixels_of([read_range(hit.path, model.clips, None, None)])
        logits[hit.path] = float(model.match(pixels, ["is it grey"], mask)[0, 0, 1])
    best = sorted(logits, key=lambda path: -logits[path])[:2]
    assert [hit.path for hit in again] == best
    assert all(abs(hit.score - logits[hit.path]) < 1e-5 for hit in again)
    assert model.encode_video(tmp_path / "clips" / "film.mp4").shape == (model.config.embed,)
    assert all(isinstance(hit.answer, str) for hit in index.search("what", k=2, ask="what is it"))
