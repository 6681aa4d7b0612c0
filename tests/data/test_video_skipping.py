"""Frames that no other is made from are not decoded where nobody wants them."""

from __future__ import annotations

import av
import numpy as np
import pytest

from uniadapter_jax.data.media import video, video_file
from uniadapter_jax.data.media.video_frames import Frames

FRAMES = 60


def moving(path, container=None, **options):
    """Frames of noise that moves, so that frames are made from each other."""
    scene = np.random.default_rng(0).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    scene = scene.repeat(2, 0).repeat(2, 1)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "30", **options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(FRAMES):
            view = np.ascontiguousarray(scene[i : i + 64, 2 * i : 2 * i + 96])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


def decoded(path):
    with video_file.open_file(path) as container:
        frames = Frames(container, frozenset())
        return [np.asarray(frames.picture(entry.frame)) for entry in frames]


def read(path, chosen):
    kept, _ = video.read_frames(path, lambda times: np.asarray(chosen))
    return [np.asarray(image) for image in kept]


LAYOUTS = {
    "pyramid": {"bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0"},
    "flat": {"bf": "2", "x264-params": "b-pyramid=none:b-adapt=0"},
    "no B": {"bf": "0"},
    "interlaced": {"bf": "2", "x264-params": "tff=1:b-adapt=0"},
    "open groups": {"bf": "3", "x264-params": "open-gop=1:b-adapt=0"},
}


FAST = [("pyramid", "mp4"), ("flat", "mkv")]
ALL = [(layout, suffix) for layout in LAYOUTS for suffix in ("mp4", "mkv", "ts")]


@pytest.mark.parametrize(
    ("layout", "suffix"), FAST + [pytest.param(*p, marks=pytest.mark.slow) for p in ALL]
)
def test_frames_are_those_of_a_full_decode(tmp_path, monkeypatch, layout, suffix):
    monkeypatch.setattr(video._Reader, "_decode_all", None)  # which would hide a mistake
    path = moving(tmp_path / f"a.{suffix}", **LAYOUTS[layout])
    whole = decoded(path)
    assert len(whole) == FRAMES
    rng = np.random.default_rng(1)
    for count in (1, 4, 12):
        chosen = np.sort(rng.choice(FRAMES, count, replace=False))
        for place, frame in zip(chosen, read(path, chosen), strict=True):
            np.testing.assert_array_equal(frame, whole[place])


def test_others_are_passed_over(tmp_path):
    path = moving(tmp_path / "a.mp4", **LAYOUTS["flat"])
    with video_file.open_file(path) as container:
        shown = [entry.frame.pts for entry in Frames(container, frozenset(), frozenset())]
    assert len(shown) < FRAMES / 2


def test_damage_where_nothing_is_made_from_it_does_not_matter(tmp_path):
    path = moving(tmp_path / "a.mp4", **LAYOUTS["flat"])
    whole = decoded(path)
    with av.open(path) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        stamps = sorted(packet.pts for packet in packets)
        hit = min(packets[10:], key=lambda packet: packet.size)  # those are the B frames
        place, size = hit.pos, hit.size
    data = bytearray(open(path, "rb").read())
    data[place + size // 2 : place + size] = bytes(size - size // 2)
    open(path, "wb").write(data)
    near = stamps.index(hit.pts)
    chosen = [near - 3, near + 3]
    for wanted, frame in zip(chosen, read(path, chosen), strict=True):
        np.testing.assert_array_equal(frame, whole[wanted])
