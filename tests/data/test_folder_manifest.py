"""The manifest of a folder is brought up to date, unless somebody has edited it."""

import json

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation import folder_manifest
from uniadapter_jax.data.preparation.folder_manifest import update_manifest

VTT = "WEBVTT\n\n00:01.500 --> 00:03.000\na dog\n"


class Folder:
    """Five clips, three of them with captions, and their manifest."""

    def __init__(self, root):
        self.root, self.manifest = root / "clips", root / "clips" / "manifest.jsonl"
        self.root.mkdir()
        for i in range(5):
            self.write(f"{i}.mp4")
        for name, text in (("0.txt", "zero"), ("1.txt", "one"), ("2.vtt", VTT)):
            self.write(name, text)
        self.update()

    def write(self, name, text="x"):
        (self.root / name).write_text(text)

    def update(self, **options):
        lines = update_manifest(str(self.root), str(self.manifest), again="AGAIN", **options)
        return "\n".join(lines)

    def lines(self):
        return [json.loads(line) for line in self.manifest.read_text().splitlines()]

    def captions(self):
        return {line["id"]: line["captions"] for line in self.lines()}

    def edit(self, lines):
        self.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def assert_as_fresh(self):
        fresh = self.root / "fresh.jsonl"
        update_manifest(str(self.root), str(fresh))
        assert self.manifest.read_bytes() == fresh.read_bytes()


@pytest.fixture
def clips(tmp_path):
    return Folder(tmp_path)


def test_what_has_come_gone_and_changed_is_taken_up(clips):
    assert "is up to date" in clips.update()
    clips.write("3.txt", "three")
    clips.write("1.txt", "mended")
    clips.write("2.vtt", VTT.replace("a dog", "a cat"))
    clips.write("5.mp4")
    (clips.root / "0.mp4").unlink()
    assert "up to date: 1 new file, 1 gone, other captions for 3" in clips.update()
    found = clips.captions()
    assert found["3"] == ["three"] and found["1"] == ["mended"] and found["5"] == []
    assert found["2@1.5-3"] == ["a cat"] and "0" not in found
    clips.assert_as_fresh()
    assert "is up to date" in clips.update()


def test_an_edited_manifest_stays_and_says_what_it_lacks(clips):
    lines = clips.lines()
    clips.edit([{**lines[0], "captions": ["mine"]}, *lines[1:-1]])
    edited = clips.manifest.read_bytes()
    said = clips.update()
    assert "edited by hand, and stays as it is" in said and "AGAIN" not in said
    clips.write("5.mp4")
    clips.write("3.txt", "three")
    assert "it: 1 new file, other captions for 1. To read that again: AGAIN" in clips.update()
    assert clips.manifest.read_bytes() == edited
    mended = [*clips.lines(), {"id": "5", "path": "5.mp4"}]  # taken up by hand
    clips.edit([{**x, "captions": ["three"]} if x["id"] == "3" else x for x in mended])
    assert "AGAIN" not in clips.update()
    assert "wrote" in clips.update(overwrite=True)
    assert clips.captions()["0"] == ["zero"] and clips.captions()["4"] == []
    clips.assert_as_fresh()


def test_a_manifest_of_an_earlier_version_is_taken_over(clips):
    copy = clips.root / ".manifest.jsonl.written"
    copy.unlink()
    assert "is up to date" in clips.update() and copy.exists()
    copy.unlink()
    clips.write("3.txt", "three")
    assert "stays as it is" in clips.update() and not clips.captions()["3"]


def test_a_folder_that_cannot_be_written_may_have_its_manifest(clips, monkeypatch):
    def refuse(path, text):
        raise UserError(f"{path}: cannot write")

    monkeypatch.setattr(folder_manifest, "write_whole", refuse)
    (clips.root / ".manifest.jsonl.written").unlink()
    assert "is up to date" in clips.update()
    clips.write("5.mp4")
    assert "stays as it is" in clips.update()
    with pytest.raises(UserError, match="cannot write"):
        clips.update(overwrite=True)


def test_one_written_by_hand_stays_however_odd(clips):
    for text in ("{", "[]", '{"id": 3, "path": "0.mp4"}', '{"id": "a", "path": "b", "start": "x"}'):
        clips.manifest.write_text(text)
        assert "stays as it is" in clips.update()
        assert clips.manifest.read_text() == text


def test_clips_that_stay_keep_their_ids(clips):
    clips.write("1.mkv")
    clips.write("2.mkv")
    clips.update()
    ids = {line["path"]: line["id"] for line in clips.lines()}
    assert ids["1.mp4"] == "1" and ids["1.mkv"] == "1.mkv"
    assert ids["2.mp4"] == "2@1.5-3" and ids["2.mkv"] == "2.mkv@1.5-3"
    assert "is up to date" in clips.update()


def test_a_kill_between_the_two_files_leaves_nothing_that_looks_edited(clips, monkeypatch):
    clips.write("5.mp4")
    write, written = folder_manifest.write_whole, []

    def killed_at_the_second(path, text):
        if written:
            raise KeyboardInterrupt
        write(path, text)
        written.append(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_manifest, "write_whole", killed_at_the_second)
        clips.update()
    assert "5" in clips.captions()
    assert "is up to date" in clips.update()
    clips.write("6.mp4")
    assert "1 new file" in clips.update()


def test_a_manifest_of_another_folder_is_not_replaced(clips, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.mp4").touch()
    with pytest.raises(UserError, match=r"none of the files in .*other; to replace it: AGAIN"):
        update_manifest(str(tmp_path / "other"), str(clips.manifest), again="AGAIN")
