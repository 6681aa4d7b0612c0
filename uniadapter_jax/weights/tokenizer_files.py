"""Where a converted backbone's tokenizer comes from."""

from __future__ import annotations

import gzip
import pathlib
import zlib

from uniadapter_jax.data.text import load_tokenizer, write_merges
from uniadapter_jax.errors import UserError
from uniadapter_jax.weights.clip_vocabulary import read_merges
from uniadapter_jax.weights.directory import TOKENIZER_FILES, copy_tokenizer

_CLIP_VOCABULARY = 49408
_SPECIALS = 2 * 256 + 2  # bytes, bytes at a word's end, BOS and EOS
_LONGEST = 2**25  # bytes of an unpacked list of merges; OpenAI's has 3 MB


def provide_tokenizer(
    given: str | None, folder: pathlib.Path, destination: pathlib.Path, vocab_size: int
) -> str:
    """Puts tokenizer files into `destination`; returns what it did, for people.

    They come from `given` (a directory, or OpenAI's list of merges), else from the source's own
    folder, else, for a vocabulary of CLIP's size, from the optional package that carries CLIP's
    table. Without any the backbone has none, which only strings need.

    Raises:
      UserError: `given` holds no tokenizer, or one of another vocabulary.
    """
    if given is not None and pathlib.Path(given).is_file():
        write_merges(_read_merges(pathlib.Path(given), vocab_size), destination)
    elif not copy_tokenizer(given or folder, destination):
        if given is not None:
            raise UserError(f"--tokenizer {given} holds none of {', '.join(TOKENIZER_FILES)}")
        merges = read_merges() if vocab_size == _CLIP_VOCABULARY else None
        if merges is None:
            return (
                "no tokenizer (to encode strings, pass --tokenizer PATH or, for CLIP's own "
                "vocabulary, pip install 'uniadapter_jax[tokenizer]')"
            )
        write_merges(merges, destination)
    size = load_tokenizer(destination).vocab_size
    if size > vocab_size:
        raise UserError(
            f"the tokenizer in {given or folder} has {size} ids, the weights know {vocab_size}"
        )
    return f"tokenizer of {size} ids"


def _read_merges(path: pathlib.Path, vocab_size: int) -> list[tuple[str, str]]:
    """As many merges of OpenAI's list, best first, as a vocabulary of that size has room for."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            lines = file.read(_LONGEST).decode().rstrip("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"--tokenizer {path}: cannot be read ({error})") from error
    count = vocab_size - _SPECIALS
    merges = []
    for number, line in enumerate(lines[1 : 1 + count], 2):  # the first names the version
        pair = tuple(line.split())
        if len(pair) != 2:
            raise UserError(f"--tokenizer {path}, line {number}: not a pair of tokens: {line!r}")
        merges.append(pair)
    if len(merges) < count:
        raise UserError(f"--tokenizer {path} has {len(merges)} merges, the weights need {count}")
    return merges
