"""Which file an annotated path is, and what the report says of one that is not there."""

import json

import media
import pytest

from uniadapter_jax.data.preparation.shards import decode_item
from uniadapter_jax.data.sources import read_source
from uniadapter_jax.data.sources.files import Tree
from uniadapter_jax.data.sources.item import Item
from uniadapter_jax.prepare import prepare

SETTINGS = media.settings()
TRAIN, TEST = ["video0", "video2", "video3"], ["video1", "video7"]


def laid_out(root, files):
    """Files of that content below `root`."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


class TestPlaces:
    """Which file an annotated path is: never another picture of the same bare name."""

    def place(self, root, files, *annotated):
        laid_out(root, files)
        items = [Item(str(i), path, "train") for i, path in enumerate(annotated)]
        placed = Tree(str(root)).place_pictures(items)
        return [(item.path, item.hint) for item in placed]

    @pytest.mark.parametrize(
        ("annotated", "there"),
        [
            ("val2014/1.jpg", "val2014/1.jpg"),
            ("val2014/1.jpg", "coco/images/val2014/1.jpg"),
            ("coco/images/val2014/1.jpg", "val2014/1.jpg"),
            ("val2014/COCO_val2014_1.jpg", "pictures/COCO_val2014_1.jpg"),
            ("val2014/COCO_val2014_1.jpg", "all/COCO_val2014_1.jpg"),
            ("val2014/1.jpg", "images/1.jpg"),
            ("val2014/1.jpg", "1.jpg"),
            ("flickr30k-images/1.jpg", "flickr30k_images/1.jpg"),
            ("flickr30k-images/1.jpg", "Flickr30k/1.jpg"),
            ("flickr30k-images/1.jpg", "Images/1.jpg"),
            ("1.jpg", "any/folder/1.jpg"),
        ],
    )
    def test_renamed_folders(self, tmp_path, annotated, there):
        assert self.place(tmp_path, {there: "x", "other/2.jpg": "y"}, annotated) == [(there, "")]

    @pytest.mark.parametrize(
        ("annotated", "there"),
        [
            ("val2014/1.jpg", "train2014/1.jpg"),
            ("a/1.jpg", "b/1.jpg"),
            ("a/1.jpg", "data2/1.jpg"),
            ("VG_100K/1.jpg", "VG_100K_2/1.jpg"),
            ("images/1.jpg", "thumbnails/1.jpg"),
            ("val2014/COCO_val2014_1.jpg", "COCO_val2014_1.jpg.bak"),
        ],
    )
    def test_another_picture_of_that_name(self, tmp_path, annotated, there):
        ((path, hint),) = self.place(tmp_path, {there: "x"}, annotated)
        assert path == annotated
        assert there in hint or hint == "nothing of that name is there"

    def test_the_annotated_folder_is_there(self, tmp_path):
        """Then a file that lacks in it lacks, whatever lies elsewhere."""
        files = {"val2014/2.jpg": "x", "images/1.jpg": "y"}
        ((path, hint),) = self.place(tmp_path, files, "val2014/1.jpg")
        assert path == "val2014/1.jpg"
        assert hint == "there is 'images/1.jpg'"

    def test_several_of_that_name(self, tmp_path):
        files = {"a/1.jpg": "x", "b/1.jpg": "y", "a/2.jpg": "same", "b/2.jpg": "same"}
        first, second = self.place(tmp_path, files, "1.jpg", "2.jpg")
        assert first == (
            "1.jpg",
            "there are 'a/1.jpg' and 'b/1.jpg'; which is meant cannot be told",
        )
        assert second == ("a/2.jpg", "")

    def test_one_file_for_two_annotations(self, tmp_path):
        first, second = self.place(tmp_path, {"images/1.jpg": "x"}, "a/1.jpg", "b/1.jpg")
        assert first[0] == "a/1.jpg"
        assert second[0] == "b/1.jpg"
        assert "other annotations" in first[1]
        same = self.place(tmp_path, {"images/1.jpg": "x"}, "a/1.jpg", "a/1.jpg")
        assert same == [("images/1.jpg", "")] * 2

    @pytest.mark.parametrize(
        ("there", "word"),
        [
            ("flickr30k_images/Caf\u00e9.jpg", "Unicode"),
            ("flickr30k_images/cafe\u0301.JPG", "case"),
            ("flickr30k_images/cafe\u0301 .jpg", "blanks"),
            ("flickr30k_images/cafe\u0301.png", "png"),
        ],
    )
    def test_near_names_are_told_and_not_taken(self, tmp_path, there, word):
        annotated = "Cafe\u0301.jpg"
        ((path, hint),) = self.place(tmp_path, {there: "x"}, annotated)
        assert path == annotated
        assert word in hint
        assert repr(there) in hint

    def test_clips(self, tmp_path):
        media.msrvtt(tmp_path, TRAIN, TEST)
        laid_out(tmp_path, {"videos/Video0.mp4": "", "videos/video2.ts": "", "video3.txt": ""})
        items = {i.id: i for i in read_source("msrvtt", str(tmp_path)).items}
        assert items["video0"].path == "videos/video0.mp4"
        assert "'videos/Video0.mp4' (in other case)" in items["video0"].hint
        assert items["video2"].path == "videos/video2.ts"
        assert items["video3"].path == "videos/video3.mp4"

    @pytest.mark.parametrize(
        ("annotated", "there"),
        [
            ("m/Caf\u00e9.png", "m/Cafe\u0301.png"),
            ("m/a b.png", "m/a  b.png"),
            ("m/a b.png", "m/a_b.png"),
            ("m/a.png", "m/A.PNG"),
            ("m/a.png", "m/a.jpg"),
            ("m/a.png", "M/a.png"),
            ("m\u00e9/a.png", "me\u0301/a.png"),
            ("m/ a.png", "m/a.png"),
        ],
    )
    def test_a_manifest_means_what_it_says(self, tmp_path, annotated, there):
        (tmp_path / there).parent.mkdir(exist_ok=True)
        media.write_picture(tmp_path / f"{there}.png")
        (tmp_path / f"{there}.png").rename(tmp_path / there)
        outcome = decode_item(Item("a", annotated, "train", ("x",)), str(tmp_path), SETTINGS)
        assert outcome.reason == "missing"
        assert repr(there) in outcome.detail
        outcome = decode_item(Item("a", str(tmp_path / annotated), "train", ("x",)), "/", SETTINGS)
        assert repr(str(tmp_path / there)) in outcome.detail

    def test_nothing_near(self, tmp_path):
        for path in ("none/a.png", "a.png", "/none/none/a.png", "../../../a.png", "a\0b"):
            outcome = decode_item(Item("a", path, "train", ("x",)), str(tmp_path), SETTINGS)
            assert outcome.reason == "missing"
            assert "there is" not in outcome.detail

    def test_the_report_names_the_missing(self, tmp_path):
        """From annotations to report.jsonl: the val picture is not train's of the same name."""
        images = [
            {"filename": "1.jpg", "filepath": folder, "split": split, "sentences": [{"raw": "x"}]}
            for folder, split in (("train2014", "train"), ("val2014", "val"))
        ]
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "dataset_coco.json").write_text(json.dumps({"images": images}))
        media.write_picture(tmp_path / "in" / "train2014" / "1.jpg")
        settings = media.settings(source="karpathy")
        result = prepare(settings, str(tmp_path / "in"), str(tmp_path / "out"))
        assert result["coverage"]["val"]["reasons"] == {"missing": 1}
        (line,) = map(json.loads, (tmp_path / "out" / "report.jsonl").read_text().splitlines())
        assert (line["split"], line["reason"]) == ("val", "missing")
        assert "'train2014/1.jpg'" in line["detail"]
