"""BLIP's text rules on strings worked by hand."""

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.caption_text import TextRule, pre_caption, pre_question


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("A woman eating fresh vegetables from a bowl.", 30, None),
        ('He said: "Stop!" (twice); #1 ~ *now*', 30, "he said stop twice 1 now"),
        ("Wait... what, it's a well-known TV/radio?", 30, "wait what, it's a well-known tv/radio?"),
        ("  two  blanks\tand\n\nlines\n", 30, "two blanks\tand lines"),
        ("one two three four", 3, "one two three"),
        ("one two three", 3, "one two three"),
        ("one two three four", 0, "one two three four"),
        ("...", 5, ""),
    ],
)
def test_captions(text, words, expected):
    expected = "a woman eating fresh vegetables from a bowl" if expected is None else expected
    assert pre_caption(text, words) == expected


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Where is he looking?", 50, "where is he looking?"),
        ('Is it 3:30 p.m. or "late"?', 50, "is it 330 pm or late?"),  # marks leave no blank
        (" What (exactly)  is this? ", 50, " what exactly  is this?"),  # the start stays
        ("a b c d", 2, "a b"),
        ("a b c d", 0, "a b c d"),
    ],
)
def test_questions(text, words, expected):
    assert pre_question(text, words) == expected


def test_rules_by_name():
    texts = ["A. B c d"]
    assert TextRule().captions(texts) == TextRule().questions(texts) == texts
    assert TextRule("blip", 2).captions(texts) == ["a b"]
    assert TextRule("blip", 2).questions(["A. B c d"]) == ["a b"]
    with pytest.raises(UserError, match=r"data\.preprocess='clip' is not one of none, blip"):
        TextRule("clip")
    with pytest.raises(UserError, match=r"config\.data\.max_words=-1"):
        TextRule("blip", -1)
