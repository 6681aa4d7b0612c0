"""What --report writes: the same files for the same cells, a safe page, charts with names."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import pathlib
import sys
import types
from xml.etree import ElementTree

import grids
import pytest

from uniadapter_jax.benchmark import drawing, report, text
from uniadapter_jax.benchmark.charts import charts_of, curves_of
from uniadapter_jax.benchmark.labels import place
from uniadapter_jax.benchmark.pareto_charts import pareto_charts
from uniadapter_jax.benchmark.records import read_cells, read_grid
from uniadapter_jax.benchmark.statistics import tables_of
from uniadapter_jax.common.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(monkeypatch):
    """The specifications that are drawn, by a stand-in that is at once ready."""
    specs = []

    def vegalite_to_svg(spec, **_):
        specs.append(spec)
        return (
            f'<svg xmlns="{SVG[1:-1]}" width="350" height="9"><text fill="#1b1f24">t</text></svg>'
        )

    stand_in = types.SimpleNamespace(
        vegalite_to_svg=vegalite_to_svg, svg_to_png=lambda svg, scale: b"png"
    )
    monkeypatch.setitem(sys.modules, "vl_convert", stand_in)
    return specs


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Elements(html.parser.HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


def test_the_same_cells_give_the_same_files(tmp_path, drawn):
    shares = {"zero_shot": 0.2, "lora": 0.8, "bitfit": 0.5}
    reports = [report.write_report(grids.made(tmp_path / name, shares)) for name in ("a", "b")]
    first, second = map(contents, reports)
    assert first == second
    names = {"index.html", "tables.md", "clips.csv", "cells.csv", "measured.csv"}
    assert names <= set(first)
    assert {"clips-intervals.svg", "clips-pareto-trained.png", "clips-curves.svg"} <= set(first)


def test_tables_hold_nothing_measured(tmp_path, drawn):
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8})
    first = contents(report.write_report(out))
    for path in out.glob("results/*/*.json"):
        cost = json.loads(path.read_text())["cost"]
        times = {"step_seconds": 9.75, "train_seconds": 8.5, "peak_memory_bytes": 7e9}
        run = {"created_at": "2027-01-01", "total_time": 99.0, "error_msg": ""}
        grids.changed(path, cost={**cost, **times}, run_info=run)
    second = contents(report.write_report(out))
    changed = {name for name in first if first[name] != second[name]}
    assert "measured.csv" in changed and "index.html" in changed
    assert not changed & {"tables.md", "clips.csv", "cells.csv"}


def test_paths_of_the_grid_are_not_in_the_tables(tmp_path, drawn):
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8})
    path = out / "results" / "clips" / "lora-seed0.json"
    grids.changed(path, command=f"main --workdir={out}/runs/x")
    assert b"main --workdir=$OUT/runs/x" in contents(report.write_report(out))["tables.md"]


def test_a_path_that_only_begins_like_the_grids_stays(tmp_path, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = grids.made(pathlib.Path("runs/clips"), {"zero_shot": 0.2, "lora": 0.8})
    path = out / "results" / "clips" / "lora-seed0.json"
    grids.changed(
        path, command="main --workdir=runs/clips-lora-0 --from=runs/clips --in=a/runs/clips"
    )
    tables = contents(report.write_report(out))["tables.md"]
    assert b"main --workdir=runs/clips-lora-0 --from=$OUT --in=a/runs/clips" in tables


def test_hostile_names_and_messages_stay_text(tmp_path, drawn):
    hostile = grids.HOSTILE
    settings = {"clips": {"title": hostile, "metric": "t2v/R@1"}}
    claims = [grids.claim(statement=hostile, source=hostile)]
    lr = {"values": [hostile], "value": None, "error": hostile}
    quality = grids.ranked(grids.chance(0.5, "a", 0))
    own = {"trials": [lr, {**lr, "value": 4.0}], "chosen": [hostile], "command": f"={hostile}"}
    cells = [
        grids.cell("zero_shot", 0, quality, **own),
        grids.cell("lora", 0, quality, **own, method=hostile),
        grids.failed("bitfit", 0, f"@{hostile}\nsecond"),
    ]
    grids.write(tmp_path, grids.grid(name=hostile, settings=settings, claims=claims), cells)
    files = contents(report.write_report(tmp_path))
    page = files["index.html"].decode()
    tags = Elements(page).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert "alert(1)" in page and "\u202e" not in page and "\x00" not in page
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    markdown = files["tables.md"].decode()
    assert "<script>" not in markdown.partition("## Commands")[0].replace("\\<script", "")
    widths = {
        line.replace("\\|", "").count("|") for line in markdown.splitlines() if line[:1] == "|"
    }
    assert widths == {8, 13}  # claims and rows: no name adds a column
    rows = list(csv.DictReader(io.StringIO(files["cells.csv"].decode())))
    assert rows[2]["error"].startswith("'@<script>") and "\n" not in rows[2]["error"]
    assert rows[1]["command"].startswith("'=<script>")


def test_a_fence_is_longer_than_what_it_holds():
    assert text.code_block(["a ```` b"]) == ["`````sh", "a ```` b", "`````"]


def test_the_page_needs_no_network_and_names_its_parts(tmp_path, drawn):
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8})
    page = contents(report.write_report(out))["index.html"].decode()
    tags = Elements(page).tags
    links = [a[n] for _, a in tags for n in ("href", "src") if n in a]
    assert all(link.startswith(("#", "clips-", "data:,")) for link in links)
    policy = next(a["content"] for t, a in tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("aria-label") for t, a in tags if t == "svg")
    assert all("scope" in a for t, a in tags if t == "th")
    assert "var(--ink)" in page  # charts have the colours of the theme
    assert '<td class="number" data-key="' in page


def test_tables_are_written_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8})
    with pytest.raises(UserError, match=r"pip install 'uniadapter_jax\[report\]'"):
        report.write_report(out)
    files = contents(out / "report")
    assert set(files) == {"tables.md", "clips.csv", "cells.csv", "measured.csv"}


def test_a_grid_of_failures_is_a_report(tmp_path, drawn):
    cells = [grids.failed(row, 0, "no memory") for row in ("zero_shot", "lora", "bitfit")]
    grids.write(tmp_path, grids.grid(), cells)
    files = contents(report.write_report(tmp_path))
    assert drawn == [] and b"lora seed 0 failed: no memory" in files["index.html"]


def test_seeds_that_did_not_run_are_told(tmp_path, drawn):
    """A row that trains nothing runs once; of another one all seeds are missing."""
    every = [
        grids.cell(row, seed, grids.ranked(grids.chance(0.5, row, seed)))
        for row, seed in (("zero_shot", 0), ("lora", 0), ("lora", 2))
    ]
    grids.write(tmp_path, grids.grid(), every)
    report.write_report(tmp_path)
    said = (tmp_path / "report" / "tables.md").read_text()
    for row, seed in (("lora", 1), ("bitfit", 0), ("bitfit", 1), ("bitfit", 2)):
        assert f"{row} seed {seed}" in said
    assert "zero_shot seed 1" not in said


def test_files_of_no_cell_are_told(tmp_path, drawn):
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8})
    grids.write(out, grids.grid(rows=["zero_shot", "lora"], seeds=[0, 1]), [])
    page = contents(report.write_report(out))["index.html"].decode()
    assert "2 files in results/ belong to no cell of the grid: left out." in page


def test_real_charts_name_every_mark(tmp_path):
    out = grids.made(tmp_path / "out", {"zero_shot": 0.2, "lora": 0.8, "bitfit": 0.5}, seeds=[0])
    [table] = tables_of(read_grid(out), read_cells(out))
    charts = {chart.name: chart for chart in (*charts_of(table), *pareto_charts(table))}
    assert len(charts) == 8 and [chart.name for chart in curves_of(table)] == ["curves"]
    made = drawing.draw(charts["pareto-trained"].spec, "x", "all of it")
    tree = ElementTree.fromstring(made.svg)
    marks = [e for e in tree.iter() if e.get("role") == "img"]
    told = {mark.find(f"{SVG}title").text for mark in marks}
    assert {words.partition(":")[0] for words in told} == {"zero_shot", "lora", "bitfit"}
    assert {"lora", "bitfit", "zero_shot (nothing trained)"} <= {e.text for e in tree.iter()}
    assert tree.get("aria-label") == "all of it" and made.png.startswith(b"\x89PNG")
    assert "#1b1f24" in made.svg and "#1b1f24" not in made.inline


def test_names_do_not_cover_each_other():
    points = [(50.0 + 2 * k, 100.0) for k in range(12)]
    labels = place(points, ["a_method"] * 12, 400, 300)
    boxes = [(label.x, label.y) for label in labels]
    width, height = 8 * 6.0, 12.0
    for k, (x, y) in enumerate(boxes):
        assert 0 <= x <= 400 - width and 0 <= y <= 300
        for u, v in boxes[:k]:
            assert abs(x - u) >= width or abs(y - v) >= height


@pytest.mark.slow
def test_real_charts_are_the_same_each_time(tmp_path):
    shares = {"zero_shot": 0.2, "lora": 0.8, "bitfit": 0.5}
    first, second = (report.write_report(grids.made(tmp_path / name, shares)) for name in "ab")
    assert contents(first) == contents(second)
