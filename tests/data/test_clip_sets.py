"""DiDeMo, ActivityNet, MSVD, VATEX and LSMDC in each layout: ids, splits, captions, counts."""

import json
import pickle

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import read_source

SENTENCES = {
    "train": {"a1": ["one runs.", "two sit."], "b2": ["three fly."]},
    "val": {"c3": ["four\n"]},
    "test": {"d4": ["five", "", "six"], "e5": ["seven"]},
}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_lists(root, name="{}_list.txt", suffix="", prefix=""):
    for split, clips in SENTENCES.items():
        ids = "\n".join(f"{prefix}{clip}{suffix}" for clip in clips)
        (root / name.format(split)).write_text(ids + "\n")


def write_json(path, content):
    path.write_text(json.dumps(content))


def texts(source, split):
    return {item.id: item.captions for item in source.items if item.split == split}


def joined(split, prefix=""):
    return {
        f"{prefix}{clip}": (" ".join(s.strip() for s in sentences if s.strip()),)
        for clip, sentences in SENTENCES[split].items()
    }


def every(split):
    return {clip: tuple(sentences) for clip, sentences in SENTENCES[split].items()}


def clip_vip(root, names=("train.jsonl", "val.jsonl", "test.jsonl"), prefix=""):
    for (_, clips), name in zip(SENTENCES.items(), names, strict=True):
        records = [
            {"clip_id": f"{prefix}{clip}.mp4", "text": sentences, "timestamps": [], "num_frame": 1}
            for clip, sentences in clips.items()
        ]
        (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def didemo(root, lists=True):
    for split, clips in SENTENCES.items():
        records = [
            {"video": f"{clip}.m4v", "description": sentence, "times": [[0, 0]]}
            for clip, sentences in {**clips, "dropped": ["x"]}.items()
            for sentence in sentences
        ]
        write_json(root / f"{split}_data.json", records if lists else records[:-1])
    if lists:
        write_lists(root, suffix=".mov")


@pytest.mark.parametrize("layout", ["lists", "no lists", "CLIP-ViP"])
def test_didemo(tmp_path, layout):
    clip_vip(tmp_path) if layout == "CLIP-ViP" else didemo(tmp_path, layout == "lists")
    touch(tmp_path, "videos/a1.avi", "deep/er/d4.mp4")
    source = read_source("didemo", str(tmp_path))
    for split in SENTENCES:
        assert texts(source, split) == joined(split)
    paths = {item.id: item.path for item in source.items}
    assert paths["a1"] == "videos/a1.avi" and paths["d4"] == "deep/er/d4.mp4"
    assert {(item.start, item.end) for item in source.items} == {(None, 31.0)}
    assert "test: 2 clips, published are 1,004: not that benchmark" in source.protocol
    assert ("3 videos annotated in test_data.json" in source.protocol) == (layout == "lists")


def activitynet(root):
    for name, split in (("train", "train"), ("val_1", "test"), ("val_2", "val")):
        clips = SENTENCES[split].items()
        write_json(root / f"{name}.json", {f"v_{c}": {"sentences": s} for c, s in clips})


@pytest.mark.parametrize("layout", ["official", "DGL", "CLIP-ViP"])
def test_activitynet(tmp_path, layout):
    if layout == "CLIP-ViP":
        clip_vip(tmp_path, ("anet_train.jsonl", "ignored_other.jsonl", "anet_val1.jsonl"), "v_")
    else:
        activitynet(tmp_path)
    touch(tmp_path, "v_a1.mp4", "all/d4.webm", "odd name.avi")
    if layout == "DGL":
        write_json(tmp_path / "video_path.json", {"e5": "odd name.avi"})
        (tmp_path / "val_1_list.txt").write_text("v_e5\nv_d4\n")
    source = read_source("activitynet", str(tmp_path))
    assert {item.split for item in source.items} == {"train", "test"}
    for split in ("train", "test"):
        assert texts(source, split) == joined(split, "v_")
    paths = {item.id: item.path for item in source.items}
    assert paths["v_a1"] == "v_a1.mp4" and paths["v_d4"] == "all/d4.webm"
    if layout == "DGL":
        assert paths["v_e5"] == "odd name.avi"
        assert list(texts(source, "test")) == ["v_e5", "v_d4"]
    assert "published are 4,917" in source.protocol


@pytest.mark.parametrize("layout", ["words", "sentences", "json"])
def test_msvd(tmp_path, layout):
    write_lists(tmp_path)
    captions = {clip: s for clips in SENTENCES.values() for clip, s in clips.items()}
    if layout == "json":
        write_json(tmp_path / "captions_msvd.json", captions)
    else:
        split = {
            c: [t.split(" ") if layout == "words" else t for t in s] for c, s in captions.items()
        }
        (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(split, protocol=2))
    touch(tmp_path, "YouTubeClips/a1.avi")
    source = read_source("msvd", str(tmp_path))
    for name in SENTENCES:
        assert texts(source, name) == every(name)
    assert {item.path for item in source.items if item.id == "a1"} == {"YouTubeClips/a1.avi"}
    assert "train: 2 clips, published are 1,200" in source.protocol


def vatex(root):
    for name, splits in (("training", ["train"]), ("validation", ["val", "test"])):
        clips = {clip: s for split in splits for clip, s in SENTENCES[split].items()}
        records = [{"videoID": c, "enCap": s, "chCap": ["x"]} for c, s in clips.items()]
        write_json(root / f"vatex_{name}_v1.0.json", records)


@pytest.mark.parametrize("layout", ["official", "ref_captions"])
def test_vatex_and_its_two_test_lists(tmp_path, layout):
    write_lists(tmp_path)
    (tmp_path / "test1k5_sec_list.txt").write_text("c3\nd4\n")
    if layout == "official":
        vatex(tmp_path)
    else:
        captions = {clip: s for clips in SENTENCES.values() for clip, s in clips.items()}
        write_json(tmp_path / "ref_captions.json", captions)
    source = read_source("vatex", str(tmp_path))
    for name in SENTENCES:
        assert texts(source, name) == every(name)
    assert "HGR" in source.protocol and "test_list.txt: 2 clips, published" in source.protocol
    other = read_source("vatex_clip2video", str(tmp_path))
    assert texts(other, "test") == {**every("val"), "d4": every("test")["d4"]}
    assert not texts(other, "val") and "test1k5_sec_list.txt" in other.protocol


def test_lsmdc_and_an_id_that_comes_twice(tmp_path):
    first_id = "3035_FILM_00.00.1.180-00.00.2.560"
    names = ("annos_training", "annos_val", "challenge_1000_publictect")
    for (split, clips), name in zip(SENTENCES.items(), names, strict=True):
        lines = [
            "\t".join([f"3035_FILM_00.0{i}.1.180-00.0{i}.2.560", *"0123", sentence or "x"])
            for i, sentences in enumerate(clips.values())
            for sentence in (sentences if split == "train" else sentences[:1])
        ]
        (tmp_path / f"LSMDC16_{name}.csv").write_text("\n".join(lines) + "\n")
    touch(tmp_path, "videos/3035_FILM/3035_FILM_00.00.1.180-00.00.2.560.avi", "odd/second.avi")
    second = "3035_FILM_00.01.1.180-00.01.2.560"
    write_json(tmp_path / "video_path.json", {second: "odd/second.avi", first_id: "gone.avi"})
    source = read_source("lsmdc", str(tmp_path))
    first = source.items[0]
    assert first.captions == ("one runs.", "two sit.") and first.path.startswith("videos/3035_FILM")
    paths = {item.id: item.path for item in source.items if item.split == "train"}
    assert first.id == first_id and paths[second] == "odd/second.avi"
    assert len(texts(source, "test")) == 2
    assert "LSMDC16_annos_training.csv: 3 lines, published are 101,079" in source.protocol


@pytest.mark.parametrize("test_list", ["MSRVTT_test1ka.jsonl", "MSRVTT_test_full.jsonl"])
def test_msrvtt_in_lists_of_one_record_a_clip(tmp_path, test_list):
    clip_vip(tmp_path, ("MSRVTT_train9k.jsonl", "MSRVTT_val.jsonl", test_list))
    touch(tmp_path, "videos/a1.mp4")
    source = read_source("msrvtt", str(tmp_path))
    assert texts(source, "train") == every("train") and texts(source, "val") == every("val")
    some = 1 if "1ka" in test_list else None
    assert texts(source, "test") == {clip: of[:some] for clip, of in every("test").items()}
    assert test_list in source.protocol


@pytest.mark.parametrize("name", ["didemo", "activitynet", "msvd", "vatex", "lsmdc"])
def test_a_folder_without_annotations_is_told_what_is_expected(tmp_path, name):
    with pytest.raises(UserError, match="expected"):
        read_source(name, str(tmp_path))


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda r: (r / "test_list.txt").write_text("d4.mov\nzz.mp4\n"), "'zz' is listed, but"),
        (lambda r: (r / "test_list.txt").write_text("d4\nd4.mov\n"), "'d4' is listed twice"),
        (lambda r: write_json(r / "val_data.json", {"a": 1}), "expected a list of records"),
        (lambda r: write_json(r / "val_data.json", [{"video": 5}]), "record 0: field 'video'"),
        (lambda r: write_json(r / "val_data.json", [{"video": "a"}]), "no field 'description'"),
    ],
)
def test_defects_name_the_file_and_the_record(tmp_path, edit, message):
    didemo(tmp_path)
    edit(tmp_path)
    with pytest.raises(UserError, match=message):
        read_source("didemo", str(tmp_path))


def test_other_defects(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a1": ["ok"], "b2": [["x", 5]]}))
    with pytest.raises(UserError, match="'b2': expected a list of sentences"):
        read_source("msvd", str(tmp_path))
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="plain data"):
        read_source("msvd", str(tmp_path))
    for name in ("annos_training", "challenge_1000_publictect"):
        (tmp_path / f"LSMDC16_{name}.csv").write_text("a\tb\tc\n")
    with pytest.raises(UserError, match="record 1: 3 columns, not 6"):
        read_source("lsmdc", str(tmp_path))
    clip_vip(tmp_path)
    (tmp_path / "test_b.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    with pytest.raises(UserError, match="are for one split"):
        read_source("didemo", str(tmp_path))
