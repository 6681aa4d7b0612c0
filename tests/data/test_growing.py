"""Records of a changed input: what changed is decoded, and the result is that of a fresh run."""

import json
import os
import shutil

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation import shards
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD
from uniadapter_jax.data.records import open_records
from uniadapter_jax.prepare import prepare


@pytest.fixture
def decoded(monkeypatch):
    """The ids of the items that are decoded, as they come."""
    ids, read_clip = [], shards.read_clip

    def noted(item, *args):
        ids.append(item.id)
        return read_clip(item, *args)

    monkeypatch.setattr(shards, "read_clip", noted)
    return ids


@pytest.fixture
def place(tmp_path):
    """Prepares 20 pictures, one of them broken, one missing; the manifest's records can change."""
    place = Place(tmp_path)
    (tmp_path / "media" / "p7.png").write_bytes(b"nothing")
    (tmp_path / "media" / "p8.png").unlink()
    place.prepare()
    return place


class Place:
    def __init__(self, root):
        self.root, self.out = root, root / "out"
        self.manifest = media.picture_manifest(root, ITEMS_PER_SHARD + 4)
        self.records = [json.loads(line) for line in self.manifest.read_text().splitlines()]

    def prepare(self, name="out", **options):
        media.write_manifest(self.manifest, self.records)
        settings = media.settings(**options.pop("settings", {}))
        return prepare(settings, str(self.manifest), str(self.root / name), **options)

    def content(self, name="out"):
        files = sorted(path for path in (self.root / name).rglob("*") if path.is_file())
        return {str(path.relative_to(self.root / name)): path.read_bytes() for path in files}

    def assert_as_fresh(self):
        self.prepare("fresh")
        assert self.content() == self.content("fresh")
        assert not (self.root / "out.work").exists()


def test_only_what_changed_is_decoded(place, decoded):
    media.write_picture(place.root / "media" / "new.png", grey=99)
    media.write_picture(place.root / "media" / "p3.png", grey=9 + 1)  # of the same size
    os.utime(place.root / "media" / "p3.png", ns=(5, 5))
    place.records[0]["captions"] = ["mended"]
    place.records[1]["split"] = "test"
    place.records[2]["id"] = "renamed"
    place.records.insert(0, {"id": "new", "path": "media/new.png", "captions": ["new"]})
    del place.records[-1]
    decoded.clear()
    place.prepare()
    assert decoded == ["new", "p3", "p8"]  # p8 is missing, and may have come
    place.assert_as_fresh()
    records = open_records(str(place.out), "train")
    assert records.captions[:2] == [["new"], ["mended"]] and "renamed" in records.ids


def test_a_second_change_and_a_missing_file_that_came(place, decoded):
    for name in ("x", "y"):
        media.write_picture(place.root / "media" / f"{name}.png")
        place.records.append({"id": name, "path": f"media/{name}.png", "captions": [name]})
        place.prepare()
    media.write_picture(place.root / "media" / "p8.png")
    decoded.clear()
    place.prepare()
    assert decoded == ["p8"]
    place.assert_as_fresh()


def test_without_what_was_kept_another_input_is_refused(place, decoded):
    assert (place.out / "kept.jsonl").stat().st_size < 120 * len(place.records)
    place.prepare(keep=False)
    assert not (place.out / "kept.jsonl").exists()
    place.records[0]["captions"] = ["mended"]
    with pytest.raises(UserError, match="no frames can be taken over; --overwrite"):
        place.prepare()
    decoded.clear()
    place.prepare(overwrite=True, keep=False)
    assert len(decoded) == len(place.records) and not (place.out / "kept.jsonl").exists()


def test_overwriting_takes_frames_over_where_the_settings_allow_it(place, decoded):
    decoded.clear()
    place.prepare(overwrite=True)
    assert not decoded
    place.prepare(overwrite=True, settings={"quality": 50})
    assert len(decoded) == len(place.records)


def test_another_decoder_decodes_nothing_unasked(place, decoded, monkeypatch, capsys):
    decoded.clear()
    monkeypatch.setattr(shards, "decoder_versions", lambda: {"av": "0"})
    place.prepare()
    assert not decoded and "the decoder is another version" in capsys.readouterr().err
    place.records[0]["captions"] = ["mended"]
    with pytest.raises(UserError, match="--overwrite"):
        place.prepare()
    place.prepare(overwrite=True)
    assert len(decoded) == len(place.records)


@pytest.mark.parametrize("what", ["record", "kept", "other records' kept"])
def test_damage_costs_decoding_and_no_more(place, decoded, capsys, what):
    if what == "record":
        (path,) = place.out.glob("records-train*")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif what == "kept":
        text = (place.out / "kept.jsonl").read_text()
        (place.out / "kept.jsonl").write_text(text.replace('"number": 2', '"number": 3'))
    else:
        place.prepare("other", settings={"quality": 50})
        shutil.copy(place.root / "other" / "kept.jsonl", place.out)
    decoded.clear()
    place.records[0]["captions"] = ["mended"]
    place.prepare(overwrite=what != "record")
    assert "warning: " in capsys.readouterr().err
    assert 1 < len(set(decoded)) < 20 if what == "record" else len(decoded) == 20
    place.assert_as_fresh()


def test_killed_between_the_two_renames(place, decoded):
    (place.root / "out.work").mkdir()
    place.out.rename(place.root / "out.work" / "old")
    place.records[0]["captions"] = ["mended"]
    decoded.clear()
    place.prepare()
    assert decoded == ["p8"]
    place.assert_as_fresh()


def test_a_change_does_not_lose_unfinished_work(tmp_path, decoded):
    place = Place(tmp_path)
    (tmp_path / "media" / "p7.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="max_bad_share"):
        place.prepare(settings={"max_bad_share": 0.0})
    media.write_picture(tmp_path / "media" / "new.png")
    place.records.insert(0, {"id": "new", "path": "media/new.png", "captions": ["new"]})
    decoded.clear()
    place.prepare()
    assert decoded == ["new"]
    place.assert_as_fresh()


def test_a_tokenizer_stays(place):
    place.prepare(tokenizer_size=600)
    before = (place.out / "tokenizer" / "tokenizer.json").read_bytes()
    place.records[0]["captions"] = ["entirely other words"]
    place.prepare()
    assert (place.out / "tokenizer" / "tokenizer.json").read_bytes() == before
    place.records[0]["captions"] = ["zebra zebra zebra " * 40]
    place.prepare(tokenizer_size=600)
    assert (place.out / "tokenizer" / "tokenizer.json").read_bytes() != before


def test_a_split_without_texts_is_a_gallery(tmp_path):
    place = Place(tmp_path)
    for record in place.records[4:]:
        record |= {"captions": [" "], "split": "gallery"}
    place.records[0]["captions"] = []
    place.prepare()
    assert open_records(str(place.out), "train").ids == ["p1", "p2", "p3"]
    gallery = open_records(str(place.out), "gallery")
    assert len(gallery) == 16 and not any(gallery.captions)
    report = (place.out / "report.jsonl").read_text()
    assert report.count("no_caption") == 1 and report.count("empty_caption") == 16
