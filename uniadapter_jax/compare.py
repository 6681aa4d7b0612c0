"""One table of several runs: mean and deviation over seeds, and intervals against a baseline.

    python -m uniadapter_jax.compare workdirs/zero_shot workdirs/adapter_0 workdirs/adapter_1
    python -m uniadapter_jax.compare workdirs/* --baseline=zero_shot --json

A run is a workdir or its result.json. Runs of one method are its seeds. The interval is of the
mean rank's difference to the baseline (below 0: better), paired by query, over test clips; see
docs/protocols.md. Runs on different data or different queries are refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uniadapter_jax.errors import UserError, plain_command
from uniadapter_jax.metrics import DIRECTIONS, SUMMARY, paired_bootstrap
from uniadapter_jax.run_files import read_result

PROTOCOL = ("v2t", "ties")  # similarity is part of a method and may differ
Result = dict[str, Any]


def read_results(paths: Sequence[str]) -> list[Result]:
    """result.json of each run, with its 'path'; `UserError` names what is missing or cut short."""
    return [_read(Path(path)) for path in paths]


def _read(path: Path) -> Result:
    file = path / "result.json" if path.is_dir() else path
    try:
        result = read_result(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; has the run ended? Rerun its command") from None
    needed = ("method", "seed", "parameters", "metrics", "ranks", "query_ids", "data")
    missing = [key for key in needed if key not in result]
    if missing:
        raise UserError(f"{file} is no result of a run: it lacks {missing}")
    return {**result, "path": str(file)}


def compare(
    results: Sequence[Result], baseline: str | None = None, samples: int = 10_000
) -> dict[str, Any]:
    """{"baseline", "queries", "methods": [one row per method in order of appearance]}.

    A row has method, seeds, parameters, metrics {t2v|v2t: {R@1: {"mean", "sd"}}}, and, against the
    baseline, mnr_difference {t2v|v2t: {"difference", "low", "high"}}. sd is None for one seed.
    `baseline` defaults to zero_shot where it is among the runs, else there is none.
    """
    _check_comparable(results)
    groups = _by_method(results)
    if baseline is None and "zero_shot" in groups:
        baseline = "zero_shot"
    if baseline is not None and baseline not in groups:
        raise UserError(f"--baseline={baseline} is not among the methods {sorted(groups)}")
    rows = [_row(runs) for runs in groups.values()]
    for row, runs in zip(rows, groups.values(), strict=True):
        if baseline is not None and row["method"] != baseline:
            row["mnr_difference"] = {
                way: _interval(runs, groups[baseline], way, samples) for way in DIRECTIONS
            }
    queries = {way: len(results[0]["query_ids"][way]) for way in DIRECTIONS}
    return {"baseline": baseline, "queries": queries, "methods": rows}


def _check_comparable(results: Sequence[Result]) -> None:
    if not results:
        raise UserError("no runs given; see --help")
    first = results[0]
    for other in results[1:]:
        pair = f"{first['path']} and {other['path']} cannot be compared"
        ours, theirs = (r["data"].get("fingerprint") for r in (first, other))
        if ours != theirs:
            raise UserError(f"{pair}: test data differ, data.fingerprint {ours} and {theirs}")
        for way in DIRECTIONS:
            if first["query_ids"][way] != other["query_ids"][way]:
                raise UserError(f"{pair}: {_first_difference(first, other, way)}")
        for key in PROTOCOL:
            ours, theirs = (r.get("protocol", {}).get(key) for r in (first, other))
            if ours != theirs:
                raise UserError(f"{pair}: protocol.{key} is {ours!r} and {theirs!r}")


def _first_difference(first: Result, other: Result, way: str) -> str:
    ours, theirs = first["query_ids"][way], other["query_ids"][way]
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"{way} query {place} is {a!r} and {b!r}"
    return f"{len(ours)} and {len(theirs)} {way} queries"


def _by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by method in order of appearance; a method's runs differ in nothing but the seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["method"], []).append(result)
    for method, runs in groups.items():
        seeds: dict[Any, str] = {}
        for run in runs:
            if run["seed"] in seeds:
                raise UserError(
                    f"{method} with seed {run['seed']} comes twice: {seeds[run['seed']]} and "
                    f"{run['path']}"
                )
            seeds[run["seed"]] = run["path"]
            if run["parameters"] != runs[0]["parameters"]:
                raise UserError(
                    f"{runs[0]['path']} and {run['path']} are both {method} but train other "
                    f"parameters, {runs[0]['parameters']} and {run['parameters']}; compare one "
                    "setting of a method at a time"
                )
    return groups


def _row(runs: Sequence[Result]) -> dict[str, Any]:
    metrics = {
        way: {name: _spread([run["metrics"][way][name] for run in runs]) for name in SUMMARY}
        for way in DIRECTIONS
    }
    return {
        "method": runs[0]["method"],
        "seeds": [run["seed"] for run in runs],
        "parameters": runs[0]["parameters"],
        "metrics": metrics,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation}


def _interval(
    runs: Sequence[Result], base: Sequence[Result], way: str, samples: int
) -> dict[str, float]:
    ids = runs[0]["query_ids"][way]
    ours, theirs = ([run["ranks"][way] for run in group] for group in (runs, base))
    return paired_bootstrap(ours, theirs, samples, clips=[_clip_of(i, way) for i in ids])


def _clip_of(query: str, way: str) -> str:
    """The clip of a query: a text is named by its clip and its number there, 'video7#0'."""
    return query.rpartition("#")[0] if way == "t2v" and "#" in query else query


def table(compared: dict[str, Any]) -> str:
    """The comparison as aligned lines, one block per direction."""
    lines = []
    for way in DIRECTIONS:
        head = ["method", "seeds", "trained", "%", *SUMMARY]
        if compared["baseline"] is not None:
            head.append(f"MnR - {compared['baseline']} [95 %]")
        body = [_cells(row, way, compared["baseline"]) for row in compared["methods"]]
        title = "text to video" if way == "t2v" else "video to text"
        lines += [f"{title}, {compared['queries'][way]} queries", *_align([head, *body]), ""]
    return "\n".join(lines).rstrip()


def _cells(row: dict[str, Any], way: str, baseline: str | None) -> list[str]:
    parameters = row["parameters"]
    cells = [row["method"], str(len(row["seeds"]))]
    cells += [f"{parameters['trained']:,}", f"{parameters['percent']:.3g}"]
    for value in row["metrics"][way].values():
        spread = "" if value["sd"] is None else f" ± {value['sd']:.1f}"
        cells.append(f"{value['mean']:.1f}{spread}")
    gap = row.get("mnr_difference", {}).get(way)
    if gap is not None:
        cells.append(f"{gap['difference']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]")
    elif baseline is not None:
        cells.append("")
    return cells


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@plain_command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison; exit status 2 and one line where runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m uniadapter_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir, or its result.json")
    parser.add_argument("--baseline", help="method to compare with (default: zero_shot, if there)")
    parser.add_argument("--samples", type=int, default=10_000, help="bootstrap draws")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    compared = compare(read_results(arguments.runs), arguments.baseline, arguments.samples)
    print(json.dumps(compared, indent=2) if arguments.json else table(compared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
