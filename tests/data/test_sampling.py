"""Frame choice by name, worked by hand."""

import numpy as np
import pytest

from uniadapter_jax.data import sampling


def per_second(times, fps, last=None):
    """Each frame until the next; the last for as long as the one before, or `last` seconds."""
    times = np.asarray(times, float)
    last = last or (times[1] - times[0] if len(times) > 1 else 0.1)
    return sampling.per_second(times, np.append(times[1:], times[-1] + last), fps).tolist()


@pytest.mark.parametrize(
    ("frames", "rate", "expected"),
    [
        (36, 12, [0, 12, 24]),  # 3 s: the frame at 3.0 s does not exist
        (37, 12, [0, 12, 24, 36]),
        (5, 10, [0]),
        (1, 10, [0]),
        (31, 29.97, [0, 29]),  # frame 30 comes at 1.001 s
        (30, 29.97, [0, 29]),  # which stays until then
        (25, 10, [0, 10, 20]),
    ],
)
def test_per_second(frames, rate, expected):
    assert per_second(np.arange(frames) / rate, 1.0) == expected


def test_per_second_twice_a_second():
    assert per_second(np.arange(20) / 10, 2.0) == [0, 5, 10, 15]


def test_per_second_faster_than_the_video_takes_each_frame_once():
    assert per_second(np.arange(5) / 2, 30.0) == [0, 1, 2, 3, 4]


def test_per_second_takes_the_frame_on_show():
    assert per_second([0.0, 0.5, 3.5, 4.0], 1.0) == [0, 1, 3]
    assert per_second([0.0, 0.9, 1.1, 1.2], 1.0) == [0, 1, 3]
    assert per_second([0.0, 0.5], 1.0, last=0.4) == [0]
    assert per_second([0.0, 0.5], 1.0, last=0.6) == [0, 1]


def test_per_second_before_the_first_picture_takes_it():
    assert per_second([0.5, 1.5, 2.5], 1.0) == [0, 1, 2]
    assert per_second([2.5, 3.5], 1.0) == [0, 1]


def test_per_second_with_a_gap_of_years():
    assert per_second([0.0, 0.5, 1e9], 1.0) == [0, 1, 2]


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
