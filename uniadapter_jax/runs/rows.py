"""Groups runs into the rows of a table, and names the rows.

Runs form one row if everything that they depend on except the seed is equal. Rows of one method are
named by the fields in which they differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.runs.files import IN_CONFIG

Result = Mapping[str, Any]
ABSENT = object()  # value of a field that is younger than the result
_NOT_COMPARED = ("seed", "version")
# Read from the identity only: the config has a path of files under the same name.
_FACTS = ("backbone", "tokenizer", "data.records", "data.test", "data.validation", "answers")
_TRAINED = "trained parameters"  # the only field that tells apart results without an identity
_SHOWN = 4  # fields in a name, unless rows need more to differ


@dataclasses.dataclass
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
      fields: {field: value} of all fields that any result states.
      name: the method, and the fields in which the row differs from others of the method.
      differs: {field: value} of those fields.
    """

    runs: list[Result]
    fields: dict[str, Any]
    name: str = ""
    differs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.runs[0]["method"]

    @property
    def task(self) -> str:
        run = self.runs[0]
        return run.get("task", "vqa" if "questions" in run else "retrieval")


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The named rows in order of appearance.

    Raises:
      UserError: a row has a seed twice.
    """
    names = sorted({name for result in results for name in _stated(result)}, key=_order)
    rows: list[Row] = []
    for result in results:
        fields = {name: _value(result, name) for name in names}
        for row in rows:
            if row.method == result["method"] and not _differences([row.fields, fields]):
                row.runs.append(result)
                row.fields = {n: fields[n] if v is ABSENT else v for n, v in row.fields.items()}
                break
        else:
            rows.append(Row([result], fields))
    for row in rows:
        _check_seeds(row)
    for method in dict.fromkeys(row.method for row in rows):
        _name([row for row in rows if row.method == method])
    return rows


def find_row(rows: Iterable[Row], name: str) -> Row | None:
    """The row of that name, or the only one of that method; None if there is none.

    Raises:
      UserError: several rows of that method.
    """
    rows = list(rows)
    for row in rows:
        if row.name == name:
            return row
    of_method = [row for row in rows if row.method == name]
    if len(of_method) > 1:
        names = ", ".join(repr(row.name) for row in of_method)
        raise UserError(f"--baseline={name} is several rows: choose one of {names}")
    return of_method[0] if of_method else None


def _order(name: str) -> tuple[bool, bool, str]:
    """Sorts fields that people often change first, and digests last."""
    return not name.startswith(("task.name", "method.", "optimizer.")), name in _FACTS, name


def _stated(result: Result) -> dict[str, Any]:
    """Everything that a result says it depends on, flat, and the number of trained parameters."""
    protocol = {f"task.{name}": value for name, value in result.get("protocol", {}).items()}
    stated = {**protocol, **result.get("identity", {}), **result.get("evaluation", {})}
    return {**stated, _TRAINED: result["parameters"]["trained"]}


def _value(result: Result, name: str) -> Any:
    """The value of a field of the identity; an older result may have it in its config only."""
    stated = _stated(result)
    if name in stated or name in _FACTS:
        return stated.get(name, ABSENT)
    node: Any = result.get("config", {})
    for key in IN_CONFIG.get(name, name).split("."):
        node = node.get(key, ABSENT) if isinstance(node, Mapping) else ABSENT
    return node


def _differences(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields with more than one value; an absent value equals any other."""
    differing = []
    for name in several[0]:
        values = [fields[name] for fields in several if fields[name] is not ABSENT]
        if name not in _NOT_COMPARED and any(value != values[0] for value in values[1:]):
            differing.append(name)
    return differing


def _check_seeds(row: Row) -> None:
    seeds: dict[Any, str] = {}
    for run in row.runs:
        if run["seed"] in seeds:
            raise UserError(
                f"{row.method} with seed {run['seed']} comes twice: {seeds[run['seed']]} and "
                f"{run['path']}; their identity is the same"
            )
        seeds[run["seed"]] = run["path"]


def _name(rows: Sequence[Row]) -> None:
    """Gives the rows of one method their names."""
    differing = _differences([row.fields for row in rows])
    differing = [name for name in differing if name != _TRAINED] or differing
    short = ["task" if n == "task.name" else n.rpartition(".")[2] for n in differing]
    labels = {
        name: last if short.count(last) == 1 else name
        for name, last in zip(differing, short, strict=True)
    }
    for count in (_SHOWN, len(differing)):
        for row in rows:
            row.differs = {n: row.fields[n] for n in differing if row.fields[n] is not ABSENT}
            settings = [f"{labels[name]}={_short(row.differs[name])}" for name in row.differs]
            more = [f"and {len(settings) - count} more"] if len(settings) > count else []
            row.name = " ".join([row.method, *settings[:count], *more])
        if len({row.name for row in rows}) == len(rows):
            return
    for row in rows:
        row.name += f" ({row.runs[0]['path']})"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:8]  # a digest
    return "none" if value is None else str(value).replace(" ", "")


def _float(value: float) -> str:
    """A short form as people write it: 1e-4, not 0.0001 or 1e-04; 0.05 stays."""
    text = f"{value:g}"
    if value and abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:e}".partition("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text
