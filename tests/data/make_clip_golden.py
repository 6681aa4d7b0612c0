"""Makes clip_golden.json: ids of hard captions in OpenAI's table, and the excerpt they need.

The ids come from an independent implementation that carries the table (MIT licence, OpenAI), after
our cleaning; what is proved with them is merging and numbering. Needs instant-clip-tokenizer:

    python tests/data/make_clip_golden.py > tests/data/clip_golden.json
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import instant_clip_tokenizer

from uniadapter_jax.data.tokenizers.clip import normalize

CAPTIONS = [
    "a person is connecting something to system",
    "two troops speak with one another",
    "it’s a girl’s “birthday” – they’re eating 12 cakes…",  # noqa: RUF001
    "Tom &amp; Jerry &lt;3 friends",
    "Ｆｕｌｌ－ｗｉｄｔｈ　ＴＥＸＴ １２３",  # noqa: RUF001
    "schÃ¶n â€œmojibakeâ€\x9d cafÃ©",
    "a cat 😀😀 and a dog 🎉",
    "don't we'll i'm you've he'd they're 2's",
    "3.14 1,000 x2 a1b2 under_score #tag @user",
    "naïve Zürich señor façade",
    "a antidisestablishmentarian photographer's portfolio",
]
EOS_ID = 49407


def byte_letters() -> dict[int, str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(moved)}


def known_tokens(clip: instant_clip_tokenizer.Tokenizer) -> dict[str, int]:
    """Tokens that decode to whole characters, spelled in byte letters with '</w>'."""
    letters = byte_letters()
    table = {letter: i for i, letter in enumerate(letters.values())}
    table |= {letter + "</w>": 256 + i for i, letter in enumerate(letters.values())}
    for i in range(512, EOS_ID - 1):
        text = clip.decode([i])
        if "\ufffd" not in text:
            spelled = "".join(letters[byte] for byte in text.removesuffix(" ").encode())
            table[spelled + "</w>" * text.endswith(" ")] = i
    return table


def learn_fragments(clip: instant_clip_tokenizer.Tokenizer, table: dict[str, int]) -> None:
    """Adds tokens that are part of a character, where a character has one unknown token."""
    letters, names = byte_letters(), {i: token for token, i in table.items()}
    for word in map(chr, [*range(0xA1, 0x3000), *range(0x1F300, 0x1FB00)]):
        ids = clip.encode(word)
        unknown = [i for i in ids if i not in names]
        if len(unknown) == 1:
            at = ids.index(unknown[0])
            whole = "".join(letters[byte] for byte in word.encode()) + "</w>"
            before = len("".join(names[i] for i in ids[:at]))
            after = len("".join(names[i] for i in ids[at + 1 :]))
            names[unknown[0]] = whole[before : len(whole) - after]
            table[names[unknown[0]]] = unknown[0]


def main() -> None:
    clip = instant_clip_tokenizer.Tokenizer()
    table = known_tokens(clip)
    learn_fragments(clip, table)
    names = {i: token for token, i in table.items()}
    golden = {text: clip.encode(normalize(text)) for text in CAPTIONS}
    merges: dict[int, tuple[str, str]] = {}
    for token in sorted({names[i] for ids in golden.values() for i in ids}):
        parts = list(token.removesuffix("</w>"))
        parts[-1] += "</w>" * token.endswith("</w>")
        while len(parts) > 1:
            rank, at = min(
                (table.get(a + b, EOS_ID), i) for i, (a, b) in enumerate(pairwise(parts))
            )
            assert rank < EOS_ID, f"no path to {token!r}"
            merges[rank] = (parts[at], parts[at + 1])
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
    json.dump({"ids": golden, "merges": sorted(merges.items())}, sys.stdout, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
