"""Local clips and pictures, evaluated by MTEB, have our own R@K.

MTEB brings torch, transformers and sentence-transformers, so no extra of the tests has it:

    pip install -e '.[test,mteb]' && python -m pytest -m parity tests/parity/test_mteb.py
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import doors
import media
import numpy as np
import pytest
import tiny
from PIL import Image

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.inference.clip_files import read_range
from uniadapter_jax.inference.clip_options import ClipOptions
from uniadapter_jax.inference.model import AdaptedModel
from uniadapter_jax.inference.mteb import CrossEncoder, Encoder
from uniadapter_jax.tasks.retrieval.metrics import retrieval_ranks, summarize

mteb = pytest.importorskip("mteb", reason="MTEB is missing: pip install -e '.[test,mteb]'")
datasets = pytest.importorskip("datasets")

from mteb.abstasks import AbsTaskRetrieval  # noqa: E402 (it may be missing)
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

pytestmark = pytest.mark.parity

CLIPS, LETTERS = 12, {"image": "i", "video": "v"}
WORDS = ("grey", "yes", "no", "what", "is")
CAPTIONS = [f"{WORDS[i % 5]} {WORDS[i // 5]} w{i}" for i in range(2 * CLIPS)]
OWNERS = np.arange(2 * CLIPS) // 2


class Letters(Tokenizer):
    """An id for each letter."""

    bos_id, eos_id, vocab_size, fingerprint = 98, tiny.EOS, 100, "letters"

    def ids(self, texts):
        return [[ord(letter) % 90 + 1 for letter in text] for text in texts]


def clip(similarity="mean_pool", seed=0):
    part = tiny.split("projection", seed=seed)
    more = {"method": "projection", "fingerprint": "tiny", "batch_size": 16}
    clips = ClipOptions(media.settings(fps=4.0, frames=6), 4, "evenly")
    task = {"similarity": similarity, "words": 20}
    return AdaptedModel(part, tiny.clip().config, Letters(), task=task, clips=clips, **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of pictures, and of videos of one to four frames as the model sees them."""
    folder = tmp_path_factory.mktemp("media")
    for i in range(CLIPS):
        media.write_picture(folder / f"{i}.png", grey=20 * i + 3)
        media.write_video(folder / f"{i}.mp4", frames=3 + i, start=3 * i)
    return {
        medium: [str(folder / f"{i}.{suffix}") for i in range(CLIPS)]
        for medium, suffix in (("image", "png"), ("video", "mp4"))
    }


def task_of(medium, paths, way, as_bytes=False):
    """A retrieval task of MTEB, from texts to clips (t2v) or back."""
    feature = {"image": datasets.Image(), "video": datasets.Video()}[medium]
    rows = [{"path": None, "bytes": open(p, "rb").read()} for p in paths] if as_bytes else paths
    clips = datasets.Dataset.from_dict(
        {"id": [f"c{i}" for i in range(len(paths))], medium: rows},
        features=datasets.Features({"id": datasets.Value("string"), medium: feature}),
    )
    texts = {"id": [f"t{i}" for i in range(len(CAPTIONS))], "text": CAPTIONS}
    sides = [datasets.Dataset.from_dict(texts), clips]
    pairs = [(f"t{i}", f"c{owner}") for i, owner in enumerate(OWNERS)]
    if way == "v2t":
        sides, pairs = sides[::-1], [pair[::-1] for pair in pairs]
    relevant = {}
    for query, document in pairs:
        relevant.setdefault(query, {})[document] = 1
    split = {"queries": sides[0], "corpus": sides[1], "relevant_docs": relevant}
    names = ("text", medium) if way == "t2v" else (medium, "text")

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{medium}{way}",
            description="Clips of this machine and their captions.",
            dataset={"path": "local", "revision": "local"},
            type="Any2AnyRetrieval",
            category={"t2v": f"t2{LETTERS[medium]}", "v2t": f"{LETTERS[medium]}2t"}[way],
            modalities=list(names),
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
        )

    task = Local()
    task.dataset = {"default": {"test": {**split, "top_ranked": None}}}
    task.data_loaded = True
    return task


def recalls(model, task, **options):
    """R@K in percent, as `summarize` has it; the hit rate is that of a query's best match."""
    options = {"cache": None, "show_progress_bar": False, "co2_tracker": False, **options}
    found = mteb.evaluate(model, task, encode_kwargs={"batch_size": 5}, **options)
    scores = found.task_results[0].scores["test"][0]
    return {f"R@{k}": 100 * scores[f"hit_rate_at_{k}"] for k in (1, 5, 10)}


def ours(similarity, way):
    """R@K of a matrix that has neither ties nor the same hits everywhere."""
    ranked = retrieval_ranks(similarity, OWNERS)
    assert ranked["tied_queries"][way] == 0
    found = {name: share for name, share in summarize(ranked[way]).items() if "R@" in name}
    assert 0 < found["R@5"] < 100
    return pytest.approx(found, abs=1e-3)  # MTEB rounds


@pytest.mark.parametrize("way", ["t2v", "v2t"])
@pytest.mark.parametrize("medium, as_bytes", [("image", True), ("video", False), ("video", True)])
@pytest.mark.parametrize("similarity", ["q_score", "mean_pool"])
def test_recall_is_ours(files, similarity, medium, as_bytes, way):
    model, paths = clip(similarity), files[medium]
    expected = model.similarity(model.encode_text(CAPTIONS), *model.encode_files(paths))
    task = task_of(medium, paths, way, as_bytes)
    assert recalls(Encoder(model), task) == ours(expected, way)


@pytest.mark.parametrize("way", ["t2v", "v2t"])
def test_a_blip_matches_the_best_of_its_first_stage(files, way, tmp_path):
    model, paths, best = doors.blip(), files["video"], 8
    cosines = model.similarity(model.encode_text(CAPTIONS), *model.encode_files(paths))
    task = task_of("video", paths, way)
    assert recalls(Encoder(model), task, prediction_folder=tmp_path) == ours(cosines, way)
    logits = np.empty_like(cosines)
    for i, path in enumerate(paths):
        pixels, mask = model.pixels_of([read_range(path, model.clips, None, None)])
        logits[:, i] = model.match(pixels, CAPTIONS, mask)[:, 0, 1]
    axis = 1 if way == "t2v" else 0
    behind = np.argsort(np.argsort(-cosines, axis=axis), axis=axis) >= best
    matched = np.where(behind, -1e4 + cosines, logits)
    again = task.convert_to_reranking(tmp_path, top_k=best)
    found, expected = recalls(CrossEncoder(model), again), ours(matched, way).expected
    for name in ("R@1", "R@5"):  # MTEB does not rank what was not matched
        assert found[name] == pytest.approx(expected[name], abs=1e-3)


def test_rows_of_one_side_and_pairs_are_compared(files):
    model = clip("q_score")
    encoder = Encoder(model)
    text, frames = model.encode_text(CAPTIONS[:CLIPS]), model.encode_files(files["video"])[0]
    scores = encoder.similarity(text, frames)
    assert np.allclose(encoder.similarity_pairwise(text, frames), np.diag(scores), atol=1e-6)
    assert np.allclose(np.diag(encoder.similarity(text, text)), 1)
    pictures = model.encode_files(files["image"])[0]
    assert np.allclose(np.diag(encoder.similarity(pictures, pictures)), 1)
    with pytest.raises(UserError, match="no videos with videos"):
        encoder.similarity(frames, frames)


def test_pictures_that_are_no_files_are_encoded(files):
    """Some tasks wrap pictures in a data set of torch, of which no loader has a batch size."""

    class Pictures(list):
        features: ClassVar = {"image": []}

    model, paths = clip(), files["image"][:3]
    loader = SimpleNamespace(dataset=Pictures({"image": Image.open(p)} for p in paths))
    loader.batch_size = None
    expected = model.clip_rows(*model.encode_files(paths))
    np.testing.assert_array_equal(Encoder(model).encode(loader), np.concatenate(expected))


def test_results_of_other_adapters_are_told_apart():
    metas = [Encoder(m).mteb_model_meta for m in (clip(), clip(seed=1), clip("q_score"), clip())]
    revisions = [meta.revision for meta in metas]
    assert len(set(revisions)) == 3 and revisions[0] == revisions[3]
    assert metas[0].name == "uniadapter_jax/projection"
    assert set(metas[0].modalities) == {"text", "image", "video"}


def test_what_cannot_be_is_said(files, monkeypatch):
    with pytest.raises(UserError, match="no matching head"):
        CrossEncoder(clip())
    with pytest.raises(UserError, match="owner/name"):
        Encoder(clip(), name="mine")
    task = task_of("image", ["/gone.png", *files["image"][1:]], "t2v")
    with pytest.raises(UserError, match=r"row 0 names the file '/gone.png'"):
        recalls(Encoder(clip()), task)
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(UserError, match="pip install"):
        Encoder(clip()).mteb_model_meta  # noqa: B018 (a property)
