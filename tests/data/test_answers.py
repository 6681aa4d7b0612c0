"""Answers as the decoder reads them."""

import json

import numpy as np
import pytest
from absl import logging

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.answers import (
    check_answers,
    encode_answers,
    read_answer_list,
    training_targets,
)
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.data.tokenizers.wordpiece import WordPieceTokenizer

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "red", "cat"]
PAD, SEP, YES, NO, A, RED, CAT = 0, 3, 5, 6, 7, 8, 9
DEC = len(TOKENS)


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})


class TestAnswerList:
    def read(self, tmp_path, content):
        path = tmp_path / "answer_list.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_answer_list(str(path))

    def test_order_is_kept(self, tmp_path):
        assert self.read(tmp_path, ["yes", "a cat ", "no"]) == ["yes", "a cat", "no"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (["yes", " ", "no", "yes", 3], "entry 1 is empty\n  entry 3 repeats entry 0: 'yes'\n  "
             "entry 4 is no string: 3"),
            ([""] * 14, "entry 9 is empty\n  and 4 more"),
            ([], "expected a list of strings"),
            ({"yes": 0}, "expected a list of strings"),
            ("[", "not readable as JSON"),
        ],
    )  # fmt: skip
    def test_defects_are_named(self, tmp_path, content, message):
        with pytest.raises(UserError, match=message):
            self.read(tmp_path, content)

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match=r"config\.task\.answers=.*none\.json"):
            read_answer_list(str(tmp_path / "none.json"))


class TestCheckAnswers:
    def test_tokens(self, tokenizer):
        ids = check_answers(tokenizer, ["yes", "a red cat"], 5)
        assert ids.dtype == np.int32
        assert ids.tolist() == [[DEC, YES, SEP, PAD, PAD], [DEC, A, RED, CAT, SEP]]

    def test_too_long_names_the_entry(self, tokenizer):
        with pytest.raises(UserError, match=r"1 of 2 .*answer_words=4 .*\n  'a red cat' is"):
            check_answers(tokenizer, ["yes", "a red cat"], 4)

    def test_no_token(self, tokenizer):
        with pytest.raises(UserError, match="answers without a token"):
            check_answers(tokenizer, ["yes", "\u200b"], 4)


def test_what_is_cut_still_ends(tokenizer):
    ids, long = encode_answers(tokenizer, ["a red cat", "a red"], 4)
    assert long.tolist() == [True, False]
    assert ids.tolist() == [[DEC, A, RED, SEP], [DEC, A, RED, SEP]]


class TestTrainingTargets:
    def test_weights_and_padding(self, tokenizer):
        questions = [
            Question(1, "q", ("no", "yes", "yes", "")),
            Question(2, "q", ("cat",), weight=0.2),
        ]
        ids, weights = training_targets(tokenizer, questions, 3, 4)
        assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
        np.testing.assert_allclose(weights, [[0.5, 0.25, 0], [0.2, 0, 0]])
        assert ids.tolist() == [
            [[DEC, YES, SEP, PAD], [DEC, NO, SEP, PAD], [PAD] * 4],
            [[DEC, CAT, SEP, PAD], [PAD] * 4, [PAD] * 4],
        ]

    def test_the_heaviest_stay_and_ties_go_to_the_first(self, tokenizer):
        question = Question(1, "q", ("no", "red", "yes", "cat", "yes"))
        ids, weights = training_targets(tokenizer, [question], 2, 3)
        assert ids[0, :, 1].tolist() == [YES, NO]
        np.testing.assert_allclose(weights, [[0.4, 0.2]])

    def test_a_long_answer_is_cut_with_a_warning(self, tokenizer, monkeypatch):
        warned = []
        monkeypatch.setattr(logging, "log_first_n", lambda *args: warned.append(args))
        ids, _ = training_targets(tokenizer, [Question(1, "q", ("a red cat",))], 1, 4)
        assert ids.tolist() == [[[DEC, A, RED, SEP]]]
        assert warned[0][3:] == ("a red cat", 4)
