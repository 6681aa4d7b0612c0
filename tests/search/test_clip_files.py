"""A file gives the frames that its record has; windows are clips of their own."""

from __future__ import annotations

import itertools

import media
import numpy as np
import pytest

from uniadapter_jax.data import sampling
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.clips import read_clip
from uniadapter_jax.data.sources.item import Item
from uniadapter_jax.inference import clip_files
from uniadapter_jax.inference.clip_files import Windows, pixels_of, read_clips, read_range
from uniadapter_jax.inference.clip_options import ClipOptions

STORED = (
    {"sampling": "fps", "fps": 2.0},
    {"sampling": "uniform", "frames": 7},
    {"sampling": "middle", "frames": 5},
)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    media.write_video(path, frames=63, rate=10)
    return path


def options(stored=STORED[0], loading="evenly"):
    return ClipOptions(media.settings(**stored), 4, loading)


def item(path, start=None, end=None):
    return Item("x", path.name, ("a",), "test", start, end)


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored["sampling"])
@pytest.mark.parametrize("loading", ["evenly", "uniform", "middle", "random"])
def test_frames_are_those_of_a_record(film, stored, loading):
    for start, end in ((None, None), (1.0, 3.5), (5.9, None)):
        record = read_clip(item(film, start, end), str(film.parent), media.settings(**stored))
        chosen = sampling.choose(loading, len(record.frames), 4)
        found = read_range(film, options(stored, loading), start, end)
        assert list(found.frames) == [record.frames[i] for i in chosen]


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored["sampling"])
def test_windows_are_what_their_seconds_give_alone(film, stored, monkeypatch):
    chosen = options(stored)
    clips, count = read_clips(film, chosen, Windows(2.0, 1.0))
    assert count == len(clips) == 7 and clips[0].whole and clips[0].end == 6.3
    assert [(c.start, c.end) for c in clips[1:]] == [
        *((0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0), (4.0, 6.0), (5.0, 6.3)),
    ]
    assert clips[0].frames == read_range(film, chosen, None, None).frames
    for clip in clips[1:]:
        assert clip.frames == read_range(film, chosen, clip.start, clip.end).frames
    monkeypatch.setattr(clip_files, "GROUP", 3)
    parts = [read_clips(film, chosen, Windows(2.0, 1.0), first) for first in (0, 3, 6)]
    assert [clip for part, _ in parts for clip in part] == clips


def test_windows_reach_the_end_and_not_beyond():
    for duration in (0.3, 9.99, 10.0, 10.01, 14.9, 15.0, 15.1, 3600.0):
        windows = Windows(10.0, 5.0).of(duration)
        if duration <= 11:  # a rest below a tenth of a window is no window
            assert windows == []
            continue
        assert windows[0] == (0.0, 10.0) and windows[-1][1] == duration
        assert all(0 <= start < end <= duration for start, end in windows)
        assert all(b[0] - a[0] == 5 for a, b in itertools.pairwise(windows))
        assert sum(end == duration for _, end in windows) == 1


def test_a_picture_is_one_frame_and_others_are_masked(film, tmp_path):
    media.write_picture(tmp_path / "a.png", grey=77)
    (picture,), count = read_clips(tmp_path / "a.png", options(), Windows(1.0, 1.0))
    assert count == 1 and picture.start is None and picture.whole
    pixels, mask = pixels_of([picture, read_range(film, options(), 0.0, 2.0)], 4, 8, "squash")
    assert mask.tolist() == [[True, False, False, False], [True, True, True, True]]
    assert np.abs(pixels[0, 0].astype(int) - 77).max() < 3 and not pixels[0, 1:].any()


def test_what_is_no_clip_says_why(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"text")
    with pytest.raises(DecodeError, match="unreadable"):
        read_clips(tmp_path / "a.mp4", options())
    with pytest.raises(DecodeError, match="missing"):
        read_clips(tmp_path / "b.mp4", options())
