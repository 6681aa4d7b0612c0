"""The report as one HTML page that needs no network: style, script and charts are in it."""

from __future__ import annotations

import base64
import hashlib
import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import uniadapter_jax
from uniadapter_jax.benchmark import text
from uniadapter_jax.benchmark.charts import Chart
from uniadapter_jax.benchmark.claims import Verdict
from uniadapter_jax.benchmark.drawing import PALETTE, Drawing
from uniadapter_jax.benchmark.records import Grid
from uniadapter_jax.benchmark.statistics import Row, Table
from uniadapter_jax.benchmark.tables import (
    Column,
    basis,
    columns_of,
    compared,
    effect,
    shown_rows,
)

_ASSETS = pathlib.Path(uniadapter_jax.__file__).parent / "assets" / "report"
Shown = Sequence[tuple[Chart, Drawing, Drawing | None]]  # each chart, and its form for phones


def page_of(
    grid: Grid,
    tables: Sequence[Table],
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    charts: Mapping[str, Shown],
) -> str:
    """The page; `charts` has those of each setting."""
    style, script = _style(), (_ASSETS / "page.js").read_text(encoding="utf-8")
    name = _safe(grid.name)
    links = [*([("claims", "Claims")] if verdicts else [])]
    links += [(f"setting-{table.setting.name}", table.setting.title) for table in tables]
    links.append(("commands", "Commands"))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            '<link rel="icon" href="data:,">',
            f"<title>Benchmark {name}</title><style>{style}</style></head><body>",
            f"<header><h1>Benchmark {name}</h1>{_list(notes)}</header>",
            _navigation(links),
            "<main>",
            _claims(verdicts) if verdicts else "",
            *(_setting(table, charts[table.setting.name]) for table in tables),
            _commands(tables),
            f"</main><script>{script}</script></body></html>\n",
        ]
    )


def _safe(words: str) -> str:
    return html.escape(text.plain(words))


def _style() -> str:
    """The style, with the colours of both themes; paper is white in print."""
    light, dark = (
        ";".join(f"--{name}:{pair[place]}" for name, pair in PALETTE.items()) for place in (0, 1)
    )
    themes = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return themes + (_ASSETS / "page.css").read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing may be loaded, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, f"script-src 'sha256-{digest}'"))


def _list(lines: Iterable[str], kind: str = "muted") -> str:
    items = "".join(f"<li>{_safe(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _navigation(links: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="#{place}">{_safe(title)}</a></li>' for place, title in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _claims(verdicts: Sequence[Verdict]) -> str:
    heads = ("claim", "setting", "compared", "effect [95 %]", "verdict", "cautions")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    body = "".join(map(_claim, verdicts))
    return (
        '<section aria-labelledby="claims"><h2 id="claims">Claims</h2>'
        "<p>What papers claim, on the data at hand. An interval over test items decides; "
        "&ldquo;cannot tell&rdquo; means that the data are too few.</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="Table of claims">'
        f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div></section>"
    )


def _claim(verdict: Verdict) -> str:
    claim, kind = verdict.claim, verdict.verdict.replace(" ", "-")
    unit = f" {verdict.table.setting.measure.unit}" if verdict.gap else ""
    source = f'<br><span class="muted">{_safe(claim.source)}</span>' if claim.source else ""
    return (
        f'<tr><th scope="row">{_safe(claim.statement)}{source}</th>'
        f"<td>{_safe(verdict.table.setting.title)}</td><td>{_safe(compared(verdict))}</td>"
        f"<td>{_safe(effect(verdict))}{unit}</td>"
        f'<td><span class="verdict {kind}">{verdict.verdict}</span></td>'
        f"<td>{_safe('; '.join(verdict.reasons))}</td></tr>"
    )


def _setting(table: Table, charts: Shown) -> str:
    place, title = f"setting-{table.setting.name}", _safe(table.setting.title)
    failures = [
        f"{row.name} seed {cell.seed} failed: {text.shortened(cell.error, 300)}"
        for row in table.rows
        for cell in row.failed
    ]
    figures = "".join(_figure(table, *shown) for shown in charts)
    return (
        f'<section aria-labelledby="{place}"><h2 id="{place}">{title}</h2>'
        f"<p>{_safe(basis(table))}</p>{_list(table.cautions, 'cautions')}{_list(failures)}"
        f'{_table(table)}<div class="charts">{figures}</div></section>'
    )


def _table(table: Table) -> str:
    columns, title = columns_of(table), _safe(table.setting.title)
    head = "".join(f'<th scope="col"{_kind(c)}>{_safe(c.title)}</th>' for c in columns)
    body = "".join(f"<tr>{_row(row, columns)}</tr>" for row in shown_rows(table))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Results, {title}">'
        '<table class="table"><caption>Mean &plusmn; deviation over seeds. '
        f"The head of a column sorts.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(column: Column) -> str:
    return ' class="words"' if column.words else ' class="number"'


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = []
    for place, column in enumerate(columns):
        key = column.key(row)
        data = "" if key is None else f' data-key="{_safe(str(key))}"'
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", _kind(column))
        cells.append(f"<{tag}{scope}{data}>{_safe(column.shown(row))}</{tag}>")
    return "".join(cells)


def _figure(table: Table, chart: Chart, drawing: Drawing, for_phones: Drawing | None) -> str:
    """A chart with its files; the narrow form stands in for the wide one on phones."""
    drawn = drawing.inline
    if for_phones:
        drawn = (
            f'<div class="for-screens">{drawn}</div>'
            f'<div class="for-phones">{for_phones.inline}</div>'
        )
    file = f"{table.setting.name}-{chart.name}"
    links = ", ".join(
        f'<a href="{file}.{kind}" aria-label="{_safe(chart.title)} as {kind.upper()}, '
        f'{_safe(table.setting.title)}">{kind.upper()}</a>'
        for kind in ("svg", "png")
    )
    return (
        f'<figure style="width:{drawing.width}px">'
        f"<figcaption><b>{_safe(chart.title)}</b>{_safe(chart.alt)}. {links}"
        f"</figcaption>{drawn}</figure>"
    )


def _commands(tables: Sequence[Table]) -> str:
    parts = []
    for table in tables:
        title = _safe(table.setting.title)
        lines = [_safe(cell.command) for row in table.rows for cell in row.cells]
        block = "\n".join(lines)
        parts.append(
            f'<h3>{title}</h3><pre tabindex="0" role="region" aria-label="Commands, {title}">'
            f"{block}</pre>"
        )
    return (
        '<section aria-labelledby="commands"><h2 id="commands">Commands</h2>'
        "<p><code>$OUT</code> is the output directory of the grid.</p>"
        f"{''.join(parts)}</section>"
    )
