"""RandomAugment against pixels worked by hand from OpenCV's rules."""

import collections

import numpy as np
import pytest

from uniadapter_jax.data.loading import augment
from uniadapter_jax.data.loading.augment import FILL, OPERATIONS, CropFlipAugment

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def grey(rows):
    """(H, W, 3) from one channel's rows."""
    return np.repeat(np.asarray(rows, np.uint8)[..., None], 3, axis=2)


def channel(pixels):
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestSample:
    def test_identity(self):
        pixels = noise(5, 7)
        np.testing.assert_array_equal(augment.sample(pixels, IDENTITY), pixels)

    def test_half_a_pixel_mixes_neighbours_and_the_grey_outside(self):
        shifted = augment.sample(grey([[10, 20, 40]]), IDENTITY + [[0, 0, 0.5], [0, 0, 0]])
        assert channel(shifted) == [[15, 30, (40 + FILL) // 2]]
        shifted = augment.sample(grey([[10, 20, 40]]), IDENTITY - [[0, 0, 0.5], [0, 0, 0]])
        assert channel(shifted) == [[(10 + FILL) // 2, 15, 30]]

    def test_half_is_rounded_up(self):
        assert channel(augment.sample(grey([[10, 21]]), IDENTITY + [[0, 0, 0.5], [0, 0, 0]])) == [
            [16, 75]  # 15.5, (21 + 128) / 2 = 74.5
        ]

    def test_positions_are_thirty_seconds_of_a_pixel(self):
        """.02 is 20.48 / 1024, hence 20 / 1024, which is nearest to 1/32: 32 of 1024."""
        moved = augment.sample(grey([[0, 255, 0]]), IDENTITY + [[0, 0, 0.02], [0, 0, 0]])
        assert channel(moved) == [[round(255 / 32), round(255 * 31 / 32), round(FILL / 32)]]
        still = augment.sample(grey([[0, 255, 0]]), IDENTITY + [[0, 0, 0.015], [0, 0, 0]])
        assert channel(still) == [[0, 255, 0]]

    def test_all_outside_is_grey(self):
        far = augment.sample(noise(3, 3), IDENTITY + [[0, 0, 9], [0, 0, 0]])
        assert (far == FILL).all()


class TestOperations:
    def test_the_list_is_the_released_one(self):
        assert list(OPERATIONS) == [
            *("identity", "auto_contrast", "brightness", "sharpness", "equalize"),
            *("shear_x", "shear_y", "shift_x", "shift_y", "rotate"),
        ]

    @pytest.mark.parametrize("name", ["identity", "brightness", "sharpness"])
    def test_magnitude_five_leaves_these_alone(self, name):
        pixels = noise(4, 4)
        np.testing.assert_array_equal(OPERATIONS[name](pixels, 1.0), pixels)

    def test_auto_contrast_stretches_and_cuts_to_whole_numbers(self):
        """Scale 255 / 40: 10 -> 63.75, 30 -> 191.25; a flat channel stays."""
        pixels = np.stack([grey([[50, 60, 80, 90]])[..., 0], np.full((1, 4), 7, np.uint8)] * 2, -1)
        stretched = augment.auto_contrast(pixels[..., :3].copy(), 1.0)
        assert stretched[..., 0].tolist() == [[0, 63, 191, 255]]
        assert stretched[..., 1].tolist() == [[7] * 4]

    def test_equalize(self):
        """1,020 pixels of 0, 1, 2, 3, 255 of each: step 765 / 255 = 3, table (1 + count) / 3."""
        pixels = grey(np.repeat(np.arange(4), 255).reshape(4, 255))
        table = [augment.equalize(pixels, 1.0)[row, 0, 0] for row in range(4)]
        assert table == [0, 256 // 3, 511 // 3, 766 // 3]

    def test_equalize_leaves_a_flat_picture(self):
        assert channel(augment.equalize(grey([[9, 9], [9, 9]]), 1.0)) == [[9, 9], [9, 9]]

    def test_shifts_are_five_pixels_and_fill_with_grey(self):
        row = list(range(1, 9))
        assert channel(augment.shift_x(grey([row]), 1.0)) == [[6, 7, 8] + [FILL] * 5]
        assert channel(augment.shift_x(grey([row]), -1.0)) == [[FILL] * 5 + [1, 2, 3]]
        column = grey([[value] for value in row])
        assert channel(augment.shift_y(column, 1.0)) == [[v] for v in [6, 7, 8] + [FILL] * 5]

    def test_shear_moves_row_y_by_a_share_of_y(self):
        """Row 20 comes from 3 pixels further left; row 10 from 1.5; row 0 stays."""
        pixels = grey(np.tile(np.arange(0, 240, 20), (21, 1)))
        sheared = augment.shear_x(pixels, 1.0)[..., 0]
        assert sheared[0].tolist() == list(range(0, 240, 20))
        assert sheared[20].tolist() == [FILL] * 3 + list(range(0, 180, 20))
        assert sheared[10, 2:].tolist() == list(range(10, 200, 20))
        np.testing.assert_array_equal(
            augment.shear_y(pixels.transpose(1, 0, 2), 1.0), sheared.T[..., None].repeat(3, 2)
        )

    def test_shear_the_other_way(self):
        pixels = grey(np.tile(np.arange(0, 240, 20), (21, 1)))
        assert augment.shear_x(pixels, -1.0)[20, :, 0].tolist() == [
            *range(60, 240, 20),
            *[FILL] * 3,
        ]

    def test_rotate_turns_about_the_middle(self):
        """(W / 2, H / 2) stays; 15 degrees counter-clockwise lower what is left of it."""
        pixels = np.zeros((41, 41, 3), np.uint8)
        pixels[20, 20] = 255
        turned = augment.rotate(pixels, 1.0)[..., 0]
        assert turned.argmax() == 20 * 41 + 20
        assert turned[0, 0] == turned[-1, -1] == FILL
        dot = np.full((40, 40, 3), 0, np.uint8)
        dot[20, 4] = 255  # 16 left of (20, 20): 16 cos 15 = 15.5 left and 16 sin 15 = 4.1 down
        x, y = 20 - 16 * np.cos(np.pi / 12), 20 + 16 * np.sin(np.pi / 12)
        turned = augment.rotate(dot, 1.0)[..., 0].astype(float)
        rows, columns = np.indices(turned.shape)
        middle = (abs(rows - 24) < 4) * (abs(columns - 5) < 3) * turned  # away from grey corners
        assert (middle * columns).sum() / middle.sum() == pytest.approx(x, abs=0.1)
        assert (middle * rows).sum() / middle.sum() == pytest.approx(y, abs=0.1)


class TestDraw:
    def test_two_draws_each_applied_half_of_the_time(self):
        rng = np.random.default_rng(0)
        drawn = [CropFlipAugment.draw(rng).operations for _ in range(2000)]
        counts = collections.Counter(len(operations) for operations in drawn)
        assert [counts[n] / 2000 for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
        names = collections.Counter(name for operations in drawn for name, _ in operations)
        assert set(names) == set(OPERATIONS)
        assert max(names.values()) / min(names.values()) < 1.5
        signs = collections.Counter(sign for operations in drawn for _, sign in operations)
        assert signs[1.0] / signs[-1.0] == pytest.approx(1, abs=0.15)
        assert any(len(o) == 2 and o[0][0] == o[1][0] for o in drawn)  # with repetition

    def test_one_draw_serves_all_frames(self):
        drawn = CropFlipAugment.draw(np.random.default_rng(3))
        image, outs = noise(40, 60), [np.zeros((32, 32, 3), np.uint8)] * 2
        for out in outs:
            drawn(image, out)
        np.testing.assert_array_equal(*outs)

    def test_operations_follow_the_crop_in_order(self):
        drawn = CropFlipAugment.draw(np.random.default_rng(3))
        chosen = CropFlipAugment(drawn.crop, (("shift_x", 1.0), ("auto_contrast", 1.0)))
        image, plain, out = noise(40, 60), *np.zeros((2, 32, 32, 3), np.uint8)
        drawn.crop(image, plain)
        chosen(image, out)
        expected = augment.auto_contrast(augment.shift_x(plain, 1.0), 1.0)
        np.testing.assert_array_equal(out, expected)
