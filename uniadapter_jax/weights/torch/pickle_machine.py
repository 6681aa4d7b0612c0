"""The state of an inert pickle machine, its memory allowance, and what it can reach."""

from __future__ import annotations

import mmap
import struct
import sys
from dataclasses import dataclass, field
from typing import Any, Protocol

from uniadapter_jax.weights.errors import Refused

LONGEST_LINE = 512  # bytes of a module's or a global's name, or of a decimal number
DICT_ITEM_COST = 72  # bytes that CPython spends on one item, growth included
OBJECT_COST = 128  # bytes of a rebuilt tensor, storage or record


@dataclass(frozen=True, slots=True)
class Global:
    """A global that a pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An instance of a TorchScript class: its name and its state, no behaviour."""

    kind: Global
    state: Any = None


@dataclass(slots=True)
class Allowance:
    """Bytes of memory that a file may still claim."""

    left: int

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Refused(
                "describes objects far larger than the file itself; this is no honest weight file"
            )


class World(Protocol):
    """All that a pickle can call: functions from data to data that may raise `Refused`."""

    def admit(self, name: Global) -> None:
        """Accepts the name of a global, or refuses it."""

    def reduce(self, function: Global, args: tuple[Any, ...]) -> Any:
        """The value of `function(*args)` by our own rule for that function."""

    def new(self, kind: Global, args: tuple[Any, ...]) -> Record | dict[Any, Any]:
        """The inert instance, or empty dict, that stands for `kind.__new__(kind, *args)`."""

    def persistent(self, identity: Any) -> Any:
        """The value that a persistent id stands for."""


@dataclass(slots=True)
class Machine:
    """One pickle at `data[at:end]`, its stack and its memo."""

    data: mmap.mmap
    at: int
    end: int
    world: World
    allowance: Allowance
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: list[Any] = field(default_factory=list)

    def opcode(self) -> int:
        if self.at >= self.end:
            raise Refused(f"the pickle is cut short at byte {self.end}")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.end - self.at:
            raise Refused(f"the pickle is cut short at byte {self.end}")
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def sized(self, layout: str) -> bytes:
        """Bytes after their length, which is checked before anything is allocated."""
        count = self.number(layout)
        self.allowance.spend(count)
        return self.take(count)

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + LONGEST_LINE))
        if stop < 0:
            raise Refused(f"a line without an end at byte {self.at} of the pickle")
        raw = self.take(stop - self.at)
        self.at = stop + 1
        return text(raw)

    def push(self, value: Any) -> None:
        """Pushes a new value and charges its size."""
        self.allowance.spend(sys.getsizeof(value))
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refused(f"the pickle takes a value from an empty stack at byte {self.at}")
        return self.stack.pop()

    def top(self, kind: type, opcode: str) -> Any:
        """The value on top of the stack, which stays; it must be of exactly this type."""
        value = self.pop()
        if type(value) is not kind:
            raise Refused(f"pickle opcode {opcode} applied to {type(value).__name__}")
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        if not self.marks:
            raise Refused(f"the pickle misses a mark at byte {self.at}")
        start = self.marks.pop()
        self.allowance.spend(8 * (len(self.stack) - start))
        values = self.stack[start:]
        del self.stack[start:]
        return values


def text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"a string that is not UTF-8 ({error.reason})") from None
