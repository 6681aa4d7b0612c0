# ruff: noqa: RUF001 (look-alike letters are what this file is about)
"""CLIP's tokenizer: cleaning by hand, merging against a plain Python BPE, files both ways."""

import itertools
import json
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import (
    BOS,
    EOS,
    Bpe,
    ClipTokenizer,
    load_tokenizer,
    normalize,
    train_tokenizer,
)

GOLDEN = Path(__file__).with_name("clip_golden.json")

CAPTIONS = [
    "A man is playing the guitar on a stage.",
    "a dog runs through the park, and another dog runs after it",
    "it's a girl's birthday; they're eating 12 cakes!",
    "two men talk about playing the guitar in the park",
    "😀 party 🎉 with 3 dogs — and “music”",
] * 3

HARD = [
    "it’s “quoted” – and — dashed…",
    "Tom &amp; Jerry &amp;amp; &lt;b&gt;friends&lt;/b&gt;",
    "Ｆｕｌｌ－ｗｉｄｔｈ　ＴＥＸＴ １２３",
    "schÃ¶n â€œmojibakeâ€\x9d cafÃ©",
    "👩‍👩‍👧 family 🇩🇪 😀😀😀",
    "  tabs\tand\nnew\r\nlines  ",
    "ALL CAPS İstanbul ΣΊΣΥΦΟΣ",
    "don't we'll i'm you've he'd they're 2's ''s",
    "3.14 1,000 x2 a1b2 ½ ² Ⅷ",
    "日本語のテキスト and العربية हिन्दी",
    "zero\u200bwidth\ufeff non\u00a0breaking",
    "under_score #tag @user http://a.b/c?d=e&f=g",
    "",
    "   ",
    "a <br> &rsquo;s &#39;ok&#39;",
    f"end {EOS} inside",
]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A  Man ", "a man"),
        ("it’s “quoted”", 'it\'s "quoted"'),
        ("Tom &amp; Jerry &amp;amp; Co", "tom & jerry & co"),
        ("Ｆｕｌｌ　ＷＩＤＴＨ", "full width"),
        ("schÃ¶n", "schön"),
        ("tabs\tand\nlines", "tabs and lines"),
        # With a tag in the text ftfy leaves entities alone, and the quote that comes of one stays.
        ("a <br> &rsquo;s", "a <br> ’s"),
        ("&lt;b&gt;", "<b>"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("ﬂow of ﬁre", "flow of fire"),
    ],
)
def test_cleaning(text, clean):
    assert normalize(text) == clean


def plain_bpe(text, vocab, merges):
    """OpenAI's algorithm written out: words by category, bytes as letters, best rank first."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    plain = [i for i in range(256) if 33 <= i <= 126 or 161 <= i <= 172 or 174 <= i <= 255]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    ids = []
    for word in words_of(normalize(text)):
        if word in (BOS, EOS):
            ids.append(vocab[word])
            continue
        parts = [letters[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, at = min(
                (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))
            )
            if rank == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [vocab[part] for part in parts]
    return ids


def words_of(text):
    def kind(letter):
        if letter.isspace():
            return "blank"
        return {"L": "letter", "N": "digit"}.get(unicodedata.category(letter)[0], "rest")

    at = 0
    while at < len(text):
        fixed = (BOS, EOS, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
        match = next((s for s in fixed if text.startswith(s, at)), None)
        end = at + len(match) if match else at + 1
        if match is None and kind(text[at]) != "digit":
            while end < len(text) and kind(text[end]) == kind(text[at]):
                if kind(text[at]) == "rest" and text.startswith((BOS, EOS), end):
                    break
                end += 1
        if kind(text[at]) != "blank":
            yield text[at:end]
        at = end


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    return directory, train_tokenizer(CAPTIONS, 640, directory)


def table_of(directory):
    vocab = json.loads((directory / "vocab.json").read_text("utf-8"))
    lines = (directory / "merges.txt").read_text("utf-8").splitlines()[1:]
    return vocab, [tuple(line.split()) for line in lines]


@pytest.mark.parametrize("text", CAPTIONS[:5] + HARD)
def test_ids_equal_plain_bpe(trained, text):
    directory, tokenizer = trained
    row = tokenizer.encode([text], 300)[0]
    wanted = [tokenizer.bos_id, *plain_bpe(text, *table_of(directory)), tokenizer.eos_id]
    assert row[: len(wanted)].tolist() == wanted and not row[len(wanted) :].any()


def openai_excerpt():
    """The part of OpenAI's table that the golden captions need, at its own ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {letter + "</w>": 256 + i for i, letter in enumerate(letters)}
    merges = json.loads(GOLDEN.read_text("utf-8"))["merges"]
    vocab |= {left + right: i for i, (left, right) in merges}
    vocab |= {BOS: 49406, EOS: 49407}
    return ClipTokenizer(Bpe(vocab, [tuple(pair) for _, pair in merges], BOS, EOS))


def test_ids_equal_openai_on_hard_captions():
    """If cleaning or merging changes on purpose, run make_clip_golden.py."""
    tokenizer = openai_excerpt()
    assert tokenizer.vocab_size == 49408
    golden = json.loads(GOLDEN.read_text("utf-8"))["ids"]
    assert len(golden) > 10
    for text, ids in golden.items():
        row = tokenizer.encode([text], 77)[0]
        assert row[: len(ids) + 2].tolist() == [49406, *ids, 49407], text


@pytest.mark.parity
def test_golden_file_is_what_the_independent_implementation_gives():
    pytest.importorskip("instant_clip_tokenizer")
    script = Path(__file__).with_name("make_clip_golden.py")
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == json.loads(GOLDEN.read_text("utf-8"))


def test_long_text_is_cut_and_keeps_eos(trained):
    tokenizer = trained[1]
    short, long = tokenizer.encode(["a dog", "a dog runs " * 50], 12)
    assert long[0] == short[0] == tokenizer.bos_id
    assert long[-1] == tokenizer.eos_id and (long == tokenizer.eos_id).sum() == 1
    assert tokenizer.encode(["a dog"], 2).tolist() == [[tokenizer.bos_id, tokenizer.eos_id]]
    assert tokenizer.encode([], 7).shape == (0, 7)
    assert long.dtype == np.int32
    with pytest.raises(ValueError, match="length=1"):
        tokenizer.encode(["a"], 1)


def test_training_gives_clips_structure(trained):
    directory, tokenizer = trained
    vocab, merges = table_of(directory)
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens))) and len(tokens) <= 640
    assert (tokens[0], tokens[64], tokens[255], tokens[256]) == ("!", "a", "Ń", "!</w>")
    assert vocab["a</w>"] == 320  # as in OpenAI's table
    assert tokens[512:-2] == [left + right for left, right in merges]
    assert tokens[-2:] == [BOS, EOS]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (len(tokens) - 2, len(tokens) - 1)
    assert tokenizer.vocab_size == len(tokens)


def test_fast_and_slow_files_are_one_tokenizer(trained, tmp_path):
    directory, tokenizer = trained
    slow = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    copies = {"fast": ("tokenizer.json",), "slow": slow, "bare": slow[:2]}
    for name, files in copies.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes((directory / file).read_bytes())
        loaded = load_tokenizer(tmp_path / name)
        assert loaded.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(loaded.encode(HARD, 40), tokenizer.encode(HARD, 40))


def test_merges_as_strings_or_pairs(trained, tmp_path):
    content = json.loads((trained[0] / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).fingerprint == trained[1].fingerprint


TRAIN = """
import json, sys
from uniadapter_jax.data.tokenizers.clip import train_tokenizer
train_tokenizer(json.load(sys.stdin), 640, sys.argv[1])
"""


def test_training_is_deterministic_across_processes(trained, tmp_path):
    for name in ("a", "b"):
        command = [sys.executable, "-c", TRAIN, str(tmp_path / name)]
        subprocess.run(command, input=json.dumps(CAPTIONS), text=True, check=True)
        for file in trained[0].iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_fingerprint_tells_tables_apart(trained, tmp_path):
    assert train_tokenizer(CAPTIONS, 600, tmp_path).fingerprint != trained[1].fingerprint


def test_it_travels_to_workers(trained):
    copy = pickle.loads(pickle.dumps(trained[1]))
    np.testing.assert_array_equal(copy.encode(HARD, 30), trained[1].encode(HARD, 30))


def test_special_tokens_are_read_not_guessed(trained, tmp_path):
    for file in ("vocab.json", "merges.txt"):
        text = (trained[0] / file).read_text("utf-8")
        (tmp_path / file).write_text(text.replace(BOS, "<s>").replace(EOS, "</s>"), "utf-8")
    with pytest.raises(UserError, match="bos_token"):
        load_tokenizer(tmp_path)
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    assert load_tokenizer(tmp_path).eos_id == trained[1].eos_id
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<t>"}))
    with pytest.raises(UserError, match=r"'<t>' is not in the vocabulary"):
        load_tokenizer(tmp_path)


def test_a_directory_without_tokenizer_says_what_to_do(tmp_path):
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"vocab.json and merges.txt"):
        tokenizer.encode(["a dog"], 8)


def test_broken_files_name_the_culprit(trained, tmp_path):
    (tmp_path / "vocab.json").write_bytes((trained[0] / "vocab.json").read_bytes())
    with pytest.raises(UserError, match=r"merges.txt is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    with pytest.raises(UserError, match=r"merges.txt, line 3"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    with pytest.raises(UserError, match="inconsistent"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"vocab.json: is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        load_tokenizer(tmp_path)


def test_too_small_a_vocabulary_raises(tmp_path):
    with pytest.raises(UserError, match="at least 514"):
        train_tokenizer(CAPTIONS, 513, tmp_path)
    assert train_tokenizer(CAPTIONS, 514, tmp_path).vocab_size == 514


@pytest.mark.parity
def test_transformers_reads_what_training_wrote(trained):
    transformers = pytest.importorskip("transformers")
    directory, ours = trained
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    for text in CAPTIONS[:4]:  # what needs no cleaning, which transformers leaves out
        ids = theirs(text)["input_ids"]
        assert ours.encode([text], 77)[0, : len(ids)].tolist() == ids
