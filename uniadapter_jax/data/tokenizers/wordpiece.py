"""Text to token ids: BERT's WordPiece with BLIP's two additional tokens, [DEC] and [ENC].

[DEC] and [ENC] are the ids after BERT's own (30522 and 30523), whether or not a directory lists
them; HuggingFace's for BLIP do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.tokenizers.added_tokens import (
    AddedToken,
    read_added_tokens,
    read_tokenizer_json,
)
from uniadapter_jax.data.tokenizers.clip import (
    PAD_ID,
    MissingTokenizer,
    Tokenizer,
    read_token_lines,
    read_vocab,
)

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
DEC, ENC = "[DEC]", "[ENC]"
FILES = "tokenizer.json, or vocab.txt"
_BLANKS = re.compile(r" (?:(?P<apostrophe>') |(?=[.,!?]))")
_LONGEST_WORD = 100  # letters; BERT treats a longer word as unknown
# How BERT (bert-base-uncased, which has BLIP's vocabulary) cleans text.
_CLEANING: Mapping[str, Any] = {
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,  # None follows `lowercase`
    "lowercase": True,
}
# Their names in tokenizer_config.json, which is read if there is no tokenizer.json.
_IN_CONFIG: Mapping[str, str] = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer over `vocab` and `added` tokens, whose ids are 0 to their number - 1.

    BOS is [CLS], EOS is [SEP]. If neither [DEC] nor [ENC] has an id, they follow the last token.
    `added` tokens and tokens with a role are one id in a text, never split into pieces.

    Raises:
      UserError: ids have gaps, or a special token is missing or has another id than expected.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        cleaning: Mapping[str, Any] = _CLEANING,
        added: Sequence[AddedToken] = (),
    ) -> None:
        known = {**vocab, **{token.content: token.id for token in added}}
        listed = len(known)
        self.dec_id = min(known.get(token, len(known)) for token in (DEC, ENC))
        self.enc_id = self.dec_id + 1
        fixed = {PAD: PAD_ID, DEC: self.dec_id, ENC: self.enc_id}
        for token, place in fixed.items():
            if known.get(token, None if token == PAD else place) != place:
                raise UserError(f"{token} has the id {known.get(token)}, expected {place}")
        known |= {DEC: self.dec_id, ENC: self.enc_id}
        if sorted(known.values()) != list(range(len(known))):
            raise UserError(f"ids are not 0 to {listed - 1}, as those of a WordPiece vocabulary")
        if missing := [token for token in (UNKNOWN, CLS, SEP) if token not in known]:
            raise UserError(f"the vocabulary has no {', '.join(missing)}")
        self.bos_id, self.eos_id, self.unknown_id = known[CLS], known[SEP], known[UNKNOWN]
        self.vocab_size = len(known)
        named = [token for token in (PAD, UNKNOWN, CLS, SEP, MASK) if token in known]
        roles = {token: _special(token, known[token]) for token in (*named, DEC, ENC)}
        more = [token for token in added if roles.get(token.content) != token]
        self.fingerprint = _fingerprint(known, cleaning, self.dec_id, more)
        # Tokens that the model lacks get the ids after its own, in the order of `known`.
        gaps = sorted(vocab.values()) != list(range(len(vocab)))
        model = models.WordPiece(
            known if gaps else dict(vocab),
            unk_token=UNKNOWN,
            max_input_chars_per_word=_LONGEST_WORD,
        )
        self._pipeline = tokenizers.Tokenizer(model)
        self._pipeline.normalizer = normalizers.BertNormalizer(**cleaning)
        self._pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pipeline.decoder = decoders.WordPiece(cleanup=False)
        tokens = roles | {token.content: token for token in more}
        for added_token in sorted(tokens.values(), key=lambda token: token.id):
            flags = dataclasses.asdict(added_token)
            del flags["id"]
            self._pipeline.add_tokens([tokenizers.AddedToken(**flags)])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._pipeline.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of rows of ids, as BERT's tokenizer writes them.

        Special tokens are left out, as are blanks around an apostrophe and before . , ! ?
        """
        texts = self._pipeline.decode_batch([list(map(int, row)) for row in rows])
        return [_BLANKS.sub(r"\g<apostrophe>", text) for text in texts]


def _special(token: str, number: int) -> AddedToken:
    return AddedToken(token, number, special=True, normalized=False)


def _fingerprint(
    known: Mapping[str, int], cleaning: Mapping[str, Any], dec_id: int, added: Sequence[AddedToken]
) -> str:
    """Hashes the tokens, and [DEC] and [ENC] if they do not follow all others."""
    others = {token: i for token, i in known.items() if token not in (DEC, ENC)}
    table: list[Any] = [sorted(others.items()), sorted(cleaning.items())]
    table += [dec_id] if dec_id != len(others) else []
    table += [[dataclasses.astuple(token) for token in added]] if added else []
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def load_wordpiece(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a HuggingFace-layout BERT or BLIP directory.

    Reads tokenizer.json, else vocab.txt. Without either, the result raises `UserError` when it is
    to encode a string; broken files raise here.
    """
    root = Path(directory)
    fast, slow = root / "tokenizer.json", root / "vocab.txt"
    if fast.is_file():
        vocab, cleaning = _read_fast(fast)
    elif slow.is_file():
        vocab, cleaning = _read_slow(slow)
    else:
        return MissingTokenizer(root, FILES)
    added = read_added_tokens(root, vocab, special=(PAD, UNKNOWN, CLS, SEP, MASK, DEC, ENC))
    try:
        return WordPieceTokenizer(vocab, cleaning, added)
    except (UserError, UnicodeError) as error:
        raise UserError(f"the tokenizer in {root}: {error}") from error


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, directory: str | os.PathLike[str]
) -> WordPieceTokenizer:
    """Learns a vocabulary in BERT's form from texts and writes `vocab.txt`, and its digest.

    It has exactly `vocab_size` entries: five special tokens, the letters alone and inside a word
    by code point, merges of pairs that occur twice, and [unused...] for the rest, as in BERT's. So
    [DEC] and [ENC] get the ids `vocab_size` and `vocab_size + 1`. The same texts give the same
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
    # Special tokens get the first ids in this order. Otherwise the trainer numbers letters in the
    # order of a randomly seeded hash map, and breaks ties between merges by number.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=base, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    tokens += [f"[unused{i}]" for i in range(vocab_size - len(tokens))]
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    _write(tokens, root)
    return WordPieceTokenizer({token: i for i, token in enumerate(tokens)})


def _letters(learner: tokenizers.Tokenizer, text: str) -> str:
    words = learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
    return "".join(word for word, _ in words)


def write_wordpiece(vocab: Path, directory: str | os.PathLike[str]) -> None:
    """Copies a list of tokens, one per line, to where `load_wordpiece` reads it.

    Raises:
      UserError: the file is no such list.
    """
    tokens, cleaning = _read_slow(vocab)
    try:
        WordPieceTokenizer(tokens, cleaning)
    except UserError as error:
        raise UserError(f"{vocab}: {error}") from error
    _write(tokens, Path(directory))


def _write(tokens: Iterable[str], root: Path) -> None:
    (root / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    write_digests(root, ("vocab.txt",))


def _read_fast(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    content = read_tokenizer_json(path)
    model, normalizer = (
        value if isinstance(value := content.get(name), dict) else {}
        for name in ("model", "normalizer")
    )
    if (
        model.get("type") != "WordPiece"
        or model.get("continuing_subword_prefix", "##") != "##"
        or normalizer.get("type") != "BertNormalizer"
    ):
        raise UserError(
            f"{path} is no BERT tokenizer: expected a WordPiece with a BertNormalizer, found "
            f"{model.get('type')!r} with {normalizer.get('type')!r}"
        )
    return read_vocab(model.get("vocab"), path), _cleaning(normalizer, path)


def _cleaning(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a BertNormalizer, completed by BERT's."""
    cleaning = {name: settings.get(name, usual) for name, usual in _CLEANING.items()}
    for name, value in cleaning.items():
        if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
            raise FileError(path, f"{name} should be true or false, is {value!r}")
    return cleaning


def _read_slow(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    tokens = read_token_lines(path)
    while len(tokens) > 1 and not tokens[-1]:
        tokens.pop()
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(f"{path}: {len(tokens) - len(vocab)} tokens stand there twice")
    settings = path.with_name("tokenizer_config.json")
    content = read_tokenizer_json(settings) if settings.is_file() else {}
    named = {ours: content[theirs] for ours, theirs in _IN_CONFIG.items() if theirs in content}
    return vocab, _cleaning(named, settings)
