"""Added tokens: a tokenizer's files add them to its vocabulary, and each is always one id.

The files and their order of precedence are those of transformers: `added_tokens_decoder` in
tokenizer_config.json, `added_tokens` in tokenizer.json, added_tokens.json, and the tokens that
special_tokens_map.json and tokenizer_config.json give a role. A token that has a role and no id in
any file gets the next free id, as in transformers.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uniadapter_jax.common.files import FileError, read_json

JSON_BYTES = 6 * 2**20  # bytes of a file; CLIP's largest has 4 MB, parsing takes 20 times that
_FURTHER = "additional_special_tokens"  # transformers 5 does not call these special by role
_LISTS = ("extra_special_tokens", _FURTHER)
_NAMED = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """One added token, with the flags of the library `tokenizers`.

    Attributes:
      special: decoding leaves it out.
      normalized: it is cleaned and then looked for in the cleaned text; else in the raw text.
      lstrip, rstrip: it takes the blanks on that side with it.
      single_word: it matches only where no letter or digit touches it.
    """

    content: str
    id: int
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """Reads a tokenizer's file; raises `FileError` unless it holds a JSON object."""
    content: dict[str, Any] = read_json(path, dict, limit=JSON_BYTES)
    return content


def read_added_tokens(
    root: Path,
    vocab: Mapping[str, int],
    special: Iterable[str] = (),
    known_roles: Iterable[str] = (),
) -> tuple[AddedToken, ...]:
    """The added tokens of a directory, sorted by id; `vocab` is its model's vocabulary.

    added_tokens.json has only ids; its tokens are special if they have a role or are in `special`.

    Raises:
      FileError: an entry is malformed, a token has two ids, or a token with a role of `known_roles`
        has none.
    """
    added: dict[str, AddedToken] = {}
    for path, token in _entries(root, vocab, frozenset(special), frozenset(known_roles)):
        first = added.setdefault(token.content, token)
        expected = vocab.get(token.content, first.id)
        if token.id != expected:
            raise FileError(path, f"token {token.content!r} has the id {token.id}, not {expected}")
    return tuple(sorted(added.values(), key=lambda token: token.id))


def _entries(
    root: Path, vocab: Mapping[str, int], special: frozenset[str], known_roles: frozenset[str]
) -> Iterator[tuple[Path, AddedToken]]:
    """(file, token) of every entry, in order of precedence."""
    files = {
        name: read_tokenizer_json(path)
        for name in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
        if (path := root / name).is_file()
    }
    roles = list(_roles(root))
    special |= {content for content, _, _, role in roles if role != _FURTHER}
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
    for content, path, entry, role in roles:
        if content not in ids and role in known_roles:
            raise FileError(path, f"{role} {content!r} is not in the vocabulary")
        entry = entry if isinstance(entry, dict) else {"content": content, "normalized": False}
        number = ids.setdefault(content, max(ids.values(), default=-1) + 1)
        yield path, _token({**entry, "special": True}, number, path)


def _roles(root: Path) -> Iterator[tuple[str, Path, Any, str]]:
    """(token, file, its entry, role) of every token with a role, each once.

    For a role special_tokens_map.json takes precedence over tokenizer_config.json, but it is
    ignored where the latter has `added_tokens_decoder`.
    """
    seen: set[str] = set()
    files = [root / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    contents = {path: read_tokenizer_json(path) for path in files if path.is_file()}
    if "added_tokens_decoder" in contents.get(files[1], {}):
        contents.pop(files[0], None)
    others = [name for content in contents.values() for name in content if _names_a_token(name)]
    for role in dict.fromkeys([*_NAMED, *others, *_LISTS]):
        for path, content in contents.items():
            values = content.get(role)
            if isinstance(values, dict) and "content" not in values:  # {role: token}
                values = list(values.values())
            values = values if isinstance(values, list) else [values]
            for entry in values:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token and token not in seen:
                    seen.add(token)
                    yield token, path, entry, role
            if role not in _LISTS and values != [None]:
                break


def _names_a_token(name: str) -> bool:
    """Whether a field holds a token, as image_token does, rather than a flag."""
    return name.endswith("_token") and not name.startswith("add_")


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
        # Among tokens with the same text a special one wins, then the one with the lower id.
        tokens = sorted(added, key=lambda t: (t.special, -t.id))
        self._clean = clean
        self._raw = _Finder({t.content: t for t in tokens if not t.normalized})
        self._cleaned = _Finder({clean(t.content): t for t in tokens if t.normalized})

    def __call__(self, text: str) -> Iterator[str | int]:
        """Cleaned text and ids of added tokens, in order."""
        for piece in self._raw(text):
            if isinstance(piece, int):
                yield piece
            else:
                yield from self._cleaned(self._clean(piece))


def _is_of_word(letter: str) -> bool:
    """Whether the library `tokenizers` counts it as part of a word, as marks but not fractions."""
    kind = unicodedata.category(letter)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or letter in "\u200c\u200d"


class _Finder:
    """Finds tokens in a text: the leftmost first, and of several there the longest."""

    def __init__(self, tokens: Mapping[str, AddedToken]):
        self._tokens = {content: token for content, token in tokens.items() if content}
        longest = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest))) if longest else None

    def __call__(self, text: str) -> Iterator[str | int]:
        place = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[match[0]]
            beside = text[: match.start()][-1:] + text[match.end() :][:1]
            if token.single_word and any(map(_is_of_word, beside)):
                continue
            yield text[place : match.start()]
            yield token.id
            place = match.end()
        yield text[place:]
