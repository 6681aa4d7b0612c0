"""Reads OpenAI's list of merges, one file that defines CLIP's tokenizer."""

from __future__ import annotations

import gzip
import pathlib
import zlib

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import write_merges

_SPECIALS = 2 * 256 + 2  # bytes, bytes at a word's end, BOS and EOS
_LONGEST = 2**25  # bytes of an unpacked list of merges; OpenAI's has 3 MB


def copy_merges(path: pathlib.Path, destination: pathlib.Path, vocab_size: int) -> None:
    """Writes the tokenizer of the list at `path` for a vocabulary of that size."""
    write_merges(_read_merges(path, vocab_size), destination)


def _read_merges(path: pathlib.Path, vocab_size: int) -> list[tuple[str, str]]:
    """The first merges of OpenAI's list, as many as a vocabulary of that size has room for."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            text = file.read(_LONGEST).decode().rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"--tokenizer {path}: cannot be read ({error})") from error
    count = max(0, vocab_size - _SPECIALS)
    lines = text.split("\n", 1 + count)  # no more lines than are used
    merges = []
    for number, line in enumerate(lines[1 : 1 + count], 2):  # the first names the version
        pair = tuple(line.split())
        if len(pair) != 2:
            raise UserError(
                f"--tokenizer {path}, line {number}: not a pair of tokens: {line!r:.80}"
            )
        merges.append(pair)
    if len(merges) < count:
        raise UserError(f"--tokenizer {path} has {len(merges)} merges, the weights need {count}")
    return merges
