"""Records of one's own clips: captions that come later, clips without, splits that lack."""

import json

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.preparation.folder_manifest import update_manifest
from uniadapter_jax.data.preparation.split_advice import missing_splits
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.sources.item import Item, Source
from uniadapter_jax.prepare import prepare


@pytest.fixture
def own(tmp_path):
    """A folder of ten pictures, two of them with captions."""
    folder = tmp_path / "my clips" / "train"
    folder.mkdir(parents=True)
    for i in range(10):
        media.write_picture(folder / f"{i}.png", grey=i)
    for i in range(2):
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


def make(own, name="out", **options):
    manifest = own.parent / "manifest.jsonl"
    update_manifest(str(own.parent), str(manifest))
    settings = media.settings(max_bad_share=0.05)
    prepare(settings, str(manifest), str(own.parent.parent / name), **options)
    return own.parent.parent / name


def content(records):
    return {path.name: path.read_bytes() for path in records.iterdir()}


def test_clips_without_captions_stop_nothing_and_captions_may_come(own, capsys):
    out = make(own)
    assert "2 of 10 items; left out: no_caption 8" in capsys.readouterr().out
    for i in range(2, 10):
        (own / f"{i}.txt").write_text(f"number {i}")
    (own / "new.png").write_bytes((own / "0.png").read_bytes())
    (own / "new.txt").write_text("a new one")
    make(own)
    assert len(open_records(str(out), "train")) == 11
    assert content(out) == content(make(own, "fresh"))


def test_bad_files_name_the_whole_flag(own):
    (own / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 of 2 items \(50.0%\).*--\S+max_bad_share=0\.5$"):
        make(own)


def test_splits_that_lack_are_told(own, capsys):
    make(own, config=base_config())
    said = capsys.readouterr().out
    assert "no clip is in 'test', which main asks for (config.data.test_split)" in said
    assert '"split": "test"' in said and "'train'" not in said
    config = base_config()
    config.data.train_split, config.data.val_split = "train,vg", "val"
    splits = ("train", "vg", "val", "test")
    items = [Item(split, split, split, ("a text",) * (split != "val")) for split in splits]
    source = Source("", "", tuple(items))
    assert len(list(missing_splits(config, source, ["train"]))) == 3
    (silent,) = missing_splits(config, source, splits)
    assert "no clip in 'val' has a caption" in silent


def test_a_tokenizer_that_is_not_at_hand_is_one_short_line(own, capsys, monkeypatch):
    def offline(*_):
        raise UserError("Connect, without HF_HUB_OFFLINE")

    monkeypatch.setattr("uniadapter_jax.runs.prepared_texts.located", offline)
    config = base_config()
    config.backbone = "openai/some-clip"
    out = make(own, config=config)
    said = capsys.readouterr().out
    assert "Connect" not in said and "tokenizer of config.backbone=openai/some-clip" in said
    assert json.loads((out / "prepare.json").read_text())["cut"]


def test_missing_records_name_both_commands(tmp_path):
    with pytest.raises(UserError, match=r"--config=own --from-folder=MY_CLIPS --output='.*such'"):
        open_records(str(tmp_path / "no such"), "train")
