"""A plan as one JSON object, and as tables for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.parallel.progress import duration
from uniadapter_jax.planning.compilation import Program
from uniadapter_jax.planning.roofline import roofline
from uniadapter_jax.planning.topology import Slice

_MEMORY = ("temporaries", "outputs", "code")


def describe(program: Program, plan: Slice, useful: int) -> dict[str, Any]:
    """A program's numbers on one device: bytes, FLOPs and seconds.

    useful: FLOPs of the whole slice; see `planning.flops`.
    """
    found: dict[str, Any] = {
        "fits": program.fits,
        "compile_seconds": round(program.seconds, 2),
        "needed_bytes": program.needed,
        "limit_bytes": program.limit,
        "argument_bytes": program.resident,
        "beside_bytes": program.beside,
    }
    if program.memory is not None and program.work is not None:
        memory, work = program.memory, program.work
        found["memory_bytes"] = {
            **program.resident,
            "padding": memory.arguments - sum(program.resident.values()),
            **{name: getattr(memory, name) for name in _MEMORY},
            "total": memory.total,
            "aliased": memory.aliased,
        }
        found["executed_flops"] = work.flops
        found["hbm_traffic_bytes"] = work.hbm_bytes
        found["collectives"] = {
            kind: dataclasses.asdict(total) for kind, total in work.collectives.items()
        }
        found["loops_counted_once"] = work.unknown_loops
        estimate = roofline(work, plan)
        if estimate is not None:
            found["estimate"] = {
                "seconds": estimate.seconds,
                "bound": estimate.bound,
                **{f"{name}_seconds": s for name, s in dataclasses.asdict(estimate).items()},
            }
    found["useful_flops"] = useful // len(plan.devices)
    return found


def tables(plan: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    slice_, batch = plan["slice"], plan["batch"]
    axes = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    lines = [
        f"{plan['name']}: {plan['method']} on {plan['backbone']}",
        f"{slice_['name']}: {slice_['devices']} devices on {slice_['chips']} chips, "
        f"mesh {axes or 'of one device'}",
        f"{batch['global']} {batch['unit']} a step, {batch['per_chip']:g} a chip; "
        f"{batch['frames']} frame{'s' if batch['frames'] > 1 else ''}, {batch['words']} words, "
        f"{plan['dtype']}, remat {plan['remat']}",
    ]
    programs = plan.get("programs", {})
    if programs:
        lines += ["", *_table(programs)]
    for name, program in programs.items():
        if not program["fits"]:
            lines += ["", _misfit(name, program, plan["changes"].get(name))]
    if "misfit" in plan:
        lines += ["", plan["misfit"]["message"]]
    if "estimate" in plan:
        lines += ["", _rates(plan["estimate"], batch["unit"])]
    if programs:
        lines += ["", "* An estimate from the program and published rates; nothing was measured."]
    return [*lines, "", "fits" if plan["fits"] else "does not fit"]


def _table(programs: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, list[str]]] = []

    def add(label: str, values: list[str]) -> None:
        if any(values):
            rows.append((label, values))

    columns = list(programs.values())
    memory = [c.get("memory_bytes", c["argument_bytes"]) for c in columns]
    given = [c["argument_bytes"] for c in columns]
    for kind in dict.fromkeys(kind for of in (*given, *memory) for kind in of):
        add(kind, [_bytes(of.get(kind)) for of in memory])
    add("beside", [_bytes(c["beside_bytes"]) for c in columns])
    add("limit", [_bytes(c["limit_bytes"]) for c in columns])
    add("useful FLOP", [_flops(c.get("useful_flops")) for c in columns])
    add("executed FLOP", [_flops(c.get("executed_flops")) for c in columns])
    add("memory traffic*", [_bytes(c.get("hbm_traffic_bytes")) for c in columns])
    for kind in dict.fromkeys(kind for c in columns for kind in c.get("collectives", ())):
        found = [c.get("collectives", {}).get(kind) for c in columns]
        add(kind, [f"{f['count']} x, {_bytes(f['bytes'])}" if f else "" for f in found])
    loops = [c.get("loops_counted_once") for c in columns]
    add("loops counted once", [str(count) if count else "" for count in loops])
    limits = [c.get("estimate") for c in columns]
    add("at best*", [f"{e['seconds'] * 1e3:.1f} ms ({e['bound']})" if e else "" for e in limits])
    add("compilation", [f"{c['compile_seconds']:.1f} s" for c in columns])
    return _aligned(["per device", *programs], rows)


def _aligned(header: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    cells = [header, *([label, *values] for label, values in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _misfit(name: str, program: Mapping[str, Any], change: Mapping[str, Any] | None) -> str:
    needed, limit = _bytes(program["needed_bytes"]), _bytes(program["limit_bytes"])
    text = f"{name}: {needed or 'more'} needed, {limit} there."
    if change is None:
        return f"{text} Neither remat, nor cut weights, nor a smaller batch makes it fit."
    asked = " ".join(f"--config.{field}={value}" for field, value in change["fields"].items())
    return f"{text} It fits, with {_bytes(change['needed_bytes'])}, by {asked}"


def _rates(estimate: Mapping[str, Any], unit: str) -> str:
    line = f"At best*: {estimate['examples_per_second']:,.0f} {unit}/s"
    if "epoch_seconds" in estimate:
        line += f", {duration(estimate['epoch_seconds'])} an epoch of {estimate['samples']} samples"
    return line


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _flops(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e12:.3f} T" if value >= 1e11 else f"{value / 1e9:.3f} G"
