"""The VQA task: its loss question by question, and answers to a split on any mesh."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import media
import numpy as np
import pytest
import tiny
from test_uniadapter_blip import adapted

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import AdapterParam
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.prepare import prepare
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.preflight import check_lengths
from uniadapter_jax.runs.report import announce_cut
from uniadapter_jax.tasks.base import Setting
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.vqa import metrics as vqa_metrics
from uniadapter_jax.tasks.vqa.evaluator import VqaEvaluator

ROOT = pathlib.Path(__file__).parent.parent
PAD, SEP, DEC, VOCAB = 0, 5, 58, 60
B, P, A, WORDS, FRAMES = 8, 3, 5, 6, 2


def task(mesh=None, parts=(MATCHING, ANSWERING), **changes):
    given = base_config(task="vqa").task
    given.update(changes)
    config = BLIPConfig.from_huggingface(tiny.blip_config(parts))
    return get_task("vqa").make(Setting(given, mesh or meshes.one_device(), config, B, 1))


def draw(seed=0):
    """A batch of clips, of which some have one frame, with one to three answers."""
    rng = np.random.default_rng(seed)
    place = np.arange(A)
    length = rng.choice([3, A], (B, P, 1))
    frames = rng.integers(1, FRAMES + 1, (B, 1))
    answer = rng.integers(6, 58, (B, P, A))
    answer = np.where(place == length - 1, SEP, np.where(place < length, answer, PAD))
    answer[..., 0] = DEC
    there = np.arange(P) < rng.integers(1, P + 1, (B, 1))
    answer[~there] = PAD
    question = rng.integers(6, 58, (B, WORDS))
    question[np.arange(WORDS) >= 3 * frames] = PAD
    return {
        "frames": rng.integers(0, 256, (B, FRAMES, 32, 32, 3)).astype(np.uint8),
        "frame_mask": np.arange(FRAMES) < frames,
        "question": question.astype(np.int32),
        "answer": answer.astype(np.int32),
        "answer_weight": np.where(there, rng.random((B, P)), 0.0).astype(np.float32),
    }


def naive_loss(model, batch, smoothing):
    """Question by question, answer by answer, without padding or absent frames."""

    @jax.jit
    def read(frames, words):
        states = model.encode_images(frames).reshape(1, -1, 24)
        return model.fuse(model.fusion_ids(words), None, Memory(states))[:, 0]

    @jax.jit
    def decode(question, ids):
        return jax.nn.log_softmax(model.decode(ids[None, None], None, Memory(question))[0, 0])

    total = 0.0
    for b in range(B):
        words = batch["question"][b][batch["question"][b] != PAD]
        question = read(batch["frames"][b][batch["frame_mask"][b]], words[None, None])
        for p in np.flatnonzero(batch["answer_weight"][b]):
            ids = batch["answer"][b, p][batch["answer"][b, p] != PAD]
            log = np.asarray(decode(question, ids), np.float64)
            for at, token in enumerate(ids[1:]):
                smooth = np.full(VOCAB, smoothing / VOCAB)
                smooth[token] += 1 - smoothing
                total -= batch["answer_weight"][b, p] * smooth @ log[at]
    return total / B


def test_the_loss_is_that_of_every_answer_alone_and_of_any_mesh():
    """Divided by questions, not by frames; the same with its gradient on 1 and on 8 devices."""
    part, batch = partition(adapted(noise=0.3), AdapterParam), draw()
    found = []
    for mesh in (meshes.one_device(), meshes.make_mesh({"data": -1, "fsdp": 2, "tensor": 1})):
        vqa = task(mesh, smoothing=0.3)

        def loss(trainable, frozen, batch, vqa=vqa):
            return vqa.loss(part.merge(trainable, frozen), batch, None)

        arrays = meshes.put_replicated((part.trainable, part.frozen), mesh)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        found.append(gradient(*arrays, meshes.put_batch(batch, mesh, B)))
    (value, metrics), grads = found[0]
    (value_of_8, metrics_of_8), grads_of_8 = found[1]
    wanted = naive_loss(part.merge(part.trainable, part.frozen), batch, 0.3)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert float(value_of_8) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["answer_accuracy"]) == float(metrics_of_8["answer_accuracy"])
    one, eight = flat_names(grads), flat_names(grads_of_8)
    for name, grad in one.items():
        np.testing.assert_allclose(eight[name], grad, rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.abs(one["decoder.cross_value.up_kernel"]).max() > 1e-5


def test_frame_weights_and_dropout_change_the_loss():
    model, batch = adapted(noise=0.3), {k: jnp.asarray(v) for k, v in draw().items()}

    @jax.jit
    def losses():
        key = jax.random.key(0)
        return [
            task(**changes).loss(model, batch, chosen)[0]
            for changes, chosen in (
                ({}, None),
                ({"frame_weights": True}, None),
                ({}, key),
            )
        ]

    plain, *others = map(float, losses())
    assert all(abs(other - plain) > 1e-4 for other in others)


def test_answers_that_the_decoder_says_itself_are_counted():
    scores = jnp.zeros((1, 2, A - 1, VOCAB)).at[0, 0, 0, 7].set(1.0).at[0, 0, 1, SEP].set(1.0)
    scores = scores.at[0, 1, 0, 7].set(1.0)
    answer = jnp.array([[[DEC, 7, SEP, PAD, PAD], [DEC, 7, SEP, PAD, PAD]]])
    assert task()._said(scores, answer).tolist() == [[True, False]]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"parts": (MATCHING,)}, "needs a decoder"),
        ({"parts": (ANSWERING,), "frame_weights": True}, "no projections"),
        ({"rank_k": 0}, "rank_k=0"),
        ({"beams": 0}, "beams=0"),
        ({"top_answers": 0}, "top_answers=0"),
        ({"smoothing": 1.0}, r"smoothing=1\.0"),
        ({"rank_smoothing": -0.1}, r"rank_smoothing=-0\.1"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        task(**changes)


# -- a split --------------------------------------------------------------------------------------

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "what", "[SEP]", "yes", "no", "##s", "is", "grey"]
TOKENS += [f"w{i}" for i in range(VOCAB - 2 - len(TOKENS))]
COUNTS = (3, 0, 1, 6, 2)  # questions about each clip
ANSWERS = ("yes", "no", "w1 w2", "w3", "w1", "greys")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Films of one and two frames; `test` has no answers, `exact` one to each question."""
    folder = tmp_path_factory.mktemp("vqa")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (folder / "config.json").write_text(json.dumps(tiny.blip_config()))
    (folder / "list.json").write_text(json.dumps(ANSWERS))
    lines, rng = [], np.random.default_rng(0)
    for split in ("train", "test", "exact"):
        for i, count in enumerate(COUNTS):
            media.write_video(folder / f"c{i}.mp4", frames=9 + 10 * (i % 2), start=7 * i)
            qa = [question(split, 100 * i + j, rng) for j in range(count)]
            texts = [] if qa else ["a caption only"]
            lines.append({"id": f"c{i}", "path": f"c{i}.mp4", "qa": qa, "captions": texts})
            lines[-1]["split"] = split
    manifest = media.write_manifest(folder / "manifest.jsonl", lines)
    prepare(media.settings(short_side=32), str(manifest), str(folder / "out"))
    return folder


def question(split, number, rng):
    words = " ".join(rng.choice(TOKENS[9:], rng.integers(1, 5)))
    asked = {"question_id": number, "question": f"what {words}", "question_type": "what"}
    asked["answer_type"] = ("yes/no", "other")[number % 2]
    if split == "train":
        asked["answers"] = [str(a) for a in rng.choice(ANSWERS, 4)]
    if split == "exact":
        asked |= {"answers": [ANSWERS[number % len(ANSWERS)]], "answer_type": ""}
    return asked


def configure(root, **task):
    config = base_config("full", "vqa")
    config.backbone, config.tokenizer = f"random:{root / 'config.json'}", str(root)
    config.data.update({"records": str(root / "out"), "frames": 2, "words": 8, "threads": 1})
    config.data.update({"answer_words": 5, "preprocess": "blip"})
    config.train.update({"batch_size": 8, "steps": 1})
    config.eval.batch_size = 2
    config.task.update(task)
    return config


def experiment(root, devices=1, data=None, **task):
    """On the first of the eight devices, or on all; `data`: changes of `config.data`."""
    config = configure(root, **task)
    config.data.update(data or {})
    with pytest.MonkeyPatch.context() as patch:
        make = meshes.make_mesh
        patch.setattr(meshes, "make_mesh", lambda sizes: make(sizes, jax.devices()[:devices]))
        return build(config)


def answers(experiment, workdir):
    """Of the split without any, as they are written down."""
    records = open_records(experiment.config.data.records, "test")
    return VqaEvaluator(experiment, workdir)(experiment.partition.trainable, records)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_alike_alone(experiment, records, written):
    """Each question with its clip alone; `written` pairs its line with (clip, question)."""
    evaluator = VqaEvaluator(experiment)
    arrays = experiment.partition.trainable, experiment.partition.frozen
    batches = list(experiment.clip_batches(records))
    for line, (clip, q) in written:
        own = batches[clip // 2]
        one = {k: jnp.asarray(own[k][clip % 2][None]) for k in ("frames", "frame_mask")}
        ids = jnp.asarray(experiment.tokenizer.encode([q.text], 8)[None])
        states = evaluator._encode(*arrays, one)
        best, scores = evaluator._answer(*arrays, states, {"questions": ids}, evaluator.candidates)
        assert [a["answer"] for a in line["answers"]] == evaluator._said(np.asarray(best[0]))
        np.testing.assert_allclose([a["score"] for a in line["answers"]], scores[0], atol=1e-4)


@pytest.mark.parametrize("inference", ["rank", "generate"])
def test_a_split_is_answered_alike_one_by_one_and_on_eight_devices(root, tmp_path, inference):
    """Each question once, although clips have 0 to 6 and batches are padded."""
    changes = {"inference": inference, "top_answers": 3, "rank_k": 4}
    ours = experiment(root, answers=str(root / "list.json"), **changes)
    found = answers(ours, tmp_path)
    assert found["metrics"] == {} and (found["questions"], found["clips"]) == (12, 5)
    written = lines(tmp_path / found["predictions"])
    records = open_records(str(root / "out"), "test")
    asked = [(clip, q) for clip, several in enumerate(records.questions) for q in several]
    assert [line["question_id"] for line in written] == [q.id for _, q in asked]
    server = json.loads((tmp_path / "predictions-test.json").read_text())
    assert server == [
        {"question_id": line["question_id"], "answer": line["answers"][0]["answer"]}
        for line in written
    ]

    if inference == "rank":
        assert_alike_alone(ours, records, list(zip(written, asked, strict=True))[::4])
    (tmp_path / "8").mkdir()
    eight = experiment(root, 8, answers=str(root / "list.json"), **changes)
    answers(eight, tmp_path / "8")
    for line, other in zip(written, lines(tmp_path / "8" / "answers-test.jsonl"), strict=True):
        for a, b in zip(line.pop("answers"), other.pop("answers"), strict=True):
            assert a["answer"] == b["answer"] and abs(a["score"] - b["score"]) < 1e-4
        assert line == other


def test_accuracy_is_that_of_the_answers(root):
    """By VQAv2's rule, by exact match, and not at all from weights that are no numbers."""
    ours = experiment(root)
    evaluator, trainable = VqaEvaluator(ours), ours.partition.trainable
    records = {split: open_records(str(root / "out"), split) for split in ("train", "exact")}
    found = evaluator(trainable, records["train"])
    assert set(found["metrics"]) == {"accuracy", "per_answer_type", "per_question_type"}
    given = {p["question_id"]: p["answer"] for p in found["predictions"]}
    scores = []
    for q in (q for several in records["train"].questions for q in several):
        agree = [a == given[q.id] for a in q.answers]
        scores.append(sum(min(1, (sum(agree) - own) / 3) for own in agree) / 4)
    overall = round(100 * np.mean(scores), 2)
    assert found["metrics"]["accuracy"]["overall"] == overall
    assert found["metrics"]["per_question_type"] == {"what": overall}
    assert set(given.values()) <= set(ANSWERS)

    with pytest.raises(UserError, match="has 1 answers"):
        evaluator(trainable, records["exact"])
    ours.config.task.metric = "exact"
    exact = evaluator(trainable, records["exact"])
    given = {p["question_id"]: p["answer"] for p in exact["predictions"]}
    hits = [given[number] == ANSWERS[number % len(ANSWERS)] for number in given]
    assert exact["metrics"]["accuracy"] == {"overall": 100 * sum(hits) / len(hits)}
    assert set(exact["metrics"]) == {"accuracy", "per_question_type"}

    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trainable)
    with pytest.raises(UserError, match="not numbers"):
        evaluator(broken, records["exact"])


def test_written_answers_are_compared_as_the_tokenizer_says_them(root):
    """Case, accents and blanks go through it; what it cannot write is missed, and counted."""
    ours = experiment(root, inference="generate", metric="exact")
    evaluator = VqaEvaluator(ours)
    references = ["YES", "W1  W2", "Greys", "nô", "yes zebra", "w1 w2 w3 w4 w5", "yes"]
    said = ["yes", "w1 w2", "greys", "no", "yes", "w1 w2 w3 w4", "no"]
    questions = [Question(i, "what", (text,)) for i, text in enumerate(references)]
    predictions = dict(enumerate(ours.tokenizer.decode(ours.tokenizer.ids(said))))
    compared = evaluator._compared(questions)
    found = vqa_metrics.exact_match_accuracy(predictions, compared)
    assert found["overall"] == pytest.approx(100 * 4 / 7)
    options = evaluator._written(questions)
    assert vqa_metrics.count_unreachable("exact", questions, **options) == 2
    assert evaluator._compared(questions)[4].answers == ("yes zebra",)
    ours.task.options.inference = "rank"
    assert evaluator._compared(questions) is questions


def test_answers_that_cannot_come_are_counted():
    several = [Question(0, "?", ("T-shirt", "shirt")), Question(1, "?", ("Yes", "Yes"))]
    several += [Question(2, "?", ()), Question(3, "?", ("an apple", "pear"))]
    count = vqa_metrics.count_unreachable
    assert count("vqa", several, listed=["t shirt", "yes", "Apple!"]) == 1  # Yes is not yes
    assert count("vqa", several, listed=["Yes"]) == 2
    one = [Question(0, "?", ("red",)), Question(1, "?", ("Red",)), Question(2, "?", ())]
    assert count("exact", one, listed=["red"]) == 1
    written = {"T-shirt": "t - shirt", "shirt": None, "Yes": "yes", "an apple": None, "pear": None}
    assert count("vqa", several, written=written) == 2
    assert count("exact", one, written={"red": "red", "Red": "red"}) == 0


def test_what_is_cut_or_cannot_come_is_said_at_the_start(root, tmp_path, capsys):
    path = tmp_path / "few.json"
    path.write_text(json.dumps(["yes", "no"]))
    data = {"words": 4, "answer_words": 3, "test_split": "exact"}
    ours = experiment(root, data=data, metric="exact", answers=str(path))
    announce_cut(ours)
    VqaEvaluator(ours)
    said = capsys.readouterr().err
    train, exact = (open_records(str(root / "out"), split) for split in ("train", "exact"))
    asked = [q for several in train.questions for q in several]
    long = sum(len(q.text.split()) > 2 for q in asked)
    answers = [a for q in asked for a in set(q.answers)]
    cut = sum(a in ("w1 w2", "greys") for a in answers)
    assert f"train: {long} of 12 questions are cut at config.data.words=4 tokens" in said
    assert f"train: {cut} of {len(answers)} answers are cut at config.data.answer_words=3" in said
    given = [q.answers[0] for several in exact.questions for q in several]
    lost = sum(a not in ("yes", "no") for a in given)
    assert f"test: {lost} of 12 questions have no answer in the list" in said
    assert "exact: " not in said and "captions" not in said


def test_what_questions_alone_give_away(root):
    """The commonest answer of the same words; to words never seen, the commonest of all."""
    path = ROOT / "scripts" / "question_only.py"
    spec = importlib.util.spec_from_file_location("question_only", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    train, test = (open_records(str(root / "out"), split) for split in ("train", "test"))
    rule = TextRule("blip", 0)
    asked = [q for several in train.questions for q in several]
    own = script.commonest(train, train, rule)
    for q in asked:
        weights = [w.answer_weights for w in asked if w.text == q.text]
        totals = {a: sum(w.get(a, 0) for w in weights) for w in weights for a in w}
        assert totals[own[q.id]] == max(totals.values())
    totals = {a: sum(q.answer_weights.get(a, 0) for q in asked) for a in ANSWERS}
    unseen = script.commonest(train, test, rule)
    assert totals[unseen[0]] == max(totals.values())


def test_answers_that_cannot_be_given_are_refused(root, tmp_path):
    ours, path = experiment(root), tmp_path / "answers.json"

    def evaluator(content):
        path.write_text(json.dumps(content))
        ours.config.task.answers = str(path)
        return VqaEvaluator(ours)

    with pytest.raises(UserError, match=r"'w1 w2 w3 w4' is longer"):
        evaluator(["yes", "w1 w2 w3 w4"])
    with pytest.raises(UserError, match="expected a list"):
        evaluator([])
    ours.config.data.answer_words = 13
    with pytest.raises(UserError, match=r"answer_words=13.*12 tokens"):
        check_lengths(ours.config, ours.model_config)
