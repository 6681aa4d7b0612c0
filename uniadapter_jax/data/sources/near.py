"""Finds similar file names, which errors and reports show as a hint.

A similar name is only shown, never used: files may differ by Unicode, case or blanks alone.
"""

from __future__ import annotations

import functools
import os
import unicodedata
import urllib.parse
from collections.abc import Iterable

KEPT_LISTINGS = 8  # directories whose listings are cached


def folded(name: str) -> str:
    """The name without case, blanks, underscores, percent signs and forms of Unicode."""
    text = unicodedata.normalize("NFKC", urllib.parse.unquote(name)).casefold()
    text = unicodedata.normalize("NFKC", text)
    kept = (c for c in text if not c.isspace() and c != "_" and unicodedata.category(c) != "Cf")
    return "".join(kept)


def told(name: str, others: Iterable[str]) -> str:
    """Says which paths are there instead of `name`; '' where there are none."""
    words = [f"{other!r}{_difference(name, other)}" for other in others]
    if not words:
        return ""
    shown = " and ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
    return f"there {'is' if len(words) == 1 else 'are'} {shown}"


def _difference(name: str, other: str) -> str:
    if os.path.basename(name) != os.path.basename(other):  # then the folders do not matter
        name, other = os.path.basename(name), os.path.basename(other)
    forms = [unicodedata.normalize("NFC", text) for text in (name, other)]
    if forms[0] == forms[1]:
        return " (in another form of Unicode, NFC or NFD)"
    if forms[0].casefold() == forms[1].casefold():
        return " (in other case)"
    if folded(name) == folded(other):
        return " (with other blanks or signs)"
    return ""


def beside(root: str, path: str) -> str:
    """Says which similar files exist instead of `root` / `path`; '' if there are none."""
    place, shown = (root, "") if not os.path.isabs(path) else (os.sep, os.sep)
    *folders, name = filter(None, os.path.normpath(path).split(os.sep))
    for folder in folders:
        if not os.path.isdir(os.path.join(place, folder)):
            near = [n for n in _listing(place).get(folded(folder), ()) if n != folder]
            if len(near) != 1:
                return ""
            folder = near[0]
        place, shown = os.path.join(place, folder), os.path.join(shown, folder)
    listing = _listing(place)
    near = list(listing.get(folded(name), ()))
    if not near:  # with another suffix
        near = [n for names in listing.values() for n in names if stem(n) == stem(name)]
    others = [os.path.join(shown, n) for n in near]
    return told(path, [other for other in others if other != os.path.normpath(path)])


def stem(name: str) -> str:
    """The folded name without its suffix."""
    return folded(os.path.splitext(name)[0])


@functools.lru_cache(KEPT_LISTINGS)
def _listing(directory: str) -> dict[str, list[str]]:
    """{folded name: names} of the files in a directory."""
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(directory)):
            names.setdefault(folded(name), []).append(name)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        pass
    return names
