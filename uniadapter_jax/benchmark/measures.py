"""The metric of a setting: a mean over queries, so that intervals can be had by drawing queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, RECALLS


@dataclasses.dataclass(frozen=True)
class Measure:
    """How the outcome of a query counts.

    Attributes:
      name: the name in a cell's scores, such as "t2v/R@1".
      group: whose outcomes it takes, such as "t2v".
      unit: of the values and their differences.
      sign: 1 if more is better, -1 if less is.
      of: from outcomes to a value per query, whose mean is the metric.
      floor: a set of n clips never shows a difference below floor / n, for n * (floor / n) / 100
        clips must differ; 0 where nothing general can be said.
      telling: the resolution, in units, beyond which a test set is called too small.
    """

    name: str
    group: str
    unit: str
    sign: int
    of: Callable[[np.ndarray], np.ndarray]
    floor: float = 0.0
    telling: float = float("inf")

    def values(self, numbers: Any) -> np.ndarray:
        """The value of each query."""
        return self.of(np.asarray(numbers, np.float64))


# If k of n clips differ, all in one direction, a draw misses them all with probability e^-k; the
# interval excludes 0 from e^-k < 2.5 % on, so from 4 clips on.
_CLIPS = 4
_POINTS: dict[str, Any] = {"unit": "points", "sign": 1, "floor": 100.0 * _CLIPS, "telling": 2.0}


def _recall(k: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda ranks: 100.0 * (ranks <= k)


def _measures() -> dict[str, Measure]:
    found = {}
    for way in DIRECTIONS:
        for k in RECALLS:
            name = f"{way}/R@{k}"
            found[name] = Measure(name, way, of=_recall(k), **_POINTS)
        name = f"{way}/MnR"
        found[name] = Measure(name, way, "ranks", -1, lambda ranks: ranks)
    answers = Measure("accuracy/overall", "accuracy", of=lambda right: 100.0 * right, **_POINTS)
    return {**found, "accuracy/overall": answers, "accuracy": answers}


MEASURES = _measures()


def find_measure(name: str) -> Measure | None:
    """The measure of that name; None if there is none, as for a median."""
    return MEASURES.get(name)
