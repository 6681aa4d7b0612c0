"""The difference of two rows: interval and p-value by drawing test items, and Holm's correction."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from uniadapter_jax.benchmark.measures import Measure
from uniadapter_jax.benchmark.records import Cell
from uniadapter_jax.tasks.retrieval.metrics import clip_of, paired_draws

SAMPLES = 10_000
ROUNDING = 1e-9  # of means that are 0 but for the order of additions


@dataclasses.dataclass(frozen=True)
class Gap:
    """A row's difference to another, in units of the measure.

    Attributes:
      low, high: the 95 % interval over test clips.
      p: two-sided, from the same draws.
      corrected: p after Holm's correction over the rows of the setting.
      seeds: what the seeds alone make uncertain, as two standard errors; None for single seeds.
    """

    difference: float
    low: float
    high: float
    p: float
    corrected: float
    seeds: float | None


def gap_of(
    measure: Measure, row: Sequence[Cell], than: Sequence[Cell], samples: int = SAMPLES
) -> Gap | None:
    """The difference of two rows' cells, uncorrected; None where a file has no outcomes."""
    outcomes = [[cell.outcomes.get(measure.group) for cell in cells] for cells in (row, than)]
    if not all(side and all(side) for side in outcomes):
        return None
    ours, theirs = ([measure.values(o.numbers) for o in side if o] for side in outcomes)
    ids = outcomes[0][0].ids if outcomes[0][0] else ()
    clips = [clip_of(query, measure.group) for query in ids]
    difference, draws = paired_draws(ours, theirs, samples, clips=clips)
    low, high = (float(end) for end in np.quantile(draws, [0.025, 0.975]))
    beyond = min(np.sum(draws <= ROUNDING), np.sum(draws >= -ROUNDING))
    p = min(1.0, 2.0 * (1 + int(beyond)) / (samples + 1))
    means = [[float(values.mean()) for values in side] for side in (ours, theirs)]
    return Gap(difference, low, high, p, p, _of_seeds(*means))


def _of_seeds(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two standard errors of the difference of the means over seeds; 0 for equal seeds."""
    if len(ours) < 2 and len(theirs) < 2:
        return None
    errors = (statistics.variance(of) / len(of) for of in (ours, theirs) if len(of) > 1)
    return 2.0 * math.sqrt(sum(errors))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that 5 % is the risk of any false one (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
