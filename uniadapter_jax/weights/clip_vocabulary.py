"""OpenAI's list of merges, read out of the package instant-clip-tokenizer.

The package has the table but offers only encoding and decoding. Decoding an id gives its bytes,
unless they end within a character; those few hundred tokens are found by encoding texts in which
all other tokens are known. Applying the earlier merges to a token's bytes then leaves the two
pieces that its own merge joins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import WORD_END, byte_letters

_BYTES = 2 * 256  # ids of single bytes, inside a word and at its end
_BROKEN = "\ufffd"  # decoding shows it for bytes that are no complete character
_BESIDE = (  # ranges of characters that share a token with part of another: scripts, emoji
    *((0x400, 0x500), (0x600, 0x700), (0xE00, 0xE80), (0x2000, 0x2C00), (0x3000, 0x3100)),
    *((0xAC00, 0xD7A4), (0x1F000, 0x1FB00)),
)
_LAST_SCANNED = 0x30000
_NEAR = 96  # code points of a script like kana
_VARIATION = "\ufe0f"


def read_merges() -> list[tuple[str, str]] | None:
    """The merges by rank, or None where the package is not installed.

    Raises:
      UserError: the table of the installed version cannot be read this way.
    """
    try:
        import instant_clip_tokenizer
    except ImportError:
        return None
    package = instant_clip_tokenizer.Tokenizer()
    end = package.start_of_text()
    tokens = _Tokens(package, end)
    for text in tokens.telling_texts():
        tokens.learn(text)
        if not tokens.unknown:
            return _merges(tokens, end)
    raise UserError(
        f"instant-clip-tokenizer: {len(tokens.unknown)} tokens cannot be told; pass --tokenizer"
    )


class _Tokens:
    """The ids whose bytes are known, with whether they end a word, and the unknown ids."""

    def __init__(self, package: Any, end: int):
        self.encode = package.encode
        order = list(byte_letters())
        self.known = {i: (bytes([order[i % 256]]), i >= 256) for i in range(_BYTES)}
        self.decoded = {i: package.decode([i]) for i in range(_BYTES, end)}
        self.unknown: set[int] = set()
        for i, text in self.decoded.items():
            if _BROKEN in text:
                self.unknown.add(i)
            else:
                self.known[i] = (text.removesuffix(" ").encode(), text.endswith(" "))

    def learn(self, text: str) -> None:
        """Notes the bytes of a text's unknown token, if it has exactly one."""
        ids = self.encode(text)
        new = [i for i in ids if i in self.unknown]
        if len(new) != 1 or text != text.lower() or any(map(str.isspace, text)):
            return
        place, encoded = ids.index(new[0]), text.encode()
        before = b"".join(self.known[i][0] for i in ids[:place])
        after = b"".join(self.known[i][0] for i in ids[place + 1 :])
        rest = len(encoded) - len(before) - len(after)
        if rest > 1 and encoded.startswith(before) and encoded.endswith(after):
            value = encoded[len(before) : len(before) + rest]
            self.known[new[0]] = (value, self.decoded[new[0]].endswith(" "))
            self.unknown.discard(new[0])

    def telling_texts(self) -> Iterator[str]:
        """Texts that may contain unknown tokens, the most productive ones first."""
        scanned = [chr(c) for c in range(0x80, _LAST_SCANNED) if not 0xD800 <= c < 0xE000]
        yield from scanned
        beside = [chr(c) for low, high in _BESIDE for c in range(low, high)]
        for i in sorted(self.unknown):
            core = self.decoded[i].strip(" ").strip(_BROKEN)
            for char in beside if core else ():
                if i not in self.unknown:
                    break
                yield from (char + core, core + char, char + core + _VARIATION, core + char + core)
            if i in self.unknown and core:  # open on both sides, within one script
                middle = ord(core[0])
                near = [chr(c) for c in range(max(1, middle - _NEAR), middle + _NEAR)]
                yield from (before + core + after for before in near for after in near)
        high = {char for text in self.decoded.values() for char in text if ord(char) >= 0x2000}
        symbols = sorted(high - {_BROKEN})
        for char in symbols:
            yield from (char + _VARIATION + other for other in ("\u20e3", "\u2640", "❤", char))
        yield from map("".join, itertools.product(symbols, symbols))
        for char in scanned:
            yield from (char * 2, char * 3)


def _merges(tokens: _Tokens, end: int) -> list[tuple[str, str]]:
    letters = byte_letters()
    ranks: dict[tuple[str, str], int] = {}
    for i in range(_BYTES, end):
        value, ends = tokens.known[i]
        pieces = [letters[byte] for byte in value]
        pieces[-1] += WORD_END if ends else ""
        while len(pieces) > 2:
            rank, place = min(
                (ranks.get(p, end), n) for n, p in enumerate(itertools.pairwise(pieces))
            )
            if rank == end:
                raise UserError(f"instant-clip-tokenizer: token {i} is no merge of earlier ones")
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        ranks[pieces[0], pieces[1]] = i
    return list(ranks)
