"""Text to token ids: BERT's WordPiece with BLIP's two tokens more, [DEC] and [ENC].

[DEC] and [ENC] are the ids after BERT's own (30522 and 30523), whether a directory lists them or,
like HuggingFace's for BLIP, does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from uniadapter_jax.data.text import PAD_ID, MissingTokenizer, Tokenizer, read_json
from uniadapter_jax.errors import UserError

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
DEC, ENC = "[DEC]", "[ENC]"
FILES = "tokenizer.json, or vocab.txt"
_BLANKS = re.compile(r" (?:(?P<apostrophe>') |(?=[.,!?]))")
_LONGEST_WORD = 100  # letters; BERT gives a longer word up as unknown
# How BERT cleans text: bert-base-uncased, of which BLIP's vocabulary is.
_CLEANING: Mapping[str, Any] = {
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,  # where letters are made small
    "lowercase": True,
}


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer over `vocab`, whose ids are 0 to its size - 1.

    BOS is [CLS], EOS is [SEP]; `dec_id` and `enc_id` follow the last of them.

    Raises:
      UserError: ids with gaps, or a special token missing or at another place.
    """

    def __init__(self, vocab: Mapping[str, int], cleaning: Mapping[str, Any] = _CLEANING) -> None:
        own = {token: i for token, i in vocab.items() if token not in (DEC, ENC)}
        self.dec_id, self.enc_id = len(own), len(own) + 1
        if sorted(own.values()) != list(range(len(own))):
            raise UserError(f"ids are not 0 to {len(own) - 1}, as those of a WordPiece vocabulary")
        fixed = {PAD: PAD_ID, DEC: self.dec_id, ENC: self.enc_id}
        for token, place in fixed.items():
            if vocab.get(token, None if token == PAD else place) != place:
                raise UserError(f"{token} has the id {vocab.get(token)}, expected {place}")
        if missing := [token for token in (UNKNOWN, CLS, SEP) if token not in own]:
            raise UserError(f"the vocabulary has no {', '.join(missing)}")
        self.bos_id, self.eos_id = own[CLS], own[SEP]
        self.vocab_size = len(own) + 2
        table = [sorted(own.items()), sorted(cleaning.items())]
        self.fingerprint = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        model = models.WordPiece(own, unk_token=UNKNOWN, max_input_chars_per_word=_LONGEST_WORD)
        self._pipeline = tokenizers.Tokenizer(model)
        self._pipeline.normalizer = normalizers.BertNormalizer(**cleaning)
        self._pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pipeline.decoder = decoders.WordPiece(cleanup=False)
        named = [token for token in (PAD, UNKNOWN, CLS, SEP, MASK) if token in own]
        self._pipeline.add_special_tokens([*named, DEC, ENC])  # in a text they mean themselves

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        if length < 2:
            raise ValueError(f"length={length} has no room for {CLS} and {SEP}")
        rows = np.full((len(texts), length), PAD_ID, np.int32)
        rows[:, 0] = self.bos_id
        encoded = self._pipeline.encode_batch_fast(list(texts), add_special_tokens=False)
        for row, encoding in zip(rows, encoded, strict=True):
            ids = encoding.ids[: length - 2]
            row[1 : 1 + len(ids)] = ids
            row[1 + len(ids)] = self.eos_id
        return rows

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Rows of ids as texts, as BERT's tokenizer writes them.

        Special tokens are left out, and the blanks around an apostrophe and before . , ! ?
        """
        texts = self._pipeline.decode_batch([list(map(int, row)) for row in rows])
        return [_BLANKS.sub(r"\g<apostrophe>", text) for text in texts]


def load_wordpiece(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a HuggingFace-layout BERT or BLIP directory.

    Reads tokenizer.json, else vocab.txt. Without either, the result raises `UserError` once it is
    asked to encode; files that are broken raise here.
    """
    root = Path(directory)
    fast, slow = root / "tokenizer.json", root / "vocab.txt"
    if fast.is_file():
        vocab, cleaning = _read_fast(fast)
    elif slow.is_file():
        vocab, cleaning = _read_slow(slow)
    else:
        return MissingTokenizer(root, FILES)
    try:
        return WordPieceTokenizer(vocab, cleaning)
    except UserError as error:
        raise UserError(f"the tokenizer in {root}: {error}") from error


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, directory: str | os.PathLike[str]
) -> WordPieceTokenizer:
    """Learns a vocabulary in BERT's form from texts and writes `vocab.txt`.

    It has exactly `vocab_size` entries: five special tokens, the letters alone and inside a word
    by code point, what is worth a merge (comes twice), and [unused...] for the rest, as in BERT's.
    So [DEC] and [ENC] get the ids `vocab_size` and `vocab_size + 1`. The same texts give the same
    bytes.

    Raises:
      UserError: `vocab_size` has no room for the letters.
    """
    texts = list(texts)
    special = [PAD, UNKNOWN, CLS, SEP, MASK]
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer = normalizers.BertNormalizer(**_CLEANING)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted({letter for text in texts for letter in _letters(learner, text)})
    base = [*special, *letters, *(f"##{letter}" for letter in letters)]
    if vocab_size < len(base):
        raise UserError(
            f"a WordPiece vocabulary needs at least {len(base)} entries for these texts (special "
            f"tokens and {len(letters)} letters, alone and inside a word), got {vocab_size}"
        )
    # Special tokens get the first ids in this order. Left to itself the trainer numbers letters
    # in the order of a randomly seeded hash map, and breaks ties between merges by number.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=base, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    tokens += [f"[unused{i}]" for i in range(vocab_size - len(tokens))]
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    (root / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    return WordPieceTokenizer({token: i for i, token in enumerate(tokens)})


def _letters(learner: tokenizers.Tokenizer, text: str) -> str:
    words = learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
    return "".join(word for word, _ in words)


def write_wordpiece(vocab: Path, directory: str | os.PathLike[str]) -> None:
    """Copies a list of tokens, one a line, to where `load_wordpiece` reads it.

    Raises:
      UserError: it is no such list.
    """
    tokens, cleaning = _read_slow(vocab)
    try:
        WordPieceTokenizer(tokens, cleaning)
    except UserError as error:
        raise UserError(f"{vocab}: {error}") from error
    (Path(directory) / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")


def _read_fast(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    content = read_json(path)
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    if (
        model.get("type") != "WordPiece"
        or model.get("continuing_subword_prefix", "##") != "##"
        or normalizer.get("type") != "BertNormalizer"
    ):
        raise UserError(
            f"{path} is no BERT tokenizer: expected a WordPiece with a BertNormalizer, found "
            f"{model.get('type')!r} with {normalizer.get('type')!r}"
        )
    added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
    cleaning = {name: normalizer.get(name, usual) for name, usual in _CLEANING.items()}
    return {**model["vocab"], **added}, cleaning


def _read_slow(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    try:
        tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(f"{path}: {len(tokens) - len(vocab)} tokens stand there twice")
    cleaning = dict(_CLEANING)
    settings = path.with_name("tokenizer_config.json")
    if settings.is_file():
        content: dict[str, Any] = read_json(settings)
        cleaning["lowercase"] = content.get("do_lower_case", True)
    return vocab, cleaning
