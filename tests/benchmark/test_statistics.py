"""What the report computes: intervals, corrected p-values, verdicts, cautions, fronts, tables."""

from __future__ import annotations

import csv
import io

import grids
import numpy as np
import pytest

from uniadapter_jax.benchmark import tables as tables_module
from uniadapter_jax.benchmark.claims import verdicts_of
from uniadapter_jax.benchmark.gaps import holm
from uniadapter_jax.benchmark.pareto import AXES, points_of
from uniadapter_jax.benchmark.records import read_cells, read_grid
from uniadapter_jax.benchmark.statistics import tables_of
from uniadapter_jax.common.errors import UserError


def read(out):
    grid, cells = read_grid(out), read_cells(out)
    tables = tables_of(grid, cells)
    return grid, cells, tables


def verdicts(out):
    grid, _, tables = read(out)
    return [verdict.verdict for verdict in verdicts_of(grid, tables)]


def test_a_large_effect_is_supported_and_none_cannot_be_told(tmp_path):
    large = grids.made(tmp_path / "large", {"zero_shot": 0.2, "lora": 0.8})
    none = grids.made(tmp_path / "none", {"zero_shot": 0.5, "lora": 0.5})
    worse = grids.made(tmp_path / "worse", {"zero_shot": 0.9, "lora": 0.2})
    assert verdicts(large) == ["supported"]
    assert verdicts(none) == ["cannot tell"]
    assert verdicts(worse) == ["not supported"]
    _, _, [table] = read(large)
    gap = table.row("lora").gap
    assert gap.difference == pytest.approx(60.0) and 0 < gap.low < 60 < gap.high < 100


@pytest.mark.parametrize(
    ("share", "margin", "verdict"),
    [(0.5, 30.0, "supported"), (0.5, 1.0, "cannot tell"), (0.1, 5.0, "not supported")],
)
def test_not_worse_has_a_margin(tmp_path, share, margin, verdict):
    claims = [grids.claim(kind="not_worse", margin=margin)]
    out = grids.made(tmp_path, {"zero_shot": 0.5, "lora": share}, claims=claims)
    assert verdicts(out) == [verdict]


def test_less_is_better_for_a_mean_rank(tmp_path):
    settings = {"clips": {"title": "Clips", "metric": "v2t/MnR"}}
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8}, settings=settings)
    _, _, [table] = read(out)
    assert table.row("lora").gap.high < 0
    assert verdicts(out) == ["supported"]
    assert [p.row for p in points_of(table, AXES[0]) if p.on_front] == ["zero_shot", "lora"]


def test_answers_count_by_their_accuracy(tmp_path):
    settings = {"clips": {"title": "Questions", "metric": "accuracy/overall"}}
    shares = {"zero_shot": 0.2, "lora": 0.8}
    half = [0.3, 0.6]
    out = grids.made(
        tmp_path,
        shares,
        quality=lambda hits: grids.answered([half[hit] for hit in hits]),
        settings=settings,
    )
    _, _, [table] = read(out)
    assert table.row("lora").gap.difference == pytest.approx(18.0)
    assert (table.queries, table.clips) == (60, 60)


def test_captions_of_a_clip_are_drawn_together(tmp_path):
    """Ten equal captions of a clip tell no more than one."""
    widths = []
    for captions in (1, 10):
        cells = []
        for row, share in (("zero_shot", 0.4), ("lora", 0.6)):
            hits = np.repeat(grids.chance(share, row, 0), captions)
            quality = grids.ranked(hits)
            quality["query_ids"]["t2v"] = [f"c{k // captions}#{k}" for k in range(len(hits))]
            cells.append(grids.cell(row, 0, quality))
        grids.write(tmp_path, grids.grid(rows=["zero_shot", "lora"], seeds=[0]), cells)
        _, _, [table] = read(tmp_path)
        gap = table.row("lora").gap
        widths.append(gap.high - gap.low)
    assert widths[0] == pytest.approx(widths[1])


def test_holm_of_a_known_table():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_rows_are_corrected_for(tmp_path):
    shares = {"zero_shot": 0.4, "lora": 0.65, **{f"same{k}": 0.4 for k in range(10)}}
    _, _, [table] = read(grids.made(tmp_path, shares, seeds=[0]))
    gap = table.row("lora").gap
    assert gap.p < 0.05 and gap.corrected == pytest.approx(11 * gap.p)
    assert all(row.gap.corrected > 0.05 for row in table.rows if row.name.startswith("same"))


def test_few_seeds_and_few_clips_are_told(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.4, "lora": 0.5}, seeds=[0])
    _, _, [table] = read(out)
    assert any("Fewer than 3 seeds" in line and "lora (1)" in line for line in table.cautions)
    assert not any("zero_shot (1)" in line for line in table.cautions)  # nothing trains there
    assert any(line.startswith("60 test items are too few") for line in table.cautions)
    assert table.row("lora").sd is None
    grid, _, tables = read(out)
    assert "fewer than 3 seeds" in verdicts_of(grid, tables)[0].reasons[0]


def test_a_resolution_is_never_finer_than_the_clips(tmp_path):
    hits = [False] * 60
    better = [True] + hits[1:]
    cells = [grids.cell(r, 0, grids.ranked(h)) for r, h in (("zero_shot", hits), ("lora", better))]
    grids.write(tmp_path, grids.grid(rows=["zero_shot", "lora"], seeds=[0]), cells)
    _, _, [table] = read(tmp_path)
    assert table.resolution == pytest.approx(400 / 60)


def test_failed_and_missing_cells_are_rows(tmp_path):
    cells = [
        grids.cell("zero_shot", 0, grids.ranked(grids.chance(0.5, "a", 0))),
        grids.failed("lora", 0, "out of memory"),
    ]
    grids.write(tmp_path, grids.grid(rows=["zero_shot", "lora"]), cells)
    grid, read_ones, tables = read(tmp_path)
    told = " ".join(tables[0].cautions)
    assert "Failed: lora seed 0." in told
    assert "Not run yet: lora seed 1, lora seed 2" in told
    [verdict] = verdicts_of(grid, tables)
    assert (verdict.verdict, verdict.gap) == ("cannot tell", None)
    page = tables_module.markdown_of(grid, tables, [verdict], [])
    assert "lora seed 0 failed: out of memory" in page
    files = tables_module.csv_files(grid, tables, read_ones)
    rows = list(csv.DictReader(io.StringIO(files["cells.csv"])))
    assert [row["error"] for row in rows] == ["", "out of memory"]


def test_a_baseline_can_be_chosen_or_absent(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    grid, cells = read_grid(out), read_cells(out)
    [table] = tables_of(grid, cells, "lora")
    assert table.row("zero_shot").gap.difference == pytest.approx(-60.0)
    with pytest.raises(UserError, match="did you mean 'lora'"):
        tables_of(grid, cells, "lorra")
    [table] = tables_of(grid, [cell for cell in cells if cell.row == "lora"])
    assert table.baseline is None and "has no numbers" in table.cautions[0]


def test_repeated_reading_of_test_data_is_told(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    path = out / "results" / "clips" / "lora-seed1.json"
    grids.changed(path, evaluations={"val": 5, "test": 2})
    _, _, [table] = read(out)
    assert "Test data was not read exactly once by lora seed 1 (2)." in table.cautions


def test_files_without_ranks_have_means_only(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    for path in out.glob("results/*/*.json"):
        share = 0.2 if path.name.startswith("zero") else 0.8
        grids.changed(path, quality={"metrics": {"t2v": {"R@1": 100 * share}}})
    grid, _, tables = read(out)
    assert tables[0].row("lora").mean == pytest.approx(80.0)
    assert tables[0].row("lora").gap is None
    assert verdicts_of(grid, tables)[0].reasons == ("the files hold no ranks",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": True}, "seed should be int"),
        ({"schema": 2}, "schema is 2"),
        ({"row": "../x"}, "letters, digits"),
        ({"row": "bitfit"}, "says it is clips/bitfit-seed0.json"),
        ({"train_info": {"status": "success"}}, "no field train_info.num_trainable_params"),
        ({"curve": [{"step": 1}]}, r"no field curve\[0\].value"),
        ({"cost": {"step_flops": "many"}}, "cost.step_flops should be int or float or null"),
        ({"meta_info": {"dataset_info": {"sha": "d2"}}}, "cannot be compared"),
        ({"quality": {"metrics": {"t2v": {"R@5": 1.0}}}}, "quality.metrics has no t2v/R@1"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, fields, message):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    path = out / "results" / "clips" / "lora-seed0.json"
    grids.changed(path, **fields)
    with pytest.raises(UserError, match=message) as caught:
        read(out)
    assert str(path) in str(caught.value)


def test_metrics_must_be_those_of_the_ranks(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    quality = grids.ranked([True] * 60)
    quality["metrics"]["t2v"]["R@1"] = 99.0
    grids.changed(out / "results" / "clips" / "lora-seed0.json", quality=quality)
    with pytest.raises(UserError, match="says t2v/R@1 is 99, the outcomes"):
        read(out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"baseline": "none"}, "baseline has no field 'none'"),
        ({"rows": ["a/b"]}, r"rows\[0\]"),
        ({"settings": {"s": {"title": "", "metric": "t2v/MdR"}}}, "metric is 't2v/MdR'"),
        ({"claims": [grids.claim(kind="equal")]}, r"claims\[0\].kind"),
        ({"claims": [grids.claim(than="x")]}, r"claims\[0\].than"),
    ],
)
def test_a_wrong_grid_is_named(tmp_path, fields, message):
    grids.write(tmp_path, grids.grid(**fields), [])
    with pytest.raises(UserError, match=message):
        read_grid(tmp_path)


def test_an_unsealed_or_damaged_file_is_refused(tmp_path):
    out = grids.made(tmp_path, {"zero_shot": 0.2, "lora": 0.8})
    path = out / "results" / "clips" / "lora-seed0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match="damaged"):
        read_cells(out)
    path.write_text('{"schema": 1}')
    with pytest.raises(UserError, match="no sha256"):
        read_cells(out)
    with pytest.raises(UserError, match=r"no grid\.json"):
        read_grid(tmp_path / "elsewhere")
