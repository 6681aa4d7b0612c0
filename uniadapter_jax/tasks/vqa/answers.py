"""The string rules of the VQA server: which answers count as the same.

Written from the rules published at visualqa.org/evaluation and the behaviour of the released
evaluator, whose slips are kept where they change a score: numbers are compared with other papers'.
"""

from __future__ import annotations

import functools
import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {"none": "0"} | {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# Each is restored where exactly one of its apostrophes is missing. No entry begins with "i'": the
# server's are spelled with a capital I and never meet a word in lower case.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = {
    full[:i] + full[i + 1 :]: full
    for full in _CONTRACTED.split()
    for i, letter in enumerate(full)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round, as on the server

# No period before a digit is one to drop: ".5" and "3.5" keep theirs, "3." and "u.s." do not.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DROPPED = 32  # the released code hands a regular-expression flag to the count of `sub`
_DIGIT_COMMA = re.compile(r"\d,\d")


def strip_answer(text: str) -> str:
    """An answer with line breaks and tabs as blanks, and bare ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=2**16)
def normalize_answer(text: str) -> str:
    """The form in which a prediction and references that differ among themselves are compared.

    Punctuation, then lower case, number words, articles, contractions, one blank between words.
    """
    text = strip_answer(text)
    bare = _PERIOD.sub("", _without_punctuation(text), count=_PERIODS_DROPPED)
    words = (NUMBERS.get(word, word) for word in bare.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark goes if it touches a blank anywhere in the text, else every such mark is a blank.

    With a comma between digits anywhere, all marks go: "1,000" is "1000".
    """
    thousands = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        gone = thousands or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if gone else " ")
    return result
