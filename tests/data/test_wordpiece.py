"""BERT's WordPiece by hand-made vocabularies; BERT's own code is in tests/parity."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import MissingTokenizer
from uniadapter_jax.data.tokenizers.wordpiece import (
    WordPieceTokenizer,
    load_wordpiece,
    train_wordpiece,
)

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "##nap", "run", "!"]
TOKENS += ["##ning", "cafe", "的", ",", "'", "t", "don", "run##"]
VOCAB = {token: i for i, token in enumerate(TOKENS)}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A cat", ["a", "cat"]),
        ("cats running!", ["cat", "##s", "run", "##ning", "!"]),
        ("catsnaps", ["cat", "##s", "##nap", "##s"]),
        ("Café,CAFE\u0301", ["cafe", ",", "cafe"]),
        ("don't", ["don", "'", "t"]),
        ("cat的cat", ["cat", "的", "cat"]),
        ("dog catx", ["[UNK]", "[UNK]"]),
        ("a\tcat\x00\u200b\n run", ["a", "cat", "run"]),
        ("a" * 101 + " a", ["[UNK]", "a"]),
        ("", []),
    ],
)
def test_pieces(directory, text, pieces):
    row = load_wordpiece(directory).encode([text], 12)[0]
    expected = [VOCAB["[CLS]"], *(VOCAB[piece] for piece in pieces), VOCAB["[SEP]"]]
    assert row.dtype == np.int32 and row.tolist() == expected + [0] * (12 - len(expected))


def test_special_ids_and_truncation(directory):
    tokenizer = load_wordpiece(directory)
    size = len(TOKENS)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.vocab_size) == (size, size + 1, size + 2)
    rows = tokenizer.encode(["a cat a cat a", "[ENC] a [DEC]"], 5)
    assert rows.tolist() == [[2, 5, 6, 5, 3], [2, size + 1, 5, size, 3]]
    with pytest.raises(ValueError, match="length=1"):
        tokenizer.encode(["a"], 1)


def test_ids_become_texts_again(directory):
    tokenizer = load_wordpiece(directory)
    texts = ["a cat", "cats running!", "don't, a cat", "", "的 cafe"]
    rows = tokenizer.encode(texts, 9)
    rows[:, 0] = tokenizer.dec_id
    assert tokenizer.decode(rows) == texts
    assert tokenizer.decode([[1, 6, 8, 4, 0, 0]]) == ["catnap"]


def test_both_files_are_one_tokenizer(directory, tmp_path):
    slow = load_wordpiece(directory)
    fast = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made = tmp_path / "fast"
    made.mkdir()
    fast.save(str(made / "tokenizer.json"))
    loaded = load_wordpiece(made)
    assert loaded.fingerprint == slow.fingerprint
    assert (loaded.encode(["Cats a!"], 9) == slow.encode(["Cats a!"], 9)).all()
    # The added tokens may be listed, at their places.
    fast.add_special_tokens(["[DEC]", "[ENC]"])
    fast.save(str(made / "tokenizer.json"))
    assert load_wordpiece(made).fingerprint == slow.fingerprint
    content = json.loads((made / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (made / "tokenizer.json").write_text(json.dumps(content))
    assert load_wordpiece(made).fingerprint != slow.fingerprint
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_wordpiece(directory).fingerprint == load_wordpiece(made).fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cat": 100}, r"ids are not 0 to 18"),
        ({"[PAD]": 5, "a": 0}, r"\[PAD\] has the id 5, expected 0"),
        ({"[ENC]": 19, "[DEC]": 20}, r"\[DEC\] has the id 20, expected 19"),
        ({"[SEP]": None, "[sep]": 3}, r"has no \[SEP\]"),
    ],
)
def test_vocabularies_that_are_none(change, said):
    vocab = {token: i for token, i in {**VOCAB, **change}.items() if i is not None}
    with pytest.raises(UserError, match=said):
        WordPieceTokenizer(vocab)


def test_broken_files_are_named(directory):
    (directory / "vocab.txt").write_text("\n".join([*TOKENS, "cat"]))
    with pytest.raises(UserError, match=r"vocab\.txt: 1 tokens stand there twice"):
        load_wordpiece(directory)
    (directory / "vocab.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"vocab\.txt: cannot be read"):
        load_wordpiece(directory)
    for text, said in (("{", "not JSON"), ('{"model": {"type": "BPE"}}', "no BERT tokenizer")):
        (directory / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=said):
            load_wordpiece(directory)


def test_a_directory_without_files(tmp_path):
    tokenizer = load_wordpiece(tmp_path)
    assert isinstance(tokenizer, MissingTokenizer) and tokenizer.vocab_size == 0
    with pytest.raises(UserError, match=r"vocab\.txt"):
        tokenizer.encode(["a cat"], 8)


class TestTraining:
    TEXTS = ("What color is the Triangle?", "is there a triangle", "café colors", "is there a cat")

    def test_learns_words_and_reads_them_back(self, tmp_path):
        trained = train_wordpiece(self.TEXTS, 80, tmp_path)
        again = load_wordpiece(tmp_path)
        assert (trained.vocab_size, trained.dec_id, trained.enc_id) == (82, 80, 81)
        assert again.fingerprint == trained.fingerprint
        lines = (tmp_path / "vocab.txt").read_text().splitlines()
        assert lines[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?"]
        assert len(lines) == 80 and lines[-1] == "[unused27]"
        row = again.encode(["THE triangle is there?"], 16)[0].tolist()
        pieces = [lines[i] for i in row if i]
        assert pieces == ["[CLS]", "the", "triangle", "is", "there", "?", "[SEP]"]
        assert 1 not in again.encode(list(self.TEXTS), 40)

    def test_no_room_for_the_letters(self, tmp_path):
        with pytest.raises(UserError, match=r"at least 35 entries .* 15 letters.* got 30"):
            train_wordpiece(self.TEXTS, 30, tmp_path)

    def test_bytes_depend_on_the_texts_alone(self, tmp_path):
        """Two processes, whose hash maps are seeded anew."""
        root = pathlib.Path(__file__).parents[2]
        code = f"""
import sys
from uniadapter_jax.data.tokenizers.wordpiece import train_wordpiece
train_wordpiece({self.TEXTS!r}, 70, sys.argv[1])
"""
        digests = set()
        for seed in ("0", "1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
            folder = tmp_path / seed
            subprocess.run([sys.executable, "-c", code, folder], check=True, env=environment)
            digests.add(hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest())
        assert len(digests) == 1
