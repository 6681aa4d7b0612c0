"""Batches of questions: every question once, the same for any number of hosts, from any step on."""

import json

import media
import numpy as np
import pytest
import small_run
from ml_collections import ConfigDict
from shares import interleaved, joined

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.answers import training_answers
from uniadapter_jax.data.loading.questions import question_steps_per_epoch, question_train_batches
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from uniadapter_jax.prepare import prepare

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "yes", "no", "?"]
TOKENS += [str(i) for i in range(20)]
TOKENIZER = WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
CLS, SEP, YES, NO, DEC = 2, 3, 6, 7, len(TOKENS)
SIZE = 8
COUNTS = (3, 0, 1, 4, 2)  # questions about each picture
TOTAL = sum(COUNTS)


def asked(number):
    answers = ["yes", "no", "yes"] if number % 2 else ["no"]
    return {"question_id": number, "question": f"What {number}?", "answers": answers}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Picture i is grey 20 * i; questions are numbered through; `test` has no answers."""
    folder = tmp_path_factory.mktemp("questions")
    lines, number = [], 0
    for i, count in enumerate(COUNTS):
        media.write_picture(folder / f"p{i}.png", grey=20 * i)
        qa = [asked(number + j) for j in range(count)]
        number += count
        texts = [] if qa else ["a caption only"]
        lines.append({"id": f"p{i}", "path": f"p{i}.png", "qa": qa, "captions": texts})
    more = [asked(19)]
    lines.append({"id": "p0", "path": "p0.png", "qa": more, "split": "more"})
    bare = [{"question": "what 3?"}, {"question": "what 4?", "answer": "no"}]
    lines.append({"id": "t", "path": "p1.png", "qa": bare, "split": "test"})
    manifest = media.write_manifest(folder / "manifest.jsonl", lines)
    prepare(media.settings(short_side=SIZE), str(manifest), str(folder / "out"))
    return str(folder / "out")


@pytest.fixture(scope="module")
def records(root):
    return open_records(root, "train")


def config(**changes):
    small = {"words": 6, "frames": 1, "answers": 2, "answer_words": 4, "threads": 1}
    few_batches = {"prefetch_mb": 0.001}
    return ConfigDict({**base_config().data.to_dict(), **small, **few_batches, **changes})


def take(records, steps, batch=4, data=None, seed=5, **kwargs):
    batches = question_train_batches(
        records,
        TOKENIZER,
        data or config(),
        image_size=SIZE,
        global_batch=batch,
        seed=seed,
        **kwargs,
    )
    try:
        return [next(batches) for _ in range(steps)]
    finally:
        batches.close()


def number_of(row):
    """What the question of a batch row asks for."""
    assert row[0] == CLS and row[3:5].tolist() == [TOKENS.index("?"), SEP]
    return int(TOKENS[row[2]])


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


class TestTraining:
    def test_shapes_and_types(self, records):
        (batch,) = take(records, 1)
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            "frames": ((4, 1, SIZE, SIZE, 3), "uint8"),
            "frame_mask": ((4, 1), "bool"),
            "question": ((4, 6), "int32"),
            "answer": ((4, 2, 4), "int32"),
            "answer_weight": ((4, 2), "float32"),
            "item": ((4,), "int32"),
        }

    def test_rows_hold_one_question_with_its_picture_and_answers(self, records):
        assert question_steps_per_epoch(records, 5) == TOTAL // 5
        seen = []
        owner = np.repeat(np.arange(len(COUNTS)), COUNTS)
        for batch in take(records, 2, batch=5):
            for row, item in enumerate(batch["item"]):
                number = number_of(batch["question"][row])
                seen.append(number)
                assert item == owner[number]
                assert batch["frames"][row].mean() == pytest.approx(20 * item, abs=1)
                answers = batch["answer"][row, :, :3].tolist()
                weights = batch["answer_weight"][row].tolist()
                if number % 2:
                    assert answers == [[DEC, YES, SEP], [DEC, NO, SEP]]
                    assert weights == pytest.approx([2 / 3, 1 / 3])
                else:
                    assert answers == [[DEC, NO, SEP], [0, 0, 0]]
                    assert weights == [1, 0]
        assert sorted(seen) == list(range(TOTAL))

    @pytest.mark.parametrize("hosts", [2, 4])
    def test_hosts_share_out_the_same_global_batch(self, records, hosts):
        data = config(augment="blip")
        shares = interleaved(4, hosts)
        parts = [take(records, 3, data=data, rows=rows) for rows in shares]
        assert_equal(take(records, 3, data=data), joined(parts, shares))

    def test_resume_at_any_step(self, records):
        data = config(augment="blip")
        whole = take(records, 8, data=data)
        assert_equal(whole[5:], take(records, 3, data=data, start_step=5))

    @pytest.mark.parametrize("change", [{"threads": 3}, {"workers": 1}])
    def test_threads_and_workers_change_nothing(self, records, change):
        data = {"augment": "blip"}
        assert_equal(
            take(records, 4, data=config(**data)), take(records, 4, data=config(**data, **change))
        )

    def test_blip_text(self, records):
        """The rule's marks are gone; the question mark is none of them."""
        (batch,) = take(records, 1, data=config(preprocess="blip", max_words=1))
        assert batch["question"][:, :3].tolist() == [[CLS, TOKENS.index("what"), SEP]] * 4

    def test_several_splits(self, root):
        both = open_records(root, "train,more")
        batches = take(both, 1, batch=TOTAL + 1)
        numbers = sorted(number_of(row) for row in batches[0]["question"])
        assert numbers == [*range(TOTAL), 19]
        place = [number_of(row) for row in batches[0]["question"]].index(19)
        assert batches[0]["item"][place] == len(COUNTS)


class TestRefusals:
    def test_no_answer_to_train_on(self, root):
        with pytest.raises(UserError, match=r"index-test\.jsonl: question 't#0' about 't' \('what"):
            take(open_records(root, "test"), 1, batch=1)

    def test_no_questions(self, records):
        captions = records.subset([1])
        with pytest.raises(UserError, match="split 'train' has no questions"):
            take(captions, 1)
        with pytest.raises(UserError, match="split 'train' has no answers"):
            training_answers(captions)

    def test_batch_larger_than_the_set(self, records):
        with pytest.raises(UserError, match=r"10 samples .* global batch of 11"):
            take(records, 1, batch=11)


def test_training_answers_are_ordered_by_frequency(records, root):
    assert training_answers(records) == ["no", "yes"]  # 10 and 10 times; "no" was first
    assert training_answers(open_records(root, "more")) == ["yes", "no"]


def test_a_question_is_checked_when_read(root, tmp_path):
    """Records of versions that stored whatever a manifest's `qa` held: named where it is used."""
    media.write_picture(tmp_path / "p.png")
    line = {"id": "k", "path": "p.png", "qa": [{"question": "q", "answers": ["told"]}]}
    manifest = media.write_manifest(tmp_path / "manifest.jsonl", [line])
    prepare(media.settings(), str(manifest), str(tmp_path / "out"))
    index = next((tmp_path / "out").glob("index-*"))
    index.write_text(index.read_text().replace('["told"]', "[1]"))
    small_run.drop_digests(tmp_path / "out")
    bad = open_records(str(tmp_path / "out"), "train")
    assert json.loads(json.dumps(bad.question_counts)) == [1]
    with pytest.raises(UserError, match="qa of k: record 0: 'answers' should be"):
        take(bad, 1, batch=1)
