"""What would stop a run hours later is told when it is built, by field and with a way out."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil

import pytest
import small_run

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.tokenizers.clip import PAD_ID
from uniadapter_jax.runs import preflight
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.report import few_to_choose_by, validation_of
from uniadapter_jax.weights.families import check_tokenizer


def config_of(small, task, **changes):
    method = "projection" if task == "retrieval" else "uniadapter"
    config = runpy.run_path(str(small.config))["get_config"](f"method={method},task={task}")
    config.mesh.data = 8  # of the devices that tests have
    config.update_from_flattened_dict(changes)
    return config


def records_with(small, name, edit, split="test"):
    """The records, with every line of a split's index edited."""
    place = small.root / name
    shutil.copytree(small.records, place)
    index = place / f"index-{split}.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        edit(line)
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    small_run.drop_digests(place)
    return str(place)


def without(*names):
    """Questions that lack these fields."""

    def edit(line):
        for question in line["qa"]:
            for name in names:
                question.pop(name, None)

    return edit


@pytest.mark.parametrize(
    ("task", "changes", "report"),
    [
        ("vqa", {"task.metric": "vqa"}, r"config\.task\.metric='vqa' does not fit config\.data\."
         r"test_split='test': question .* has 1 answers.*config\.task\.metric='exact'"),
        ("retrieval", {"data.words": 17}, r"config\.data\.words=17: .* at most 16"),
        ("vqa", {"data.words": 17}, r"config\.data\.words=17: .* at most 16"),
        ("vqa", {"data.answer_words": 17}, r"config\.data\.answer_words=17: .* at most 16"),
        ("vqa", {"data.preprocess": "blip", "data.max_words": 17}, r"config\.data\.max_words=17"),
        ("retrieval", {"train.batch_size": 64}, r"config\.train\.batch_size=64: .*smaller"),
        ("retrieval", {"data.val": 26, "selection": "val"}, r"config\.data\.val=26: .*at most 25"),
        ("retrieval", {"data.test_split": "exam"}, r"config\.data\.test_split='exam': .*it has"),
        ("retrieval", {"data.train_split": "exam"}, r"config\.data\.train_split='exam': .*it has"),
        ("retrieval", {"train.steps": 0, "train.epochs": 2**31 - 1}, r"config\.train\.epochs="),
        ("retrieval", {"data.val_split": "exam"}, r"config\.data\.val_split='exam': .*it has"),
        ("retrieval", {"data.val_split": "test"}, r"'test' is in config\.data\.test_split, too"),
        ("retrieval", {"data.val_split": "x", "data.val": 3}, r"set one of both"),
    ],
)  # fmt: skip
def test_settings_that_cannot_end_well(small, task, changes, report):
    with pytest.raises(UserError, match=report):
        build(config_of(small, task, **changes))


def test_tokens_of_a_method_need_positions(small):
    """The small backbone has 16: with 8 tokens of the method, texts of 9 do not fit."""
    config = base_config("coop")
    config.update_from_flattened_dict(
        {
            **{"backbone": f"random:{small.backbone}", "data.records": str(small.records)},
            **{"method.tokens": 8, "data.words": 9, "train.batch_size": 8, "mesh.data": 8},
        }
    )
    with pytest.raises(UserError, match=r"data\.words=9: .* method 'coop' takes 8 .* at most 8"):
        build(config)
    config.data.words = 8
    assert build(config).partition.counts()["trained"]


def test_a_validation_split_of_its_own(small):
    """It selects, its fingerprint is in the identity, and what nothing reads is told."""
    changes = {"data.train_split": "test"}
    plain = build(config_of(small, "retrieval", **changes))
    assert (plain.config.selection, plain.data.val, plain.data.unused) == ("last", None, ("train",))
    chosen = build(config_of(small, "retrieval", **changes, **{"data.val_split": "train"}))
    assert (chosen.config.selection, chosen.data.val.split) == ("val", "train")
    assert chosen.identity["data.validation"] == chosen.data.val.fingerprint
    assert chosen.data.unused == () and validation_of(chosen.config) == "train"


def test_answers_that_are_withheld(small):
    """They may be predicted, but nothing is chosen by them, and nothing is trained on them."""
    records = records_with(small, "withheld", without("answers", "answer"))
    changes = {"data.records": records}
    assert build(config_of(small, "vqa", **changes)).data.test.unanswered_counts[0] == 1
    with pytest.raises(UserError, match=r"config\.selection='test': the answers of .* withheld"):
        build(config_of(small, "vqa", **changes, selection="test"))
    with pytest.raises(UserError, match=r"config\.data\.train_split='test'.*no answer to train on"):
        build(config_of(small, "vqa", **changes, **{"data.train_split": "test"}))


def test_a_question_without_its_one_answer(small):
    def edit(line):
        if line["id"] == "clip30":
            without("answers", "answer")(line)

    records = records_with(small, "one-withheld", edit)
    with pytest.raises(UserError, match=r"metric='exact' does not fit .* has 0 answers"):
        build(config_of(small, "vqa", **{"data.records": records}))


def test_validation_questions_must_fit_the_metric(small):
    """Test has ten answers each; the part that chooses, one."""

    def edit(line):
        for question in line["qa"]:
            answer = question.pop("answers", None) or [question.pop("answer", "yes")]
            question["answers"] = answer * 10

    changes = {"data.records": records_with(small, "ten", edit), "task.metric": "vqa"}
    build(config_of(small, "vqa", **changes))
    changes |= {"data.val": 3, "selection": "val"}
    with pytest.raises(UserError, match=r"metric='vqa' does not fit config\.data\.val=3"):
        build(config_of(small, "vqa", **changes))


def test_a_question_that_stands_there_twice(small):
    def edit(line):
        for question in line["qa"]:
            question["question_id"] = 7

    with pytest.raises(UserError, match=r"test_split='test': question 7 stands there twice"):
        build(config_of(small, "vqa", **{"data.records": records_with(small, "twice", edit)}))


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_that_are_not_there(small, split):
    records = records_with(small, f"mute-{split}", lambda line: line.update(captions=[]), split)
    report = rf"config\.data\.{split}_split='{split}': .*caption.*config\.task\.name='vqa'"
    with pytest.raises(UserError, match=report):
        build(config_of(small, "retrieval", **{"data.records": records}))


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_that_are_not_there(small, split):
    records = records_with(small, f"unasked-{split}", lambda line: line.update(qa=[]), split)
    report = rf"config\.data\.{split}_split='{split}': no questions .*config\.task\.name="
    with pytest.raises(UserError, match=report):
        build(config_of(small, "vqa", **{"data.records": records}))


def test_padding_is_the_backbones(small):
    """Texts would be read as padding, and padding as text."""
    model = build(config_of(small, "vqa"))
    config = dataclasses.replace(model.model_config, pad_id=PAD_ID + 5)
    with pytest.raises(UserError, match=r"\[PAD\] is 0 in here, but 5 in the config of there"):
        check_tokenizer(model.tokenizer, config, "here", "there")


def test_steps_are_counted_in_int32(small):
    config = config_of(small, "retrieval")
    preflight.check_steps(config, 2**31 - 1)
    with pytest.raises(UserError, match=r"config\.train\.epochs="):
        preflight.check_steps(config, 2**31)


def test_a_validation_split_of_a_few_is_told():
    assert few_to_choose_by(30) == []
    (line,) = few_to_choose_by(3)
    assert "each of its 3 clips or questions is 33.3 points" in line and "'last'" in line
