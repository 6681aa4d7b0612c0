"""A pickle interpreter that cannot run code.

Python's unpickler imports what a file names and calls it, so a weight file is a program. This
interpreter builds plain data (numbers, strings, lists, tuples, dicts) and passes every request for
a global, a call or an instance to a `World`, which knows a fixed list of names and answers with
data. Opcodes outside `_OPCODES` are refused by name. There is no import, no attribute look-up, and
no call of anything that the file chose.

Memory: every value is charged to an `Allowance` before it is made, and never refunded.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import Any

from uniadapter_jax.weights.errors import Refused, printable
from uniadapter_jax.weights.torch.pickle_machine import (
    DICT_ITEM_COST,
    OBJECT_COST,
    Global,
    Machine,
    Record,
    text,
)

HIGHEST_PROTOCOL = 5
MOST_OPCODES = 10_000_000  # 100,000 tensors take 4 million

_Handler = Callable[[Machine], None]
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}
_STOP = _CODES["STOP"]
_OPCODES: dict[int, _Handler] = {}


def interpret(machine: Machine) -> Any:
    """Runs a pickle up to STOP and returns its value; `machine.at` is then the first byte after it.

    Raises:
      Refused: the pickle is broken, uses a forbidden opcode or global, or claims too much memory.
    """
    for _ in range(MOST_OPCODES):
        code = machine.opcode()
        if code == _STOP:
            break
        handler = _OPCODES.get(code)
        if handler is None:
            raise Refused(f"pickle opcode {_name(code)} at byte {machine.at - 1} is not allowed")
        machine.allowance.spend(8)
        handler(machine)
    else:
        raise Refused(
            f"the pickle has more than {MOST_OPCODES} opcodes; no state dict needs as many"
        )
    value = machine.pop()
    if machine.stack or machine.marks:
        raise Refused("the pickle ends with values left on its stack")
    return value


def _name(code: int) -> str:
    known = _NAMES.get(code)
    return known if known else f"0x{code:02x}"


def _opcode(*names: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        _OPCODES.update({_CODES[name]: handler for name in names})
        return handler

    return register


def _makes(name: str, make: Callable[[Machine], Any]) -> None:
    """Registers an opcode that pushes one new value."""
    _OPCODES[_CODES[name]] = lambda machine: machine.push(make(machine))


_makes("NONE", lambda m: None)
_makes("NEWTRUE", lambda m: True)
_makes("NEWFALSE", lambda m: False)
_makes("BININT", lambda m: m.number("<i"))
_makes("BININT1", lambda m: m.number("<B"))
_makes("BININT2", lambda m: m.number("<H"))
_makes("BINFLOAT", lambda m: m.number(">d"))
_makes("LONG1", lambda m: int.from_bytes(m.sized("<B"), "little", signed=True))
_makes("BINUNICODE", lambda m: text(m.sized("<I")))
_makes("SHORT_BINUNICODE", lambda m: text(m.sized("<B")))
_makes("BINBYTES", lambda m: m.sized("<I"))
_makes("SHORT_BINBYTES", lambda m: m.sized("<B"))
_makes("EMPTY_DICT", lambda m: {})
_makes("EMPTY_LIST", lambda m: [])
_makes("EMPTY_TUPLE", lambda m: ())
_makes("TUPLE", lambda m: tuple(m.pop_mark()))


@_opcode("PROTO")
def _proto(machine: Machine) -> None:
    protocol = machine.number("<B")
    if protocol > HIGHEST_PROTOCOL:
        raise Refused(f"pickle protocol {protocol} is unknown")


@_opcode("FRAME")
def _frame(machine: Machine) -> None:
    if machine.number("<Q") > machine.end - machine.at:
        raise Refused("a pickle frame reaches behind the end of the file")


@_opcode("INT", "LONG")  # protocols 0 and 1: decimal lines; 00 and 01 are booleans
def _decimal(machine: Machine) -> None:
    line = machine.line()
    digits = line.removesuffix("L")
    if not digits.removeprefix("-").isdecimal() or not digits.isascii():
        raise Refused(f"the pickle has {printable(line)} where a number belongs")
    machine.push({"00": False, "01": True}.get(digits, int(digits)))


@_opcode("MARK")
def _mark(machine: Machine) -> None:
    machine.marks.append(len(machine.stack))


@_opcode("TUPLE1", "TUPLE2", "TUPLE3")
def _tuple(machine: Machine) -> None:
    count = machine.data[machine.at - 1] - _CODES["TUPLE1"] + 1
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


@_opcode("APPEND")
def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.top(list, "APPEND").append(value)


@_opcode("APPENDS")
def _appends(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.allowance.spend(8 * len(values))
    machine.top(list, "APPENDS").extend(values)


@_opcode("SETITEM")
def _setitem(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _fill(machine, "SETITEM", [(key, value)])


@_opcode("SETITEMS")
def _setitems(machine: Machine) -> None:
    values = machine.pop_mark()
    if len(values) % 2:
        raise Refused("the pickle has a dictionary key without a value")
    _fill(machine, "SETITEMS", zip(values[::2], values[1::2], strict=True))


def _fill(machine: Machine, opcode: str, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Puts pairs into a dict. Keys are scalars: their hash is cheap and cannot recurse."""
    target = machine.top(dict, opcode)
    for key, value in pairs:
        machine.allowance.spend(DICT_ITEM_COST)
        if type(key) not in (str, int, float, bool, type(None)):
            raise Refused(f"a dictionary key of type {type(key).__name__}")
        if type(key) is int and not -(2**63) <= key < 2**63:  # longer ones can collide at will
            raise Refused("a dictionary key of more than 64 bits")
        target[key] = value


@_opcode("BINPUT", "LONG_BINPUT", "MEMOIZE")
def _put(machine: Machine) -> None:
    code = machine.data[machine.at - 1]
    value = machine.pop()
    machine.stack.append(value)
    if code == _CODES["MEMOIZE"]:
        place = len(machine.memo)
    else:
        place = machine.number("<B" if code == _CODES["BINPUT"] else "<I")
    if place != len(machine.memo):  # picklers number in order, and a list costs less than a dict
        raise Refused(f"the pickle writes entry {place} of its memo after {len(machine.memo)}")
    machine.allowance.spend(8)
    machine.memo.append(value)


@_opcode("BINGET", "LONG_BINGET")
def _get(machine: Machine) -> None:
    code = machine.data[machine.at - 1]
    place = machine.number("<B" if code == _CODES["BINGET"] else "<I")
    if place >= len(machine.memo):
        raise Refused(f"the pickle recalls entry {place} of its memo, which is empty")
    machine.stack.append(machine.memo[place])


@_opcode("GLOBAL")
def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    _mention(machine, module, name)


@_opcode("STACK_GLOBAL")
def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(module) is not str or type(name) is not str:
        raise Refused("the pickle names a global by something else than strings")
    _mention(machine, module, name)


def _mention(machine: Machine, module: str, name: str) -> None:
    mentioned = Global(module, name)
    machine.allowance.spend(OBJECT_COST + len(module) + len(name))
    machine.world.admit(mentioned)
    machine.stack.append(mentioned)


@_opcode("REDUCE")
def _reduce(machine: Machine) -> None:
    args, function = machine.pop(), machine.pop()
    if type(function) is not Global or type(args) is not tuple:
        raise Refused(f"the pickle calls {type(function).__name__} with {type(args).__name__}")
    machine.allowance.spend(OBJECT_COST)
    machine.stack.append(machine.world.reduce(function, args))


@_opcode("NEWOBJ")
def _newobj(machine: Machine) -> None:
    args, kind = machine.pop(), machine.pop()
    if type(kind) is not Global or type(args) is not tuple:
        raise Refused(f"the pickle makes an instance of {type(kind).__name__}")
    machine.allowance.spend(OBJECT_COST)
    machine.stack.append(machine.world.new(kind, args))


@_opcode("BUILD")
def _build(machine: Machine) -> None:
    state, target = machine.pop(), machine.pop()
    if type(target) is Record:
        target.state = state
    elif not (type(target) is dict and type(state) is dict):
        raise Refused(f"the pickle sets the state of {type(target).__name__}")
    # else: attributes of an OrderedDict, such as the `_metadata` of a state dict; not needed
    machine.stack.append(target)


@_opcode("BINPERSID")
def _persistent(machine: Machine) -> None:
    machine.allowance.spend(OBJECT_COST)
    machine.stack.append(machine.world.persistent(machine.pop()))
