"""Frames of real encoded files, and every way in which a file can be no video."""

import struct

import av
import media
import numpy as np
import pytest

from uniadapter_jax.data import sampling
from uniadapter_jax.data.media import video, video_file
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video import read_frames

# name, codec, container options
KINDS = {
    "h264.mp4": {"codec": "libx264"},
    "faststart.mp4": {"codec": "libx264", "mux": {"movflags": "faststart"}},
    "fragmented.mp4": {"codec": "libx264", "mux": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.mkv": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "b_frames.avi": {"codec": "libx264"},
    "h264.ts": {"codec": "libx264", "container": "mpegts"},
}


def each(times):
    return np.arange(len(times.stamps))


def per_second(times):
    return sampling.per_second(times.seconds, times.ends, 1.0, times.slack)


def numbers(images):
    return [media.number(image) for image in images]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name, options in KINDS.items():
        media.write_video(root / name, frames=25, **options)
    return root


def reason(path, **kwargs):
    with pytest.raises(DecodeError) as caught:
        read_frames(str(path), each, **kwargs)
    return caught.value.reason


@pytest.mark.parametrize("name", KINDS)
class TestKinds:
    def test_one_frame_per_second(self, files, name):
        images, pts = read_frames(str(files / name), per_second)
        assert numbers(images) == [0, 10, 20]
        np.testing.assert_allclose(pts, [0, 1, 2], atol=1e-3)
        assert images[0].mode == "RGB"
        assert images[0].size == (48, 32)

    def test_every_frame_once_in_order(self, files, name):
        assert numbers(read_frames(str(files / name), each)[0]) == list(range(25))

    def test_start_and_end(self, files, name):
        images, pts = read_frames(str(files / name), each, start=0.5, end=1.2)
        assert numbers(images) == [5, 6, 7, 8, 9, 10, 11]
        np.testing.assert_allclose(pts, np.arange(7) / 10, atol=1e-3)

    def test_seeking_gives_the_frames_of_a_full_decode(self, files, name, monkeypatch):
        quick = read_frames(str(files / name), lambda times: np.asarray([3, 13, 14, 24]))

        def mismatch(self, wanted, keep):
            raise video._Mismatch

        monkeypatch.setattr(video._Reader, "_seek", mismatch)
        full = read_frames(str(files / name), lambda times: np.asarray([3, 13, 14, 24]))
        assert [image.tobytes() for image in quick[0]] == [image.tobytes() for image in full[0]]


def test_groups_without_a_chosen_frame_are_not_decoded(tmp_path, monkeypatch):
    media.write_video(tmp_path / "long.mp4", frames=200, keyframes=10)
    decoded = []
    original = video_file.open_file

    class Counting:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, *streams):
            for packet in self.container.demux(*streams):
                if streams:  # else only the stamps are read
                    decoded.append(packet.pts)
                yield packet

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

    monkeypatch.setattr(video_file, "open_file", lambda path: Counting(original(path)))
    images, _ = read_frames(str(tmp_path / "long.mp4"), lambda times: np.asarray([2, 195]))
    assert len(images) == 2
    assert len(decoded) < 30


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["h264.mp4", "faststart.mp4", "h264.mkv", "vp9.webm"])
def test_cut_short(files, tmp_path, name, share):
    data = (files / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    if share > 0.8 and not name.endswith("mp4"):
        return  # all frames may be there
    assert reason(tmp_path / name) in ("truncated", "unreadable", "no_frames", "no_video")


def test_cut_between_two_frames(files, tmp_path):
    """Nothing is broken then; only the index knows."""
    path = files / "faststart.mp4"
    with av.open(str(path)) as file:
        cut = list(file.streams.video[0].index_entries)[15].pos
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:cut])
    assert reason(tmp_path / "cut.mp4") == "truncated"


def test_fragments_cut_short(files, tmp_path):
    data = (files / "fragmented.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert reason(tmp_path / "cut.mp4") == "truncated"


def test_frames_hidden_by_an_edit_list_do_not_make_a_file_short(files, tmp_path):
    """What `ffmpeg -ss -c copy` leaves: packets before the cut are there and are not shown."""
    data = bytearray((files / "h264.mp4").read_bytes())
    place = data.index(b"elst") + 4
    version, count, duration, start = struct.unpack(">IIII", data[place : place + 16])
    assert (version, count) == (0, 1)
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    cut = struct.pack(">IIII", version, count, duration - 1500, start + int(1.5 * scale))
    data[place : place + 16] = cut
    (tmp_path / "cut.mp4").write_bytes(data)
    assert numbers(read_frames(str(tmp_path / "cut.mp4"), each)[0]) == list(range(15, 25))


def test_damage_in_the_middle(files, tmp_path):
    data = bytearray((files / "faststart.mp4").read_bytes())
    with av.open(str(files / "faststart.mp4")) as file:
        places = [(entry.pos, entry.size) for entry in file.streams.video[0].index_entries]
    begin, end = sum(places[0]) - 60, places[-1][0]
    data[begin:end] = bytes(end - begin)
    (tmp_path / "d.mp4").write_bytes(data)
    assert reason(tmp_path / "d.mp4") in ("damaged", "unreadable")


@pytest.mark.parametrize(
    "content",
    [
        b"hello " * 100,
        bytes(5000),
        b"#EXTM3U\n#EXTINF:10,\nh264.mp4\n#EXT-X-ENDLIST\n",  # would open another file
        b"ffconcat version 1.0\nfile h264.mp4\n",
        b"<html></html>" * 50,
    ],
)
@pytest.mark.parametrize("extension", ["mp4", "txt", "m3u8"])
def test_no_video(files, content, extension):
    path = files / f"fake.{extension}"
    path.write_bytes(content)
    assert reason(path) == "unreadable"


def test_missing_empty_directory_and_odd_paths(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "directory.mp4").mkdir()
    assert reason(tmp_path / "empty.mp4") == "empty"
    assert reason(tmp_path / "directory.mp4") == "missing"
    assert reason(tmp_path / "none.mp4") == "missing"
    assert reason(f"{tmp_path}/a\0b.mp4") == "missing"


@pytest.mark.parametrize(
    "name",
    ["http:a.mp4", "data:a.mp4", "concat:a.mp4|b.mp4", "a%03d.mp4", "file:a.mp4", "a?b#c.mp4"],
)
def test_a_name_is_a_file_and_nothing_else(files, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes((files / "h264.mp4").read_bytes())
    assert len(read_frames(name, each)[0]) == 25
    (tmp_path / name).unlink()
    assert reason(name) == "missing"


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert reason(tmp_path / "sound.mp4") == "no_video"


def test_stream_without_frames(tmp_path):
    path = tmp_path / "zero.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        file.start_encoding()
    assert reason(path) in ("no_frames", "truncated")


def test_range_beyond_the_end(files):
    assert reason(files / "h264.mp4", start=60.0) == "no_frames"


@pytest.mark.parametrize(("degrees", "size"), [(0, (48, 32)), (90, (32, 48)), (180, (48, 32))])
def test_rotation_of_a_phone_is_applied(files, tmp_path, degrees, size):
    """The display matrix in `tkhd`; 90 is a video to be turned clockwise."""
    unit = 1 << 16
    matrix = {
        0: (unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30),
        90: (0, unit, 0, -unit, 0, 0, 0, 0, 1 << 30),
        180: (-unit, 0, 0, 0, -unit, 0, 0, 0, 1 << 30),
    }[degrees]
    data = bytearray((files / "h264.mp4").read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "r.mp4").write_bytes(data)
    image = np.asarray(read_frames(str(tmp_path / "r.mp4"), lambda t: np.asarray([20]))[0][0])
    assert image.shape[1::-1] == size
    dark = {0: image[:, :8], 90: image[:8], 180: image[:, -8:]}[degrees]  # was the left edge
    assert abs(float(dark.mean()) - 60) < 8
    assert float(image.mean()) > 80
