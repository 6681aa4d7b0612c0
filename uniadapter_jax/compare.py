"""Tables of several runs: mean and deviation over seeds, and intervals against a baseline.

    python -m uniadapter_jax.compare workdirs/zero_shot workdirs/adapter_0 workdirs/adapter_1
    python -m uniadapter_jax.compare workdirs/* --baseline=zero_shot --json

A run is a workdir or its result.json; a folder without one is skipped. Runs that differ only in the
seed form one row; other runs of a method form further rows, named by the fields that differ. Runs
with other test data or another protocol are in further tables. The interval is that of the mean
rank's difference to the baseline (below 0: better), paired by query, over test clips; see
docs/protocols.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.files import FileError
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.runs.files import read_result
from uniadapter_jax.runs.rows import Row, find_row, rows_of
from uniadapter_jax.tasks.retrieval import caveats
from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, clip_of, paired_bootstrap

# Fields that all runs of a table share; others may differ, such as similarity, a method's choice.
PROTOCOL = {"ranks": ("v2t", "ties"), "answers": ("metric",)}
GROUPS = {"ranks": DIRECTIONS, "answers": ("accuracy", "per_answer_type")}  # shown ones
_TITLES = {
    "t2v": "text to clip or picture",
    "v2t": "clip or picture to text",
    "accuracy": "answers to questions",
    "per_answer_type": "answers, by type",
}
Result = dict[str, Any]


def read_results(paths: Sequence[str]) -> list[Result]:
    """result.json of each run, with its 'path'; a folder without one is skipped with a message.

    Raises:
      UserError: a file is missing, damaged or no result, or no run has one.
    """
    results = []
    for path in map(Path, paths):
        file = path / "result.json" if path.is_dir() else path
        try:
            results.append(_checked(read_result(file), file))
        except FileNotFoundError:
            if not path.is_dir():
                raise UserError(f"{path} does not exist") from None
            print(f"skipped: {path} has no result.json; has the run ended?", file=sys.stderr)
    if not results:
        raise UserError("none of these holds a result.json; see --help")
    return results


def _checked(result: Result, file: Path) -> Result:
    needed = ["method", "seed", "parameters", "metrics", "data"]
    if "questions" not in result:
        needed += ["ranks", "query_ids"]
    if missing := [key for key in needed if key not in result]:
        raise FileError(file, f"is no result of a run: it lacks {missing}")
    for name in ("trained", "percent"):
        if not isinstance(result["parameters"].get(name), int | float):
            raise FileError(file, f"parameters.{name} should be a number")
    for way in DIRECTIONS if "questions" not in result else ():
        ranks, ids = (result[name].get(way) for name in ("ranks", "query_ids"))
        if not isinstance(ids, list) or not isinstance(ranks, list) or len(ids) != len(ranks):
            raise FileError(file, f"ranks.{way} and query_ids.{way} should be lists of one length")
        if not all(isinstance(rank, int | float) for rank in ranks):
            raise FileError(file, f"ranks.{way} should hold numbers")
        if not all(isinstance(name, str) for name in ids):
            raise FileError(file, f"query_ids.{way} should hold strings")
    return {**result, "path": str(file)}


def compare_all(
    results: Sequence[Result], baseline: str | None = None, samples: int = 10_000
) -> list[dict[str, Any]]:
    """A table (see `compare`) for each test set and protocol, in order of appearance.

    Raises:
      UserError: no table has the baseline, or an error of `compare`.
    """
    tables: dict[str, list[Result]] = {}
    for result in results:
        tables.setdefault(json.dumps(_basis(result)), []).append(result)
    known = [find_row(rows_of(runs), baseline) if baseline else None for runs in tables.values()]
    if baseline and not any(known):
        names = sorted({row.name for runs in tables.values() for row in rows_of(runs)})
        raise UserError(f"--baseline={baseline} is not among the rows {names}")
    return [
        compare(runs, row.name if row else None, samples)
        for runs, row in zip(tables.values(), known, strict=True)
    ]


def compare(
    results: Sequence[Result], baseline: str | None = None, samples: int = 10_000
) -> dict[str, Any]:
    """The table of runs with one test set and protocol.

    {"kind", "data", "split", "protocol", "baseline", "queries", "methods": [one row each, in order
    of appearance]}. A row has name, method, task, differs, seeds, parameters, metrics {t2v|v2t:
    {R@1: {"mean", "sd"}}}, caveats, and, against the baseline, mnr_difference {t2v|v2t:
    {"difference", "low", "high"}}. sd is None for one seed. `baseline` defaults to zero_shot if
    that is one row, else there is none.

    Raises:
      UserError: the runs cannot be compared, a row has a seed twice, or the baseline is unknown.
    """
    kind = _check_comparable(results)
    rows = rows_of(results)
    if baseline is None:
        zero_shot = [row for row in rows if row.method == "zero_shot"]
        base = zero_shot[0] if len(zero_shot) == 1 else None
    elif (base := find_row(rows, baseline)) is None:
        raise UserError(f"--baseline={baseline} is not among {[row.name for row in rows]}")
    described = [_describe(row) for row in rows]
    for row, cells in zip(rows, described, strict=True):
        if base is not None and row is not base and kind == "ranks":
            cells["mnr_difference"] = {
                way: _interval(row.runs, base.runs, way, samples) for way in DIRECTIONS
            }
    queries = {way: len(results[0]["query_ids"][way]) for way in DIRECTIONS if kind == "ranks"}
    return {
        **_basis(results[0]),
        "baseline": None if base is None else base.name,
        "queries": queries or {"questions": results[0]["questions"]},
        "methods": described,
    }


def _basis(result: Result) -> dict[str, Any]:
    """The values that all runs of a table share."""
    kind = "answers" if "questions" in result else "ranks"
    protocol = result.get("protocol", {})
    return {
        "kind": kind,
        "data": result["data"].get("fingerprint"),
        "split": result.get("split", "test"),
        "protocol": {name: protocol.get(name) for name in PROTOCOL[kind]},
    }


def _check_comparable(results: Sequence[Result]) -> str:
    """The kind of the results; raises `UserError` unless they can be compared."""
    if not results:
        raise UserError("no runs given; see --help")
    first = results[0]
    for other in results[1:]:
        pair = f"{first['path']} and {other['path']} cannot be compared"
        ours, theirs = _basis(first), _basis(other)
        for name, value in ours.items():
            if theirs[name] != value:
                raise UserError(f"{pair}: {name} is {value!r} and {theirs[name]!r}")
        if ours["kind"] == "answers" and first["questions"] != other["questions"]:
            raise UserError(f"{pair}: {first['questions']} and {other['questions']} questions")
        for way in DIRECTIONS if ours["kind"] == "ranks" else ():
            if first["query_ids"][way] != other["query_ids"][way]:
                raise UserError(f"{pair}: {_first_difference(first, other, way)}")
    return _basis(first)["kind"]


def _first_difference(first: Result, other: Result, way: str) -> str:
    ours, theirs = first["query_ids"][way], other["query_ids"][way]
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"{way} query {place} is {a!r} and {b!r}"
    return f"{len(ours)} and {len(theirs)} {way} queries"


def _describe(row: Row) -> dict[str, Any]:
    several = [run.get("also", {}) for run in row.runs]
    names = [name for name in several[0] if all(name in also for also in several)]
    return {
        "name": row.name,
        "method": row.method,
        "task": row.task,
        "differs": row.differs,
        "seeds": [run["seed"] for run in row.runs],
        "parameters": row.runs[0]["parameters"],
        "metrics": _spreads([run["metrics"] for run in row.runs]),
        "also": {name: _spreads([also[name] for also in several]) for name in names},
        "caveats": [
            f"seed {run['seed']}, {line}" for run in row.runs for line in caveats.of_result(run)
        ],
    }


def _spreads(several: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{group: {metric: mean and deviation}} of the metrics of several runs."""
    values: dict[str, dict[str, list[float]]] = {}
    for groups in several:
        for group, numbers in groups.items():
            for name, value in numbers.items():
                values.setdefault(group, {}).setdefault(name, []).append(value)
    return {
        group: {name: _spread(of) for name, of in numbers.items()}
        for group, numbers in values.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation}


def _interval(
    runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], way: str, samples: int
) -> dict[str, float]:
    ids = runs[0]["query_ids"][way]
    ours, theirs = ([run["ranks"][way] for run in group] for group in (runs, base))
    return paired_bootstrap(ours, theirs, samples, clips=[clip_of(i, way) for i in ids])


def table(compared: dict[str, Any]) -> str:
    """The comparison as aligned lines, one block per direction or group of answers."""
    lines = []
    rows, baseline = compared["methods"], compared["baseline"]
    for group in GROUPS[compared["kind"]]:
        names = list(dict.fromkeys(n for row in rows for n in row["metrics"].get(group, {})))
        if not names and group != GROUPS[compared["kind"]][0]:
            continue
        head = ["method", "seeds", "trained", "%", *names]
        shows_gap = baseline is not None and compared["kind"] == "ranks"
        if shows_gap:
            head.append(f"MnR - {baseline} [95 %]")
        body = [_cells(row, group, names, shows_gap) for row in rows]
        asked = compared["queries"].get(group, compared["queries"].get("questions"))
        unit = "queries" if compared["kind"] == "ranks" else "questions"
        lines += [f"{_TITLES[group]}, {asked} {unit}", *_align([head, *body]), ""]
    if compared["split"] != "test":
        lines.insert(0, f"measured on {compared['split']} data, not on test data")
    if not any(row["metrics"] for row in rows):
        lines += ["the answers of this split are withheld, so there are no numbers", ""]
    tasks = {row["task"]: [r["name"] for r in rows if r["task"] == row["task"]] for row in rows}
    if len(tasks) > 1:
        lists = (f"{task} ({', '.join(names)})" for task, names in tasks.items())
        lines.append(f"tasks differ: {'; '.join(lists)}")
    lines += [line for row in rows for line in _also_lines(row)]
    lines += [f"{row['name']}, {line}" for row in rows for line in row["caveats"]]
    return "\n".join(lines).rstrip()


def _also_lines(row: dict[str, Any]) -> Iterator[str]:
    """The further scores of a row, which need all queries."""
    for name, groups in row["also"].items():
        for group, numbers in groups.items():
            told = "  ".join(f"{metric} {value['mean']:.1f}" for metric, value in numbers.items())
            yield f"{row['name']}, {group} with {name}, which needs all queries: {told}"


def tables(several: Sequence[dict[str, Any]]) -> str:
    """All tables as text; several have headings with the values that tell them apart."""
    if len(several) == 1:
        return table(several[0])
    lines = [
        f"{len(several)} tables: these runs have other test data, tasks or protocols, so their "
        "numbers cannot be compared across tables",
    ]
    for compared in several:
        protocol = ", ".join(f"{name} {value}" for name, value in compared["protocol"].items())
        lines += [
            "",
            f"== {compared['split']} data {str(compared['data'])[:12]}, {protocol}",
            table(compared),
        ]
    return "\n".join(lines)


def _cells(row: dict[str, Any], group: str, names: Sequence[str], shows_gap: bool) -> list[str]:
    parameters = row["parameters"]
    cells = [row["name"], str(len(row["seeds"]))]
    cells += [f"{parameters['trained']:,}", f"{parameters['percent']:.3g}"]
    for name in names:
        value = row["metrics"].get(group, {}).get(name)
        spread = "" if value is None or value["sd"] is None else f" ± {value['sd']:.1f}"
        cells.append("" if value is None else f"{value['mean']:.1f}{spread}")
    gap = row.get("mnr_difference", {}).get(group)
    if gap is not None:
        cells.append(f"{gap['difference']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]")
    elif shows_gap:
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
    """Prints the comparison; if runs cannot be compared, an error with exit status 2."""
    parser = command_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir, or its result.json")
    parser.add_argument("--baseline", help="row to compare with (default: zero_shot, if any)")
    parser.add_argument("--samples", type=int, default=10_000, help="bootstrap draws")
    parser.add_argument("--json", action="store_true", help='print {"tables": [...]} instead')
    arguments = parser.parse_args(argv)
    if arguments.samples < 1:
        raise UserError(f"--samples={arguments.samples}: at least 1")
    results = read_results(arguments.runs)
    compared = compare_all(results, arguments.baseline, arguments.samples)
    print(json.dumps({"tables": compared}, indent=2) if arguments.json else tables(compared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
