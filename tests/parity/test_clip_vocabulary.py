"""CLIP's table as the optional package gives it away."""

import hashlib

import instant_clip_tokenizer
import pytest

from uniadapter_jax.data.tokenizers.clip import load_tokenizer, normalize
from uniadapter_jax.weights.tokenizer_files import provide_tokenizer

pytestmark = pytest.mark.parity

# Of OpenAI's bpe_simple_vocab_16e6.txt, lines 2 to 48895.
OPENAI = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
TEXTS = (
    "a person's 3 photos of an ice-cream, it's great!",
    "naïve café zürich москва كتاب ภาษาไทย ありがとう 한국어",
    "\U0001f600\U0001f600 \U0001f1fa\U0001f1f8\U0001f389 ❤️ \U0001f44d\U0001f3fd",
)


def test_the_table_is_openais(tmp_path):
    (tmp_path / "made").mkdir()
    said = provide_tokenizer(None, tmp_path, tmp_path / "made", 49408)
    assert said == "tokenizer of 49408 ids"
    merges = (tmp_path / "made" / "merges.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    assert hashlib.sha256(merges.encode()).hexdigest() == OPENAI
    tokenizer, package = load_tokenizer(tmp_path / "made"), instant_clip_tokenizer.Tokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (49406, 49407)
    for text, row in zip(TEXTS, tokenizer.encode(list(TEXTS), 77), strict=True):
        ids = package.encode(normalize(text))
        assert row[1 : 2 + len(ids)].tolist() == [*ids, 49407]


def test_other_vocabularies_get_none(tmp_path):
    assert provide_tokenizer(None, tmp_path, tmp_path, 1000).startswith("no tokenizer")
    assert not list(tmp_path.iterdir())
