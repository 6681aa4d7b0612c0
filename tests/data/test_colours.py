"""From the many ways in which files keep pixels to RGB with 8 bits."""

import hostile_pictures as hostile
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.media.pictures import read_picture

RAMP = np.linspace(0, 1, 60 * 40).reshape(40, 60)  # from black to white


def pixels(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    return np.asarray(read_picture(str(tmp_path / "a"))).astype(int)


def ramp(array, **options):
    return hostile.encoded(Image.fromarray(array), "TIFF", **options)


class TestDepths:
    @pytest.mark.parametrize(
        "data",
        [
            ramp((RAMP * 65535).astype(np.uint16)),
            hostile.encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"),
            ramp((RAMP * (2**31 - 1)).astype(np.int32)),
            ramp((RAMP * 65535).astype(np.int32)),
            ramp((RAMP * 255).astype(np.int32)),
            ramp((RAMP * 12).astype(np.float32)),
            ramp(RAMP.astype(np.float32)),
            ramp((RAMP * 255).astype(np.float32)),
            ramp((RAMP * 65535).astype(np.float32)),
            ramp((RAMP * 1e9 - 5e8).astype(np.float32)),
            hostile.tiff((RAMP * (2**32 - 1)).astype("<u4").tobytes(), 60, 40, 32),
            hostile.tiff((RAMP * 65535 - 32768).astype("<i2").tobytes(), 60, 40, 16, 2),
            hostile.tiff(((1 - RAMP) * 65535).astype("<u2").tobytes(), 60, 40, 16, photometric=0),
            hostile.tiff((1 - RAMP).astype("<f4").tobytes(), 60, 40, 32, 3, photometric=0),
        ],
        ids=lambda data: str(len(data)),
    )
    def test_a_ramp_stays_one(self, tmp_path, data):
        """Not black, not white, not cut off, in whatever numbers it is written."""
        grey = pixels(tmp_path, data)
        assert grey.shape == (40, 60, 3)
        np.testing.assert_allclose(grey[..., 0], RAMP * 255, atol=12)  # 12 steps at the coarsest

    def test_a_float_that_is_no_number_spoils_nothing_else(self, tmp_path):
        values = (RAMP * 1000).astype(np.float32)
        values[0, :3] = np.nan, np.inf, -np.inf
        grey = pixels(tmp_path, ramp(values))[..., 0]
        assert grey[0, :3].tolist() == [0, 255, 0]
        np.testing.assert_allclose(grey[1:], RAMP[1:] * 1000 / 65535 * 255 * 65.535, atol=1)

    def test_one_value_alone(self, tmp_path):
        for value in (0.0, 0.5, -7.0, np.nan):
            pixels(tmp_path, ramp(np.full((4, 4), value, np.float32)))

    def test_transparent_grey_of_sixteen_bits(self, tmp_path):
        data = hostile.png(4, 4, 4, 16, 0, more=hostile.chunk(b"tRNS", b"\0\0"))
        assert (pixels(tmp_path, data) == 255).all()
        data = hostile.png(4, 4, 4, 16, 2, more=hostile.chunk(b"tRNS", bytes(6)))
        assert (pixels(tmp_path, data) == 255).all()

    @pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
    def test_bands_meet(self, tmp_path, mode, monkeypatch):
        """A picture worked on in bands is the one worked on at once."""
        image = hostile.noise(70, 50, 4).convert(mode)
        data = hostile.encoded(image, "PNG", **({"transparency": 3} if mode == "P" else {}))
        at_once = pixels(tmp_path, data)
        monkeypatch.setattr("uniadapter_jax.data.media.colours.BAND_PIXELS", 300)
        np.testing.assert_array_equal(pixels(tmp_path, data), at_once)

    def test_lab(self, tmp_path):
        data = hostile.encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF")
        assert (pixels(tmp_path, data) > 250).all()
