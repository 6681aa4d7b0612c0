"""The frame a player would show, on the clock it shows."""

import io
from fractions import Fraction

import av
import media
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video import read_frames
from uniadapter_jax.data.preparation import clips
from uniadapter_jax.data.sources.item import Item

VARIABLE = [0, 100, 250, 1200, 1300, 2950, 3600, 3640]  # milliseconds


def each(times):
    return np.arange(len(times.stamps))


def numbers(path, choose=each, start=None, end=None):
    images, seconds = read_frames(str(path), choose, start, end)
    return [media.number(image) for image in images], [round(s, 3) for s in seconds]


def clip(path, start=None, end=None, **settings):
    """Indices and seconds of a prepared clip."""
    item = Item("x", str(path), "train", ("a",), start=start, end=end)
    result = clips.read_clip(item, "/", media.settings(**settings))
    pictures = [Image.open(io.BytesIO(frame)) for frame in result.frames]
    return [media.number(p) for p in pictures], [round(s, 3) for s in result.pts]


def on_show(stamps, t):
    return max(i for i, stamp in enumerate(stamps) if stamp <= 1000 * t)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.flv", "a.mov", "a.ts", "a.nut"])
class TestVariableRate:
    @pytest.fixture
    def path(self, tmp_path, name):
        container = {"a.ts": "mpegts"}.get(name)
        media.write_frames(tmp_path / name, VARIABLE, container=container, options={"g": "3"})
        return tmp_path / name

    def test_frames_per_second(self, path):
        assert clip(path)[0] == [0, 2, 4, 5]  # 3640 ends before 4 s
        expected = sorted({on_show(VARIABLE, t / 5) for t in range(19)})
        assert clip(path, fps=5.0)[0] == expected

    def test_a_range_begins_with_the_frame_on_show(self, path):
        assert numbers(path, start=1.0, end=1.25) == ([2, 3], [0.0, 0.2])
        assert numbers(path, start=1.31, end=2.9) == ([4], [0.0])
        assert clip(path, start=1.5, end=3.0)[0] == [4]
        assert clip(path, start=1.5, end=3.5)[0] == [4]  # at 1.5 and 2.5
        assert clip(path, start=1.5, end=3.0, sampling="uniform")[0] == [4, 5]
        assert clip(path, start=1.5, end=3.0, sampling="middle", frames=1)[0] == [4]

    def test_counted_rules_take_frames(self, path):
        assert clip(path, sampling="uniform", frames=4)[0] == [0, 2, 4, 6]
        assert clip(path, sampling="middle", frames=4)[0] == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_slides(tmp_path, name):
    """One frame every 10 s: there is always one on show."""
    media.write_frames(tmp_path / name, [0, 10_000, 20_000], last=5000)
    for t in range(1, 24):
        assert numbers(tmp_path / name, start=float(t), end=t + 0.5) == ([t // 10], [0.0])
    assert clip(tmp_path / name)[0] == [0, 1, 2]
    assert clip(tmp_path / name, start=12.0, end=13.0, sampling="middle")[0] == [1]


def test_a_long_last_frame_is_on_show(tmp_path):
    media.write_frames(tmp_path / "a.mp4", [0, 500], last=4000)
    assert clip(tmp_path / "a.mp4")[0] == [0, 1]
    assert numbers(tmp_path / "a.mp4", start=4.0)[0] == [1]
    with pytest.raises(DecodeError, match="no_frames"):
        numbers(tmp_path / "a.mp4", start=4.6)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv"])
def test_sound_begins_before_the_picture(tmp_path, name):
    container = {"a.ts": "mpegts"}.get(name)
    stamps = list(range(600, 3600, 100))
    media.write_frames(tmp_path / name, stamps, container=container, sound=(0, 3.6))
    found, seconds = clip(tmp_path / name, start=1.05, end=3.0)
    assert found == [4, 14]
    np.testing.assert_allclose(seconds, [0, 0.95], atol=0.03)  # a packet of sound is so long
    assert clip(tmp_path / name, fps=0.9)[0] == [0, 5, 16, 27]
    assert numbers(tmp_path / name, start=0.0, end=0.7)[0] == [0]
    with pytest.raises(DecodeError, match="no_frames"):
        numbers(tmp_path / name, start=0.0, end=0.5)


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.wmv"])
def test_sound_is_longer_than_the_picture(tmp_path, name):
    codec = {"a.wmv": "wmv2"}.get(name, "libx264")
    container = {"a.wmv": "asf"}.get(name)
    media.write_frames(
        tmp_path / name, range(0, 2000, 100), codec, container=container, sound=(0, 9.0),
        options={"b": "400k"},
    )  # fmt: skip
    assert numbers(tmp_path / name)[0] == list(range(20))
    assert clip(tmp_path / name, fps=2.0, start=0.08, end=2.0)[0] == [0, 5, 10, 15]
    assert numbers(tmp_path / name, start=7.0, end=8.0) == ([19], [0.0])


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.nut", "a.ts"])
def test_a_clock_that_does_not_begin_at_zero(tmp_path, name):
    container = {"a.ts": "mpegts"}.get(name)
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    stamps = range(100_000, 102_500, 100)
    media.write_frames(tmp_path / name, stamps, codec, container=container)
    assert clip(tmp_path / name) == ([0, 10, 20], [0, 1, 2])
    assert numbers(tmp_path / name, start=1.0, end=1.3)[0] == [10, 11, 12]


def test_a_clock_that_begins_below_zero(tmp_path):
    media.write_frames(tmp_path / "a.nut", range(-500, 2000, 100))
    assert clip(tmp_path / "a.nut")[0] == [0, 10, 20]


@pytest.mark.parametrize("base", [Fraction(1, 1000), Fraction(1, 12), Fraction(1, 90000)])
def test_rounded_stamps_count_as_what_was_meant(tmp_path, base):
    """12 frames a second at thirds: Matroska has 667 ms for what is shown at 2/3 s."""
    stamps = [round(i / 12 / base) for i in range(36)]
    media.write_frames(tmp_path / "a.mkv", stamps, time_base=base)
    assert clip(tmp_path / "a.mkv", fps=3.0)[0] == list(range(0, 36, 4))


def test_ntsc_does_not_drift(tmp_path):
    media.write_video(tmp_path / "a.mp4", frames=40, rate=Fraction(30000, 1001))
    assert clip(tmp_path / "a.mp4")[0] == [0, 29]  # frame 30 comes at 1.001 s


@pytest.mark.parametrize("gap", [3600, 10**8])
def test_a_gap_costs_nothing(tmp_path, gap):
    media.write_frames(tmp_path / "a.mkv", [0, 500, 1000, 1000 * gap, 1000 * gap + 500])
    assert clip(tmp_path / "a.mkv", fps=30.0)[0] == [0, 1, 2, 3, 4]
    assert numbers(tmp_path / "a.mkv", start=gap / 2, end=gap / 2 + 1)[0] == [2]


def test_joined_recordings_go_on(tmp_path):
    """Two of MPEG-TS, one after the other: the clock goes back, and one packet is flagged."""
    media.write_video(tmp_path / "a.ts", frames=25, container="mpegts")
    data = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(data + data)
    expected = [*range(25)] * 2
    found, seconds = numbers(tmp_path / "b.ts")
    assert found == expected
    np.testing.assert_allclose(seconds, np.arange(50) / 10, atol=0.11)
    assert clip(tmp_path / "b.ts")[0] == [expected[i] for i in range(0, 50, 10)]
    assert numbers(tmp_path / "b.ts", start=3.0, end=3.2)[0] == [5, 6]


def test_joined_recordings_with_a_leap(tmp_path):
    for name, first in (("a.ts", 0), ("b.ts", 7200_000)):
        stamps = range(first, first + 2500, 100)
        media.write_frames(tmp_path / name, stamps, container="mpegts")
    data = b"".join((tmp_path / name).read_bytes() for name in ("a.ts", "b.ts"))
    (tmp_path / "c.ts").write_bytes(data)
    found, seconds = numbers(tmp_path / "c.ts")
    assert found == [*range(25)] * 2
    assert max(seconds) < 5.2


def test_equal_stamps(tmp_path):
    """Of two frames at one time the later is on show."""
    media.write_frames(tmp_path / "a.mkv", [0, 100, 200, 300], codec="mpeg4")
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.mkv"), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = {200: 100}.get(packet.pts, packet.pts)
                packet.stream = stream
                file.mux(packet)
    assert clip(tmp_path / "b.mkv", fps=10.0)[0] == [0, 2, 3]


@pytest.mark.parametrize(("container", "codec"), [("mxf", "libx264"), ("asf", "libx264")])
def test_stamps_in_order_of_decoding(tmp_path, container, codec):
    """Some formats keep no others; the order of display is then the decoder's."""
    options = {"g": "8", "bf": "2", "b": "2M"}
    base = Fraction(1, 25)
    media.write_frames(tmp_path / "a", range(24), codec, base, container=container, options=options)
    assert numbers(tmp_path / "a")[0] == [*range(24)]
    assert clip(tmp_path / "a", fps=5.0)[0] == [0, 5, 10, 15, 20]
    assert numbers(tmp_path / "a", start=0.3, end=0.37) == ([7, 8, 9], [0.0, 0.02, 0.06])


def test_a_search_that_ends_between_key_frames(tmp_path):
    """MPEG-TS is searched by times of decoding; a decoder that begins too late makes frames up."""
    options = {"g": "8", "bf": "2", "b": "2M"}
    media.write_frames(
        tmp_path / "a.ts", range(40), "mpeg4", Fraction(1, 25), container="mpegts", options=options
    )
    for i in range(2, 40):
        chosen = [0, i]
        assert numbers(tmp_path / "a.ts", lambda times, chosen=chosen: chosen)[0] == chosen
