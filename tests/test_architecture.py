"""The rooms of docs/architecture.md: which there are, what may import what, how long a file is."""

from __future__ import annotations

import ast
import pathlib
import re

import uniadapter_jax

ROOT = pathlib.Path(uniadapter_jax.__file__).parent
COMMANDS = {
    *("main", "prepare", "convert", "export", "plan", "demo", "compare", "benchmark"),
    *("index", "search", "serve", "look"),
}
# Each imports from those before it, and from itself.
ROOMS = (
    *("common", "data", "backbones", "parallel", "adapters", "weights", "tasks", "training"),
    *("config", "runs", "inference", "planning", "testing"),
)
LONGEST = 400  # lines
WITHOUT_JAX = ("compare", "data", "config.rules", "runs.files", "runs.rows")


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(source: str) -> set[str]:
    """Modules of the package that a file names in imports, at its top or within functions."""
    named = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("uniadapter_jax.")
                named.add(f"uniadapter_jax.{inner}" if inner in FILES else str(node.module))
    prefix = "uniadapter_jax."
    return {name.removeprefix(prefix) for name in named if name.startswith(prefix)}


IMPORTS = {name: imports_of(path.read_text()) for name, path in FILES.items()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_top_level_is_the_rooms_and_the_commands():
    top = {room_of(name) for name in FILES if name}
    assert top == COMMANDS | set(ROOMS) | {"__main__"}
    assert len(ROOMS) + 1 <= 14  # and __init__.py


def test_imports_point_downward():
    upward = {}
    for module, names in IMPORTS.items():
        room = room_of(module)
        if not room:  # the package itself gives names of `inference` on request
            continue
        allowed = (
            {*ROOMS, "prepare", "export"}
            if room in {*COMMANDS, "__main__"}
            else set(ROOMS[: ROOMS.index(room) + 1])
        )
        upward[module] = {name for name in names if room_of(name) not in {*allowed, room}}
    assert not {module: names for module, names in upward.items() if names}


def test_no_circles():
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, f"a circle: {' -> '.join([*trail, module])}"
        if module not in done:
            for name in sorted(IMPORTS.get(module, ())):
                visit(name, [*trail, module])
            done.add(module)

    for module in FILES:
        visit(module, [])


def test_no_file_is_too_long():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: count for name, count in lines.items() if count > LONGEST}


def test_some_rooms_do_without_jax():
    for module, path in FILES.items():
        if module.startswith(WITHOUT_JAX):
            names = {
                name.partition(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert "jax" not in names, module


def test_adapters_know_no_data_and_backbones_no_method():
    for module, names in IMPORTS.items():
        rooms = {room_of(name) for name in names}
        if module.startswith(("adapters", "backbones")):
            assert "data" not in rooms, module
        if module.startswith("backbones"):
            assert "adapters" not in rooms, module


def test_the_ways_through_the_code_are_short_reads():
    """The files that docs/architecture.md names from main to the loss, and to a re-ranked R@K."""
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    ways = re.findall(r"^## From main to (.+?)\n(.+?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert len(ways) == 2
    for goal, section in ways:
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        files = [name for row in rows for name in re.findall(r"`(\S+\.py)`", row.split("|")[1])]
        lines = sum(len((ROOT / name).read_text().splitlines()) for name in files)
        assert files[0] == "main.py" and len(files) <= 12 and lines <= 1500, (goal, files, lines)


def test_no_run_of_lines_stands_in_two_places():
    """Six equal lines, but imports and tables: then one piece of code can serve both."""
    places: dict[tuple[str, ...], list[str]] = {}
    for name, path in FILES.items():
        source = path.read_text()
        passed = {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, node.end_lineno + 1)
        }
        lines = [
            (number, line.strip())
            for number, line in enumerate(source.splitlines(), 1)
            if line.strip() and number not in passed
        ]
        for first in range(len(lines) - 5):
            run = lines[first : first + 6]
            places.setdefault(tuple(text for _, text in run), []).append(f"{name}:{run[0][0]}")
    assert [where for where in places.values() if len(where) > 1] == []
