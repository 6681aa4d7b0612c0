"""Text to token ids: CLIP's byte-level BPE, read from or written to a HuggingFace-layout directory.

Text is cleaned as OpenAI's tokenizer does (ftfy, HTML entities, blanks, lower case) and then passed
to the Rust `tokenizers`; HuggingFace's own CLIP pipeline skips the cleaning, and so gives other ids
for curly quotes, entities, full-width letters and mojibake.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, pre_tokenizers, trainers

from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_bytes
from uniadapter_jax.data.tokenizers.added_tokens import (
    JSON_BYTES,
    AddedToken,
    Splitter,
    read_added_tokens,
    read_tokenizer_json,
)

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# Contractions, runs of letters, single digits, runs of other characters; blanks are dropped.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PAD_ID = 0
FILES = "tokenizer.json, or vocab.json and merges.txt"


class Tokenizer(ABC):
    """Strings to rows of ids. `vocab_size` is the largest id + 1, `fingerprint` a SHA-256."""

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int = PAD_ID
    fingerprint: str

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All ids of each text, without BOS and EOS."""

    def encode(self, texts: Sequence[str], length: int) -> Int[np.ndarray, "n l"]:
        """Rows of BOS, at most length - 2 ids, EOS, then `PAD_ID`; int32."""
        if length < 2:
            raise ValueError(f"length={length} has no room for BOS and EOS")
        rows = np.full((len(texts), length), PAD_ID, np.int32)
        rows[:, 0] = self.bos_id
        for row, ids in zip(rows, self.ids(texts), strict=True):
            kept = ids[: length - 2]
            row[1 : 1 + len(kept)] = kept
            row[1 + len(kept)] = self.eos_id
        return rows

    def lengths(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """The number of tokens of each uncut text, BOS and EOS included."""
        return np.fromiter((len(ids) + 2 for ids in self.ids(texts)), np.int64, len(texts))


class MissingTokenizer(Tokenizer):
    """Stands in for a backbone's missing tokenizer; only encoding a string raises an error."""

    vocab_size, bos_id, eos_id, fingerprint = 0, -1, -1, ""

    def __init__(self, directory: str | os.PathLike[str], files: str = FILES) -> None:
        self.directory = str(directory)
        self.files = files

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        raise UserError(
            f"{self.directory} has no tokenizer ({self.files}), so text cannot be encoded. Copy "
            "the files of the backbone there, or pass the directory of another tokenizer"
        )


@dataclasses.dataclass(frozen=True)
class Bpe:
    """The definition of a byte-level BPE: ids of tokens, merges by rank, names of BOS and EOS.

    `vocab` includes the ids of `added` tokens; BOS and EOS need not be among these.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    bos: str
    eos: str
    added: tuple[AddedToken, ...] = ()


class ClipTokenizer(Tokenizer):
    """CLIP's tokenizer for any `Bpe`; with OpenAI's table it gives OpenAI's ids."""

    def __init__(self, bpe: Bpe) -> None:
        self.bos_id, self.eos_id = bpe.vocab[bpe.bos], bpe.vocab[bpe.eos]
        self.vocab_size = max(bpe.vocab.values()) + 1
        # BOS and EOS are looked for in the cleaned text, as OpenAI does, unless cleaning changes
        # them, so that they would never be found.
        roles = [token for token in (bpe.bos, bpe.eos) if normalize(token) == token]
        added = [token for token in bpe.added if token.content not in roles]
        table: list[Any] = [sorted(bpe.vocab.items()), bpe.merges, bpe.bos, bpe.eos]
        table += [list(map(dataclasses.astuple, added))] if added else []
        self.fingerprint = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        self._pipeline = _pipeline(bpe)
        self._split = None
        if added:  # with BOS and EOS, so that no other token is found within them
            ours = [AddedToken(token, bpe.vocab[token]) for token in roles]
            raw = [dataclasses.replace(token, normalized=False) for token in ours]
            self._split = Splitter([*added, *ours, *raw], normalize)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._split is None:
            return self._ids_of_cleaned([normalize(text) for text in texts])
        rows = [list(self._split(text)) for text in texts]
        plain = [piece for row in rows for piece in row if isinstance(piece, str)]
        encoded = iter(self._ids_of_cleaned(plain))
        return [
            [i for piece in row for i in (next(encoded) if isinstance(piece, str) else [piece])]
            for row in rows
        ]

    def _ids_of_cleaned(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._pipeline.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def normalize(text: str) -> str:
    """OpenAI's cleaning: ftfy, HTML entities (twice), one blank between words, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else ftfy changes nothing
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a HuggingFace-layout CLIP directory.

    Reads tokenizer.json, else vocab.json with merges.txt. Without either, the result raises
    `UserError` when it is to encode a string; broken files raise here.
    """
    root = Path(directory)
    if (root / "tokenizer.json").is_file():
        vocab, merges = _read_fast(root / "tokenizer.json")
    elif (root / "vocab.json").is_file() or (root / "merges.txt").is_file():
        vocab, merges = _read_slow(root)
    else:
        return MissingTokenizer(root)
    added = read_added_tokens(root, vocab, known_roles=("bos_token", "eos_token"))
    vocab = vocab | {token.content: token.id for token in added}
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"the tokenizer in {root} is inconsistent: tokens share an id")
    if len(merges) > len(vocab):  # each makes a token
        raise UserError(
            f"the tokenizer in {root} is inconsistent: {len(merges)} merges, {len(vocab)} tokens"
        )
    bos, eos = (
        special_token(root, vocab, role, usual) for role, usual in (("bos", BOS), ("eos", EOS))
    )
    try:
        return ClipTokenizer(Bpe(vocab, merges, bos, eos, added))
    except Exception as error:  # the Rust side raises bare Exception: a merge of unknown tokens
        raise UserError(f"the tokenizer in {root} is inconsistent: {error}") from error


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, directory: str | os.PathLike[str]
) -> ClipTokenizer:
    """Learns a BPE of CLIP's structure from captions and writes it; transformers reads it, too.

    Ids: 256 bytes, the same at a word's end, merges, and last BOS and EOS. The table is smaller
    than `vocab_size` if too few pairs of tokens occur twice, which a merge needs. The same captions
    give the same bytes.
    """
    letters = list(byte_letters().values())
    base = letters + [letter + WORD_END for letter in letters]
    if vocab_size < len(base) + 2:
        raise UserError(
            f"a byte-level vocabulary needs at least {len(base) + 2} entries (bytes, bytes at a "
            f"word's end, {BOS}, {EOS}), got {vocab_size}"
        )
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.pre_tokenizer = _pre_tokenizer()
    # Special tokens get the first ids in this order. Otherwise the trainer numbers letters in the
    # order of a randomly seeded hash map, and breaks ties between merges by number.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=base,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator((normalize(text) for text in captions), trainer)
    model = json.loads(learner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {token: i for i, token in enumerate([*tokens, BOS, EOS])}
    bpe = Bpe(vocab, [_pair(merge, Path(directory)) for merge in model["merges"]], BOS, EOS)
    _write(bpe, Path(directory))
    return ClipTokenizer(bpe)


def write_merges(
    merges: Sequence[tuple[str, str]], directory: str | os.PathLike[str]
) -> ClipTokenizer:
    """Writes a tokenizer of CLIP's structure with these merges, sorted by rank."""
    letters = list(byte_letters().values())
    at_end = [letter + WORD_END for letter in letters]
    tokens = [*letters, *at_end, *(left + right for left, right in merges), BOS, EOS]
    bpe = Bpe({token: i for i, token in enumerate(tokens)}, list(merges), BOS, EOS)
    _write(bpe, Path(directory))
    return ClipTokenizer(bpe)


def byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of CLIP's ids: printable bytes come first."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(moved)}


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, to_bytes])


def _pipeline(bpe: Bpe) -> tokenizers.Tokenizer:
    pipeline = tokenizers.Tokenizer(
        models.BPE(
            bpe.vocab,
            bpe.merges,
            unk_token=bpe.eos,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
        )
    )
    pipeline.pre_tokenizer = _pre_tokenizer()
    pipeline.add_special_tokens([bpe.bos, bpe.eos])  # as in OpenAI's, in a caption they are one id
    return pipeline


def read_vocab(value: Any, path: Path) -> dict[str, int]:
    """The vocabulary that `path` holds; raises `FileError` unless it maps tokens to ids."""
    if not isinstance(value, dict) or not value:
        raise FileError(path, "holds no vocabulary: an object of tokens and their ids")
    for token, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise FileError(path, f"vocabulary: {number!r} is no id, that of {token!r}")
    return value


def _pair(merge: Any, path: Path) -> tuple[str, str]:
    """A merge in either form of tokenizer.json: 'a b' or ['a', 'b']."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
        raise FileError(path, f"merges: not a pair of tokens: {str(merge)[:80]!r}")
    return pair[0], pair[1]


def _read_fast(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = read_tokenizer_json(path).get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
        raise UserError(
            f"{path} is no CLIP tokenizer: expected a BPE with end_of_word_suffix {WORD_END!r}, "
            f"found {model.get('type')!r} with {model.get('end_of_word_suffix')!r}"
        )
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise FileError(path, "holds no list of merges")
    return read_vocab(model.get("vocab"), path), [_pair(merge, path) for merge in merges]


def _read_slow(root: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    for name in ("vocab.json", "merges.txt"):
        if not (root / name).is_file():
            raise UserError(f"{root} has half a tokenizer: {name} is missing (it needs {FILES})")
    path = root / "merges.txt"
    merges = []
    for number, line in enumerate(read_token_lines(path), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        if len(line.split()) != 2:
            raise UserError(f"{path}, line {number}: not a pair: {line!r}")
        merges.append(_pair(line.split(), path))
    path = root / "vocab.json"
    return read_vocab(read_tokenizer_json(path), path), merges


def read_token_lines(path: Path) -> list[str]:
    """The lines of a list of tokens. Only line feeds end a line: U+2028 may be part of a token.

    Raises:
      FileError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = read_bytes(path, JSON_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(path, f"cannot be read: not UTF-8 at byte {error.start}") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def special_token(root: Path, vocab: dict[str, int], role: str, usual: str) -> str:
    """The token with a role according to the directory's files, else `usual` if it exists."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (root / name).is_file():
            entry = read_tokenizer_json(root / name).get(f"{role}_token")
            token = entry.get("content") if isinstance(entry, dict) else entry
            if token is None:
                continue
            if not isinstance(token, str) or token not in vocab:
                raise UserError(f"{root / name}: {role}_token {token!r} is not in the vocabulary")
            return token
    if usual not in vocab:
        raise UserError(
            f"{root}: no {role}_token is named in special_tokens_map.json or tokenizer_config.json "
            f"and {usual!r} is not in the vocabulary"
        )
    return usual


def _write(bpe: Bpe, root: Path) -> None:
    """Writes the five files of HuggingFace's slow and fast CLIP tokenizers, and digests."""
    merges = "".join(f"{left} {right}\n" for left, right in bpe.merges)
    named = {"bos_token": bpe.bos, "eos_token": bpe.eos, "unk_token": bpe.eos, "pad_token": bpe.eos}
    config = {
        **named,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    contents = {
        "vocab.json": bpe.vocab,
        "special_tokens_map.json": named,
        "tokenizer_config.json": config,
        "tokenizer.json": _fast_content(bpe),
    }
    for name, content in contents.items():
        (root / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    write_digests(root, ("merges.txt", *contents))


def _fast_content(bpe: Bpe) -> dict[str, Any]:
    """The content of tokenizer.json: HuggingFace's CLIP pipeline around our table.

    Its normalizer does less than `normalize`, so we never read that part back.
    """
    content = json.loads(_pipeline(bpe).to_str())
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    }
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [bpe.eos, bpe.vocab[bpe.eos]],
        "cls": [bpe.bos, bpe.vocab[bpe.bos]],
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    content["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    return content
