"""Equal texts and equal clips have equal scores to the bit, and what ties is said, not hidden."""

import json

import doors
import jax
import media
import numpy as np
import pytest
import tiny
from PIL import Image
from test_vqa_task import TOKENS

from uniadapter_jax.common.distinct import distinct, distinct_rows
from uniadapter_jax.config import base_config
from uniadapter_jax.data.tokenizers.clip import load_tokenizer
from uniadapter_jax.inference.model_card import measured
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.prepare import prepare
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.loop import fit
from uniadapter_jax.runs.report import summary
from uniadapter_jax.tasks import encoding
from uniadapter_jax.tasks.matching import reranking_plan as plan
from uniadapter_jax.tasks.matching.reranking import FILL
from uniadapter_jax.tasks.retrieval import caveats, metrics, scoring
from uniadapter_jax.tasks.retrieval.evaluator import selection_value
from uniadapter_jax.tasks.retrieval.scoring import cosines, score

KINDS, TEXTS, CLIPS = 9, 14, 30
WORDS = [*TOKENS[6:8], *TOKENS[9:40]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """30 test clips of 9 kinds, pictures and films; their 40 captions are of 14 texts."""
    folder, rng = tmp_path_factory.mktemp("equal"), np.random.default_rng(0)
    asking = np.random.default_rng(1)
    kinds = [_write(folder / f"kind{kind}", kind, rng) for kind in range(KINDS)]
    texts = [" ".join(rng.choice(WORDS, 1 + i % 6)) for i in range(TEXTS)]
    lines = []
    for split, count in (("train", 12), ("test", CLIPS)):
        for i, kind in enumerate(rng.integers(0, KINDS, count)):
            name = f"{split}{i}{kinds[kind].suffix}"
            (folder / name).write_bytes(kinds[kind].read_bytes())
            captions = [str(text) for text in rng.choice(texts, 1 + (i % 3 == 0))]
            # Written otherwise, but the same to the model.
            captions[0] = captions[0].upper() if i % 2 else f" {captions[0]}  "
            qa = [
                {"question_id": 1000 * (split == "test") + 10 * i + j, "question": str(text),
                 "answers": ["yes"], "question_type": "", "answer_type": ""}
                for j, text in enumerate(asking.choice(texts, i % 6))
            ]  # fmt: skip
            line = {"id": f"{split}{i}", "path": name, "captions": captions, "split": split}
            lines.append(line | {"qa": qa})
    manifest = media.write_manifest(folder / "manifest.jsonl", lines)
    prepare(media.settings(), str(manifest), str(folder / "out"), tokenizer_size=520)
    tokenizer = load_tokenizer(folder / "out" / "tokenizer")
    clip = tiny.hf_config(vision_layers=2)
    clip["text_config"] |= {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id}
    clip["text_config"]["max_position_embeddings"] = 16
    (folder / "clip.json").write_text(json.dumps(clip))
    (folder / "blip.json").write_text(json.dumps(tiny.blip_config()))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return folder


def _write(path, kind, rng):
    if kind % 3 == 0:
        path = path.with_suffix(".mp4")
        media.write_video(path, frames=9 + 10 * (kind % 2), start=5 * kind)
    else:
        path = path.with_suffix(".png")
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(path)
    return path


def experiment(root, task="retrieval", devices=1, **options):
    config = base_config("full", task)
    config.backbone = f"random:{root / 'clip.json'}"
    if task != "retrieval":
        config.backbone, config.tokenizer = f"random:{root / 'blip.json'}", str(root)
        config.data.preprocess = "blip"
    if task == "matching":
        config.task.update({"queue": 0, "momentum": 0.0, "frame_weights": True, "rerank_rows": 8})
    config.data.update({"records": str(root / "out"), "frames": 2, "words": 12, "threads": 1})
    config.train.update({"batch_size": 8, "steps": 2})
    config.eval.batch_size = 5
    config.task.update(options)
    with pytest.MonkeyPatch.context() as patch:
        make = meshes.make_mesh
        patch.setattr(meshes, "make_mesh", lambda sizes: make(sizes, jax.devices()[:devices]))
        return build(config)


def scores_of(made):
    """(scores by direction, which texts are equal, which clips are)."""
    evaluator, test = made.kind.evaluator(made, None), made.data.test
    seen = []
    score, evaluator.scores = evaluator.scores, lambda *a: seen.append(score(*a)) or seen[0]
    found = evaluator(made.partition.trainable, test)
    texts = distinct(" ".join(text.lower().split()) for clip in test.captions for text in clip)
    clips = distinct(b"".join(test.read(i).frames) for i in range(len(test)))
    assert len(clips.first) == KINDS < len(test) == CLIPS
    assert len(texts.first) == TEXTS < found["texts"] == 40
    return found, seen[0], texts, clips


def assert_equal_where_equal(matrix, texts, clips):
    np.testing.assert_array_equal(matrix, matrix[texts.first[texts.index]])
    np.testing.assert_array_equal(matrix, matrix[:, clips.first[clips.index]])


def expected_ties(matrix, made, texts, clips):
    """By the words of the definition: a rival that is not the clip's own, and equal to the best."""
    item = np.repeat(np.arange(CLIPS), [len(clip) for clip in made.data.test.captions])
    t2v = sum(any(matrix[n, m] == matrix[n, own] for m in range(CLIPS) if m != own)
              for n, own in enumerate(item))  # fmt: skip
    v2t = sum(any(matrix[n, m] == matrix[item == m, m].max() for n in np.flatnonzero(item != m))
              for m in range(CLIPS))  # fmt: skip
    assert t2v >= sum(clips.counts[clips.index[item]] > 1)
    return {"t2v": t2v, "v2t": v2t}


@pytest.mark.parametrize("similarity", ["q_score", "mean_pool", "mean_pool_unit"])
def test_copies_tie_in_retrieval(root, similarity, monkeypatch):
    """Though what is computed of a row depends on its place, here more than on real devices."""
    fetched, compare = encoding.fetched, scoring._compare

    def by_place(rows):
        return rows * (1 + 1e-5 * np.arange(rows.size, dtype=np.float32).reshape(rows.shape))

    def moved(calls):
        for label, results in fetched(calls):
            floats = lambda x: by_place(x) if x.dtype == np.float32 else x  # noqa: E731
            yield label, jax.tree.map(floats, results)

    monkeypatch.setattr(encoding, "fetched", moved)
    monkeypatch.setattr(scoring, "_compare", lambda *given: by_place(compare(*given)))
    made = experiment(root, similarity=similarity)
    found, scores, texts, clips = scores_of(made)
    assert_equal_where_equal(scores["t2v"], texts, clips)
    assert found["tied_queries"] == expected_ties(scores["t2v"], made, texts, clips)
    text, mask = (
        found["ranks"]["t2v"],
        distinct(zip(texts.index, _clip_of_text(made, clips), strict=True)),
    )
    assert len(mask.first) < len(text)
    np.testing.assert_array_equal(text, np.array(text)[mask.first[mask.index]])


def _clip_of_text(made, clips):
    counts = [len(clip) for clip in made.data.test.captions]
    return np.repeat(clips.index, counts).tolist()


@pytest.mark.parametrize(("devices", "k"), [(1, 4), (8, 4), (1, 2), (1, 100)])
def test_copies_tie_in_the_second_stage_wherever_k_cuts(root, devices, k):
    made = experiment(root, "matching", devices, rerank_k=k, rerank_beta=0.5)
    found, scores, texts, clips = scores_of(made)
    for way, matrix in scores.items():
        assert_equal_where_equal(matrix, texts, clips)
        scored = matrix > FILL / 2
        per_query = scored.sum(axis=1 if way == "t2v" else 0)
        assert per_query.min() >= min(k, matrix.shape[1 if way == "t2v" else 0])
        distinct_ones = matrix[:, clips.first] if way == "t2v" else matrix[texts.first].T
        assert (distinct_ones > FILL / 2).sum(axis=1).max() <= k
    assert found["tied_queries"]["t2v"] == expected_ties(scores["t2v"], made, texts, clips)["t2v"]
    assert found["tied_queries"]["v2t"] == expected_ties(scores["v2t"], made, texts, clips)["v2t"]


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_copies_count_among_the_k(k):
    rng = np.random.default_rng(k)
    texts, items = rng.integers(1, 4, 6), rng.integers(1, 4, 5)
    similarity = rng.permutation(30).reshape(6, 5).astype(np.float32)
    pairs = plan.choose_pairs(similarity, k, (texts, items))
    of_text, of_item = np.repeat(np.arange(6), texts), np.repeat(np.arange(5), items)
    every = plan.choose_pairs(similarity[np.ix_(of_text, of_item)], k)
    for way in ("t2v", "v2t"):
        chosen = getattr(every, way)
        wanted = set(zip(of_text[every.text[chosen]], of_item[every.item[chosen]], strict=True))
        chosen = getattr(pairs, way)
        assert set(zip(pairs.text[chosen], pairs.item[chosen], strict=True)) == wanted


def test_equal_features_score_equally_in_any_block(monkeypatch):
    compare = scoring._compare
    noise = np.random.default_rng(1)

    def noisy(*given):
        found = np.asarray(compare(*given))
        return found + 1e-7 * noise.standard_normal(found.shape).astype(np.float32)

    monkeypatch.setattr(scoring, "_compare", noisy)
    rng = np.random.default_rng(0)
    text = rng.standard_normal((7, 24)).astype(np.float32)[rng.integers(0, 7, 50)]
    frames = rng.standard_normal((5, 3, 24)).astype(np.float32)
    mask = np.ones((5, 3), bool)
    mask[::2, 2] = False
    clips = rng.integers(0, 5, 40)
    frames, mask = frames[clips], mask[clips]
    frames[~mask] = rng.standard_normal(24)[: frames[~mask].shape[-1]]  # which says nothing
    frames[7][~mask[7]] = 5.0
    for block in ((1024, 256), (8, 6), (7, 3)):
        found = score(text, frames, mask, similarity="q_score", temperature=5.0, block=block)
        assert_equal_where_equal(found, distinct_rows(text), distinct(clips.tolist()))
    assert_equal_where_equal(
        cosines(text, frames[:, 0]), distinct_rows(text), distinct(clips.tolist())
    )


def test_distinct_rows():
    rows = np.array([[3, 1], [0, 2], [3, 1], [0, 0], [0, 2]])
    same = distinct_rows(rows)
    assert same.first.tolist() == [0, 1, 3] and same.index.tolist() == [0, 1, 0, 2, 1]
    assert same.counts.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(same.spread(same.take(rows)), rows)
    assert len(distinct_rows(rows, np.arange(5)).first) == 5
    assert distinct([]).spread(np.zeros((0, 2))).shape == (0, 2)


def collapse(trainable):
    return jax.tree.map(np.zeros_like, jax.device_get(trainable))


def test_a_collapsed_model_is_not_the_best(root):
    made = experiment(root)
    found = made.kind.evaluator(made, None)(collapse(made.partition.trainable), made.data.test)
    assert found["metrics"]["t2v"]["R@1"] == 100.0
    assert found["tied_queries"] == {"t2v": 40, "v2t": CLIPS}
    assert found["pessimistic_metrics"]["t2v"] == metrics.summarize([CLIPS] * 40)
    assert selection_value(found, "Rsum") == 0 and selection_value(found, "t2v/MnR") == -CLIPS


def test_training_selects_by_the_pessimistic_rank(root, tmp_path):
    """The evaluation says that the model of the first step has collapsed, the second has not."""
    made = experiment(root)
    made.config.selection, made.config.data.val = "test", 0
    made.epoch_steps = 1
    alike = {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "MdR": 1.0, "MnR": 1.0}
    none = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MdR": 30.0, "MnR": 30.0}
    sound = {"R@1": 40.0, "R@5": 50.0, "R@10": 60.0, "MdR": 4.0, "MnR": 9.0}
    answers = [(alike, none), (sound, sound)]

    def evaluate(trainable, records):
        shown, honest = answers.pop(0)
        both = lambda values: dict.fromkeys(("t2v", "v2t"), values)  # noqa: E731
        return {"metrics": both(shown), "pessimistic_metrics": both(honest)}

    assert fit(made, tmp_path, evaluate).step == 2


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_a_loaded_model_embeds_equal_rows_once(family):
    """By place within a batch a device may round otherwise, here the text's program does."""
    model, rng = getattr(doors, family)(), np.random.default_rng(0)
    ids = rng.integers(6, 58, (5, 6))
    ids[:, 0], ids[:, -1] = (doors.CLS, doors.SEP) if family == "blip" else (98, tiny.EOS)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    texts, clips = rng.integers(0, 5, 11), rng.integers(0, 3, 7)
    ids, pixels = ids[texts], pixels[clips]
    for name in ("_text", "_clips" if family == "blip" else "_images"):
        setattr(model, name, by_place(getattr(model, name)))
    embed = model.encode_clips if family == "blip" else model.encode_frames
    matrix = model.similarity(model.encode_text(ids), embed(pixels))
    assert_equal_where_equal(matrix, distinct(texts.tolist()), distinct(clips.tolist()))
    if family == "blip":
        model._match = by_place(model._match)
        logits = model.match(pixels, ids)
        assert logits.shape == (11, 7, 2)
        assert_equal_where_equal(logits, distinct(texts.tolist()), distinct(clips.tolist()))


def by_place(program):
    def noisy(*given):
        rows = np.asarray(program(*given))
        return rows * (1 + 1e-6 * np.arange(len(rows), dtype=np.float32).reshape(-1, 1))

    return noisy


def evaluator_of(made, workdir=None):
    return made.kind.evaluator(made, workdir)


def test_a_short_second_stage_is_told(root, capsys):
    evaluator_of(experiment(root, "matching", rerank_k=7))
    said = capsys.readouterr().err
    assert "warning: t2v: R@10 means nothing: behind the best task.rerank_k=7" in said
    assert said.count("warning") == 2
    for k in (0, 10, 128):
        evaluator_of(experiment(root, "matching", rerank_k=k))
        assert "warning" not in capsys.readouterr().err


def test_what_is_said_beside_the_numbers():
    ranks = {"t2v": [1] * 510, "v2t": [1] * 100}
    made = {"texts": 510, "clips": 100, "ranks": ranks, "protocol": {"ties": "expected"}}
    assert caveats.of_result(made) == []  # of an earlier version
    made["tied_queries"] = {"t2v": 5, "v2t": 1}
    assert caveats.of_result(made) == []
    made["tied_queries"] = {"t2v": 477, "v2t": 2}
    made["pessimistic_metrics"] = {way: {"R@1": 6.5} for way in ranks}
    assert caveats.of_result(made) == [
        "t2v: 477 of 510 queries tied; task.ties=expected decides their ranks "
        "(pessimistic: R@1 6.5)",
        "v2t: 2 of 100 queries tied; task.ties=expected decides their ranks (pessimistic: R@1 6.5)",
    ]
    assert caveats.beyond_reranking(4, texts=8, clips=4) == [
        "v2t: R@5 and R@10 mean nothing: behind the best task.rerank_k=4 all candidates tie"
    ]
    assert caveats.of_result({"questions": 3, "clips": 2}) == []
    shown = {**made, "method": "lora", "metrics": {}, "data_wait_share": None, "seconds": 1.0}
    assert any("477 of 510 queries tied" in line for line in summary(shown))
    card = measured({**made, "selection": "last", "metrics": made["pessimistic_metrics"]})
    assert any(line.startswith("\nt2v: 477 of 510 queries tied") for line in card)


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_questions_about_equal_clips_are_answered_once(root, tmp_path, devices):
    answers = root / "answers.json"
    answers.write_text(json.dumps(["yes", "no", "w1 w2", "grey"]))
    options = {"answers": str(answers), "metric": "exact", "rank_k": 4, "top_answers": 4}
    made = experiment(root, "vqa", devices, **options)
    evaluator, test = made.kind.evaluator(made, tmp_path), made.data.test
    answer, asked = evaluator._answer, []

    def noisy(trainable, frozen, clips, batch, candidates):
        asked.append(np.asarray(batch["questions"]))
        best, scores = map(np.asarray, answer(trainable, frozen, clips, batch, candidates))
        return tuple(meshes.put_replicated(x, made.mesh) for x in (best, by_place(np.copy)(scores)))

    evaluator._answer = noisy
    found = evaluator(made.partition.trainable, test)
    lines = (tmp_path / found["predictions"]).read_text().splitlines()
    scores = {line["question_id"]: line["answers"] for line in map(json.loads, lines)}
    groups = {}
    for i, several in enumerate(test.questions):
        frames = b"".join(test.read(i).frames)
        for question in several:
            key = frames, question.text.lower()
            groups.setdefault(key, []).append(scores.pop(question.id))
    assert not scores and all(answers == same[0] for same in groups.values() for answers in same)
    assert len(groups) < sum(map(len, groups.values())) == found["questions"] == 75
    empty = made.tokenizer.encode([""], made.config.data.words)[0]
    assert sum((rows != empty).any(axis=-1).sum() for rows in asked) == len(groups)
