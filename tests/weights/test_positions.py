"""Position embeddings for other picture sizes."""

import pathlib

import numpy as np
import pytest

from uniadapter_jax.weights.names.positions import cubic_weights, resize_positions

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "positions.npz"


@pytest.mark.parametrize(("old", "new"), [(7, 5), (4, 9), (14, 24), (1, 3)])
def test_equals_torch(old, new):
    golden = np.load(GOLDEN)
    table, expected = (golden[f"{old}to{new}.{part}"] for part in ("table", "resized"))
    resized = resize_positions(table, new)
    assert resized.dtype == np.float32 and resized.shape == expected.shape
    np.testing.assert_array_equal(resized[0], table[0])
    assert np.abs(resized - expected).max() < 1e-6 * np.abs(expected).max()


def test_constants_stay_and_weights_sum_to_one():
    np.testing.assert_allclose(cubic_weights(7, 12).sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(resize_positions(np.full((50, 2), 3.0), 9), 3.0, rtol=1e-6)


def test_a_table_that_fits_is_left_alone():
    table = np.zeros((10, 2), np.float16)
    assert resize_positions(table, 3) is table


@pytest.mark.parametrize("shape", [(9, 2), (1, 2), (10,), (10, 2, 2), (0, 2)])
def test_no_square(shape):
    with pytest.raises(ValueError, match="no table"):
        resize_positions(np.zeros(shape), 5)
