"""Pixels in and out of records."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data import images
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.pictures import read_picture


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def blank(side):
    return np.zeros((side, side, 3), np.uint8)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 70), (24, 24), (24, 40), (10, 7)])
@pytest.mark.parametrize("side", [24, 17])
def test_center_crop_is_resize_then_crop(size, side):
    """CLIP's torchvision order: short side bicubic, long side cut to whole pixels, middle."""
    image, out = noise(*size), blank(side)
    images.center_crop(np.asarray(image), out)
    width, height = size
    scaled = (side, side * height // width) if width <= height else (side * width // height, side)
    left, upper = round((scaled[0] - side) / 2), round((scaled[1] - side) / 2)
    expected = image.resize(scaled, Image.Resampling.BICUBIC).crop(
        (left, upper, left + side, upper + side)
    )
    np.testing.assert_array_equal(out, np.asarray(expected))


@pytest.mark.parametrize("size", [(64, 48), (33, 70), (24, 24)])
def test_squash_keeps_no_aspect(size):
    image, out = noise(*size), blank(24)
    images.squash(np.asarray(image), out)
    expected = image.resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_stored_size_is_not_resampled():
    image, out = noise(40, 24), blank(24)
    images.center_crop(np.asarray(image), out)
    np.testing.assert_array_equal(out, np.asarray(image)[:, 8:32])


def test_shrink_never_enlarges():
    assert images.shrink(noise(40, 30), 64).size == (40, 30)
    assert images.shrink(noise(40, 30), 15).size == (20, 15)
    assert images.shrink(noise(31, 50), 10).size == (10, 16)


@pytest.mark.parametrize("size", [(70000, 24), (24, 70000), (66000, 66), (200000, 3)])
def test_shrink_keeps_what_a_jpeg_can_hold(size):
    image = Image.new("L", size)
    image.paste(255, (size[0] // 2 - 2, size[1] // 2 - 2, size[0] // 2 + 2, size[1] // 2 + 2))
    small = images.shrink(image, 24)
    assert max(small.size) <= images.JPEG_SIDE
    assert small.getpixel((small.width // 2, small.height // 2)) > 100  # the middle stays in it
    images.encode_jpeg(small, 90)


@pytest.mark.parametrize("size", [(480, 24), (24, 480), (700, 31), (17, 1000)])
def test_middle_of_a_far_longer_picture(size):
    """Close to what resizing all of it gives, from the middle alone."""
    image = noise(size[0] // 4, size[1] // 4).resize(size, Image.Resampling.BICUBIC)
    out = blank(24)
    images.center_crop(np.asarray(image), out)
    width, height = size
    scaled = (24, 24 * height // width) if width <= height else (24 * width // height, 24)
    left, upper = round((scaled[0] - 24) / 2), round((scaled[1] - 24) / 2)
    expected = image.resize(scaled, Image.Resampling.BICUBIC)
    expected = np.asarray(expected.crop((left, upper, left + 24, upper + 24))).astype(int)
    assert np.abs(out - expected).mean() < 8  # at most half a pixel aside


LOAD = """
import re, sys
import numpy as np
from PIL import Image
from uniadapter_jax.inference import gallery
from uniadapter_jax.data import images
from uniadapter_jax.data.loading import augment
side = 224
for size in ((20000, 1), (1, 20000), (65500, 3), (2, 65500)):
    data = images.encode_jpeg(Image.new("RGB", size, "white"), 90)
    out = np.zeros((side, side, 3), np.uint8)
    rng = np.random.default_rng(0)
    draws = images.CropFlip, images.CropFlipColor, augment.CropFlipAugment
    for transform in (images.center_crop, images.squash, *(d.draw(rng) for d in draws)):
        out[:] = 0
        transform(images.decode_pixels(data), out)
        assert out.max() > 100
    gallery.film_strip([data])
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def test_memory_of_loading_pictures_of_any_shape():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOAD]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < 600


def test_jpeg_is_decoded_in_full():
    data = images.encode_jpeg(noise(64, 64), 90)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(images.decode_jpeg(data)), expected)


SHAPES = [(64, 48), (33, 17), (1, 1), (7, 250), (224, 224)]


def as_jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SHAPES)
def test_pixels_are_pillows_bit_for_bit(size):
    image = noise(*size)
    for subsampling in (0, 1, 2):
        for quality in (30, 95):
            for progressive in (False, True):
                options = {"quality": quality, "progressive": progressive}
                data = as_jpeg(image, subsampling=subsampling, **options)
                expected = np.asarray(images.decode_jpeg(data))
                np.testing.assert_array_equal(images.decode_pixels(data), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pixels_of_other_colours(mode):
    data = as_jpeg(noise(40, 30).convert(mode))
    expected = np.asarray(images.decode_jpeg(data))
    np.testing.assert_array_equal(images.decode_pixels(data), expected)


def test_a_frame_of_the_right_size_is_decoded_in_place(monkeypatch):
    monkeypatch.setattr(images, "_room", None)  # nothing else is made room for
    data, out = as_jpeg(noise(24, 24)), blank(24)
    images.decode_to(data, out, images.center_crop)
    np.testing.assert_array_equal(out, np.asarray(images.decode_jpeg(data)))


def test_broken_bytes_are_pillows_error():
    data = as_jpeg(noise(64, 64))
    with pytest.raises(OSError, match="truncated"):
        images.decode_pixels(data[: len(data) // 2])
    with pytest.raises(OSError, match="identify"):
        images.decode_pixels(b"no picture")


@pytest.mark.parametrize("size", [(65, 48), (48, 65), (30, 30), (33, 70)])
def test_middle_square_is_what_center_crop_takes(size):
    image, out = noise(*size), blank(min(size))
    images.center_crop(np.asarray(image), out)
    np.testing.assert_array_equal(np.asarray(images.middle_square(image)), out)


class TestCropFlip:
    def test_box_is_inside_and_of_the_right_area(self):
        for seed in range(200):
            crop = images.CropFlip.draw(np.random.default_rng(seed))
            left, upper, right, lower = crop.box(64, 48)
            assert 0 <= left < right <= 64
            assert 0 <= upper < lower <= 48
            share = (right - left) * (lower - upper) / (64 * 48)
            assert 0.45 <= share <= 1.0

    def test_extreme_shape_falls_back_to_the_middle(self):
        crop = images.CropFlip.draw(np.random.default_rng(0))
        assert crop.box(1000, 10) == (493, 0, 506, 10)

    def test_all_corners_can_be_reached(self):
        boxes = [images.CropFlip.draw(np.random.default_rng(s)).box(50, 50) for s in range(300)]
        assert min(b[0] for b in boxes) == 0
        assert max(b[2] for b in boxes) == 50

    def test_mirror_is_a_fair_coin(self):
        mirrored = [images.CropFlip.draw(np.random.default_rng(s)).mirror for s in range(400)]
        assert 160 < sum(mirrored) < 240

    def test_pixels(self):
        image, plain, mirrored = noise(40, 40), blank(16), blank(16)
        box = {"area": (1.0,), "ratio": (1.0,), "position": (0.0, 0.0)}
        images.CropFlip(**box, mirror=False)(np.asarray(image), plain)
        images.CropFlip(**box, mirror=True)(np.asarray(image), mirrored)
        expected = image.resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(plain, np.asarray(expected))
        np.testing.assert_array_equal(mirrored, plain[:, ::-1])


class TestPictureFiles:
    def pixels(self, path):
        return np.asarray(read_picture(str(path)))

    def test_transparency_becomes_white(self, tmp_path):
        Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
        assert (self.pixels(tmp_path / "a.png") == 255).all()

    def test_palette_with_transparency(self, tmp_path):
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.save(tmp_path / "a.png", transparency=0)
        assert (self.pixels(tmp_path / "a.png") == 255).all()

    def test_exif_orientation(self, tmp_path):
        image = Image.new("RGB", (8, 4), "black")
        image.paste((255, 255, 255), (0, 0, 4, 4))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        image.save(tmp_path / "a.png", exif=exif)
        pixels = self.pixels(tmp_path / "a.png")
        assert pixels.shape == (8, 4, 3)
        assert (pixels[:4] == 255).all()
        assert (pixels[4:] == 0).all()

    def test_sixteen_bits_grey_and_cmyk(self, tmp_path):
        Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "a.png")
        assert (self.pixels(tmp_path / "a.png") == 40000 >> 8).all()
        Image.new("L", (4, 4), 7).save(tmp_path / "b.png")
        assert (self.pixels(tmp_path / "b.png") == 7).all()
        Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "c.jpg")
        assert self.pixels(tmp_path / "c.jpg").max() < 10

    @pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "tif"])
    def test_formats_cut_short(self, tmp_path, extension):
        path = tmp_path / f"a.{extension}"
        noise(64, 64).save(path)
        assert self.pixels(path).shape == (64, 64, 3)
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(DecodeError) as caught:
            self.pixels(path)
        assert caught.value.reason in ("truncated", "unreadable")
        assert str(tmp_path) not in caught.value.detail

    def test_no_picture(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"hello" * 100)
        (tmp_path / "b.png").touch()
        for name, reason in (("a.png", "unreadable"), ("b.png", "empty"), ("c.png", "missing")):
            with pytest.raises(DecodeError) as caught:
                self.pixels(tmp_path / name)
            assert caught.value.reason == reason
