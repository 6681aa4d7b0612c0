"""One program compiled for a slice: its memory, its work, or why it does not fit."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.planning.abstract import OPTIMIZER, AbstractRun
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.products import executed_flops
from uniadapter_jax.planning.traffic import Collective, collectives, hbm_bytes

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler lays them out.

    Attributes:
      arguments: weights, state and batch, padding included.
      aliased: of the arguments, what the results overwrite.
      outputs: results that take room of their own.
      temporaries: everything between.
      code: the program.
    """

    arguments: int
    aliased: int
    outputs: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it; what is aliased counts once."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in one run of the program.

    Attributes:
      flops: of products, as executed.
      hbm_bytes: read and written; an estimate.
      collectives: by kind.
      unknown_loops: loops whose bodies count once because their length is not in the program.
    """

    flops: int
    hbm_bytes: int
    collectives: dict[str, Collective]
    unknown_loops: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A program after its compilation.

    Attributes:
      resident: bytes on a device of what the program is given, by kind, without padding.
      beside: bytes that a run keeps on the device though this program does not use them.
      memory, work: None if the compiler ran out of memory.
      needed: bytes that it asked for, if the compiler said so; else the total.
      limit: bytes that there are; None for a CPU.
      seconds: of compilation.
    """

    name: str
    resident: dict[str, int]
    beside: int
    memory: Memory | None
    work: Work | None
    needed: int | None
    limit: int | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        if self.memory is None:
            return False
        return self.limit is None or self.memory.total + self.beside <= self.limit


def compile_program(run: AbstractRun, name: str, limit: int | None) -> Program:
    """Compiles one of `run.programs` for the devices of its mesh.

    limit: bytes of memory of a device, if known.
    """
    arguments = run.arguments(name)
    lowered = run.lower(name)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, available = _sizes(str(error))
        seconds = time.perf_counter() - start
        resident = {kind: _bytes(tree) for kind, tree in arguments.items()}
        return Program(name, resident, 0, None, None, needed, available or limit, seconds)
    seconds = time.perf_counter() - start
    # jit drops what a program does not use, such as the other tower's weights; they, and during
    # an evaluation the states of the optimizer and of the task, stay where they are.
    used = compiled.input_shardings[0]
    resident = {
        kind: _bytes(tree, shardings)
        for (kind, tree), shardings in zip(arguments.items(), used, strict=False)
    }
    held = arguments if OPTIMIZER in arguments else {**arguments, **run.state}
    beside = sum(_bytes(tree) for tree in held.values()) - sum(resident.values())
    memory = _memory(compiled)
    module = Module(compiled.as_text() or "")
    work = Work(
        flops=executed_flops(module),
        hbm_bytes=hbm_bytes(module),
        collectives=collectives(module, run.mesh.size),
        unknown_loops=module.unknown_loops,
    )
    return Program(name, resident, beside, memory, work, memory.total + beside, limit, seconds)


def _bytes(tree: PyTree, used: PyTree | None = None) -> int:
    """Bytes on one device; with a tree of shardings, of the leaves that have one."""

    def one(leaf: jax.ShapeDtypeStruct, sharding: Any) -> int:
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    if used is None:
        return sum(one(leaf, leaf.sharding) for leaf in jax.tree.leaves(tree))
    sizes = jax.tree.map(lambda x, s: 0 if s is None else one(x, s), tree, used)
    return sum(jax.tree.leaves(sizes))


def _memory(compiled: jax.stages.Compiled) -> Memory:
    stats = compiled.memory_analysis()
    assert stats is not None
    return Memory(
        arguments=stats.argument_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def _sizes(message: str) -> tuple[int | None, int | None]:
    """(bytes asked for, bytes there are) from the words of the TPU compiler.

    "... temporaries (126.20G) exceeds available HBM (15.75G)", "Used 26.68G of 15.75G hbm".
    """
    number = r"\(?([0-9.]+)([KMGT]?)\)?"
    for words in (rf"{number} exceeds available HBM {number}", rf"Used {number} of {number} hbm"):
        if found := re.search(words, message):
            asked, there = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
            return asked, there
    return None, None
