"""A folder of one's own: captions beside files, moments, splits, ids; and a dry run."""

import json
import os
import unicodedata

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.folder_manifest import update_manifest
from uniadapter_jax.data.preparation.survey import survey
from uniadapter_jax.data.sources import read_source
from uniadapter_jax.inference.search.folder import media_of

VTT = (
    "WEBVTT\n\n1\n00:01.500 --> 00:03.000\n<b>a dog</b>\nruns\n\n"
    "01:00:02.000 --> 01:00:04.250\nit sits\n"
)
SRT = "1\r\n00:00:00,000 --> 00:00:02,000\r\n{\\an8}hello\r\n\r\n2\r\nno times here\r\n"


def folder(root, **beside):
    for name in ("a.mp4", "deep/b.MOV", "test/c.jpg", "twice.png", "twice.gif", "notes.pdf"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in beside.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def read(root):
    update_manifest(str(root), str(root / "manifest.jsonl"), overwrite=True)
    return {item.id: item for item in read_source("manifest", str(root)).items}


def test_every_medium_is_a_line_with_its_captions(tmp_path):
    items = read(folder(tmp_path, a__txt="a red car\n\n a car turns left \n"))
    assert set(items) == {"a", "deep/b", "test/c", "twice.png", "twice.gif"}
    assert items["a"].captions == ("a red car", "a car turns left")
    assert items["deep/b"].captions == () and items["test/c"].split == "test"
    assert os.path.exists(tmp_path / items["deep/b"].path)


def test_subtitles_and_tables_are_moments(tmp_path):
    table = 'caption,start,end\nwhole,,\n"a, quoted\none",0.5,2\n'
    items = read(folder(tmp_path, a__vtt=VTT, twice__csv=table, **{"deep/b__srt": SRT}))
    first, second = items["a@1.5-3"], items["a@3602-3604.25"]
    assert (first.captions, first.start, first.end) == (("a dog runs",), 1.5, 3.0)
    assert second.captions == ("it sits",) and first.split == second.split
    assert items["deep/b@0-2"].captions == ("hello",)
    assert items["twice.png"].captions == ("whole",)
    assert items["twice.png@0.5-2"].captions == ("a, quoted\none",)


def test_names_that_are_odd(tmp_path):
    for name in ("a .mp4", "new\nline.png", "ünïcode 🎬.mp4"):
        (tmp_path / name).touch()
    assert set(read(tmp_path)) == {"a", "new\nline", "ünïcode 🎬"}
    for name in (" x.mp4", "x.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="would have one id"):
        read(tmp_path)
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    with pytest.raises(UserError, match=r"xff\.mp4|udcff.*not UTF-8"):
        read(tmp_path)


def test_hashes_split_and_stay(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}.mp4").touch()
    splits = {name: item.split for name, item in read(tmp_path).items()}
    counts = [list(splits.values()).count(split) for split in ("train", "val", "test")]
    assert counts[0] > 130 and min(counts) > 8
    (tmp_path / "0.mp4").unlink()
    again = read(tmp_path)
    assert all(splits[name] == item.split for name, item in again.items())


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"a__txt": "x", "a__srt": SRT}, "are about one file"),
        ({"a__srt": "nothing"}, "no subtitle with times"),
        ({"a__csv": "text\nx\n"}, "no column 'caption'"),
        ({"a__csv": "caption,start,end\nx,later,9\n"}, "record 1: start and end are seconds"),
        ({"a__csv": "caption,start,end\nx,5,2\n"}, "record 1: 5 to 2 is no moment"),
    ],
)
def test_defects_name_the_file(tmp_path, beside, message):
    with pytest.raises(UserError, match=message) as error:
        read(folder(tmp_path, **beside))
    assert "a." in str(error.value)


def test_all_defects_are_told_at_once(tmp_path):
    folder(tmp_path, a__txt="x", a__srt=SRT, twice__csv="caption;start\nx;1\n")
    (tmp_path / "deep" / "b.txt").write_bytes("hello".encode("utf-16"))
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    with pytest.raises(UserError, match=r"4 things in .* are wrong:") as error:
        read(tmp_path)
    for words in ("about one file", "no column 'caption'", "b.txt: not readable", "is not UTF-8"):
        assert str(error.value).count(words) == 1
    for wrong, words in (("empty", "no video and no picture"), ("no", "--from-folder=.*no is not")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=words):
            update_manifest(str(tmp_path / wrong), str(tmp_path / "x"))


def test_captions_match_by_suffix_in_any_case_and_form_of_unicode(tmp_path):
    composed, apart = (unicodedata.normalize(form, "bär") for form in ("NFC", "NFD"))
    for name in ("bird.mp4", f"{apart}.mp4", "V10.MP4", "v6.mp4", "v12.mp4", "void.mp4"):
        (tmp_path / name).write_bytes(b"x" * (name != "void.mp4"))
    others = ("v10.txt", "v6.mp4.txt", "v12.en.srt", "nobody.txt")
    for name in ("bird.TXT", f"{composed}.txt", *others):
        (tmp_path / name).write_text("a caption")
    said = "\n".join(update_manifest(str(tmp_path), str(tmp_path / "manifest.jsonl")))
    captions = {i.id: i.captions for i in read_source("manifest", str(tmp_path)).items}
    assert captions["bird"] == captions[apart] == ("a caption",)
    assert "4 caption files belong to no clip" in said and all(name in said for name in others)
    assert "1 file is empty (0 bytes): void.mp4" in said


def test_hidden_files_are_passed_over(tmp_path):
    for name in ("a.mp4", ".hidden.mp4", "._a.mp4", ".thumbs/x.mp4", "deep/.y/z.jpg", ".b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(read(tmp_path)) == {"a"} and media_of(str(tmp_path)) == ["a.mp4"]


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    manifest = media.picture_manifest(tmp_path, 12, captions=2)
    lines = manifest.read_text().splitlines()
    gone = json.loads(lines[3]) | {"path": "gone.png"}
    lines[3] = json.dumps(gone)
    manifest.write_text("\n".join(lines) + "\n")
    before = sorted(os.listdir(tmp_path))
    settings = PrepareSettings.from_config(base_config().data.prepare)
    told = "\n".join(survey(read_source("manifest", str(manifest)), settings))
    assert "12 items, 24 captions; 11 files are there, 1 missing (the first:" in told
    assert "gone.png" in told and "by 8 items that were tried" in told
    assert sorted(os.listdir(tmp_path)) == before
