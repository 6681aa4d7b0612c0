"""Sizes that fit a budget of trained parameters, and rows within budgets in the report."""

from __future__ import annotations

import grids
import pytest

from uniadapter_jax.benchmark import jobs
from uniadapter_jax.benchmark.grid import base_grid, row, setting, units_of
from uniadapter_jax.benchmark.records import read_cells, read_grid
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import validate


def units(small, budget):
    grid = base_grid("sizes")
    grid.settings.clips = setting(str(small.config))
    grid.rows.lora = row("lora", size="rank")
    grid.rows.zero_shot = row("zero_shot")
    grid.budgets = (budget,)
    return units_of(grid)


def trained(unit, size):
    config = unit.config((f"{unit.size}={size}",), 0)
    return jobs.shapes_of(validate(config)).partition.counts()["trained"]


def test_the_largest_size_within_a_budget(small):
    for budget in (2000, 9000):
        unit = units(small, budget)[1]
        size = jobs.size_within(unit)
        assert trained(unit, size) <= budget < trained(unit, size + 1)
    with pytest.raises(UserError, match=r"method\.rank=1 trains [\d,]+ parameters, over 10"):
        jobs.size_within(units(small, 10)[1])


def test_a_row_within_a_budget_can_be_reported(small, tmp_path):
    names = [unit.name for unit in units(small, 9000)]
    assert names == ["lora", "lora@9000", "zero_shot"]
    cells = [grids.cell(name, 0, grids.ranked([True, False])) for name in names]
    grids.write(tmp_path, grids.grid(rows=names), cells)
    assert read_grid(tmp_path).rows == tuple(names)
    assert {cell.row for cell in read_cells(tmp_path)} == set(names)
