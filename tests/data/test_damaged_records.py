"""Records and work shards that are damaged, or made to be a nuisance: told, never taken."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time

import media
import numpy as np
import pytest
from damage import damage
from test_records import without_digests

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD, check_shard, read_shard
from uniadapter_jax.data.records import open_records
from uniadapter_jax.prepare import prepare

# Damage here may change nothing that is computed: people read the report, only `prepare` what is
# kept, and ArrayRecord pads its files with zeros that nobody reads.
UNREAD = ("report.jsonl", "kept.jsonl", "records-")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    manifest = media.picture_manifest(
        folder / "raw", 7, qa=[{"question": "Is it?", "answer": "yes"}]
    )
    prepare(media.settings(), str(manifest), str(folder / "out"))
    return folder / "out"


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def everything(root):
    """What training and evaluation read of a split."""
    records = open_records(str(root), "train")
    clips = [records.read(i) for i in range(len(records))]
    return (
        records.fingerprint,
        records.ids,
        records.captions,
        [(clip.frames, clip.pts.tolist(), clip.captions, clip.qa) for clip in clips],
        [
            [bytes(frame) for frame in records.read_frames(i, range(count))]
            for i, count in enumerate(records.frame_counts)
        ],
        list(records.questions),
        records.coverage,
        records.prepared["settings"],
    )


def test_changed_frames_are_named(copy, monkeypatch):
    """What ArrayRecord's own check does not see, such as a file of another set."""
    records = open_records(str(copy), "train")
    real = open_records(str(copy), "train").read(3)

    class Source(list):
        def __getitem__(self, number):
            data = records_source[number]
            return data.replace(real.frames[0][-30:], bytes(30)) if number == 3 else data

    records_source = records._open("train")
    records._sources["train"] = Source()
    records.read(2)
    with pytest.raises(UserError, match=r"record 3 of train, 'p3', is damaged: its frames lack"):
        records.read(3)


def test_changed_captions_are_named(copy):
    path = copy / "index-train.jsonl"
    path.write_text(path.read_text().replace("caption 1 of picture 3", "captiom 1 of picture 3"))
    with pytest.raises(UserError, match=r"index-train\.jsonl: is damaged: .*SHA-256"):
        open_records(str(copy), "train")
    without_digests(copy)
    records = open_records(str(copy), "train")
    with pytest.raises(UserError, match=r"'p\d', is damaged: other captions than those"):
        for i in range(len(records)):
            records.read(i)


def test_records_without_digests_load(root, copy):
    without_digests(copy)
    assert everything(copy) == everything(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coverage": None}, "coverage should be an object"),
        ({"settings": []}, "settings should be an object"),
        ({"files": 4}, "files should be an object"),
        ({"coverage": {"train": 3}}, r"coverage\.train\.expected should be int"),
        ({"coverage": {"train": {"expected": True}}}, r"coverage\.train\.expected should be int"),
    ],
)
def test_fields_of_prepare_json(copy, change, message):
    path = copy / "prepare.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"prepare\.json: is damaged"):
        open_records(str(copy), "train")
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"prepare\.json: {message}"):
        open_records(str(copy), "train")


def line(**changes):
    good = {"id": "p0", "captions": ["x"], "frames": 1, "qa": [], "sha256": "00" * 32}
    return json.dumps({**good, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000, "line 1: not an index line: nested too deep"),
        (line().replace("1", "NaN", 1), "NaN is no JSON number"),
        ("7", "no JSON object"),
        (line(captions=None), "'captions' should be list, is None"),
        (line(captions=[3]), "'captions' should be a list of strings"),
        (line(frames=10**9 * 1.0), "'frames' should be int"),
        (line(frames=-1), "'frames' should be at least 1"),
        (line(sha256="xyz"), "non-hexadecimal"),
        (line(qa={}), "'qa' should be list"),
        (line(id="x" * 5 * 2**20), "line 1 has more than 4,194,304 bytes"),
        (line(id="x" * 10**6), r"1 lines, prepare.json counts 7"),
        (None, "no regular file"),
    ],
    ids=range(12),
)
def test_hostile_index(copy, text, message):
    without_digests(copy)
    path = copy / "index-train.jsonl"
    path.unlink()
    if text is None:
        os.mkfifo(path)
    else:
        path.write_text(text + "\n")
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"index-train\.jsonl.*{message}"):
        open_records(str(copy), "train")
    assert time.monotonic() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**21  # KiB, imports included


def attack(root, copy, seed):
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    told = damage(copy, np.random.default_rng(seed), folders=False)
    try:
        same = everything(copy) == everything(root)
    except UserError:
        return "told"
    assert same, told
    return "right" if told.startswith(UNREAD) else f"silent: {told}"


def test_random_damage(root, tmp_path):
    found = [attack(root, tmp_path / "copy", seed) for seed in range(12)]
    assert not [told for told in found if told.startswith("silent")], found


@pytest.mark.slow
def test_random_damage_300(root, tmp_path):
    found = [attack(root, tmp_path / "copy", seed) for seed in range(100, 400)]
    print({told: found.count(told) for told in found})
    assert not [told for told in found if told.startswith("silent")], found


class TestWorkShards:
    @pytest.fixture
    def stopped(self, tmp_path):
        """(manifest, output, shards) of a prepare that was stopped once all was decoded."""
        manifest = media.picture_manifest(tmp_path / "raw", ITEMS_PER_SHARD + 3)
        (tmp_path / "raw" / "media" / "p1.png").write_bytes(b"nothing")
        output = tmp_path / "out"
        with pytest.raises(UserError, match="max_bad_share"):
            prepare(media.settings(max_bad_share=0.0), str(manifest), str(output))
        return manifest, output, sorted((tmp_path / "out.work" / "shards").iterdir())

    def test_a_damaged_one_is_made_again(self, stopped, tmp_path, capsys):
        manifest, output, shards = stopped
        settings = media.settings(max_bad_share=0.5)
        whole = tmp_path / "whole"
        prepare(settings, str(manifest), str(whole))
        for seed in range(8):
            shutil.rmtree(output, ignore_errors=True)
            work = shutil.copytree(tmp_path / "out.work", tmp_path / "kept", dirs_exist_ok=True)
            told = damage(shards[seed % 2], np.random.default_rng(seed))
            capsys.readouterr()
            prepare(settings, str(manifest), str(output))
            warned = "is damaged: it does not have the SHA-256" in capsys.readouterr().err
            assert warned or "deleted" in told, told
            for path in whole.iterdir():
                assert path.read_bytes() == (output / path.name).read_bytes(), told
            assert not (tmp_path / "out.work").exists()
            work.rename(tmp_path / "out.work")

    @pytest.mark.parametrize(
        "content",
        [
            struct.pack("<I", 2**32 - 1),
            struct.pack("<I", 2) + b"[]",
            struct.pack("<I", 20_000) + b"[" * 20_000,
            *(
                struct.pack("<I", len(head)) + head
                for sizes in ([-40], [10**9], [10**30], [1.5], None, "12", [True])
                for head in [json.dumps({"index": 0, "reason": "", "detail": "", "pts": [],
                                         "sizes": sizes}).encode()]
            ),
        ],
        ids=range(10),
    )  # fmt: skip
    @pytest.mark.parametrize("with_frames", [True, False])
    def test_impossible_lengths(self, tmp_path, content, with_frames):
        path = tmp_path / "shard"
        path.write_bytes(content + bytes(100))
        with pytest.raises(UserError, match="shard: is damaged"):
            list(read_shard(str(path), with_frames))
        with pytest.raises(UserError, match="shard: is damaged"):
            check_shard(str(path))

    def test_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "shard")
        with pytest.raises(UserError, match="no regular file"):
            check_shard(str(tmp_path / "shard"))
