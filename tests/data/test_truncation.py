"""Which texts are cut, counted by hand."""

import json

import media
import pytest

from uniadapter_jax.config import base_config
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.tokenizers.truncation import Cut, Limits, count_cut, cut_lines
from uniadapter_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from uniadapter_jax.prepare import prepare

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "runs", ".", "what"]
TOKENIZER = WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
CAPTIONS = (["a cat", "a cat", "a cats runs"], ["cats.", "a cat runs a cat"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    qa = [{"question": "what runs what", "answers": ["a cat", "a cat", "cats runs"]}]
    lines = []
    for i, captions in enumerate(CAPTIONS):
        media.write_picture(folder / f"p{i}.jpg", 40 * i)
        lines.append({"id": f"p{i}", "path": f"p{i}.jpg", "captions": captions})
    lines[1]["qa"] = qa
    lines.append({"id": "p0", "path": "p0.jpg", "captions": ["cat"], "split": "test"})
    media.write_manifest(folder / "manifest.jsonl", lines)
    return folder


def configure(**data):
    config = base_config("zero_shot")
    config.data.update({"words": 5, "answer_words": 4, **data})
    return config


def make(folder, out, config, **more):
    source = str(folder / "manifest.jsonl")
    prepare(media.settings(short_side=32), source, str(out), config=config, **more)
    return json.loads((out / "prepare.json").read_text())


def counts(texts, cut, longest):
    return {"texts": texts, "cut": cut, "longest": longest}


def test_prepare_counts_with_the_tokenizer_of_the_config(folder, tmp_path, capsys):
    """Of every split; again with other limits, without making the records anew."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    config = base_config("zero_shot", "vqa")
    config.data.update({"words": 5, "answer_words": 4})
    config.tokenizer = str(tmp_path / "tokenizer")
    (found,) = make(folder, tmp_path / "out", config)["cut"].values()
    assert found["fingerprint"] == TOKENIZER.fingerprint
    assert (found["words"], found["answer_words"]) == (5, 4)
    assert found["splits"] == {
        "train": {
            "captions": counts(5, 2, 7),
            "questions": counts(1, 0, 5),
            "answers": counts(2, 1, 5),
        },
        "test": {"captions": counts(1, 0, 3)},
    }
    said = capsys.readouterr().out
    assert "train: 2 of 5 captions are cut at config.data.words=5 tokens; the longest" in said
    print_before = open_records(str(tmp_path / "out"), "train").fingerprint
    config.data.words = 4
    again = make(folder, tmp_path / "out", config)
    assert again["cut"]["config.tokenizer"]["splits"]["train"]["captions"] == counts(5, 3, 7)
    assert open_records(str(tmp_path / "out"), "train").fingerprint == print_before


def test_prepare_counts_with_what_it_trains_and_without_any(folder, tmp_path):
    """Words alone are the least that can be; the records' own tokenizers are named."""
    bare = make(folder, tmp_path / "out", configure())["cut"]
    assert bare["none"]["splits"]["train"]["captions"] == counts(5, 1, 7)
    assert bare["none"]["fingerprint"] is None
    trained = make(folder, tmp_path / "out", configure(), tokenizer_size=520)["cut"]
    assert list(trained) == ["tokenizer"] and trained["tokenizer"]["fingerprint"]
    assert trained["tokenizer"]["splits"]["train"]["captions"]["cut"] >= 2
    untold = prepare(
        media.settings(short_side=32), str(folder / "manifest.jsonl"), str(tmp_path / "b")
    )
    assert "cut" not in untold


def test_words_that_blip_drops_count_as_cut(folder, tmp_path):
    make(folder, tmp_path / "out", None)
    records = open_records(str(tmp_path / "out"), "train")
    limits = Limits(words=9, answer_words=9, preprocess="blip", max_words=2)
    found = count_cut(records, TOKENIZER, limits, ("captions",))
    assert found == {"captions": Cut(5, 2, 7)}
    (line,) = cut_lines("train", found, limits)
    assert "cut at config.data.words=9 tokens or config.data.max_words=2 words" in line
