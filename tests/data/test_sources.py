"""Every annotation layout gives the same items; every defect names its place."""

import csv
import json
import os
import pickle

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import SOURCES, read_source
from uniadapter_jax.data.sources.files import Tree
from uniadapter_jax.data.sources.msrvtt import read_caption_indices

TRAIN, TEST = ["video0", "video2", "video3"], ["video1", "video7"]


def ids(source, split):
    return [item.id for item in source.items if item.split == split]


def by_id(source):
    return {item.id: item for item in source.items}


class TestMsrvtt:
    def test_clip4clip_layout_and_test_caption(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        (tmp_path / "videos").mkdir()
        for name in ("video0.mp4", "video1.webm", "video2.avi"):
            (tmp_path / "videos" / name).touch()
        source = read_source("msrvtt", str(tmp_path))
        assert ids(source, "train") == TRAIN
        assert ids(source, "test") == TEST
        items = by_id(source)
        assert items["video2"].captions == tuple(f"video2 caption {j}" for j in range(3))
        assert items["video1"].captions == ("video1, the chosen one",)
        assert items["video1"].path == os.path.join("videos", "video1.webm")
        assert items["video7"].path == os.path.join("videos", "video7.mp4")  # where it should be
        assert "1k-A" in source.protocol

    def test_times_of_the_youtube_video_are_not_used(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        source = read_source("msrvtt", str(tmp_path))
        assert all(item.start is None and item.end is None for item in source.items)

    @pytest.mark.parametrize("folder", ["", "videos/all", "train_val_videos/TrainValVideo"])
    def test_videos_are_found_in_the_folders_in_use(self, tmp_path, folder):
        media.msrvtt(tmp_path / "msrvtt_data", TRAIN, TEST)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "video3.mp4").touch()
        source = read_source("msrvtt", str(tmp_path))
        assert by_id(source)["video3"].path == os.path.normpath(os.path.join(folder, "video3.mp4"))

    def test_several_files_of_one_clip_prefer_mp4_then_the_shorter_path(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        for name in ("a/b/video0.mp4", "a/video0.mp4", "video0.webm"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert by_id(read_source("msrvtt", str(tmp_path)))["video0"].path == "a/video0.mp4"

    def test_linked_folders_are_followed_and_loops_end(self, tmp_path):
        media.msrvtt(tmp_path / "set", TRAIN, TEST)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "video0.mp4").touch()
        (tmp_path / "set" / "videos").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
        source = read_source("msrvtt", str(tmp_path / "set"))
        assert by_id(source)["video0"].path == "videos/video0.mp4"

    def test_7k_list_and_official_split_by_name(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        media.write_csv(tmp_path / "MSRVTT_train.7k.csv", ["video_id"], [["video0"]])
        assert ids(read_source("msrvtt", str(tmp_path)), "train") == TRAIN
        assert ids(read_source("msrvtt_7k", str(tmp_path)), "train") == ["video0"]
        full = read_source("msrvtt_full", str(tmp_path))
        assert ids(full, "test") == TEST
        assert len(by_id(full)["video1"].captions) == 3

    def test_official_layout(self, tmp_path):
        for name, splits in (("train_val", ("train", "validate")), ("test", ("test",))):
            videos = [{"video_id": f"video_{s}", "split": s} for s in splits]
            sentences = [
                {"video_id": f"video_{s}", "caption": f"{s} {j}"} for s in splits for j in range(2)
            ]
            path = tmp_path / f"{name}_annotation" / f"{name}_videodatainfo.json"
            path.parent.mkdir()
            path.write_text(json.dumps({"videos": videos, "sentences": sentences}))
        source = read_source("msrvtt", str(tmp_path))
        assert [(item.id, item.split) for item in source.items] == [
            ("video_train", "train"),
            ("video_validate", "val"),
            ("video_test", "test"),
        ]
        assert source.items[2].captions == ("test 0", "test 1")

    def frozen(self, root, indices):
        annotations = [
            {"image_id": v, "caption": f"{v} {j}"} for v in TRAIN + TEST for j in range(3)
        ]
        (root / "annotation").mkdir(parents=True)
        (root / "annotation" / "MSR_VTT.json").write_text(json.dumps({"annotations": annotations}))
        lists = root / "high-quality" / "structured-symlinks"
        lists.mkdir(parents=True)
        (lists / "train_list_jsfusion.txt").write_text("\n".join(TRAIN) + "\n")
        (lists / "val_list_jsfusion.txt").write_text("\n".join(TEST) + "\n")
        (lists / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps(indices))

    def test_frozen_layout_takes_the_chosen_caption(self, tmp_path):
        self.frozen(tmp_path, {"video1": 2, "video7": 0})
        source = read_source("msrvtt", str(tmp_path))
        assert ids(source, "train") == TRAIN
        assert by_id(source)["video1"].captions == ("video1 2",)
        assert by_id(source)["video7"].captions == ("video7 0",)

    def test_frozen_index_beyond_the_captions(self, tmp_path):
        self.frozen(tmp_path, {"video1": 3, "video7": 0})
        with pytest.raises(UserError, match="caption 3 of video1"):
            read_source("msrvtt", str(tmp_path))

    def test_pickle_can_run_nothing(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (os.system, (f"touch {tmp_path}/pwned",))

        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps({"video1": Evil()}))
        with pytest.raises(UserError, match=r"x\.pkl.*system"):
            read_caption_indices(str(path))
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps([1]), pickle.dumps({"v": "1"})])
    def test_pickle_with_something_else(self, tmp_path, content):
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pkl"):
            read_caption_indices(str(path))

    def test_clipbert_layout(self, tmp_path):
        rows = [{"caption": f"c{j}", "clip_name": v} for v in TRAIN for j in range(2)]
        media.write_manifest(tmp_path / "txt" / "train.jsonl", rows)
        media.write_manifest(
            tmp_path / "txt" / "test.jsonl", [{"caption": "one", "clip_name": v} for v in TEST]
        )
        source = read_source("msrvtt", str(tmp_path))
        assert ids(source, "train") == TRAIN
        assert ids(source, "test") == TEST
        assert by_id(source)["video0"].captions == ("c0", "c1")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"MSRVTT_data\.json"):
            read_source("msrvtt", str(tmp_path))

    def test_wrong_header(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        media.write_csv(tmp_path / "MSRVTT_train.9k.csv", ["clip"], [["video0"]])
        with pytest.raises(UserError, match=r"MSRVTT_train\.9k\.csv.*'video_id'"):
            read_source("msrvtt", str(tmp_path))

    def test_captions_of_a_table_keep_what_ends_no_row(self, tmp_path):
        """Line breaks in quotes, and letters at which str.splitlines breaks; with any line end."""
        captions = ['a man\nsays "hi",\r\nthen runs', "one\u2028two\x85three\x0cfour", "x\u2029y"]
        for end in ("\n", "\r\n", "\r"):
            media.msrvtt(tmp_path, TRAIN, TEST)
            with open(
                tmp_path / "MSRVTT_JSFUSION_test.csv", "w", newline="", encoding="utf-8"
            ) as f:
                writer = csv.writer(f, lineterminator=end)
                writer.writerow(["key", "video_id", "sentence"])
                writer.writerows([i, f"video{90 + i}", text] for i, text in enumerate(captions))
            source = read_source("msrvtt", str(tmp_path))
            found = [item.captions for item in source.items if item.split == "test"]
            assert found == [(text,) for text in captions], repr(end)

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ('video9,a\nvideo8,"a man\nvideo7,b\n', "line 3: a quote in this row is never closed"),
            ("video9,a man, a dog\n", "line 2: too many columns: 3, not 2"),
            ("video9\n", "line 2: too few columns: 1, not 2"),
        ],
    )
    def test_rows_that_say_something_else_are_named(self, tmp_path, rows, said):
        media.msrvtt(tmp_path, TRAIN, TEST)
        (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(f"video_id,sentence\n{rows}")
        with pytest.raises(UserError, match=f"JSFUSION_test.csv: {said}"):
            read_source("msrvtt", str(tmp_path))

    def test_lists_and_json_lines_break_at_line_feeds_alone(self, tmp_path):
        """A JSON writer may leave U+2028 as it is."""
        rows = [{"caption": "a\u2028b\x85c", "clip_name": v} for v in TRAIN]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
        (tmp_path / "train.jsonl").write_text(text, encoding="utf-8", newline="")
        source = read_source("msrvtt", str(tmp_path))
        assert [item.captions for item in source.items] == [("a\u2028b\x85c",)] * len(TRAIN)
        (tmp_path / "names.txt").write_bytes("\ufeffa\u2028b\r\n\n c \rd".encode())
        assert Tree(str(tmp_path)).read_names("names.txt") == ["a\u2028b", "c", "d"]

    def test_mistyped_field_names_file_and_record(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        content = json.loads((tmp_path / "MSRVTT_data.json").read_text())
        content["sentences"][4]["caption"] = 7
        (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"MSRVTT_data\.json: record 4: field 'caption'"):
            read_source("msrvtt", str(tmp_path))

    def test_truncated_json(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        text = (tmp_path / "MSRVTT_data.json").read_text()
        (tmp_path / "MSRVTT_data.json").write_text(text[:100])
        with pytest.raises(UserError, match=r"MSRVTT_data\.json: not readable as JSON"):
            read_source("msrvtt", str(tmp_path))

    def test_clip_named_twice(self, tmp_path):
        media.msrvtt(tmp_path, ["video0", "video0"], TEST)
        with pytest.raises(UserError, match=r"9k\.csv: 'video0' is listed twice"):
            read_source("msrvtt", str(tmp_path))


class TestKarpathy:
    def write(self, root, name="dataset_flickr30k.json", **extra):
        images = [
            {"filename": f"{i}.jpg", "split": split, "imgid": i, **extra,
             "sentences": [{"raw": f"picture {i} text {j}", "tokens": []} for j in range(5)]}
            for i, split in enumerate(("train", "restval", "val", "test"))
        ]  # fmt: skip
        (root / name).write_text(json.dumps({"images": images}))

    def test_restval_counts_as_train(self, tmp_path):
        self.write(tmp_path)
        source = read_source("karpathy", str(tmp_path))
        assert [item.split for item in source.items] == ["train", "train", "val", "test"]
        assert source.items[0].captions[4] == "picture 0 text 4"

    @pytest.mark.parametrize("folder", ["flickr30k_images", "flickr30k-images", "images"])
    def test_flickr_folders(self, tmp_path, folder):
        self.write(tmp_path)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "2.jpg").touch()
        assert by_id(read_source("karpathy", str(tmp_path)))["2"].path == f"{folder}/2.jpg"

    def test_coco_filepath(self, tmp_path):
        self.write(tmp_path, "dataset_coco.json", filepath="val2014")
        for folder in ("train2014", "val2014"):
            (tmp_path / "coco" / folder).mkdir(parents=True)
            (tmp_path / "coco" / folder / "1.jpg").touch()
        assert by_id(read_source("karpathy", str(tmp_path)))["1"].path == "coco/val2014/1.jpg"

    def test_blip_layout(self, tmp_path):
        train = [{"image": "val2014/a.jpg", "caption": c, "image_id": "coco_1"} for c in "xy"]
        test = [{"image": "val2014/b.jpg", "caption": ["p", "q"]}]
        (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(train))
        (tmp_path / "coco_karpathy_test.json").write_text(json.dumps(test))
        source = read_source("karpathy", str(tmp_path))
        assert [(i.id, i.split, i.captions) for i in source.items] == [
            ("a", "train", ("x", "y")),
            ("b", "test", ("p", "q")),
        ]

    def test_blip_flickr_with_all_splits(self, tmp_path):
        """A picture is one record, with all its captions, however the file lists them."""
        folder = tmp_path / "flickr30k-images"
        folder.mkdir()
        (folder / "7.jpg").touch()
        train = [
            {"image": f"flickr30k-images/{i}.jpg", "caption": f"{i} {j}", "image_id": i}
            for j in range(2)
            for i in (7, 8)
        ]
        lists = {"val": [{"image": "flickr30k-images/9.jpg", "caption": list("abcde")}]}
        lists["test"] = [{"image": "flickr30k-images/5.jpg", "caption": list("vwxyzz")}]
        for split, content in {"train": train, **lists}.items():
            (tmp_path / f"flickr30k_{split}.json").write_text(json.dumps(content))
        source = read_source("karpathy", str(tmp_path))
        assert [(i.id, i.split, i.captions) for i in source.items] == [
            ("7", "train", ("7 0", "7 1")),
            ("8", "train", ("8 0", "8 1")),
            ("9", "val", tuple("abcde")),
            ("5", "test", tuple("vwxyzz")),  # a sixth is kept
        ]
        assert source.items[0].path == "flickr30k-images/7.jpg"

    @pytest.mark.parametrize("caption", [None, 3, ["a", 3]])
    def test_blip_captions_of_a_wrong_type(self, tmp_path, caption):
        record = {"image": "a.jpg", "caption": caption}
        (tmp_path / "flickr30k_val.json").write_text(json.dumps([record]))
        with pytest.raises(UserError, match=r"flickr30k_val\.json: record 0: 'caption' should"):
            read_source("karpathy", str(tmp_path))

    def test_two_sets_in_one_directory(self, tmp_path):
        self.write(tmp_path)
        self.write(tmp_path, "dataset_coco.json")
        with pytest.raises(UserError, match=r"dataset_flickr30k\.json and dataset_coco\.json"):
            read_source("karpathy", str(tmp_path))

    def test_unknown_split(self, tmp_path):
        (tmp_path / "dataset_coco.json").write_text(
            json.dumps({"images": [{"filename": "a.jpg", "split": "dev", "sentences": []}]})
        )
        with pytest.raises(UserError, match="record 0: unknown split 'dev'"):
            read_source("karpathy", str(tmp_path))


ASKED = {"question": "q", "answer": "a", "question_id": 7}
FIRST = {"question": "q", "answer": "a", "question_id": "q0"}


class TestManifest:
    def read(self, tmp_path, *records):
        return read_source("manifest", str(media.write_manifest(tmp_path / "m.jsonl", records)))

    def test_all_fields_and_defaults(self, tmp_path):
        source = self.read(
            tmp_path,
            {"id": "a", "path": "x/a.mp4", "captions": ["one"]},
            "",
            {"id": "a", "path": "/abs/a.mp4", "start": 1, "end": 2.5, "captions": ["two"],
             "qa": [{"question": "q", "answer": "a"}], "split": "test", "licence": "mine"},
        )  # fmt: skip
        first, second = source.items
        assert (first.split, first.start, first.end, first.qa) == ("train", None, None, ())
        assert (second.split, second.start, second.end) == ("test", 1.0, 2.5)
        assert second.qa == ({"question": "q", "answer": "a"},)
        assert source.root == str(tmp_path)

    def test_directory_with_manifest(self, tmp_path):
        media.write_manifest(tmp_path / "manifest.jsonl", [{"id": "a", "path": "a.png"}])
        assert len(read_source("manifest", str(tmp_path)).items) == 1

    def test_byte_order_mark_and_windows_lines(self, tmp_path):
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"id": "a", "path": "a"}\r\n{"id": "b", "path": "b"}\r\n')
        assert [item.id for item in read_source("manifest", str(path)).items] == ["a", "b"]

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ("not json", "line 2: not JSON"),
            ('{"id": "b", ', "line 2: not JSON"),
            ("[1]", "line 2: expected a JSON object"),
            ({"path": "a"}, "line 2: 'id'"),
            ({"id": "", "path": "a"}, "line 2: 'id'"),
            ({"id": "b"}, "line 2: 'path'"),
            ({"id": "b", "path": "a\0b"}, "line 2: 'path'"),
            ({"id": "b", "path": "a", "captions": "one"}, "line 2: 'captions'"),
            ({"id": "b", "path": "a", "captions": [1]}, "line 2: 'captions'"),
            ({"id": "b", "path": "a", "qa": ["x"]}, "line 2: 'qa'"),
            ({"id": "b", "path": "a", "qa": [{"question": 3}]}, "line 2: qa of b: .* 'question'"),
            ({"id": "b", "path": "a", "qa": [ASKED, ASKED]}, "line 2: 'qa' has two questions"),
            ({"id": "b", "path": "a", "qa": [FIRST]}, "line 2: question 'q0' was asked by line 1"),
            ({"id": "b", "path": "a", "start": "0"}, "line 2: 'start'"),
            (
                {"id": "b", "path": "a", "start": 10**400},
                "line 2: not JSON: 10* *.* is beyond float64",
            ),
            ({"id": "b", "path": "a", "start": -1}, "line 2: 'start'"),
            ({"id": "b", "path": "a", "start": True}, "line 2: 'start'"),
            ('{"id": "b", "path": "a", "end": NaN}', "line 2: not JSON: NaN"),
            ({"id": "b", "path": "a", "start": 3, "end": 3}, "line 2: 'end'"),
            ({"id": "b", "path": "a", "split": "my split"}, "line 2: 'split'"),
            ({"id": "b", "path": "a", "split": "all"}, "line 2: 'split'"),
            ({"id": "b", "path": "a", "caption": ["x"]}, "line 2: unknown field 'caption'"),
            ({"id": "a", "path": "b"}, "line 2: id 'a' was taken by line 1"),
        ],
    )
    def test_defects_name_file_and_line(self, tmp_path, record, message):
        with pytest.raises(UserError, match=rf"m\.jsonl, {message}"):
            self.read(tmp_path, {"id": "a", "path": "a.mp4", "qa": [FIRST]}, record)

    def test_all_defects_at_once(self, tmp_path):
        with pytest.raises(UserError) as caught:
            self.read(tmp_path, "x", {"id": "a", "path": "a"}, {"id": 3, "path": "a"})
        assert "line 1" in str(caught.value)
        assert "line 3" in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match="no manifest at"):
            read_source("manifest", str(tmp_path / "none.jsonl"))

    def test_no_records(self, tmp_path):
        with pytest.raises(UserError, match="no records"):
            self.read(tmp_path, "", "  ")


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "manifest"])
def test_input_that_is_no_directory(tmp_path, name):
    with pytest.raises(UserError, match="not a directory"):
        read_source(name, str(tmp_path / "none"))
