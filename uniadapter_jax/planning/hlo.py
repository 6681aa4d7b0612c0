"""Compiled HLO text as instructions, each with how often it runs.

`cost_analysis` counts the body of a loop once, and a scan over layers is a loop; here the body
counts as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_ITEM_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<= ]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_APPLIED = re.compile(r"\bto_apply=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result; `in_hbm` is False where it lies in faster memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        bits = _ITEM_BITS.get(self.dtype) or int(re.sub(r"\D.*", "", self.dtype.lstrip("bfsuc")))
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str  # what stands behind the operands, and for constants and parameters these
    is_root: bool

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel of ours; other custom calls only name memory."""
        return 'custom_call_target="tpu_custom_call"' in self.attributes

    @property
    def called(self) -> list[str]:
        """Computations that run when it runs; a loop's body is one of them."""
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        if self.opcode == "call":  # elsewhere what is applied is a scalar function
            names += _APPLIED.findall(self.attributes)
        return names


class Module:
    """A compiled program.

    Attributes:
      computations: {name: {instruction's name: instruction}}.
      times: how often each computation runs in one run of the program.
      unknown_loops: how many loops say nothing of their length; their bodies count once.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._read(text)
        self.unknown_loops = 0
        self.times: dict[str, int] = collections.defaultdict(int)
        self._count(self.entry, 1)

    def __iter__(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often it runs) of all that run."""
        for name, times in self.times.items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    def _read(self, text: str) -> None:
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                instruction = _parse(found[2], line[found.end() :], bool(found[1]))
                current[instruction.name] = instruction

    def _count(self, name: str, times: int) -> None:
        self.times[name] += times
        for instruction in self.computations[name].values():
            inner = times
            if instruction.opcode == "while":
                inner *= self._trips(instruction)
            for called in instruction.called:
                self._count(called, inner)

    def _trips(self, loop: Instruction) -> int:
        """Rounds of a loop, as the compiler notes them, or by its comparison with a constant."""
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        assert condition
        lines = self.computations[condition[1]]
        root = next(line for line in lines.values() if line.is_root)
        limits = [
            lines[name].attributes for name in root.operands if lines[name].opcode == "constant"
        ]
        # A scan counts from 0 by one.
        if root.opcode == "compare" and "direction=LT" in root.attributes and len(limits) == 1:
            return int(limits[0])
        self.unknown_loops += 1
        return 1


def _parse(name: str, rest: str, is_root: bool) -> Instruction:
    """One instruction from what stands behind `name = `: `type opcode(operands), attributes`."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, dims, layout in _SHAPE.findall(rest[:end])
    )
    start = rest.index("(", end)
    opcode = rest[end:start].strip()
    stop = _closing(rest, start)
    inside, attributes = rest[start + 1 : stop], rest[stop + 1 :]
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, shapes, (), inside, is_root)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, shapes, operands, attributes, is_root)


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
