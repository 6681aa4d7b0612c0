"""Numbers and names as the report prints them; every name and message is taken as hostile.

The characters that could harm a page, a table or a spreadsheet come from configs, file names and
error messages, which others may have written.
"""

from __future__ import annotations

import re
import unicodedata

NOTHING = "\N{EN DASH}"  # of a number that is not there
MINUS = "\N{MINUS SIGN}"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")
_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """The text on one line, with control, direction and unpaired characters written out."""
    return "".join(
        " "
        if character in "\n\t"
        else f"\\u{ord(character):04x}"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
        for character in text
    )


def markdown(text: str) -> str:
    """The text for a cell or a sentence of Markdown, without any meaning to it."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def code_block(lines: list[str]) -> list[str]:
    """A block of code whose fence is longer than any that stands in it."""
    lines = [plain(line) for line in lines]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", *lines, fence]


def csv_text(text: str) -> str:
    """The text for a cell of a spreadsheet, which must not take it for a formula."""
    text = plain(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NOTHING if value is None else f"{round(value):,}"


def sized(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: 12.3 k, 4.56 G; bytes and FLOPs alike count by 1000."""
    if value is None:
        return NOTHING
    if value == 0:
        return f"0 {unit}".rstrip()
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Three digits and the unit that suits: 12.3 ms, 4.56 s, 7.8 min."""
    if seconds is None:
        return NOTHING
    if seconds and abs(seconds) < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if abs(seconds) < 600 else f"{seconds / 60:.3g} min"


def quality(value: float | None, sd: float | None = None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.1f}" if sd is None else f"{value:.1f} ± {sd:.1f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """With a sign, unless it rounds to 0."""
    text = f"{value:+.1f}".replace("-", MINUS)
    return "0.0" if text in ("+0.0", f"{MINUS}0.0") else text


def interval(difference: float, low: float, high: float) -> str:
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"
