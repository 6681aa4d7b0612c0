"""The claims of papers, tried on the data at hand: effect, interval and verdict in each setting.

A claim says beforehand which two rows it compares, so its interval is not corrected for the number
of rows in a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from uniadapter_jax.benchmark.gaps import Gap, gap_of
from uniadapter_jax.benchmark.records import KINDS, Claim, Grid
from uniadapter_jax.benchmark.statistics import ENOUGH_SEEDS, Row, Table

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one setting says about a claim.

    Attributes:
      gap: row - than, in units of the setting's measure; None if there are no numbers.
      verdict: one of `SUPPORTED`, `NOT_SUPPORTED`, `CANNOT_TELL`.
      reasons: why there is no gap, or what weakens the verdict.
    """

    claim: Claim
    table: Table
    gap: Gap | None
    verdict: str
    reasons: tuple[str, ...]


def verdicts_of(grid: Grid, tables: Sequence[Table]) -> list[Verdict]:
    """A verdict for each claim and each of its settings, in the order of the grid."""
    by_name = {table.setting.name: table for table in tables}
    return [
        _verdict(claim, by_name[setting]) for claim in grid.claims for setting in claim.settings
    ]


def _verdict(claim: Claim, table: Table) -> Verdict:
    row, than = table.row(claim.row), table.row(claim.than)
    lacking = [side.name for side in (row, than) if not side.cells]
    if lacking:
        reason = f"no run of {' and '.join(lacking)} succeeded here"
        return Verdict(claim, table, None, CANNOT_TELL, (reason,))
    measure = table.setting.measure
    gap = gap_of(measure, row.cells, than.cells)
    if gap is None:
        return Verdict(claim, table, None, CANNOT_TELL, ("the files hold no ranks",))
    gain = sorted((measure.sign * gap.low, measure.sign * gap.high))
    verdict = _RULES[claim.kind](gain[0], gain[1], claim.margin)
    return Verdict(claim, table, gap, verdict, tuple(_weaknesses(gap, row, than, table)))


def _better(low: float, high: float, margin: float) -> str:
    """Whether the interval of the gain lies above 0."""
    del margin
    return SUPPORTED if low > 0.0 else NOT_SUPPORTED if high < 0.0 else CANNOT_TELL


def _not_worse(low: float, high: float, margin: float) -> str:
    """Whether the interval of the gain lies above -margin."""
    return SUPPORTED if low > -margin else NOT_SUPPORTED if high < -margin else CANNOT_TELL


_RULES: Mapping[str, Callable[[float, float, float], str]] = dict(
    zip(KINDS, (_better, _not_worse), strict=True)
)


def _weaknesses(gap: Gap, row: Row, than: Row, table: Table) -> list[str]:
    lines = []
    few = [
        f"{side.name} has {len(side.cells)}"
        for side in (row, than)
        if side.trained and len(side.cells) < ENOUGH_SEEDS
    ]
    if few:
        lines.append(f"fewer than {ENOUGH_SEEDS} seeds: {', '.join(few)}")
    if gap.seeds is not None and abs(gap.difference) < gap.seeds:
        unit = table.setting.measure.unit
        lines.append(f"other seeds alone could move this by {gap.seeds:.1f} {unit}")
    return lines
