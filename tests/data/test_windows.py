"""Files cut into windows: where they begin and end, their captions and pixels."""

import collections

import media
import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import images
from uniadapter_jax.data.media import video_file
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video_frames import Frames
from uniadapter_jax.data.preparation import ahead
from uniadapter_jax.data.preparation.ahead import ReadAhead
from uniadapter_jax.data.preparation.shards import plan_shards
from uniadapter_jax.data.preparation.windows import read_items, spans
from uniadapter_jax.data.preparation.workers import decode_shards
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.sources.item import Item
from uniadapter_jax.prepare import prepare

SETTINGS = media.settings(window=2.0, stride=1.0)


@pytest.mark.parametrize(
    ("seconds", "stride", "expected"),
    [
        (25.0, 10.0, [(0, 10), (10, 20), (20, 25)]),
        (20.9, 10.0, [(0, 10), (10, 20.9)]),  # a rest too short for its own
        (20.0, 5.0, [(0, 10), (5, 15), (10, 20)]),
        (23.0, 5.0, [(0, 10), (5, 15), (10, 20), (15, 23)]),
        (30.0, 20.0, [(0, 10), (20, 30)]),  # gaps are meant
        (15.0, 20.0, [(0, 10)]),
        (3.0, 5.0, [(0, 3)]),
    ],
)
def test_where_windows_begin_and_end(seconds, stride, expected):
    assert list(spans(seconds, 10.0, stride)) == expected


def items(root, records, **settings):
    media.write_manifest(root / "manifest.jsonl", records)
    return read_items(media.settings(window=2.0, stride=1.0, **settings), str(root)).items


def test_every_window_shows_its_seconds(tmp_path):
    media.write_video(tmp_path / "long.mp4", frames=40)  # of 4 s
    media.write_picture(tmp_path / "still.png")
    records = [{"id": "x", "path": "long.mp4"}, {"id": "still", "path": "still.png"}]
    media.write_manifest(tmp_path / "manifest.jsonl", records)
    prepare(SETTINGS, str(tmp_path), str(tmp_path / "out"))
    split = open_records(str(tmp_path / "out"), "train")
    assert split.ids == ["x@0.0-2.0", "x@1.0-3.0", "x@2.0-4.0", "still"]
    clip = split.read(1)
    assert [media.number(images.decode_jpeg(frame)) for frame in clip.frames] == [10, 20]
    np.testing.assert_allclose(clip.pts, [0, 1])
    assert not any(split.captions)
    assert "4 windows of 2.0 s every 1.0 s from 2 files" in split.prepared["protocol"]
    assert split.prepared["settings"]["stride"] == 1.0


def shards_of(root, items, settings, monkeypatch=None):
    """The bytes of the shards, and how often packets and frames of files were read."""
    counts = collections.Counter()
    if monkeypatch:
        survey, picture = video_file.survey, Frames.picture
        count = lambda name, real: lambda *args: counts.update([name]) or real(*args)  # noqa: E731
        monkeypatch.setattr(video_file, "survey", count("surveys", survey))
        monkeypatch.setattr(Frames, "picture", count("pictures", picture))
    out = root / f"shards{len(list(root.iterdir()))}"
    out.mkdir()
    shards = plan_shards(items, str(root), settings, str(out))
    decode_shards(shards, str(root), settings, 0, lambda count, bad: None)
    return [open(shard.path, "rb").read() for shard in shards], counts


def test_what_windows_share_is_decoded_once(tmp_path, monkeypatch):
    media.write_video(tmp_path / "long.mp4", frames=200, keyframes=30)  # of 20 s
    found = items(tmp_path, [{"id": "x", "path": "long.mp4", "captions": ["a"]}])
    assert len(found) == 19  # in two shards
    settings = media.settings(fps=2.0)
    together, counts = shards_of(tmp_path, found, settings, monkeypatch)
    assert counts == {"surveys": 1, "pictures": 16 * 2 + 2 + 3 * 2 + 2}
    monkeypatch.setattr(ahead, "read_clips", raise_damaged)
    alone, counts = shards_of(tmp_path, found, settings, monkeypatch)
    assert counts["surveys"] == 19 and alone == together


def raise_damaged(*args):
    raise DecodeError("damaged", "")


def test_a_bad_window_leaves_the_others(tmp_path):
    media.write_video(tmp_path / "long.mp4", frames=40)
    beyond = [("good", 0.0, 1.0), ("bad", 9.0, 10.0), ("too", 1.0, 2.0)]
    found = [Item(name, "long.mp4", "train", ("a",), *span) for name, *span in beyond]
    (data,), _ = shards_of(tmp_path, found, media.settings())
    assert data.count(b'"reason": "no_frames"') == 1 and data.count(b'"reason": ""') == 2


def test_after_a_death_items_are_read_one_by_one(tmp_path):
    media.write_video(tmp_path / "long.mp4", frames=40)
    found = [Item(str(i), "long.mp4", "train", ("a",), float(i), i + 1.0) for i in range(3)]
    (shard,) = plan_shards(found, str(tmp_path), media.settings(), str(tmp_path))
    read = [
        [ReadAhead(shard, str(tmp_path), media.settings(), died).take(0)]
        for died in (frozenset(), frozenset({1}))
    ]
    assert read[0] != [None] and read[1] == [None]


def test_captions_of_the_file_and_of_moments(tmp_path):
    media.write_video(tmp_path / "a.mp4", frames=60)  # of 6 s
    found = items(
        tmp_path,
        [
            {"id": "all", "path": "a.mp4", "captions": ["whole"], "split": "test"},
            {"id": "1", "path": "a.mp4", "captions": ["short"], "start": 0.9, "end": 1.3},
            {"id": "2", "path": "a.mp4", "captions": ["long"], "start": 1.0, "end": 6.0},
        ],
    )
    test = {item.id: item.captions for item in found if item.split == "test"}
    assert set(test.values()) == {("whole",)} and "all@4.0-6.0" in test
    train = {item.id: item.captions for item in found if item.split == "train"}
    assert train == {
        "a@0.0-2.0": ("short", "long"),
        "a@1.0-3.0": ("short", "long"),
        **{f"a@{i}.0-{i + 2}.0": ("long",) for i in (2, 3, 4)},
    }


def test_windows_without_captions_beside_others_are_left_out_and_told(tmp_path):
    media.write_video(tmp_path / "a.mp4", frames=60)
    moment = {"id": "1", "path": "a.mp4", "captions": ["end"], "start": 5.0, "end": 6.0}
    media.write_manifest(tmp_path / "manifest.jsonl", [moment])
    source = read_items(SETTINGS, str(tmp_path))
    assert [item.id for item in source.items] == ["1@4.0-6.0"]
    assert "(4 without a caption left out)" in source.protocol


def test_a_broken_file_is_reported_as_it_is(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    names = ("a", "missing")
    found = items(tmp_path, [{"id": n, "path": f"{n}.mp4", "captions": ["x"]} for n in names])
    assert [item.id for item in found] == ["a", "missing"]


def test_several_files_of_one_name(tmp_path):
    records = []
    for suffix in ("mp4", "mkv"):
        media.write_video(tmp_path / f"a.{suffix}", frames=20)
        records += [
            {"id": f"{suffix}{i}", "path": f"a.{suffix}", "start": i, "end": i + 1} for i in (0, 1)
        ]
    assert [item.id for item in items(tmp_path, records)] == ["a.mp4@0.0-2.0", "a.mkv@0.0-2.0"]


def test_questions_are_about_the_whole(tmp_path):
    media.write_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="'a' has questions"):
        items(tmp_path, [{"id": "a", "path": "a.mp4", "qa": [{"question": "who?"}]}])


@pytest.mark.parametrize("change", [{"window": -1.0}, {"window": 1e-9}, {"stride": 1e-9}])
def test_settings_out_of_range(change):
    with pytest.raises(UserError, match=r"prepare\.(window|stride)="):
        media.settings(**change).check()
