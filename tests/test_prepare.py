"""The command from the outside: records, reports, interruptions, and what it refuses."""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import media
import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import images
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.tokenizers.wordpiece import load_wordpiece
from uniadapter_jax.prepare import prepare

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    prepare = {settings}
    return ConfigDict({{"data": {{"records": "", "prepare": prepare}}}})
"""


def digests(directory):
    files = sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def mixed_set(root, clips=5):
    """Good clips and one of each kind of trouble; returns the manifest."""
    records = []
    for i in range(clips):
        media.write_video(root / f"v{i}.mp4", frames=21 + i, start=i)
        records.append({"id": f"v{i}", "path": f"v{i}.mp4", "captions": [f"clip {i}", " "]})
    media.write_picture(root / "picture.png")
    records.append({"id": "picture", "path": "picture.png", "captions": ["a grey picture"]})
    whole = (root / "v0.mp4").read_bytes()
    (root / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video at all\n" * 50)
    (root / "silent.mp4").write_bytes(whole)
    for name in ("truncated", "empty", "text", "missing"):
        records.append({"id": name, "path": f"{name}.mp4", "captions": [name]})
    records.append({"id": "silent", "path": "silent.mp4", "captions": ["", "  "]})
    return media.write_manifest(root / "manifest.jsonl", records)


def run(*arguments, **kwargs):
    command = [sys.executable, "-m", "uniadapter_jax.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture
def config_file(tmp_path):
    settings = dataclasses.asdict(media.settings())
    (tmp_path / "config.py").write_text(CONFIG.format(settings=settings))
    return f"--config={tmp_path / 'config.py'}"


def test_records_hold_the_frames_and_texts(tmp_path):
    content = prepare(media.settings(), str(mixed_set(tmp_path / "raw")), str(tmp_path / "out"))
    records = open_records(str(tmp_path / "out"), "train")
    assert records.ids == ["v0", "v1", "v2", "v3", "v4", "picture"]
    assert records.captions[1] == ["clip 1"]
    clip = records.read(1)
    assert [media.number(images.decode_jpeg(frame)) for frame in clip.frames] == [1, 11, 21]
    np.testing.assert_allclose(clip.pts, [0, 1, 2], atol=1e-6)
    assert images.decode_jpeg(clip.frames[0]).size == (36, 24)
    assert content["coverage"]["train"]["expected"] == 11
    assert records.coverage == content["coverage"]["train"]


def test_report_counts_and_names_everything_left_out(tmp_path, capsys):
    prepare(media.settings(), str(mixed_set(tmp_path / "raw")), str(tmp_path / "out"))
    coverage = open_records(str(tmp_path / "out"), "train").coverage
    assert coverage["found"] == 6
    assert coverage["empty_captions"] == 5
    reasons = coverage["reasons"]
    assert reasons["missing"] == reasons["empty"] == reasons["no_caption"] == 1
    assert reasons.get("unreadable", 0) + reasons.get("truncated", 0) == 2
    lines = [json.loads(line) for line in open(tmp_path / "out" / "report.jsonl")]
    left_out = {line["id"]: line for line in lines if line["reason"] != "empty_caption"}
    assert set(left_out) == {"truncated", "empty", "text", "missing", "silent"}
    assert left_out["missing"]["path"] == "missing.mp4"
    assert sum(line["reason"] == "empty_caption" for line in lines) == 5
    printed = capsys.readouterr().out
    assert "train: 6 of 11 items; left out: empty 1, missing 1" in printed
    assert "report.jsonl" in printed


@pytest.mark.parametrize("counts", [(3,), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_same_bytes_for_any_number_of_workers_and_any_place(tmp_path, config_file, counts):
    media.picture_manifest(tmp_path / "raw", 2 * ITEMS_PER_SHARD + 3)
    mixed_set(tmp_path / "mixed")
    pictures = (tmp_path / "raw" / "manifest.jsonl").read_text().splitlines()
    mixed = (tmp_path / "mixed" / "manifest.jsonl").read_text().splitlines()
    for path in (tmp_path / "mixed").iterdir():
        path.rename(tmp_path / "raw" / path.name)
    media.write_manifest(tmp_path / "raw" / "manifest.jsonl", pictures + mixed)
    prepare(media.settings(), str(tmp_path / "raw"), str(tmp_path / "out"))
    expected = digests(tmp_path / "out")
    assert len(expected) == 8
    for workers in counts:
        raw = tmp_path / f"raw{workers}"
        (tmp_path / "raw").rename(raw)
        output = tmp_path / f"out{workers}"
        done = run(config_file, f"--input={raw}", f"--output={output}", f"--workers={workers}")
        assert done.returncode == 0, done.stderr
        assert digests(output) == expected
        raw.rename(tmp_path / "raw")


def test_msrvtt_and_karpathy_end_to_end(tmp_path):
    media.msrvtt(tmp_path / "msrvtt", ["video0", "video1"], ["video2"])
    for i in range(3):
        media.write_video(tmp_path / "msrvtt" / "videos" / f"video{i}.mp4", frames=30)
    settings = media.settings(source="msrvtt", sampling="middle", frames=3)
    prepare(settings, str(tmp_path / "msrvtt"), str(tmp_path / "a"))
    test = open_records(str(tmp_path / "a"), "test")
    assert test.captions == [["video2, the chosen one"]]
    numbers = [media.number(images.decode_jpeg(frame)) for frame in test.read(0).frames]
    assert numbers == [4, 14, 24]

    (tmp_path / "flickr").mkdir()
    pictures = [{"filename": f"{i}.jpg", "split": "train", "sentences": [{"raw": "x"}]}
                for i in range(3)]  # fmt: skip
    (tmp_path / "flickr" / "dataset_flickr30k.json").write_text(json.dumps({"images": pictures}))
    for i in range(3):
        media.write_picture(tmp_path / "flickr" / "images" / f"{i}.jpg")
    prepare(media.settings(source="karpathy"), str(tmp_path / "flickr"), str(tmp_path / "b"))
    records = open_records(str(tmp_path / "b"), "train")
    assert records.frame_counts == [1, 1, 1]


def test_questions_without_captions_are_kept(tmp_path):
    media.write_picture(tmp_path / "a.png")
    qa = [{"question": "what colour?", "answer": "grey"}]
    manifest = media.write_manifest(
        tmp_path / "m.jsonl", [{"id": "a", "path": "a.png", "qa": qa, "captions": []}]
    )
    prepare(media.settings(), str(manifest), str(tmp_path / "out"))
    assert open_records(str(tmp_path / "out"), "train").read(0).qa == qa


def test_text_that_no_encoding_holds(tmp_path):
    media.write_picture(tmp_path / "a.png")
    line = r'{"id": "\u00e9", "path": "a.png", "captions": ["caf\u00e9 \ud83d\u0000", "\u0000"]}'
    manifest = media.write_manifest(tmp_path / "m.jsonl", [line])
    prepare(media.settings(), str(manifest), str(tmp_path / "out"))
    records = open_records(str(tmp_path / "out"), "train")
    assert records.captions == [["café ?"]]
    assert records.read(0).captions == ["café ?"]


def test_full_disk_while_the_records_are_built(tmp_path):
    """Work shards fit below the limit, the file of all records does not; nothing is lost."""
    manifest = str(media.picture_manifest(tmp_path / "raw", 3 * ITEMS_PER_SHARD))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(UserError, match=r"records.*cannot write: file size limit.*free [\d,]+"):
            prepare(media.settings(), manifest, str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    prepare(media.settings(), manifest, str(tmp_path / "out"))
    assert len(open_records(str(tmp_path / "out"), "train")) == 3 * ITEMS_PER_SHARD


def test_read_only_place(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "makedirs", refuse)
    manifest = str(media.picture_manifest(tmp_path / "raw", 1))
    with pytest.raises(UserError, match=r"out\.work: cannot write: read-only file system"):
        prepare(media.settings(), manifest, str(tmp_path / "out"))


class TestTooManyBad:
    def test_stops_with_share_and_list_and_keeps_the_work(self, tmp_path, monkeypatch):
        manifest = str(mixed_set(tmp_path / "raw"))
        with pytest.raises(UserError) as caught:
            prepare(media.settings(max_bad_share=0.2), manifest, str(tmp_path / "out"))
        message = str(caught.value)
        assert "4 of 10 items (40.0%)" in message
        assert "max_bad_share=20.0%" in message
        report = tmp_path / "out.work" / "report.jsonl"
        assert str(report) in message
        assert "truncated.mp4" in report.read_text()
        assert not (tmp_path / "out").exists()

        def decoded(*args, **kwargs):
            raise AssertionError("decoded again")

        monkeypatch.setattr("uniadapter_jax.data.preparation.shards.read_clip", decoded)
        prepare(media.settings(max_bad_share=0.5), manifest, str(tmp_path / "out"))
        assert len(open_records(str(tmp_path / "out"), "train")) == 6
        assert not (tmp_path / "out.work").exists()

    def test_a_mended_file_is_taken_up(self, tmp_path):
        manifest = mixed_set(tmp_path / "raw")
        with pytest.raises(UserError):
            prepare(media.settings(max_bad_share=0.3), str(manifest), str(tmp_path / "out"))
        media.write_video(tmp_path / "raw" / "missing.mp4")
        prepare(media.settings(max_bad_share=0.3), str(manifest), str(tmp_path / "out"))
        assert "missing" in open_records(str(tmp_path / "out"), "train").ids

    def test_nothing_usable_at_all(self, tmp_path):
        manifest = media.write_manifest(
            tmp_path / "m.jsonl", [{"id": "a", "path": "a.mp4", "captions": ["x"]}]
        )
        with pytest.raises(UserError, match=r"1 of 1 items"):
            prepare(media.settings(max_bad_share=1.0), str(manifest), str(tmp_path / "out"))


class TestFinishedOutput:
    def test_is_up_to_date(self, tmp_path, capsys):
        manifest = str(media.picture_manifest(tmp_path, 3))
        prepare(media.settings(), manifest, str(tmp_path / "out"))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        capsys.readouterr()
        prepare(media.settings(max_bad_share=0.1), manifest, str(tmp_path / "out"))
        assert "up to date" in capsys.readouterr().out
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        assert not (tmp_path / "out.work").exists()

    def test_work_that_a_kill_left_behind_is_removed(self, tmp_path):
        """It came after the records were put in place, before the work was removed."""
        manifest = str(media.picture_manifest(tmp_path, 3))
        prepare(media.settings(), manifest, str(tmp_path / "out"))
        (tmp_path / "out.work" / "old").mkdir(parents=True)
        (tmp_path / "out.work" / "old" / "prepare.json").touch()
        prepare(media.settings(), manifest, str(tmp_path / "out"))
        assert not (tmp_path / "out.work").exists()

    def test_other_settings_are_refused_by_name_unless_overwritten(self, tmp_path):
        manifest = str(media.picture_manifest(tmp_path, 3))
        prepare(media.settings(), manifest, str(tmp_path / "out"))
        with pytest.raises(UserError, match=r"quality.*--overwrite"):
            prepare(media.settings(quality=50), manifest, str(tmp_path / "out"))
        prepare(media.settings(quality=50), manifest, str(tmp_path / "out"), overwrite=True)
        content = json.loads((tmp_path / "out" / "prepare.json").read_text())
        assert content["settings"]["quality"] == 50
        assert not (tmp_path / "out.work").exists()

    def test_other_input_is_refused(self, tmp_path):
        manifest = media.picture_manifest(tmp_path, 3)
        prepare(media.settings(), str(manifest), str(tmp_path / "out"))
        for i in range(3):
            media.write_picture(tmp_path / "media" / f"p{i}.png", size=(100, 90))
        with pytest.raises(UserError, match="input"):
            prepare(media.settings(), str(manifest), str(tmp_path / "out"))

    def test_foreign_directory_is_left_alone(self, tmp_path):
        manifest = str(media.picture_manifest(tmp_path, 3))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("precious")
        with pytest.raises(UserError, match="holds no records"):
            prepare(media.settings(), manifest, str(tmp_path / "out"), overwrite=True)
        assert (tmp_path / "out" / "thesis.tex").exists()

    def test_empty_directory_is_used(self, tmp_path):
        (tmp_path / "out").mkdir()
        manifest = str(media.picture_manifest(tmp_path, 3))
        prepare(media.settings(), manifest, str(tmp_path / "out"))
        assert len(open_records(str(tmp_path / "out"), "train")) == 3


class TestTokenizer:
    def test_is_trained_with_the_records_or_later(self, tmp_path):
        manifest = str(media.picture_manifest(tmp_path, 6))
        prepare(media.settings(), manifest, str(tmp_path / "a"), tokenizer_size=600)
        prepare(media.settings(), manifest, str(tmp_path / "b"))
        prepare(media.settings(), manifest, str(tmp_path / "b"), tokenizer_size=600)
        assert (tmp_path / "a" / "tokenizer" / "tokenizer.json").exists()
        assert digests(tmp_path / "a") == digests(tmp_path / "b")
        assert not (tmp_path / "b.work").exists()

    def test_wordpiece_learns_from_questions_and_answers(self, tmp_path):
        manifest = media.picture_manifest(tmp_path, 2, qa=[{"question": "Is it?", "answer": "xyz"}])
        out = tmp_path / "out"
        prepare(media.settings(), str(manifest), str(out), tokenizer_size=600, wordpiece_size=60)
        tokenizer = load_wordpiece(out / "wordpiece")
        assert tokenizer.vocab_size == 62 and (out / "tokenizer" / "tokenizer.json").exists()
        ids = tokenizer.encode(["caption of it? xyz"], 12)
        unknown = (out / "wordpiece" / "vocab.txt").read_text().split("\n").index("[UNK]")
        assert unknown not in ids
        prepare(media.settings(), str(manifest), str(tmp_path / "b"))
        prepare(media.settings(), str(manifest), str(tmp_path / "b"), wordpiece_size=60)
        assert digests(out / "wordpiece") == digests(tmp_path / "b" / "wordpiece")


def processes_with(text):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text in (entry / "environ").read_bytes().decode():
                found.append(int(entry.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
class TestKilled:
    WORKERS = 2

    def start(self, tmp_path, manifest, config_file):
        """The command as a process; its children are known by a mark in their environment."""
        return subprocess.Popen(
            [sys.executable, "-m", "uniadapter_jax.prepare", config_file, f"--input={manifest}",
             f"--output={tmp_path / 'out'}", f"--workers={self.WORKERS}"],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PREPARE_TEST": str(tmp_path)},
        )  # fmt: skip

    def wait_until(self, condition, seconds=30.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    @pytest.mark.parametrize("when", [pytest.param(0, marks=pytest.mark.slow), 3])
    def test_rerun_repeats_at_most_one_shard_per_worker(self, tmp_path, config_file, when):
        manifest = media.picture_manifest(tmp_path / "raw", 8 * ITEMS_PER_SHARD, captions=1)
        shards = tmp_path / "out.work" / "shards"
        finished = lambda: [p for p in shards.glob("shard-*") if p.suffix != ".tmp"]  # noqa: E731
        process = self.start(tmp_path, manifest, config_file)
        self.wait_until(lambda: shards.exists() and len(finished()) >= when)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        self.wait_until(lambda: not processes_with(f"PREPARE_TEST={tmp_path}"))
        survived = {path: path.stat().st_mtime_ns for path in finished()}
        assert not (tmp_path / "out").exists()
        assert len(list(shards.glob("*.tmp"))) <= self.WORKERS
        (shards / "shard-000000-0123456789abcdef").touch()  # of other settings
        (tmp_path / "out.work" / "new.tfds").mkdir()  # an unfinished build

        again = self.start(tmp_path, manifest, config_file)
        _, stderr = again.communicate(timeout=60)
        assert again.returncode == 0, stderr
        if survived:
            assert f"kept from an earlier run: {len(survived) * ITEMS_PER_SHARD} of" in stderr
        assert sorted(os.listdir(tmp_path)) == ["config.py", "out", "raw"]
        prepare(media.settings(), str(manifest), str(tmp_path / "whole"))
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_killed_while_the_records_are_built(self, tmp_path, config_file):
        manifest = media.picture_manifest(tmp_path / "raw", 4 * ITEMS_PER_SHARD, captions=1)
        process = self.start(tmp_path, manifest, config_file)
        self.wait_until(lambda: list((tmp_path / "out.work").glob("new*")))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        again = self.start(tmp_path, manifest, config_file)
        _, stderr = again.communicate(timeout=60)
        assert again.returncode == 0, stderr
        assert sorted(os.listdir(tmp_path)) == ["config.py", "out", "raw"]
        assert len(open_records(str(tmp_path / "out"), "train")) == 4 * ITEMS_PER_SHARD

    def test_two_at_once_on_one_output(self, tmp_path, config_file):
        manifest = media.picture_manifest(tmp_path / "raw", 8 * ITEMS_PER_SHARD)
        process = self.start(tmp_path, manifest, config_file)
        try:
            self.wait_until(lambda: (tmp_path / "out.work" / "shards").exists())
            os.kill(process.pid, signal.SIGSTOP)
            holder = rf"in use by prepare, process {process.pid} on \S+, since"
            with pytest.raises(UserError, match=holder):
                prepare(media.settings(), str(manifest), str(tmp_path / "out"))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()


class TestCommandLine:
    def test_no_config(self):
        done = run("--input=/nowhere")
        assert done.returncode == 2
        assert done.stderr.startswith("error: --config is missing")

    def test_no_input(self, config_file):
        done = run(config_file)
        assert done.returncode == 2
        assert "error: --input is missing" in done.stderr

    def test_no_output(self, config_file):
        done = run(config_file, "--input=/nowhere")
        assert done.returncode == 2
        assert "error: --output is missing" in done.stderr

    def test_unknown_key_names_the_nearest(self, config_file):
        done = run(config_file, "--input=/nowhere", "--config.data.prepare.qualty=3")
        assert done.returncode != 0
        assert "quality" in done.stderr

    def test_bad_line_of_a_manifest(self, tmp_path, config_file):
        manifest = media.write_manifest(tmp_path / "m.jsonl", ['{"id": "a", "path": "b"}', "{oops"])
        done = run(config_file, f"--input={manifest}", f"--output={tmp_path / 'out'}")
        assert done.returncode == 2
        assert f"{manifest}, line 2: not JSON" in done.stderr
        assert "Traceback" not in done.stderr

    def test_help_says_it_all(self):
        done = run("--help")
        for word in (
            "--config",
            "--input",
            "--output",
            "--workers",
            "train-tokenizer",
            "train-wordpiece",
            "--from-folder",
            "dry-run",
            "report.jsonl",
        ):
            assert word in done.stdout

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"source": "imagenet"}, r"prepare\.source='imagenet': choose one of msrvtt"),
            ({"sampling": "random"}, r"prepare\.sampling='random'"),
            ({"fps": 0.0}, r"prepare\.fps=0\.0"),
            ({"fps": float("nan")}, r"prepare\.fps=nan"),
            ({"frames": 0}, r"prepare\.frames=0"),
            ({"short_side": 0}, r"prepare\.short_side=0"),
            ({"quality": 101}, r"prepare\.quality=101"),
            ({"max_bad_share": 1.5}, r"prepare\.max_bad_share=1\.5"),
        ],
    )
    def test_settings_out_of_range(self, change, message):
        with pytest.raises(UserError, match=message):
            media.settings(**change).check()
