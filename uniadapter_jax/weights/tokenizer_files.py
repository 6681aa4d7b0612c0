"""Where a converted backbone's tokenizer comes from."""

from __future__ import annotations

import gzip
import pathlib
import zlib

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import write_merges
from uniadapter_jax.data.tokenizers.wordpiece import write_wordpiece
from uniadapter_jax.weights.clip_vocabulary import read_merges
from uniadapter_jax.weights.directory import copy_tokenizer
from uniadapter_jax.weights.families import FAMILIES, Family

_CLIP_VOCABULARY = 49408
_SPECIALS = 2 * 256 + 2  # bytes, bytes at a word's end, BOS and EOS
_LONGEST = 2**25  # bytes of an unpacked list of merges; OpenAI's has 3 MB


def provide_tokenizer(
    given: str | None,
    folder: pathlib.Path,
    destination: pathlib.Path,
    vocab_size: int,
    family: Family = FAMILIES["clip"],
) -> str:
    """Puts tokenizer files into `destination`; returns what it did, for people.

    They come from `given` (a directory, OpenAI's list of merges or BERT's of tokens), else from the
    source's own folder, else, for a vocabulary of CLIP's size, from the optional package that
    carries CLIP's table. Without any the backbone has none, which only strings need.

    Raises:
      UserError: `given` holds no tokenizer, or one of another vocabulary.
    """
    if given is not None and pathlib.Path(given).is_file():
        _ONE_FILE[family.title](pathlib.Path(given), destination, vocab_size)
    elif not copy_tokenizer(given or folder, destination, family):
        if given is not None:
            names = ", ".join(family.tokenizer_files)
            raise UserError(f"--tokenizer {given} holds none of {names}")
        if family.title != "CLIP":
            return "no tokenizer (to encode strings, pass --tokenizer PATH, e.g. BERT's vocab.txt)"
        merges = read_merges() if vocab_size == _CLIP_VOCABULARY else None
        if merges is None:
            return (
                "no tokenizer (to encode strings, pass --tokenizer PATH or, for CLIP's own "
                "vocabulary, pip install 'uniadapter_jax[tokenizer]')"
            )
        write_merges(merges, destination)
    size = family.load_tokenizer(destination).vocab_size
    if size > vocab_size or (family.whole_vocabulary and size < vocab_size):
        raise UserError(
            f"the tokenizer in {given or folder} has {size} ids, the weights know {vocab_size}"
        )
    return f"tokenizer of {size} ids"


def _list_of_merges(path: pathlib.Path, destination: pathlib.Path, vocab_size: int) -> None:
    write_merges(_read_merges(path, vocab_size), destination)


def _list_of_tokens(path: pathlib.Path, destination: pathlib.Path, vocab_size: int) -> None:
    write_wordpiece(path, destination)


_ONE_FILE = {"CLIP": _list_of_merges, "BLIP": _list_of_tokens}


def _read_merges(path: pathlib.Path, vocab_size: int) -> list[tuple[str, str]]:
    """As many merges of OpenAI's list, best first, as a vocabulary of that size has room for."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            text = file.read(_LONGEST).decode().rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"--tokenizer {path}: cannot be read ({error})") from error
    count = max(0, vocab_size - _SPECIALS)
    lines = text.split("\n", 1 + count)  # no more than are read
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
