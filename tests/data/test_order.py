"""The endless order of samples: whole epochs, no doubles where none are wanted, fair and fast."""

import pickle
import time

import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.loading.order import SampleOrder


def pairs(order, step):
    rows = order.rows(step)
    return list(zip(order.clips[rows].tolist(), order.caption[rows].tolist(), strict=True))


def test_every_caption_once_in_an_epoch():
    counts = [3, 1, 4, 2, 5]
    order = SampleOrder(counts, "all", batch=4, seed=0)
    assert order.steps == 15 // 4
    for epoch in range(3):
        seen = [pair for step in range(3) for pair in pairs(order, 3 * epoch + step)]
        assert len(set(seen)) == 12
        assert all(0 <= caption < counts[clip] for clip, caption in seen)


def test_every_clip_once_in_an_epoch_of_random_captions():
    order = SampleOrder([3] * 8, "random", batch=4, seed=0)
    assert order.steps == 2
    assert sorted(clip for step in (0, 1) for clip, _ in pairs(order, step)) == list(range(8))


def test_captions_go_in_groups_each_once_in_an_epoch():
    counts = [3, 1, 9, 4]
    order = SampleOrder(counts, "all", batch=1, seed=0, together=2)
    assert order.steps == 1 + 1 + 4 + 2
    seen = {clip: [] for clip in range(4)}
    for step in range(order.steps):
        (sample,) = order.rows(step)
        clip = int(order.clips[sample])
        chosen = order.captions(sample, counts[clip], order.row_rng(step, 0))
        assert len(chosen) == 2
        seen[clip] += chosen.tolist()
    assert seen[1] == [0, 0]  # its only one
    for clip in (0, 2, 3):
        assert len(set(seen[clip])) == len(seen[clip]) == counts[clip] // 2 * 2


def test_captions_of_a_group_are_drawn_without_repetition():
    order = SampleOrder([5] * 4, "random", batch=2, seed=0, together=4)
    assert order.steps == 2
    draws = [order.captions(0, 5, order.row_rng(step, 0)).tolist() for step in range(9)]
    assert all(len(set(draw)) == 4 for draw in draws)
    assert len(set(map(tuple, draws))) > 1


def test_epochs_and_seeds_differ():
    first = SampleOrder([1] * 50, "all", 50, seed=0)
    other = SampleOrder([1] * 50, "all", 50, seed=1)
    orders = [first.rows(0), first.rows(1), other.rows(0), other.rows(1)]
    for i, a in enumerate(orders):
        assert not any(np.array_equal(a, b) for b in orders[i + 1 :])


def test_any_step_can_be_asked_for_first():
    order = SampleOrder([2] * 20, "all", 8, seed=3, avoid_duplicates=True)
    expected = [order.rows(step).tolist() for step in range(23)]
    for step in (22, 7, 0):
        fresh = pickle.loads(pickle.dumps(SampleOrder([2] * 20, "all", 8, 3, True)))
        assert fresh.rows(step).tolist() == expected[step]


def test_rows_have_their_own_randomness():
    order = SampleOrder([1] * 9, "all", 3, seed=0)
    draws = [order.row_rng(step, row).random() for step in range(4) for row in range(3)]
    assert len(set(draws)) == 12
    assert draws[4] == SampleOrder([1] * 9, "all", 3, seed=0).row_rng(1, 1).random()


@pytest.mark.parametrize(
    ("counts", "batch"),
    [
        ([20] * 300, 64),  # chance and a few swaps
        ([5] * 16, 16),  # every batch holds every clip
        ([20] * 17, 16),  # only the dense layout
        ([1] * 200 + [20], 8),  # one clip in nearly every batch
        ([7, 1, 3, 9, 2, 2, 8, 6], 4),
        ([3, 3, 3], 2),
        ([4], 1),
    ],
)
def test_no_clip_twice_in_a_batch(counts, batch):
    for seed in range(4):
        order = SampleOrder(counts, "all", batch, seed, avoid_duplicates=True)
        for epoch in range(3):
            seen = []
            for step in range(order.steps):
                rows = pairs(order, epoch * order.steps + step)
                assert len({clip for clip, _ in rows}) == batch
                seen += rows
            assert len(set(seen)) == order.steps * batch


def test_without_avoiding_doubles_do_come():
    order = SampleOrder([20] * 40, "all", 32, seed=0)
    assert any(len({clip for clip, _ in pairs(order, s)}) < 32 for s in range(order.steps))


def test_avoiding_leaves_most_of_the_order_as_it_was():
    counts = [20] * 1000
    plain = SampleOrder(counts, "all", 64, seed=0)
    avoiding = SampleOrder(counts, "all", 64, seed=0, avoid_duplicates=True)
    moved = np.mean([np.mean(plain.rows(s) != avoiding.rows(s)) for s in range(plain.steps)])
    assert 0 < moved < 0.12


def test_an_epoch_of_full_size_is_planned_in_seconds():
    order = SampleOrder([20] * 9000, "all", 128, seed=0, avoid_duplicates=True)
    begin = time.process_time()
    order.rows(0)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2] * 3, "all", 7, 0), "6 samples .* global batch of 7"),
        (([2] * 3, "random", 4, 0), "3 samples"),
        (([2] * 3, "first", 2, 0), r"captions='first' is not one of all, random"),
        (([2, 0], "all", 1, 0), "clip 1 has no caption"),
        (([2] * 3, "all", 0, 0), "at least 1"),
        (([2] * 3, "all", 2, -1), "seed=-1"),
        (([50, 50], "all", 8, 0, True), "2 clips cannot fill 12 batches of 8"),
        (([1] * 40 + [200], "all", 8, 0, True), "41 clips cannot fill 30 batches of 8"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        SampleOrder(*arguments)
