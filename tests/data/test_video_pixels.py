"""Pixels of frames: transparency, their shape, their size, and the memory they take."""

import subprocess
import sys
from fractions import Fraction

import av
import media
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.media import video_picture
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video import read_frames
from uniadapter_jax.data.preparation import clips
from uniadapter_jax.data.sources.item import Item


def first(times):
    return np.zeros(1, int)


def each(times):
    return np.arange(len(times.stamps))


def write_alpha(path, codec, pix_fmt, options=None):
    """Blue on the left, on the right red that cannot be seen."""
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (0, 0, 255, 255), (255, 0, 0, 0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=5, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pix_fmt)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_gif(path):
    frames = [Image.new("RGBA", (64, 48)) for _ in range(3)]
    for frame in frames:
        frame.paste((0, 0, 255, 255), (0, 0, 32, 48))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, disposal=2)


ALPHA = {
    "qtrle.mov": ("qtrle", "argb"),
    "png.mov": ("png", "rgba"),
    "prores.mov": ("prores_ks", "yuva444p10le"),
    "ffv1.mkv": ("ffv1", "yuva420p"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp8.webm": ("libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    "a.apng": ("apng", "rgba"),
    "a.gif": None,
}


@pytest.mark.parametrize("name", ALPHA)
def test_transparency_is_on_white(tmp_path, name):
    path = tmp_path / name
    if ALPHA[name]:
        write_alpha(path, *ALPHA[name])
    else:
        write_gif(path)
    for image in read_frames(str(path), each)[0]:
        pixels = np.asarray(image, int)
        assert abs(pixels[24, 10] - [0, 0, 255]).max() < 8
        assert abs(pixels[24, 54] - 255).max() < 8


@pytest.mark.parametrize("pix_fmt", ["rgb48le", "yuv420p10le", "gray16le", "yuv444p12le", "gray"])
def test_deep_pixels_are_scaled(tmp_path, pix_fmt):
    media.write_frames(tmp_path / "a.mkv", range(0, 3000, 100), codec="ffv1", pix_fmt=pix_fmt)
    images, _ = read_frames(str(tmp_path / "a.mkv"), each)
    assert [media.number(image) for image in images] == list(range(30))


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(1), (48, 32)), (Fraction(16, 11), (70, 32)), (Fraction(1, 2), (48, 64)),
     (Fraction(200), (48, 32))],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_pixels_become_square(tmp_path, name, aspect, size):
    media.write_frames(
        tmp_path / name, range(0, 1000, 100), "mpeg4" if name == "a.avi" else "libx264",
        Fraction(1, 10) if name == "a.avi" else Fraction(1, 1000), aspect=aspect,
    )  # fmt: skip
    assert read_frames(str(tmp_path / name), first)[0][0].size == size


def test_square_pixels_are_left_alone_and_huge_ones_shrunk():
    image = Image.new("RGB", (60, 40))
    assert video_picture.square(image, 1.0) is image
    assert video_picture.square(image, 1.5).size == (90, 40)
    assert video_picture.square(Image.new("RGB", (8000, 4000)), 16.0).size == (8000, 250)
    assert video_picture.square(Image.new("RGB", (8000, 4000)), 1 / 16).size == (500, 4000)


def test_bands_give_the_bits_of_one_conversion(tmp_path, monkeypatch):
    media.write_video(tmp_path / "a.mp4", frames=2, size=(62, 34))
    with av.open(str(tmp_path / "a.mp4")) as file:
        frame = next(file.decode(video=0))
        expected = frame.to_image().tobytes()
        for pixels in (1, 100, 1000, 1 << 20):
            monkeypatch.setattr(video_picture, "BAND_PIXELS", pixels)
            assert video_picture.picture(frame, 1.0).tobytes() == expected


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(tmp_path):
    media.write_frames(tmp_path / "a.mkv", [0], "mpeg4", size=(7000, 5200), options={"b": "100k"})
    with pytest.raises(DecodeError, match=r"too_large.*7000 x 5200"):
        read_frames(str(tmp_path / "a.mkv"), first)


def test_a_clip_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    media.write_video(tmp_path / "a.mp4", frames=25)
    item = Item("x", str(tmp_path / "a.mp4"), "train")
    size = sum(map(len, clips.read_clip(item, "/", media.settings()).frames))
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", size)
    clips.read_clip(item, "/", media.settings())
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", size - 1)
    with pytest.raises(DecodeError, match=r"too_large.*fps"):
        clips.read_clip(item, "/", media.settings())


PEAK = """
import sys
sys.path.insert(0, {tests!r})
import media
from memory import peak_mb
from uniadapter_jax.data.preparation import clips
from uniadapter_jax.data.sources.item import Item
before = peak_mb()
clip = clips.read_clip(Item("x", {path!r}, "train"), "/", media.settings(fps={fps}))
print(len(clip.frames), int(peak_mb() - before))
"""


def peak(path, fps=30.0):
    """(frames, MB that reading them took beyond the interpreter)."""
    code = PEAK.format(tests=str(media.__file__).rsplit("/", 1)[0], path=str(path), fps=fps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frames, megabytes = map(int, done.stdout.split())
    return frames, megabytes


def test_one_frame_is_held_at_a_time(tmp_path):
    """60 frames of 1280 x 720 are 221 MB, as Pillow holds them."""
    media.write_frames(
        tmp_path / "a.mkv", range(0, 2000, 33), "mpeg4", size=(1280, 720), options={"b": "2M"}
    )
    frames, megabytes = peak(tmp_path / "a.mkv")
    assert frames >= 55
    assert megabytes < 80


def test_a_gap_takes_no_memory(tmp_path):
    media.write_frames(tmp_path / "a.mkv", [0, 500, 10**12])
    frames, megabytes = peak(tmp_path / "a.mkv", fps=1000.0)
    assert frames == 3
    assert megabytes < 60


@pytest.mark.slow
def test_8k(tmp_path):
    media.write_frames(
        tmp_path / "a.mkv", [0, 500, 1000], "mpeg4", size=(7680, 4320), options={"b": "2M"}
    )
    frames, megabytes = peak(tmp_path / "a.mkv")
    assert frames == 3
    assert megabytes < 500
