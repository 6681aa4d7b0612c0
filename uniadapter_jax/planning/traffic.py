"""What a compiled program moves: bytes between chips by kind of collective, bytes of HBM."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from uniadapter_jax.planning.hlo import Instruction, Module, Shape

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# They name memory, or are only the end of something that was counted at its start.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call iota after-all "
    "partition-id replica-id custom-call opt-barrier".split()
)


@dataclasses.dataclass
class Collective:
    """All collectives of one kind in one run of a program.

    Attributes:
      count: how many run.
      bytes: of their results, on one device.
      sent: bytes that a device sends in a ring of the devices that take part.
    """

    count: int = 0
    bytes: int = 0
    sent: float = 0.0


def collectives(module: Module, devices: int) -> dict[str, Collective]:
    """{kind: what runs}, kinds that occur only."""
    found: dict[str, Collective] = {}
    # A collective that overlaps with other work is there in pieces, each with its channel. Those
    # that are written by hand (`ring`) may all have one channel; none of them comes in pieces.
    seen: dict[str, tuple[str, Instruction, int]] = {}
    for computation, instruction, times in module:
        kind = instruction.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as the TPU compiler writes it: the slicing is fused in
        if kind not in KINDS:
            continue
        channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
        if kind in ("collective-permute", "all-to-all"):
            channel = None
        key = f"{kind} {channel[1]}" if channel else instruction.name
        if key not in seen or times < seen[key][2]:
            seen[key] = (kind, instruction, times)
    for kind, instruction, times in seen.values():
        group = _group(instruction, devices)
        if group == 1:
            continue  # nothing leaves the device
        size = sum(shape.bytes for shape in _results(instruction))
        if (kind, instruction.opcode) == ("reduce-scatter", "all-reduce"):
            size //= group
        total = found.setdefault(kind, Collective())
        total.count += times
        total.bytes += times * size
        total.sent += times * size * _ring_factor(kind, group)
    return found


def _results(instruction: Instruction) -> tuple[Shape, ...]:
    """What a collective gives; of one that only starts, what its end will give."""
    shapes = instruction.shapes
    if not instruction.opcode.endswith("-start") or instruction.opcode.startswith("all-reduce"):
        return shapes
    if instruction.opcode.startswith("collective-permute"):
        # A TPU's has two numbers of its own behind.
        shapes = tuple(shape for shape in shapes if (shape.dtype, shape.dims) != ("u32", ()))
    return shapes[len(shapes) // 2 :]  # (operands, results)


def _ring_factor(kind: str, group: int) -> float:
    """Bytes that a device sends for each byte of its result."""
    others = (group - 1) / group
    return {
        "all-reduce": 2 * others,
        "reduce-scatter": group - 1.0,
        "collective-permute": 1.0,
    }.get(kind, others)


def _group(instruction: Instruction, devices: int) -> int:
    """Devices of one group: listed, as [groups,size]<=..., or as named axes of a mesh."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=\{\{([0-9,]*)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'[^']*'", found[2]))
    return devices


def hbm_bytes(module: Module) -> int:
    """Bytes of HBM that are read and written, an estimate from the instructions' operands.

    What lies within a fusion does not count; where a fusion reads or writes a slice of an array
    (one layer of a stack) the slice counts. Padding and what collectives read do not.
    """
    inside = {
        called
        for lines in module.computations.values()
        for line in lines.values()
        if line.opcode == "fusion"
        for called in line.called
    }
    traffic = _Slices(module)
    total = 0
    for computation, line, times in module:
        free = line.opcode in _FREE and not line.is_kernel
        if computation in inside or free or line.opcode.endswith("-done"):
            continue
        total += times * (traffic.read(computation, line) + traffic.written(computation, line))
    return total


class _Slices:
    """How much of its operands and results an instruction touches."""

    def __init__(self, module: Module):
        self.module = module
        self.users: dict[str, dict[str, list[tuple[Instruction, int]]]] = {}
        for name, lines in module.computations.items():
            users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
            for line in lines.values():
                for place, operand in enumerate(line.operands):
                    users[operand].append((line, place))
            self.users[name] = users

    def read(self, computation: str, line: Instruction) -> int:
        """Bytes of HBM that the instruction reads."""
        lines = self.module.computations[computation]
        total = 0
        for place, operand in enumerate(line.operands):
            shapes = lines[operand].shapes if operand in lines else ()
            if len(shapes) == 1 and shapes[0].in_hbm:
                total += self._touched(line, place, shapes[0].bytes)
        return total

    def written(self, computation: str, line: Instruction) -> int:
        """Bytes of HBM that the instruction writes."""
        if line.opcode == "dynamic-update-slice" and _in_hbm(line.shapes):  # in place
            return self._part(computation, line)
        if line.opcode in ("copy-start", "slice-start"):
            return _in_hbm(line.shapes[1:2])
        whole = _in_hbm(line.shapes)
        if line.opcode == "fusion":
            return min(whole, self._updated(line.called[0]))
        return whole

    def _touched(self, line: Instruction, place: int, whole: int) -> int:
        if line.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
            return min(whole, sum(shape.bytes for shape in line.shapes))
        if line.opcode == "slice-start":
            return line.shapes[1].bytes
        if line.opcode == "dynamic-update-slice" and place == 0:
            return 0  # in place
        if line.opcode in KINDS:
            return 0  # at work beside a fusion's own; see `_part`
        if line.opcode == "fusion":
            return self._parameter(line.called[0], place, whole)
        return whole

    def _parameter(self, computation: str, place: int, whole: int) -> int:
        lines = self.module.computations[computation]
        name = next(
            line.name
            for line in lines.values()
            if line.opcode == "parameter" and line.attributes == str(place)
        )
        return self._of(computation, name, whole)

    def _of(self, computation: str, name: str, whole: int) -> int:
        total = 0
        for line, place in self.users[computation][name]:
            if line.opcode in ("bitcast", "tuple"):
                total += self._of(computation, line.name, whole) if line.opcode != "tuple" else 0
            else:
                total += self._touched(line, place, whole)
        return min(total, whole)

    def _updated(self, computation: str) -> int:
        """Bytes of a fusion's result that it writes."""
        lines = self.module.computations[computation]
        root = next(line for line in lines.values() if line.is_root)
        parts = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return sum(self._part(computation, part) for part in parts)

    def _part(self, computation: str, line: Instruction) -> int:
        lines = self.module.computations[computation]
        while line.opcode == "bitcast":
            line = lines[line.operands[0]]
        # A collective that overlaps is carried through many fusions: each would count all of it.
        if line.opcode in ("parameter", *KINDS):
            return 0
        if line.opcode == "dynamic-update-slice":
            return sum(shape.bytes for shape in lines[line.operands[1]].shapes)
        if line.opcode == "fusion":
            return self._updated(line.called[0])
        return _in_hbm(line.shapes)


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)
