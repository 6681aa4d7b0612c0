"""Added tokens by hand tables, for both families; transformers' own ids under the parity marker."""

import json

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import BOS, EOS, load_tokenizer, train_tokenizer
from uniadapter_jax.data.tokenizers.wordpiece import load_wordpiece

CAPTIONS = ["a man is playing", "a dog runs through the park", "<cat-toy> two men"] * 3
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "run", "!", "'", "t"]
TOKENS += ["don", "<", ">", "clip", "new", "york", "cafe", "A", "York", "[", "]", "mask", "dec"]


def flags(content, special=False, normalized=True, **more):
    others = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": content, "special": special, "normalized": normalized, **others, **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    return folder, train_tokenizer(CAPTIONS, 560, folder)


def bpe(trained, target, changes, fast=True):
    """A copy with files' fields changed; `fast` keeps tokenizer.json."""
    target.mkdir(exist_ok=True)
    for file in trained[0].iterdir():
        if fast or file.name != "tokenizer.json":
            (target / file.name).write_bytes(file.read_bytes())
    for name, fields in changes.items():
        content = json.loads((target / name).read_text()) if (target / name).exists() else {}
        for field, value in fields.items():
            content[field] = content[field] + value if isinstance(value, list) else value
        (target / name).write_text(json.dumps(content))
    return target


def bert(target, files):
    target.mkdir(exist_ok=True)
    (target / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    for name, content in files.items():
        (target / name).write_text(json.dumps(content))
    return target


M = len(TOKENS)


def clip_cases(n):
    """{name: (changed fields, whether tokenizer.json stays)}; n is the first free id."""
    bos, eos = (flags(token, True) for token in (BOS, EOS))
    return {
        "added_tokens.json": ({"added_tokens.json": {"<Cat-Toy>": n, "New York": n + 1}}, False),
        "decoder": (
            {
                "tokenizer_config.json": {
                    "added_tokens_decoder": {
                        str(n - 2): bos,
                        str(n - 1): eos,
                        str(n): flags("<Cat-Toy>", normalized=False),
                        str(n + 1): flags("man", single_word=True),
                    }
                }
            },
            False,
        ),
        "fast": (
            {
                "tokenizer.json": {
                    "added_tokens": [{"id": n, **flags("<Cat-Toy>", True, False, lstrip=True)}]
                }
            },
            True,
        ),
        "role": (
            {
                "added_tokens.json": {"<Cat-Toy>": n},
                "special_tokens_map.json": {"pad_token": "<Cat-Toy>"},
            },
            False,
        ),
        "role alone": (
            {"special_tokens_map.json": {"image_token": "<Cat-Toy>", "mask_token": flags("x y")}},
            False,
        ),
        "alike": ({"added_tokens.json": {"<cat-toy>": n, "<Cat-Toy>": n + 1, "a": 64}}, False),
    }


BERT_CASES = {
    "none": {},
    "added_tokens.json": {"added_tokens.json": {"[DEC]": M, "[ENC]": M + 1, "<Clip>": M + 2}},
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(M): flags("[DEC]", True, False),
                str(M + 1): flags("[ENC]", True, False),
                str(M + 2): flags("<Clip>", normalized=False, lstrip=True, rstrip=True),
                str(M + 3): flags("Café!", single_word=True),
                "6": flags("cat", single_word=True),
            }
        }
    },
    "role alone": {
        "special_tokens_map.json": {"bos_token": "[DEC]", "extra_special_tokens": ["[ENC]", "<x>"]}
    },
    "pieces": {"added_tokens.json": {"[DEC]": M, "[ENC]": M + 1, "-": M + 2, "catnap": M + 3}},
    "cased": {
        "tokenizer_config.json": {"do_lower_case": False, "strip_accents": True},
        "added_tokens.json": {"[DEC]": M, "[ENC]": M + 1, "New York": M + 2},
    },
}
TEXTS = (
    *("a man <Cat-Toy> runs", "a<cat-toy>dog woman man", "A MAN <Cat-Toy>NEW YORK new york"),
    *("<CAT-TOY>,<Cat-Toy><Cat-Toy>", f"hello {EOS} {BOS} x", "man man-made human", "  <Cat-Toy> "),
    *("A <clip> cats!", "a <Clip>cat", "new york New York", "Café! café! cafe!a", "", "cat catnap"),
    *("x\u0307man man\u0307 man", f"a{BOS}", "a-cat - x y"),
    *("[MASK] [mask] [DEC] a [ENC]", "don't <CLIP>  a", "[CLS] a [SEP]", "York A Café"),
)


@pytest.mark.parametrize(
    ("case", "text", "added"),
    [
        ("added_tokens.json", "a <Cat-Toy> runs a NEW YORK", {1: 0, 4: 1}),
        ("added_tokens.json", "a <cat-toy>runs", {1: 0}),  # matched as cleaned: in lower case
        ("added_tokens.json", "new yorker", {0: 1}),
        ("decoder", "a<Cat-Toy>man", {1: 0, 2: 1}),
        ("decoder", "a xi\u0307man", {}),  # a mark is part of a word
        ("decoder", "a <cat-toy> woman", {}),  # as written alone; and no man within a word
        ("fast", "<Cat-Toy><Cat-Toy> a", {0: 0, 1: 0}),
        ("role", "a <Cat-Toy>", {1: 0}),
        ("role", "a <cat-toy>", {}),
        ("role alone", "a x y<Cat-Toy>", {1: 0, 2: 1}),
        ("alike", "<Cat-Toy> dog", {0: 0}),
    ],
)
def test_clip_reads_each_as_one_id(trained, tmp_path, case, text, added):
    """`added`: {place among the ids: which of the added tokens}; all others are as they were."""
    n = trained[1].vocab_size
    changes, fast = clip_cases(n)[case]
    tokenizer = load_tokenizer(bpe(trained, tmp_path, changes, fast))
    (ids,) = tokenizer.ids([text])
    assert {place: i - n for place, i in enumerate(ids) if i >= n} == added
    assert tokenizer.fingerprint != trained[1].fingerprint
    rest = "".join(text.split()) if not added else None
    assert rest is None or ids == trained[1].ids([text])[0]


def test_words_around_an_added_token_end_there(trained, tmp_path):
    n, plain = trained[1].vocab_size, trained[1]
    tokenizer = load_tokenizer(bpe(trained, tmp_path, {"added_tokens.json": {"<x>": n}}, False))
    texts = ["a dog<x>runs", "<x>", "<x> <x>a", "no token", ""]
    dog, runs, no, a = (plain.ids([t])[0] for t in ("a dog", "runs", "no token", "a"))
    assert tokenizer.ids(texts) == [[*dog, n, *runs], [n], [n, n, *a], no, []]
    assert tokenizer.encode(["a dog<x>runs"], 5)[0].tolist()[-1] == tokenizer.eos_id
    assert tokenizer.lengths(texts).tolist() == [len(ids) + 2 for ids in tokenizer.ids(texts)]


def test_no_added_token_is_found_within_bos_or_eos(trained, tmp_path):
    """Nor is one that counts as a whole word alone a piece of other words."""
    n = trained[1].vocab_size
    listed = {str(n): flags("text"), str(n + 1): flags("star", normalized=False)}
    changes = {"tokenizer_config.json": {"added_tokens_decoder": listed}}
    tokenizer = load_tokenizer(bpe(trained, tmp_path, changes))
    assert tokenizer.ids([f"{BOS} &lt;|ENDOFTEXT|>text"]) == [[n - 2, n - 1, n]]
    listed = {str(M + 2): flags("-", single_word=True)}
    files = {"added_tokens.json": {"[DEC]": M, "[ENC]": M + 1}}
    files["tokenizer_config.json"] = {"added_tokens_decoder": listed}
    tokenizer = load_wordpiece(bert(tmp_path / "bert", files))
    assert tokenizer.ids(["a-cat a - cat"]) == [[5, 1, 6, 5, M + 2, 6]]


def test_what_every_directory_lists_changes_nothing(trained, tmp_path):
    """BOS and EOS, however they are flagged, leave ids and fingerprint as they were."""
    n = trained[1].vocab_size
    listed = {str(n - 2): flags(BOS, True, False), str(n - 1): flags(EOS, True)}
    changes = {"tokenizer_config.json": {"added_tokens_decoder": listed}}
    tokenizer = load_tokenizer(bpe(trained, tmp_path, changes))
    assert tokenizer.fingerprint == trained[1].fingerprint
    text = "Tom &amp; Jerry &lt;|endoftext|&gt; <|ENDOFTEXT|>"
    assert tokenizer.ids([text]) == trained[1].ids([text])
    plain = load_wordpiece(bert(tmp_path / "plain", {}))
    listed = {str(M): flags("[DEC]", True, False), str(M + 1): flags("[ENC]", True, False)}
    files = {"tokenizer_config.json": {"added_tokens_decoder": listed}}
    assert load_wordpiece(bert(tmp_path / "listed", files)).fingerprint == plain.fingerprint
    files = {"added_tokens.json": {"[DEC]": M, "[ENC]": M + 1}}
    assert load_wordpiece(bert(tmp_path / "legacy", files)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("case", "text", "pieces"),
    [
        ("none", "[DEC] a [MASK]", [M, 5, 4]),
        ("added_tokens.json", "A <Clip> cats", [5, M + 2, 6, 7]),
        ("added_tokens.json", "a<clip>[ENC]", [5, M + 2, M + 1]),
        ("decoder", "a <clip>", [5, 13, 15, 14]),
        ("decoder", "CAFE! a CAT cats", [M + 3, 5, 6, 6, 7]),
        ("role alone", "[ENC] <x>cat", [M + 1, M + 2, 6]),
        ("cased", "New York A", [M + 2, 19]),
    ],
)
def test_bert_reads_each_as_one_id(tmp_path, case, text, pieces):
    tokenizer = load_wordpiece(bert(tmp_path, BERT_CASES[case]))
    assert tokenizer.ids([text]) == [pieces]
    assert (tokenizer.dec_id, tokenizer.enc_id) == (M, M + 1)


def test_decoding_leaves_special_ones_out(tmp_path):
    files = {
        "added_tokens.json": {"[DEC]": M, "[ENC]": M + 1, "<clip>": M + 2, "<s>": M + 3},
        "special_tokens_map.json": {"extra_special_tokens": ["<s>"]},
    }
    tokenizer = load_wordpiece(bert(tmp_path, files))
    assert tokenizer.vocab_size == M + 4
    assert tokenizer.decode([[M, 5, M + 2, M + 3, 6, 3, 0]]) == ["a <clip> cat"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"added_tokens.json": {"cat": 9}}, "'cat' has the id 9, not 6"),
        ({"added_tokens.json": {"<x>": "9"}}, "'<x>': '9' is no id"),
        ({"added_tokens.json": {"<x>": 6}}, "ids are not 0 to"),
        ({"added_tokens.json": {"<x>": 10**9}}, "ids are not 0 to"),
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, r"'\[1\]' is no dict"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}}, "'content' should be"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}},
            "no id",
        ),
        ({"tokenizer_config.json": {"strip_accents": "no"}}, "strip_accents should be true"),
        ({"tokenizer.json": {"model": {"type": "WordPiece"}}}, "no BERT tokenizer"),
        ({"tokenizer.json": {"model": 3, "normalizer": []}}, "no BERT tokenizer"),
        ({"added_tokens.json": ["<x>"]}, "should hold a JSON object"),
    ],
)
def test_broken_files_are_named(tmp_path, files, said):
    with pytest.raises(UserError, match=said):
        load_wordpiece(bert(tmp_path, files))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"merges": ["a b c"]}, "not a pair of tokens: 'a b c'"),
        ({"merges": [["a", 1]]}, "not a pair"),
        ({"merges": 3}, "no list of merges"),
        ({"vocab": None}, "no vocabulary"),
        ({"vocab": {"a": -1}}, "-1 is no id, that of 'a'"),
        ({"vocab": {"a": 1, "b": 1}}, "tokens share an id"),
    ],
)
def test_broken_tables_are_named(trained, tmp_path, model, said):
    content = json.loads((trained[0] / "tokenizer.json").read_text("utf-8"))
    content["model"] |= model
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}))
    with pytest.raises(UserError, match=said):
        load_tokenizer(tmp_path)


def test_a_letter_that_breaks_lines_may_be_a_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS, "\u2028", "x\x85"]) + "\r\n")
    assert load_wordpiece(tmp_path).vocab_size == M + 4
    (tmp_path / "vocab.txt").write_bytes(b"\xff")
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"merges.txt: cannot be read: not UTF-8 at byte 0"):
        load_tokenizer(tmp_path)


@pytest.mark.parity
def test_clip_gives_the_ids_of_transformers(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    cases = clip_cases(trained[1].vocab_size)
    del cases["alike"]  # of tokens that are alike, theirs takes one or the other, by chance
    for name, (changes, fast) in cases.items():
        folder = bpe(trained, tmp_path / name, changes, fast)
        theirs, ours = transformers.CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
        for text in TEXTS:
            wanted = theirs(text)["input_ids"]
            assert [ours.bos_id, *ours.ids([text])[0], ours.eos_id] == wanted, (name, text)


@pytest.mark.parity
def test_bert_gives_the_ids_of_transformers(tmp_path):
    """From the files as they are, and as transformers saves them again."""
    transformers = pytest.importorskip("transformers")
    for name, files in BERT_CASES.items():
        folder = bert(tmp_path / name, files)
        theirs = transformers.BertTokenizer.from_pretrained(folder)
        if not files:  # how BLIP's code adds its two
            theirs.add_special_tokens({"bos_token": "[DEC]"})
            theirs.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        theirs.save_pretrained(tmp_path / f"{name}-saved")
        for place in (folder, tmp_path / f"{name}-saved"):
            ours = load_wordpiece(place)
            for text in TEXTS:
                wanted = theirs(text, add_special_tokens=False)["input_ids"]
                assert ours.ids([text]) == [wanted], (name, text)
