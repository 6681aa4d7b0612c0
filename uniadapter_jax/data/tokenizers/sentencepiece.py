"""Text to token ids: SigLIP's SentencePiece (a Unigram model) with the library `tokenizers`.

Text is cleaned as SigLIP's authors and transformers' `SiglipTokenizer` do: lower case, ASCII
punctuation removed, one blank between words. A row is the ids, EOS, and padding to its end; there
is no BOS, and EOS and padding are usually the same token. Since cleaning removes the brackets of
`</s>`, no text holds a special token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import string
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers

from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.files import FileError, read_bytes
from uniadapter_jax.data.tokenizers.added_tokens import JSON_BYTES, read_tokenizer_json
from uniadapter_jax.data.tokenizers.clip import MissingTokenizer, Tokenizer, special_token

MODEL_FILE = "spiece.model"
FILES = f"tokenizer.json, or {MODEL_FILE}"
EOS = "</s>"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLANK = "\u2581"  # SentencePiece's mark of a blank


class Pieces(NamedTuple):
    """The definition of a Unigram model.

    Attributes:
      vocab: (piece, logarithm of its probability) by id.
      unknown: the id of characters that no piece covers.
      characters: SentencePiece's compiled table of equivalent characters; b"" for none.
    """

    vocab: tuple[tuple[str, float], ...]
    unknown: int
    characters: bytes


class SentencePieceTokenizer(Tokenizer):
    """SigLIP's tokenizer over any Unigram model that has the tokens `eos` and `pad`."""

    bos_id = -1

    def __init__(self, pieces: Pieces, eos: str = EOS, pad: str = EOS) -> None:
        known = {piece: i for i, (piece, _) in enumerate(pieces.vocab)}
        self.eos_id, self.pad_id = known[eos], known[pad]
        self.vocab_size = len(pieces.vocab)
        table = [pieces.vocab, pieces.unknown, pieces.characters.hex(), eos, pad]
        self.fingerprint = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        self._pipeline = tokenizers.Tokenizer(
            models.Unigram([*pieces.vocab], unk_id=pieces.unknown, byte_fallback=False)
        )
        steps: list[Any] = []
        if pieces.characters:
            steps.append(normalizers.Precompiled(pieces.characters))
        # The table may replace a character by text with blanks.
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        self._pipeline.normalizer = normalizers.Sequence(steps)
        self._pipeline.pre_tokenizer = pre_tokenizers.Metaspace(_BLANK, prepend_scheme="always")

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [canonical(text) for text in texts]
        encoded = self._pipeline.encode_batch_fast(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode(self, texts: Sequence[str], length: int) -> Int[np.ndarray, "n l"]:
        """Rows of at most length - 1 ids, EOS, then padding; int32."""
        if length < 1:
            raise ValueError(f"length={length} has no room for EOS")
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, ids in zip(rows, self.ids(texts), strict=True):
            kept = ids[: length - 1]
            row[: len(kept)] = kept
            row[len(kept)] = self.eos_id
        return rows

    def lengths(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """The number of tokens of each uncut text, EOS included."""
        return np.fromiter((len(ids) + 1 for ids in self.ids(texts)), np.int64, len(texts))


def canonical(text: str) -> str:
    """Lower case, no ASCII punctuation, one blank between words and none at the ends.

    SentencePiece's mark of a blank counts as a blank, too.
    """
    bare = text.replace(_BLANK, " ").lower().translate(_PUNCTUATION)
    return re.sub(r"\s+", " ", bare).strip()


def load_sentencepiece(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a HuggingFace-layout SigLIP directory.

    Reads tokenizer.json, else spiece.model. Without either, the result raises `UserError` when it
    is to encode a string; broken files raise here.
    """
    root = Path(directory)
    fast, slow = root / "tokenizer.json", root / MODEL_FILE
    if fast.is_file():
        pieces, path = _read_fast(fast), fast
    elif slow.is_file():
        pieces, path = read_model(slow), slow
    else:
        return MissingTokenizer(root, FILES)
    known = {piece: i for i, (piece, _) in enumerate(pieces.vocab)}
    eos, pad = (special_token(root, known, role, EOS) for role in ("eos", "pad"))
    try:
        return SentencePieceTokenizer(pieces, eos, pad)
    except Exception as error:  # the Rust side raises bare Exception
        raise FileError(path, f"is no usable SentencePiece model: {error}") from error


def write_sentencepiece(model: Path, directory: str | os.PathLike[str]) -> None:
    """Copies a `spiece.model` to where `load_sentencepiece` reads it.

    Raises:
      UserError: the file is no such model.
    """
    read_model(model)
    (Path(directory) / MODEL_FILE).write_bytes(read_bytes(model, JSON_BYTES))
    write_digests(Path(directory), (MODEL_FILE,))


def _read_fast(path: Path) -> Pieces:
    content = read_tokenizer_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        kind = model.get("type") if isinstance(model, dict) else model
        raise FileError(path, f"is no SigLIP tokenizer: expected a Unigram, found {kind!r:.80}")
    try:
        vocab = [(str(piece), float(score)) for piece, score in model["vocab"]]
        table = base64.b64decode(_characters(content.get("normalizer")), validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"is damaged: {str(error)[:80]}") from error
    return _checked(vocab, model.get("unk_id"), table, path)


def _characters(normalizer: Any) -> str:
    """The compiled table of characters of a normalizer, or of one of its steps."""
    if not isinstance(normalizer, Mapping):
        return ""
    if normalizer.get("type") == "Precompiled":
        return str(normalizer.get("precompiled_charsmap") or "")
    steps = normalizer.get("normalizers")
    tables = map(_characters, steps if isinstance(steps, list) else ())
    return next(filter(None, tables), "")


def read_model(path: Path) -> Pieces:
    """Reads a Unigram model from SentencePiece's own file, a protocol buffer.

    Raises:
      UserError: the file is no such protocol buffer, or another kind of model.
    """
    data = read_bytes(path, JSON_BYTES)
    vocab: list[tuple[str, float]] = []
    kind, unknown, characters = 1, 0, b""
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                vocab.append((piece.get(1, b"").decode(), score))
            elif number == 2:
                trainer = dict(_fields(value))
                kind, unknown = trainer.get(3, kind), trainer.get(40, unknown)
            elif number == 3:
                characters = dict(_fields(value)).get(2, b"")
    except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:
        raise FileError(path, f"is no SentencePiece model: {str(error)[:80]}") from error
    if kind != 1:
        raise FileError(path, f"is a SentencePiece model of kind {kind}, expected a Unigram (1)")
    return _checked(vocab, unknown, characters, path)


def _checked(vocab: list[tuple[str, float]], unknown: Any, table: Any, path: Path) -> Pieces:
    if not vocab or len({piece for piece, _ in vocab}) < len(vocab):
        raise FileError(path, "has no pieces, or one of them twice")
    if not all(math.isfinite(score) for _, score in vocab):
        raise FileError(path, "has a piece whose score is not finite")
    if type(unknown) is not int or not 0 <= unknown < len(vocab):
        raise FileError(path, f"names {unknown!r:.80} as the id of unknown pieces")
    if not isinstance(table, bytes):
        raise FileError(path, "has no table of characters")
    return Pieces(tuple(vocab), unknown, table)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer's fields: bytes, or an int where it is a varint."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while place < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        if tag & 7 not in (1, 2, 5):
            raise ValueError(f"unknown type {tag & 7} of a field")
        size = {1: 8, 5: 4}.get(tag & 7) or varint()
        if place + size > len(data):
            raise ValueError("the file ends early")
        yield tag >> 3, data[place : place + size]
        place += size
