"""Tokens that a tokenizer's files add to its vocabulary: in a text each is one id, never pieces.

The files and their order of precedence are those of transformers: `added_tokens_decoder` in
tokenizer_config.json, `added_tokens` in tokenizer.json, added_tokens.json, and the tokens that
special_tokens_map.json and tokenizer_config.json give a role.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uniadapter_jax.common.files import FileError, read_json

JSON_BYTES = 6 * 2**20  # of a tokenizer's file; CLIP's largest has 4 MB, parsing takes 20 times it
_FURTHER = "additional_special_tokens"  # transformers 5 does not call these special by role
_ROLES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("extra_special_tokens", _FURTHER),
)
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """One token, as the library `tokenizers` means it.

    Attributes:
      special: decoding leaves it out.
      normalized: it is looked for in the cleaned text, cleaned like it; else in the text as given.
      lstrip, rstrip: it takes the blanks on that side with it.
      single_word: it counts only where no letter or digit touches it.
    """

    content: str
    id: int
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """A JSON object of a tokenizer's directory; raises `FileError` if it is none."""
    content: dict[str, Any] = read_json(path, dict, limit=JSON_BYTES)
    return content


def read_added_tokens(
    root: Path, vocab: Mapping[str, int], special: Iterable[str] = ()
) -> tuple[AddedToken, ...]:
    """The added tokens of a directory by id; `vocab` is that of its model.

    added_tokens.json has ids alone; what it lists is special if it has a role or is in `special`.

    Raises:
      FileError: an entry of the wrong form, or a token with two ids.
    """
    added: dict[str, AddedToken] = {}
    for path, token in _entries(root, vocab, frozenset(special)):
        first = added.setdefault(token.content, token)
        expected = vocab.get(token.content, first.id)
        if token.id != expected:
            raise FileError(path, f"token {token.content!r} has the id {token.id}, not {expected}")
    return tuple(sorted(added.values(), key=lambda token: token.id))


def _entries(
    root: Path, vocab: Mapping[str, int], special: frozenset[str]
) -> Iterator[tuple[Path, AddedToken]]:
    """(file, token), the file that decides first."""
    files = {
        name: read_tokenizer_json(path)
        for name in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
        if (path := root / name).is_file()
    }
    roles = {content: (path, entry) for content, path, entry, _ in _roles(root)}
    special |= {content for content, _, _, role in _roles(root) if role != _FURTHER}
    ids = dict(vocab)
    path = root / "tokenizer_config.json"
    decoder = _typed(files.get(path.name, {}).get("added_tokens_decoder"), dict, path, {})
    for key, entry in decoder.items():
        number = int(key) if re.fullmatch("[0-9]{1,10}", key) else key
        yield path, (token := _token(_typed(entry, dict, path), number, path))
        ids.setdefault(token.content, token.id)
    path = root / "tokenizer.json"
    for entry in _typed(files.get(path.name, {}).get("added_tokens"), list, path, []):
        entry = _typed(entry, dict, path)
        yield path, (token := _token(entry, entry.get("id"), path))
        ids.setdefault(token.content, token.id)
    path = root / "added_tokens.json"
    for content, number in files.get(path.name, {}).items():
        entry = {"content": content, "special": content in special}
        yield path, (token := _token(entry, number, path))
        ids.setdefault(token.content, token.id)
    for content, (path, entry) in roles.items():
        if content in ids:
            entry = entry if isinstance(entry, dict) else {"content": content, "normalized": False}
            yield path, _token({**entry, "special": True}, ids[content], path)


def _roles(root: Path) -> Iterator[tuple[str, Path, Any, str]]:
    """(token, file, its entry, role) of every token with a role, the first entry of each."""
    seen: set[str] = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = root / name
        content = read_tokenizer_json(path) if path.is_file() else {}
        for role in _ROLES:
            value = content.get(role)
            for entry in value if isinstance(value, list) else [value]:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token not in seen:
                    seen.add(token)
                    yield token, path, entry, role


def _typed(value: Any, kind: type, path: Path, default: Any = None) -> Any:
    if value is None and default is not None:
        return default
    if not isinstance(value, kind):
        raise FileError(path, f"added tokens: {str(value)[:80]!r} is no {kind.__name__}")
    return value


def _token(entry: Mapping[str, Any], number: Any, path: Path) -> AddedToken:
    content = entry.get("content")
    if not isinstance(content, str):
        raise FileError(path, f"added tokens: 'content' should be a string, is {content!r}")
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise FileError(path, f"added token {content!r}: {number!r} is no id")
    flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
    return AddedToken(content, number, **{"normalized": not flags.get("special", False), **flags})


class Splitter:
    """Cuts texts at added tokens, for a tokenizer that cleans text in Python."""

    def __init__(self, added: Iterable[AddedToken], clean: Callable[[str], str]):
        tokens = list(added)
        self._clean = clean
        self._raw = _Finder({t.content: t for t in tokens if not t.normalized})
        self._cleaned = _Finder({clean(t.content): t for t in tokens if t.normalized})

    def __call__(self, text: str) -> Iterator[str | int]:
        """Cleaned text and ids of added tokens, in order."""
        for part in self._raw(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._cleaned(self._clean(part))


class _Finder:
    """Finds tokens in a text: the leftmost, of these the longest."""

    def __init__(self, tokens: Mapping[str, AddedToken]):
        self._tokens = {content: token for content, token in tokens.items() if content}
        longest = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest))) if longest else None

    def __call__(self, text: str) -> Iterator[str | int]:
        place = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[match[0]]
            left, right = text[: match.start()], text[match.end() :]
            if token.single_word and (re.search(r"\w\Z", left) or re.match(r"\w", right)):
                continue
            yield text[place : match.start()]
            yield token.id
            place = match.end()
        yield text[place:]
