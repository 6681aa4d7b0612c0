"""Annotations that are wrong in the ways that real ones are: refused by name, or counted."""

import json

import media
import pytest
import test_clip_sets as sets
from test_one_story import captions, msrvtt, msvd, vatex_layout

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.windows import read_items
from uniadapter_jax.data.sources import read_source
from uniadapter_jax.prepare import prepare


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def append(path, line):
    path.write_text(path.read_text() + line)


@pytest.mark.parametrize(
    ("layout", "name", "line", "message"),
    [
        (
            "CLIP4Clip",
            "MSRVTT_train.9k.csv",
            "zz\n",
            r"'zz' is listed, but MSRVTT_data",
        ),
        ("CLIP4Clip", "MSRVTT_train.9k.csv", "a1\n", r"9k\.csv: 'a1' is listed twice"),
        ("CLIP4Clip", "MSRVTT_JSFUSION_test.csv", ",,d4,x\n", r"test\.csv: 'd4' is listed twice"),
        ("Frozen", "train_list_jsfusion.txt", "\nzz", "'zz' is listed, but MSR_VTT"),
        ("Frozen", "val_list_jsfusion.txt", "\nd4", r"fusion\.txt: 'd4' is listed twice"),
    ],
)
def test_lists_of_msrvtt(tmp_path, layout, name, line, message):
    msrvtt(tmp_path, layout)
    read_source("msrvtt", str(tmp_path))
    append(tmp_path / name, line)
    with pytest.raises(UserError, match=message):
        read_source("msrvtt", str(tmp_path))


@pytest.mark.parametrize("layout", ["CLIP4Clip", "Frozen", "ClipBERT"])
def test_byte_order_marks_change_nothing(tmp_path, layout):
    msrvtt(tmp_path, layout)
    plain = read_source("msrvtt", str(tmp_path))
    for path in tmp_path.iterdir():
        if path.suffix != ".pkl":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_source("msrvtt", str(tmp_path)) == plain


def test_test_captions_of_another_version_are_counted(tmp_path):
    msrvtt(tmp_path, "CLIP4Clip")
    assert "none of" not in read_source("msrvtt", str(tmp_path)).protocol
    edit(tmp_path / "MSRVTT_JSFUSION_test.csv", "seven", "eleven")
    protocol = read_source("msrvtt", str(tmp_path)).protocol
    assert "1 of 2 test captions are none of MSRVTT_data.json" in protocol


def of_msvd(root):
    msvd(root, "words")
    sets.write_json(root / "captions_msvd.json", captions())
    return root / "captions_msvd.json"


def of_vatex(root):
    vatex_layout(root, "official")
    sets.write_json(root / "ref_captions.json", captions())
    return root / "vatex_validation_v1.0.json"


def of_didemo(root):
    sets.didemo(root)
    sets.clip_vip(root)
    return root / "test.jsonl"


def of_activitynet(root):
    sets.activitynet(root)
    sets.clip_vip(root, ("anet_train.jsonl", "ignored_other.jsonl", "anet_val1.jsonl"), "v_")
    return root / "anet_val1.jsonl"


PAIRS = {"msvd": of_msvd, "vatex": of_vatex, "didemo": of_didemo, "activitynet": of_activitynet}


@pytest.mark.parametrize("name", PAIRS)
def test_files_of_captions_that_disagree_are_told(tmp_path, name):
    unread = PAIRS[name](tmp_path)
    plain = read_source(name, str(tmp_path))
    assert "not read" not in plain.protocol
    edit(unread, "seven", "eleven")
    found = read_source(name, str(tmp_path))
    told = f"{unread.name}, which was not read, has other captions for 1 of"
    assert told in found.protocol and "e5'" in found.protocol
    assert found.items == plain.items


MOMENTS = [
    {"id": "whole", "captions": ["x"]},
    {"id": "beyond", "captions": ["y"], "start": 9.0, "end": 12.0},
    {"id": "in part", "captions": ["z"], "start": 2.0, "end": 12.0},
    {"id": "silent", "captions": [" ", ""]},
]


def test_times_beyond_the_file_and_empty_texts_are_listed(tmp_path):
    media.write_video(tmp_path / "a.mp4", frames=30)  # of 3 s
    lines = [{**moment, "path": "a.mp4"} for moment in MOMENTS]
    media.write_manifest(tmp_path / "manifest.jsonl", lines)
    prepare(media.settings(), str(tmp_path), str(tmp_path / "out"))
    report = map(json.loads, (tmp_path / "out" / "report.jsonl").read_text().splitlines())
    assert {line["id"]: (line["reason"], line["detail"]) for line in report} == {
        "beyond": ("no_frames", "begins at 9 s, and the file ends at 3.00"),
        "silent": ("no_caption", "no caption with a word in it; the file was not looked at"),
    }
    protocol = read_items(media.settings(window=1.0), str(tmp_path)).protocol
    assert "(1 annotated moments begin after the end of their file)" in protocol
