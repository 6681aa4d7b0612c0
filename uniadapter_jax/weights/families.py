"""The families of backbones: which model a config makes, and what its tensors are called on disk.

Reading, writing and conversion use this table; to add a family, add a row.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.backbones.clip import CLIP, LARGEST_ID, CLIPConfig
from uniadapter_jax.backbones.siglip import SigLIP
from uniadapter_jax.backbones.siglip_config import SigLIPConfig
from uniadapter_jax.common.digests import check_digests
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import Tokenizer, load_tokenizer
from uniadapter_jax.data.tokenizers.merges_file import copy_merges
from uniadapter_jax.data.tokenizers.sentencepiece import (
    MODEL_FILE,
    load_sentencepiece,
    write_sentencepiece,
)
from uniadapter_jax.data.tokenizers.wordpiece import load_wordpiece, write_wordpiece
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.names import base as names
from uniadapter_jax.weights.names import blip as blip_names
from uniadapter_jax.weights.names import siglip as siglip_names
from uniadapter_jax.weights.names.rules import Rule

Config = CLIPConfig | BLIPConfig | SigLIPConfig
Model = CLIP | BLIP | SigLIP
Tensors = Mapping[str, np.ndarray]
Table = tuple[names.Row, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of backbone.

    Attributes:
      title: name shown to people.
      config: the config's class, with `from_huggingface`.
      model: the model's class; it is made from a config, `rng` and options.
      table: gives the rows (our path, HuggingFace's name, transform) for a config.
      rules: gives the conversion rules for files that have HuggingFace's names, for a config.
      ignored: names of buffers that hold no weights.
      canonical: keeps each weight of a file exactly once, for a config.
      tokenizer_files: names of files that a directory's tokenizer may consist of.
      load_tokenizer: checks a directory's digests and loads its tokenizer.
      write_tokenizer: writes tokenizer files from one file, for a vocabulary of some size.
      tokenizer_file: what that one file is called in messages.
      records_tokenizer: folder in prepared records of a tokenizer that was trained on them; ""
        where `prepare` trains none.
      whole_vocabulary: whether the tokenizer must know every id that the weights embed, because
        the last ids have roles.
      resize: how pictures get the model's size, a name of `config.data.resize`.
      options: fields of `config.compute` that the model takes.
      roles: {token: (attribute of the tokenizer, the id that a config expects)}.
      usage: lines of Python that show what a loaded model computes.
      usage_of_clips: the same for a method that joins frames.
    """

    title: str
    config: Any
    model: Any
    table: Callable[[Any], Table]
    rules: Callable[[Any], tuple[Rule, ...]]
    ignored: tuple[str, ...]
    canonical: Callable[[Tensors, Any], Tensors]
    tokenizer_files: tuple[str, ...]
    load_tokenizer: Callable[[str | os.PathLike[str]], Tokenizer]
    write_tokenizer: Callable[[pathlib.Path, pathlib.Path, int], None]
    tokenizer_file: str
    records_tokenizer: str
    roles: Callable[[Any], Mapping[str, tuple[str, int]]]
    usage: tuple[str, ...]
    usage_of_clips: tuple[str, ...] = ()
    whole_vocabulary: bool = False
    resize: str = "crop"
    options: tuple[str, ...] = ("dtype", "remat")


def _guarded(
    load: Callable[[str | os.PathLike[str]], Tokenizer],
) -> Callable[[str | os.PathLike[str]], Tokenizer]:
    """`load` behind the directory's digests; a panic of the Rust library becomes a `UserError`."""

    def guarded(directory: str | os.PathLike[str]) -> Tokenizer:
        check_digests(directory)
        try:
            return load(directory)
        except BaseException as error:
            if (
                type(error).__name__ != "PanicException"
            ):  # a BaseException whose class cannot be imported
                raise
            raise UserError(
                f"the tokenizer in {os.fspath(directory)} cannot be used: {printable(error)}"
            ) from error

    return guarded


def _clip_roles(config: CLIPConfig) -> Mapping[str, tuple[str, int]]:
    return {"EOS": ("eos_id", config.eos_id)} if config.eos_id != LARGEST_ID else {}


def _blip_roles(config: BLIPConfig) -> Mapping[str, tuple[str, int]]:
    return {
        "[SEP]": ("eos_id", config.sep_id),
        "[DEC]": ("dec_id", config.dec_id),
        "[ENC]": ("enc_id", config.enc_id),
        "[PAD]": ("pad_id", config.pad_id),  # separates texts from padding
    }


_TWO_TOWERS_USAGE = (
    "frames = model.encode_frames(pixels)                # uint8 [N, H, W, 3]",
    'text = model.encode_text(["a cat jumps on a chair"])',
    "cosines = model.similarity(text, frames.reshape(clips, -1, frames.shape[-1]))",
)
_CLIPS_USAGE = (
    "frames = model.encode_clips(pixels)                 # uint8 [N, frames, H, W, 3]",
    'text = model.encode_text(["a cat jumps on a chair"])',
    "cosines = model.similarity(text, frames)",
)
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FAMILIES: Mapping[str, Family] = {
    "clip": Family(
        title="CLIP",
        config=CLIPConfig,
        model=CLIP,
        table=lambda config: names.HUGGINGFACE_CLIP,
        rules=lambda config: names.HUGGINGFACE_RULES,
        ignored=names.IGNORED,
        canonical=lambda tensors, config: tensors,
        tokenizer_files=(*_JSON_FILES, "vocab.json", "merges.txt", "added_tokens.json"),
        load_tokenizer=_guarded(load_tokenizer),
        write_tokenizer=copy_merges,
        tokenizer_file="OpenAI's list of merges",
        records_tokenizer="tokenizer",
        roles=_clip_roles,
        usage=_TWO_TOWERS_USAGE,
        usage_of_clips=_CLIPS_USAGE,
        options=("dtype", "remat", "frame_chunks", "merge"),
    ),
    "blip": Family(
        title="BLIP",
        config=BLIPConfig,
        model=BLIP,
        table=blip_names.table,
        rules=blip_names.rules,
        ignored=blip_names.IGNORED,
        canonical=blip_names.canonical,
        tokenizer_files=(*_JSON_FILES, "vocab.txt", "added_tokens.json"),
        load_tokenizer=_guarded(load_wordpiece),
        write_tokenizer=lambda file, directory, size: write_wordpiece(file, directory),
        tokenizer_file="BERT's vocab.txt",
        records_tokenizer="wordpiece",
        roles=_blip_roles,
        usage=(
            "clips = model.encode_clips(pixels)                  # uint8 [N, frames, H, W, 3]",
            'text = model.encode_text(["a cat jumps on a chair"])',
            "cosines = model.similarity(text, clips)             # first stage",
            'logits = model.match(pixels, ["a cat jumps on a chair"])    # second: no match, match',
        ),
        whole_vocabulary=True,
        resize="squash",
        options=("dtype", "remat", "dropout", "drop_path"),
    ),
    "siglip": Family(
        title="SigLIP",
        config=SigLIPConfig,
        model=SigLIP,
        table=lambda config: siglip_names.TABLE,
        rules=lambda config: siglip_names.RULES,
        ignored=siglip_names.IGNORED,
        canonical=lambda tensors, config: tensors,
        tokenizer_files=(*_JSON_FILES, MODEL_FILE),
        load_tokenizer=_guarded(load_sentencepiece),
        write_tokenizer=lambda file, directory, size: write_sentencepiece(file, directory),
        tokenizer_file=MODEL_FILE,
        records_tokenizer="",
        roles=lambda config: {"padding": ("pad_id", config.pad_id)},
        usage=_TWO_TOWERS_USAGE,
        resize="squash",
        options=("dtype", "remat", "frame_chunks"),
    ),
}


def family_of(config: Config) -> Family:
    """The family whose config this is."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def check_family(family: Family, task: str, fitting: Sequence[str], source: str) -> None:
    """Raises `UserError` unless the backbone is of one of the families that fit `task`."""
    if not any(family is FAMILIES[name] for name in fitting):
        titles = " or a ".join(FAMILIES[name].title for name in fitting)
        raise UserError(
            f"config.task.name={task!r} is a task for a {titles}, and {source} is a {family.title}"
        )


def check_tokenizer(tokenizer: Tokenizer, config: Config, where: str, source: str) -> None:
    """Raises `UserError` unless the ids of the tokenizer in `where` are the backbone's."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{where} has {tokenizer.vocab_size} tokens, the backbone {source} embeds "
            f"{config.vocab_size}"
        )
    for token, (name, expected) in family_of(config).roles(config).items():
        if (token_id := getattr(tokenizer, name)) != expected:
            raise UserError(
                f"{token} is {token_id} in {where}, but {expected} in the config of {source}"
            )
