"""Opening, slicing and identifying prepared records."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.records import carve_validation, open_records
from uniadapter_jax.prepare import prepare


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    manifest = media.picture_manifest(folder / "raw", 9)
    with open(manifest, "a") as file:
        file.write(json.dumps({"id": "t", "path": "media/p1.png", "captions": ["test"],
                               "split": "test"}) + "\n")  # fmt: skip
    prepare(media.settings(), str(manifest), str(folder / "out"))
    return folder / "out"


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def without_digests(root):
    """As prepare.json was before it named the SHA-256 of the other files."""
    path = root / "prepare.json"
    content = json.loads(path.read_text())
    del content["files"], content["sha256"]
    path.write_text(json.dumps(content))


@pytest.fixture
def records(root):
    return open_records(str(root), "train")


READS = """
import sys
from uniadapter_jax.data.records import open_records
records = open_records(sys.argv[1], "train")
from etils import epy
def replaced(**_):
    raise AssertionError("the import of every thread is replaced")
epy.lazy_imports = replaced
assert len(records.read(0).frames) == 1
"""


def test_what_reads_is_imported_before_a_thread_reads(root):
    """Else an import of another thread, say of Orbax, meanwhile gets a lazy module."""
    subprocess.run([sys.executable, "-c", READS, str(root)], check=True)


def test_index_agrees_with_the_records(records):
    assert len(records) == 9
    for i in range(9):
        record = records.read(i)
        assert record.id == records.ids[i] == f"p{i}"
        assert record.captions == records.captions[i]
        assert len(record.frames) == records.frame_counts[i] == 1


def test_subset_keeps_its_own_order(records):
    part = records.subset([7, 2, 5]).subset([2, 0])
    assert part.ids == ["p5", "p7"]
    assert [part.read(i).id for i in range(2)] == ["p5", "p7"]
    assert len(records) == 9


def test_lists_are_made_once(records):
    """A batch asks row by row: a list of a million entries for each would be all that it does."""
    for name in ("ids", "captions", "frame_counts", "question_counts", "unanswered_counts"):
        assert getattr(records, name) is getattr(records, name)
    assert records.subset([3]).ids == ["p3"] and records.subset([3]).frame_counts == [1]
    elsewhere = pickle.loads(pickle.dumps(records))
    assert "captions" not in elsewhere.__dict__ and elsewhere.captions == records.captions


def test_pickles_small_and_reads_elsewhere(records):
    records.read(0)
    again = pickle.loads(pickle.dumps(records.subset([4])))
    assert again.read(0).id == "p4"
    assert again.fingerprint == records.subset([4]).fingerprint


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    media.write_picture(folder / "p.png")
    lines = [
        {"id": name, "path": "p.png", "split": split, "captions": ["x"] if not count else [],
         "qa": [{"question": f"{split} {name} {j}", "answer": "é"} for j in range(count)]}
        for name, split, count in (("a", "train", 2), ("b", "train", 0), ("a", "val", 1))
    ]  # fmt: skip
    lines[0]["qa"][1]["answer"] = " "
    manifest = media.write_manifest(folder / "m.jsonl", lines)
    prepare(media.settings(), str(manifest), str(folder / "out"))
    return str(folder / "out")


class TestQuestions:
    def test_are_read_when_asked_for(self, asked):
        records = open_records(asked, "train")
        assert records.question_counts == [2, 0]
        assert records.unanswered_counts == [1, 0]
        assert [q.text for q in records.questions[0]] == ["train a 0", "train a 1"]
        assert [len(several) for several in records.questions] == [2, 0]
        assert records.questions[-1] == [] and records.questions[:1] == [records.questions[0]]
        assert records.subset([1, 0]).questions[1][0].answers == ("é",)
        with pytest.raises(IndexError):
            records.questions[2]

    def test_a_changed_index_is_noticed(self, asked, tmp_path):
        copy = shutil.copytree(asked, tmp_path / "copy")
        records = open_records(str(copy), "train")
        path = copy / "index-train.jsonl"
        path.write_text(path.read_text().replace("train a 0", "other a 0"))
        with pytest.raises(UserError, match=r"index-train\.jsonl has changed"):
            records.read_questions(0)

    def test_several_splits_are_one(self, asked):
        both = open_records(asked, "train,val")
        again = pickle.loads(pickle.dumps(both.subset([2, 0])))
        assert both.ids == ["train/a", "train/b", "val/a"]
        assert [both.read(i).id for i in range(3)] == ["a", "b", "a"]
        assert [q.text for q in both.questions[2]] == ["val a 0"]
        assert both.questions[2][0].id == "val/a#0"
        assert again.ids == ["val/a", "train/a"] and again.read(0).qa[0]["question"] == "val a 0"
        assert both.coverage == {"expected": 3, "found": 3, "reasons": {}, "empty_captions": 0}
        assert both.index_path(2).endswith("index-val.jsonl")

    def test_fingerprint_covers_every_split(self, asked):
        names = ("train", "val", "train,val", "val,train")
        assert len({open_records(asked, name).fingerprint for name in names}) == 4

    def test_validation_is_carved_out_of_all(self, asked):
        train, val = carve_validation(open_records(asked, "train,val"), 2)
        assert sorted(train.ids + val.ids) == ["train/a", "train/b", "val/a"]

    def test_wrong_splits(self, asked):
        with pytest.raises(UserError, match="has no split 'vg'; it has train, val"):
            open_records(asked, "train,vg")
        with pytest.raises(UserError, match="name 'val' twice"):
            open_records(asked, "val, val")


class TestFingerprint:
    def test_is_of_the_content_not_the_place(self, records, copy):
        assert open_records(str(copy), "train").fingerprint == records.fingerprint

    def test_differs_with_split_subset_and_order(self, records, root):
        prints = [
            records.fingerprint,
            open_records(str(root), "test").fingerprint,
            records.subset(range(8)).fingerprint,
            records.subset(reversed(range(9))).fingerprint,
        ]
        assert len(set(prints)) == 4

    @pytest.mark.parametrize("change", [{"quality": 40}, {"fps": 2.0}])
    def test_differs_with_the_settings(self, root, tmp_path, records, change):
        """Even where no pixel changes, as with fps on pictures."""
        raw = str(root.parent / "raw" / "manifest.jsonl")
        prepare(media.settings(**change), raw, str(tmp_path / "out"))
        assert open_records(str(tmp_path / "out"), "train").fingerprint != records.fingerprint


class TestCarving:
    def test_takes_the_smallest_hashes(self, records):
        train, val = carve_validation(records, 3)
        order = sorted(records.ids, key=lambda name: hashlib.sha256(name.encode()).digest())
        assert set(val.ids) == set(order[:3])
        assert set(train.ids) == set(order[3:])
        assert train.ids == sorted(train.ids)  # the order of the records is kept

    def test_does_not_depend_on_the_order(self, records):
        backwards = records.subset(reversed(range(9)))
        assert set(carve_validation(backwards, 3)[1].ids) == set(
            carve_validation(records, 3)[1].ids
        )

    def test_none(self, records):
        train, val = carve_validation(records, 0)
        assert (len(train), len(val)) == (9, 0)

    @pytest.mark.parametrize("count", [9, 10, -1])
    def test_too_many(self, records, count):
        with pytest.raises(UserError, match=rf"val={count}"):
            carve_validation(records, count)


class TestRefusals:
    def test_nothing_there_names_the_command(self, tmp_path):
        with pytest.raises(UserError, match=r"uniadapter_jax\.prepare .*--output=.*none"):
            open_records(str(tmp_path / "none"), "train")

    def test_no_such_split(self, root):
        with pytest.raises(UserError, match="no split 'val'; it has test, train"):
            open_records(str(root), "val")

    def test_lost_index_line(self, copy):
        path = copy / "index-train.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(UserError, match=r"8 lines, prepare\.json counts 9"):
            open_records(str(copy), "train")

    def test_broken_index_line(self, copy):
        path = copy / "index-train.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[:4], lines[4][:20] + "\n", *lines[5:]]))
        with pytest.raises(UserError, match=r"index-train\.jsonl, line 5"):
            open_records(str(copy), "train")

    def test_index_of_other_records(self, copy):
        path = copy / "index-train.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[::-1]))
        with pytest.raises(UserError, match=r"index-train\.jsonl: is damaged"):
            open_records(str(copy), "train")
        without_digests(copy)
        with pytest.raises(UserError, match="record 0 of train is not 'p8'"):
            open_records(str(copy), "train").read(0)

    def test_truncated_record_file(self, copy):
        (path,) = copy.glob("records-train.array_record-*")
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(UserError, match="of train is damaged"):
            open_records(str(copy), "train").read(8)
