"""Frame choice by name, worked by hand."""

import numpy as np
import pytest

from uniadapter_jax.data import sampling


@pytest.mark.parametrize(
    ("frames", "rate", "expected"),
    [
        (36, 12, [0, 12, 24]),  # 3 s: the frame at 3.0 s does not exist
        (37, 12, [0, 12, 24, 36]),
        (5, 10, [0]),
        (1, 10, [0]),
        (31, 29.97, [0, 30]),
        (25, 10, [0, 10, 20]),
    ],
)
def test_per_second(frames, rate, expected):
    chosen = sampling.per_second(np.arange(frames) / rate, 1.0, 1 / rate)
    assert chosen.tolist() == expected


def test_per_second_twice_a_second():
    assert sampling.per_second(np.arange(20) / 10, 2.0, 0.1).tolist() == [0, 5, 10, 15]


def test_per_second_faster_than_the_video_takes_each_frame_once():
    assert sampling.per_second(np.arange(5) / 2, 30.0, 0.5).tolist() == [0, 1, 2, 3, 4]


def test_per_second_with_a_gap_takes_the_next_frame_once():
    times = np.asarray([0.0, 0.5, 3.5, 4.0])
    assert sampling.per_second(times, 1.0, 0.5).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("count", "num", "expected"),
    [(10, 4, [0, 2, 4, 6]), (8, 4, [0, 2, 4, 6]), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3])],
)
def test_uniform_is_blips(count, num, expected):
    assert sampling.uniform(count, num).tolist() == expected


@pytest.mark.parametrize(
    ("count", "num", "expected"),
    [(12, 4, [1, 4, 7, 10]), (10, 4, [0, 3, 5, 8]), (3, 4, [0, 1, 2]), (9, 1, [4])],
)
def test_middle_of_segments(count, num, expected):
    assert sampling.middle(count, num).tolist() == expected


@pytest.mark.parametrize(
    ("count", "num", "expected"),
    [(5, 12, [0, 1, 2, 3, 4]), (12, 12, list(range(12))), (10, 4, [0, 3, 6, 9]), (7, 1, [0])],
)
def test_evenly_is_clip4clips_slice_framepos_2(count, num, expected):
    assert sampling.evenly(count, num).tolist() == expected


def test_random_is_a_sorted_sample():
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.choose("random", 10, 4, rng) for _ in range(500)])
    assert (np.diff(drawn, axis=1) > 0).all()
    assert np.bincount(drawn.ravel(), minlength=10).min() > 150
    assert sampling.choose("random", 3, 4, rng).tolist() == [0, 1, 2]


def test_choose_by_name():
    chosen = {name: sampling.choose(name, 10, 4).tolist() for name in sampling.LOADING}
    assert chosen == {
        "evenly": [0, 3, 6, 9],
        "uniform": [0, 2, 4, 6],
        "middle": [0, 3, 5, 8],
        "random": [0, 3, 6, 9],  # of an evaluation, which has no randomness
    }
