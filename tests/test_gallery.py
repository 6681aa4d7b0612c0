"""The right clip is outlined where it stands, and strips keep their frames' order."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference import gallery


def jpeg(colour, size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_strip_shows_frames_from_left_to_right_in_their_own_shape():
    strip = np.asarray(gallery.film_strip([jpeg("red", (128, 64)), jpeg("blue")]))
    assert strip.shape == (gallery.FRAME, 3 * gallery.FRAME, 3)
    assert np.abs(strip[5, 5].astype(int) - (255, 0, 0)).max() < 8
    assert np.abs(strip[5, -5].astype(int) - (0, 0, 255)).max() < 8


@pytest.mark.parametrize("right", [0, 1, 2])
def test_only_the_right_clip_is_outlined(right):
    hits = [gallery.Hit([jpeg("grey")] * 2, right=i == right) for i in range(3)]
    sheet = np.asarray(gallery.draw_rows("best clips", [gallery.Row("a thing", right + 1, hits)]))
    _, columns = np.nonzero((sheet == gallery.RIGHT).all(-1))
    step = 2 * gallery.FRAME + gallery.GAP
    assert columns.min() == gallery.GAP + right * step - 4
    assert columns.max() == gallery.GAP + right * step + 2 * gallery.FRAME + 3


def test_a_long_text_fits():
    rows = [gallery.Row("many words " * 40, 1, [gallery.Hit([jpeg("grey")], right=True)])]
    assert gallery.draw_rows("best clips", rows).width > 1500


def test_nothing_to_draw():
    with pytest.raises(UserError, match="at least one hit"):
        gallery.draw_rows("best clips", [gallery.Row("a thing", 1, [])])
