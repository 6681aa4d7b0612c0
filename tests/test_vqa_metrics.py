"""VQA accuracy against cases worked out by hand from the server's published rules."""

import json

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.tasks.vqa.answers import CONTRACTIONS, normalize_answer
from uniadapter_jax.tasks.vqa.metrics import (
    answer_accuracy,
    exact_match_accuracy,
    vqa_accuracy,
    write_results,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes", "yes"),
        (" red\tand \n blue ", "red and blue"),
        # Number words and articles, whole words only.
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The cat on an oak", "cat on oak"),
        ("a", ""),
        ("another theater", "another theater"),
        # A mark that touches no blank becomes one; else all of its kind go.
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("yes, it is", "yes it is"),
        ("x-y z- w", "xy z w"),
        ("x-y -z", "xy z"),
        ("x-\ty-z", "x yz"),
        ("x/-y z-w", "x y z w"),  # blanks of the text count, not those that a mark became
        ("a-b, c", "b c"),  # "a-b" becomes "a b", and a is an article
        ("what?", "what"),
        ("(left)", "left"),
        ("$5 & up", "$5 & up"),  # not among the marks
        # A comma between digits: every mark of every kind goes.
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("1, 000", "1 000"),
        # A period stays before a digit, also where no digit is ahead of it.
        ("3.5", "3.5"),
        (".5", ".5"),
        ("a.5", "a.5"),
        ("3.", "3"),
        ("u.s.", "us"),
        ("." * 40, "." * 8),  # the 33rd to 40th
        # Apostrophes are restored word by word, after the case is gone.
        ("dont", "don't"),
        ("DONT know", "don't know"),
        ("dont.", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("Im", "im"),  # the table's keys with a capital I never match
        ("I've", "i've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("ow's'at", "'ow's'at"),
        ("its", "its"),
        ("cant-do", "can't do"),  # punctuation comes first
        ("", ""),
    ],
)
def test_normal_form(text, wanted):
    assert normalize_answer(text) == wanted


def test_contractions_are_complete():
    # The released table has 120 entries: these, two that map to themselves, four with a capital I.
    assert len(CONTRACTIONS) == 114
    assert all(word == word.lower() for word in CONTRACTIONS)


@pytest.mark.parametrize(
    ("agreeing", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)]
)
def test_accuracy_by_number_of_agreeing_annotators(agreeing, wanted):
    references = ["cat"] * agreeing + ["dog"] * (9 - agreeing) + ["cow"]
    assert answer_accuracy("cat", references) == pytest.approx(wanted)


def test_references_that_differ_are_normalized():
    references = ["2"] * 2 + ["two"] * 2 + ["Two."] * 1 + ["three"] * 5
    assert answer_accuracy("the 2", references) == 1


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [("Yes I do", 1), (" Yes\tI\ndo\n", 1), ("yes i do", 0), ("Yes I do.", 0), ("Yes, I do", 0)],
)
def test_unanimous_references_are_compared_as_they_are(prediction, wanted):
    assert answer_accuracy(prediction, ["Yes I do"] * 10) == wanted


def test_references_that_differ_in_blanks_at_the_ends_are_unanimous():
    assert answer_accuracy("yes", ["Yes"] * 5 + ["Yes "] * 5) == 0
    assert answer_accuracy("yes", ["Yes"] * 9 + ["Yes."]) == 1


def question(number, answers, question_type="what", answer_type="other"):
    return Question(number, f"question {number}?", tuple(answers), question_type, answer_type)


def test_accuracy_overall_and_by_type():
    questions = [
        question(1, ["cat"] * 10),
        question(2, ["red"] + ["blue"] * 9, "how many", "number"),
        question(3, ["on"] * 2 + ["off"] * 8, "what", "yes/no"),
    ]
    found = vqa_accuracy({3: "on", 2: "red", 1: "cat"}, questions)
    # 1, .3 and .6: means of 63.333 and 80.
    assert found == {
        "overall": 63.33,
        "per_question_type": {"how many": 30.0, "what": 80.0},
        "per_answer_type": {"number": 30.0, "other": 100.0, "yes/no": 60.0},
    }


def test_questions_without_a_type_are_in_no_group():
    found = vqa_accuracy({1: "cat"}, [question(1, ["cat"] * 10, "", "")])
    assert found == {"overall": 100.0, "per_question_type": {}, "per_answer_type": {}}


def test_exact_match_normalizes_nothing():
    questions = [
        question(1, ["dog"], "what"),
        question(2, ["two"], "how"),
        question(3, ["man"], "who"),
        question(4, ["guitar"], "what"),
    ]
    found = exact_match_accuracy({1: "dog", 2: "2", 3: "Man", 4: "piano"}, questions)
    assert found["overall"] == 25.0
    assert found["per_question_type"] == {"how": 0.0, "what": 50.0, "who": 0.0}


@pytest.mark.parametrize("accuracy", [vqa_accuracy, exact_match_accuracy])
def test_predictions_and_questions_must_be_the_same(accuracy):
    questions = [question(1, ["x"] * 10), question(2, ["x"] * 10)]
    with pytest.raises(UserError, match="1 questions have no prediction, such as 2"):
        accuracy({1: "x"}, questions)
    with pytest.raises(UserError, match=r"1 predictions answer no question .* such as 7"):
        accuracy({1: "x", 2: "x", 7: "x"}, questions)
    with pytest.raises(UserError, match="no questions"):
        accuracy({}, [])


def test_number_of_references():
    with pytest.raises(UserError, match="question 1 has 3 answers; VQA accuracy needs"):
        vqa_accuracy({1: "x"}, [question(1, ["x"] * 3)])
    with pytest.raises(UserError, match="question 1 has 2 answers; exact match needs one"):
        exact_match_accuracy({1: "x"}, [question(1, ["x"] * 2)])


def test_result_file_of_the_server(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, {1: "é", 5: "yes"}, [question(5, []), question(1, [])])
    wanted = [{"question_id": 5, "answer": "yes"}, {"question_id": 1, "answer": "é"}]
    assert json.loads(path.read_text()) == wanted
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_result_file_needs_every_question_and_numbers(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="no prediction, such as 5"):
        write_results(path, {}, [question(5, [])])
    with pytest.raises(UserError, match=r"results\.json: .*by number, not by 'q5'"):
        write_results(path, {"q5": "x"}, [question("q5", [])])
    assert not path.exists()
