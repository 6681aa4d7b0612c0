"""Frames that are read alone: where they lie in the files that ArrayRecord's library wrote."""

import gc
import os
import pickle
import shutil
from pathlib import Path

import media
import numpy as np
import pytest
from array_record.python import array_record_module
from test_examples import example

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data import prepared
from uniadapter_jax.data.frame_places import BLOCK, BLOCK_HEADER, FramePlaces, find
from uniadapter_jax.data.records import open_records
from uniadapter_jax.prepare import prepare

ROOM = BLOCK - BLOCK_HEADER


def written(path, clips, options="group_size:1,uncompressed"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for frames in clips:
        writer.write(example(frames, [0.0] * len(frames)))
    writer.close()


def places_of(folder, files):
    """The reader of record files with these clips, after their places were written."""
    paths = [folder / f"{number}" for number in range(len(files))]
    with open(folder / "places", "wb") as places:
        for number, (path, clips) in enumerate(zip(paths, files, strict=True)):
            written(path, clips)
            for (rows, frames), clip in zip(
                find(str(path), len(clips), number), clips, strict=True
            ):
                assert [bytes(frame) for frame in frames] == clip
                places.write(rows.tobytes())
    return FramePlaces(str(folder / "places"), [str(path) for path in paths])


@pytest.mark.parametrize("seed", range(20))
def test_frames_of_any_size_are_found(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sizes = (1, 100, 5000, ROOM - 40, ROOM, ROOM + 1, 3 * ROOM + 7)
    files = [
        [
            [rng.bytes(int(rng.choice(sizes) + rng.integers(0, 64))) for _ in range(frames)]
            for frames in rng.integers(1, 6, 8)
        ]
        for _ in range(2)
    ]
    places = places_of(tmp_path, files)
    first = 0
    for clip in (clip for clips in files for clip in clips):
        chosen = rng.permutation(len(clip))[: rng.integers(1, len(clip) + 1)].tolist()
        read = pickle.loads(pickle.dumps(places)).read(first, chosen)
        assert [bytes(frame) for frame in read] == [clip[i] for i in chosen]
        first += len(clip)


def test_every_place_of_a_frame_in_a_block(tmp_path):
    """A frame of 50 bytes begins at each of 200 places round the end of a block."""
    rng = np.random.default_rng(0)
    for before in range(ROOM - 350, ROOM - 150):
        clip = [rng.bytes(before), rng.bytes(50), rng.bytes(30)]
        read = places_of(tmp_path, [[clip]]).read(0, [1, 2])
        assert [bytes(frame) for frame in read] == clip[1:]


def test_a_frame_of_many_blocks(tmp_path):
    frame = np.random.default_rng(0).bytes(1200 * ROOM)  # more parts than one reading may have
    (read,) = places_of(tmp_path, [[[b"a", frame]]]).read(0, [1])
    assert read == frame


@pytest.mark.parametrize("options", ["group_size:1", "group_size:4,uncompressed"])
def test_other_ways_to_store_are_refused(tmp_path, options):
    written(tmp_path / "0", [[b"a" * 100], [b"b" * 100]], options)
    with pytest.raises(FileError, match="chunk at byte 64 is compressed or has several records"):
        list(find(str(tmp_path / "0"), 2, 0))


def test_missing_records_are_told(tmp_path):
    written(tmp_path / "0", [[b"a" * 100]])
    with pytest.raises(FileError):
        list(find(str(tmp_path / "0"), 3, 0))


def prepared_records(folder, frames=12):
    media.write_video(folder / "clip.mp4")
    clips = [{"id": f"c{i}", "path": "clip.mp4", "captions": [f"clip {i}"]} for i in range(3)]
    manifest = media.write_manifest(folder / "manifest.jsonl", clips)
    settings = media.settings(sampling="uniform", frames=frames)
    prepare(settings, str(manifest), str(folder / "out"))
    return open_records(str(folder / "out"), "train")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return prepared_records(tmp_path_factory.mktemp("places"))


def test_only_chosen_frames_are_read(records, monkeypatch):
    clip = records.read(1).frames
    assert len(clip) == 12
    taken = []

    def spy(file, parts, begin, real=os.preadv):
        taken.append(real(file, parts, begin))
        return taken[-1]

    monkeypatch.setattr(os, "preadv", spy)
    monkeypatch.setattr(records, "_open", None)
    assert [bytes(frame) for frame in records.read_frames(1, [7, 2])] == [clip[7], clip[2]]
    assert sum(taken) < len(clip[7]) + len(clip[2]) + 12 * 20 + 2 * BLOCK_HEADER


@pytest.mark.filterwarnings("error")
def test_files_are_closed_with_what_reads_them(records):
    def opened():
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip

    again = open_records(records.root, "train")
    again.read_frames(0, [0])
    places = os.path.join(records.root, "places-train.bin")
    before = opened().count(places)
    del again
    gc.collect()
    assert before >= 1 and opened().count(places) == before - 1


def test_records_without_places_are_read_whole(records, tmp_path):
    """As a version before wrote them."""
    root = shutil.copytree(records.root, tmp_path / "old")
    content = prepared.read_prepared(str(root))
    for name in root.glob("places-*"):
        name.unlink()
        del content["files"][name.name]
    prepared.write_prepared(str(root), content)
    old = open_records(str(root), "train")
    assert old.fingerprint == records.fingerprint
    for i in range(3):
        assert old.read_frames(i, [0, 5]) == records.read_frames(i, [0, 5])


def test_flipped_bits_are_told(records, tmp_path):
    root = shutil.copytree(records.root, tmp_path / "copy")
    sound = [[bytes(f) for f in records.read_frames(i, range(12))] for i in range(3)]
    (path,) = root.glob("records-train*")
    content, rng, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        place = int(rng.integers(sum(len(f) for clip in sound for f in clip)))
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        copy = open_records(str(root), "train")
        for i in range(3):
            try:
                assert [bytes(f) for f in copy.read_frames(i, range(12))] == sound[i]
            except UserError as error:
                assert f"record {i} of train is damaged" in str(error)
                told += 1
    assert told > 90


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "SHA-256"),
    ],
)
def test_damaged_places_are_told(records, tmp_path, harm, message):
    root = shutil.copytree(records.root, tmp_path / "copy")
    harm(root / "places-train.bin")
    with pytest.raises(FileError, match=rf"places-train\.bin.*{message}"):
        open_records(str(root), "train")


def test_a_missing_record_file_is_told(records, tmp_path):
    root = shutil.copytree(records.root, tmp_path / "copy")
    (path,) = root.glob("records-train*")
    path.unlink()
    with pytest.raises(UserError, match=r"record 2 of train is damaged: .*cannot be read: No such"):
        open_records(str(root), "train").read_frames(2, [0])
