"""Places names beside the marks of a chart so that none covers another: greedy, in fixed order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SIZE = 11.0  # of the letters, in pixels
_LETTER = 0.58 * SIZE  # mean width
_LINE = 1.25 * SIZE
_MARK = 6.0  # half the width of a mark with its margin


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


class Label(NamedTuple):
    """Where a name begins (its left end, halfway up), and the end of a line to it, if far."""

    x: float
    y: float
    is_far: bool
    tip: float


def place(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    width: float,
    height: float,
    taken: Sequence[Box] = (),
) -> list[Label]:
    """A label for each point of a chart of that size, all in pixels; y points down.

    `taken`: where other words and lines stand.
    """
    marks = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in points]
    taken = list(taken)
    labels: list[Label] = []
    for (x, y), name in zip(points, names, strict=True):
        size = len(name) * _LETTER
        best: tuple[float, Box, bool] | None = None
        for box, distance in _candidates(x, y, size):
            cost = distance + _outside(box, width, height) * 500.0
            cost += sum(box.overlap(other) for other in taken) * 4.0
            cost += sum(box.overlap(mark) for mark in marks) * 1.0
            if best is None or cost < best[0]:
                best = (cost, box, distance > 12.0)
        assert best is not None
        taken.append(best[1])
        _, box, is_far = best
        tip = min(max(x, box.left), box.right)
        labels.append(Label(box.left, (box.top + box.bottom) / 2, is_far, tip))
    return labels


def _candidates(x: float, y: float, size: float) -> Iterator[tuple[Box, float]]:
    """Boxes right, left, above and below of a point, at growing distances."""
    for away, side in itertools.product(
        (8.0, 14.0, 24.0, 36.0, 52.0, 72.0, 100.0, 130.0), range(8)
    ):
        slant = away * 0.7
        left, middle = {
            0: (x + away, y),
            1: (x - away - size, y),
            2: (x - size / 2, y - away - _LINE / 4),
            3: (x - size / 2, y + away + _LINE / 4),
            4: (x + slant, y - slant - _LINE / 4),
            5: (x + slant, y + slant + _LINE / 4),
            6: (x - slant - size, y - slant - _LINE / 4),
            7: (x - slant - size, y + slant + _LINE / 4),
        }[side]
        yield Box(left, middle - _LINE / 2, left + size, middle + _LINE / 2), away + side * 0.1


def _outside(box: Box, width: float, height: float) -> float:
    """By how many pixels a box leaves the chart."""
    return max(0.0, -box.left, box.right - width) + max(0.0, -box.top, box.bottom - height)
