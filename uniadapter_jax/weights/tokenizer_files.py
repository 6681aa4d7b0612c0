"""Finds the tokenizer of a converted backbone."""

from __future__ import annotations

import pathlib

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import write_merges
from uniadapter_jax.weights.clip_vocabulary import read_merges
from uniadapter_jax.weights.directory import copy_tokenizer
from uniadapter_jax.weights.families import FAMILIES, Family

_CLIP_VOCABULARY = 49408


def provide_tokenizer(
    source: str | None,
    folder: pathlib.Path,
    destination: pathlib.Path,
    vocab_size: int,
    family: Family = FAMILIES["clip"],
) -> str:
    """Puts tokenizer files into `destination`; returns what it did, for people.

    They come from `source` (a directory, or the one file of the family), else from the folder of
    the weights, else, for a vocabulary of CLIP's size, from the optional package that carries
    CLIP's table. A backbone without tokenizer files works, but not on strings.

    Raises:
      UserError: `source` holds no tokenizer, or one with another vocabulary.
    """
    if source is not None and pathlib.Path(source).is_file():
        family.write_tokenizer(pathlib.Path(source), destination, vocab_size)
    elif not copy_tokenizer(source or folder, destination, family):
        if source is not None:
            names = ", ".join(family.tokenizer_files)
            raise UserError(f"--tokenizer {source} holds none of {names}")
        if family.title != "CLIP":
            return (
                "no tokenizer (to encode strings, pass --tokenizer PATH, e.g. "
                f"{family.tokenizer_file})"
            )
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
            f"the tokenizer in {source or folder} has {size} ids, the weights know {vocab_size}"
        )
    return f"tokenizer of {size} ids"
