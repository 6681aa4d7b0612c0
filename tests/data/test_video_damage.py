"""What FFmpeg decodes is used; a clip is refused where one of its own frames is broken or lacks."""

import itertools
import re
from fractions import Fraction

import av
import media
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video import read_frames

KINDS = {
    "a.mp4": {},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4"},
    "a.flv": {},
    "a.wmv": {"codec": "wmv2"},
    "a.ts": {"container": "mpegts"},
    "a.mpg": {"codec": "mpeg2video", "rate": 25},
}
FRAMES = 60


def at(*places):
    return lambda times: np.asarray(places)


def each(times):
    return np.arange(len(times.stamps))


def reason(path, choose=each, **kwargs):
    with pytest.raises(DecodeError) as caught:
        read_frames(str(path), choose, **kwargs)
    return caught.value.reason


def numbers(path, choose=each, **kwargs):
    return [media.number(image) for image in read_frames(str(path), choose, **kwargs)[0]]


def packets(path):
    """(offset, size, is a key frame) of the video's packets, by display."""
    with av.open(str(path)) as file:
        every = [
            (packet.pts, packet.pos, packet.size, packet.is_keyframe)
            for packet in file.demux(video=0)
            if packet.size
        ]
    return [entry[1:] for entry in sorted(every)]


def write(path, **changes):
    name = path.name
    media.write_video(path, **{"frames": FRAMES, "keyframes": 10, **KINDS[name], **changes})


def spoil(path, offset, size):
    """Noise over some bytes."""
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    data[offset : offset + size] = noise.tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_only_a_broken_frame_that_is_chosen_counts(tmp_path, name):
    write(tmp_path / name)
    places = packets(tmp_path / name)
    keys = [i for i, (_, _, is_key) in enumerate(places) if is_key]
    spoiled, following = next(pair for pair in itertools.pairwise(keys) if pair[0] > 15)
    offset, size, _ = places[spoiled]
    spoil(tmp_path / name, offset + 4, size - 4)
    sound = [i for i in range(41) if i < spoiled or i >= following]  # number() wraps at 42
    assert numbers(tmp_path / name, at(*sound)) == sound
    for broken in range(spoiled, following):  # all of them are made from it
        assert reason(tmp_path / name, at(2, broken, 38)) == "damaged"
    second = following / 10
    expected = [following, following + 1]
    assert numbers(tmp_path / name, start=second, end=second + 0.2) == expected


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.flv", "a.wmv"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_cut_short(tmp_path, name, share):
    write(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert reason(tmp_path / name, at(0)) in ("truncated", "unreadable")


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi"])
def test_a_file_without_its_index_is_whole(tmp_path, name):
    write(tmp_path / name)
    offset, size, _ = max(packets(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    assert len(data) > offset + size + 8
    (tmp_path / name).write_bytes(data[: offset + size + 8])
    assert len(numbers(tmp_path / name)) == FRAMES


def test_a_wrong_length_in_the_header_is_no_damage(tmp_path):
    write(tmp_path / "a.mkv")
    data = (tmp_path / "a.mkv").read_bytes()
    for said in (b"00:00:06.0", b"\x44\x89\x88"):
        assert said in data
    place = data.index(b"\x44\x89\x88") + 3
    wrong = data.replace(b"00:00:06.0", b"00:59:06.0")
    wrong = wrong[:place] + np.array([3.6e6], ">f8").tobytes() + wrong[place + 8 :]
    (tmp_path / "a.mkv").write_bytes(wrong)
    assert len(numbers(tmp_path / "a.mkv")) == FRAMES


def test_matroska_that_cannot_be_read_on(tmp_path):
    """Noise over the heads of blocks: FFmpeg goes on at the next cluster, without a word."""
    write(tmp_path / "a.mkv")
    places = packets(tmp_path / "a.mkv")
    first, last = min(places[24:])[0], min(places[26:])[0]
    spoil(tmp_path / "a.mkv", first - 8, max(40, last - first))
    assert numbers(tmp_path / "a.mkv", at(3, 12)) == [3, 12]
    assert reason(tmp_path / "a.mkv") in ("damaged", "truncated")


def test_a_flagged_packet_alone_is_no_damage(tmp_path):
    """A gap in the counter of MPEG-TS, as at the joint of two recordings."""
    write(tmp_path / "a.ts")
    data = bytearray((tmp_path / "a.ts").read_bytes())
    half = len(data) // 188 // 2 * 188
    for place in range(half, len(data), 188):
        data[place + 3] = data[place + 3] & 0xF0 | (data[place + 3] + 5) & 0x0F
    (tmp_path / "a.ts").write_bytes(data)
    with av.open(str(tmp_path / "a.ts")) as file:
        assert any(packet.is_corrupt for packet in file.demux(video=0))
    assert len(numbers(tmp_path / "a.ts")) == FRAMES


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
@pytest.mark.parametrize("lacking", [1, 10, "half"])
def test_animations_without_their_end(tmp_path, kind, lacking):
    path = tmp_path / f"a.{kind.lower()}"
    frames = [Image.new("RGB", (40, 30), (40 * i, 0, 9 * i)) for i in range(5)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=200)
    assert len(read_frames(str(path), each)[0]) == 5
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if lacking == "half" else data[:-lacking])
    assert reason(path) in ("truncated", "damaged")
    path.write_bytes(data + b"what follows the end is not read")
    assert len(read_frames(str(path), each)[0]) == 5


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_animations_are_changes_of_what_came_before(tmp_path, kind):
    """Seeking would give the changes alone."""
    path = tmp_path / f"a.{kind.lower()}"
    frames = [Image.new("RGB", (40, 30), "white") for _ in range(8)]
    for i, frame in enumerate(frames):
        frame.paste((255, 0, 0), (0, 0, 5 * i + 5, 30))
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=200)
    every = [image.tobytes() for image in read_frames(str(path), each)[0]]
    assert every == [frame.tobytes() for frame in frames]
    assert [image.tobytes() for image in read_frames(str(path), at(2, 6))[0]] == every[2::4]


SAYING = {
    "a.mkv": {"codec": "ffv1", "options": {"level": "3", "slicecrc": "1"}},
    "b.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=5:bframes=2"}},
}


@pytest.mark.parametrize("name", SAYING)
def test_what_a_decoder_only_says_counts(tmp_path, name):
    """These give a frame with broken parts, or none, and an error in FFmpeg's log alone."""
    path = tmp_path / name
    base = Fraction(1, 25)
    media.write_frames(path, range(20), time_base=base, size=(96, 64), **SAYING[name])
    places = packets(path)
    sound = path.read_bytes()
    for broken in (i for i, (*_, is_key) in enumerate(places) if is_key and i >= 5):
        offset, size, _ = places[broken]
        path.write_bytes(sound)
        spoil(path, offset + 6, min(40, size - 6))
        assert numbers(path, at(1)) == [1]
        assert reason(path, at(0, broken)) == "damaged"


@pytest.mark.parametrize("codec", ["prores_ks", "png"])
def test_a_first_frame_that_cannot_be_decoded_is_missed(tmp_path, codec):
    path = tmp_path / "a.mov"
    form = {"prores_ks": "yuv422p10le", "png": "rgb24"}[codec]
    media.write_frames(path, range(0, 2000, 100), codec, pix_fmt=form)
    offset, size, _ = packets(path)[0]
    spoil(path, offset, size)
    assert reason(path, at(0, 3)) == "damaged"
    assert reason(path, end=0.05) == "damaged"
    assert numbers(path, at(1, 3)) == [1, 3]


@pytest.mark.parametrize("lost", ["beginning", "end"])
def test_matroska_without_a_cluster(tmp_path, lost):
    """The reader goes on behind it, which shifts the clock, or ends less than 0.5 s early."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", options={"cluster_time_limit": "400"}) as file:
        stream = file.add_stream("mpeg4", rate=10, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(20):
            grey = np.full((32, 48, 3), 6 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes()
    clusters = [match.start() for match in re.finditer(b"\x1f\x43\xb6\x75", data)]
    first = clusters[0] if lost == "beginning" else clusters[-1]
    path.write_bytes(data[:first] + bytes(300) + data[first + 300 :])
    assert reason(path, at(0)) == "damaged"


def test_a_fragment_that_does_not_follow_the_one_before(tmp_path):
    """FFmpeg ends there, as if that were the end of the file."""
    path = tmp_path / "a.mp4"
    write(path, mux={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    place = data.index(b"mdat", len(data) // 2) + 20
    path.write_bytes(data[:place] + data[place + 7 :])
    assert reason(path, at(0)) == "damaged"
