"""Hostile payloads and archives, as data. Nothing here runs; a working reader refuses each."""

import struct

import fake_torch as ft
import numpy as np

FLOATS = ft.storage("0", "FloatStorage", 6)
RAW = {"0": np.arange(6, dtype="f4").tobytes()}
SENTINEL = "touch ran"
FORBIDDEN = (
    *("os.system", "posix.system", "nt.system", "os.popen", "subprocess.Popen", "pty.spawn"),
    *("builtins.eval", "builtins.exec", "builtins.__import__", "builtins.getattr", "builtins.open"),
    *("__builtin__.eval", "__main__.Model", "argparse.FileType", "pickle.loads", "_pickle.loads"),
    *("torch.load", "torch.hub.load", "torch._utils.os", "torch.serialization.os.system"),
    *("torch.nn.modules.linear.Linear", "torch._utils._rebuild_tensor_v2.__globals__"),
    *("functools.partial", "operator.attrgetter", "collections.OrderedDict.fromkeys"),
    *("numpy.core.multiarray._reconstruct", "numpy.load", "copyreg._reconstructor"),
    *("__torch__.os.system", "__torch__.torch.nn.Module", "__torch_.x", "uniadapter_jax.main.main"),
)


def _nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + closing * depth


def _doubling(levels: int, make: bytes, leaf: bytes = b"]") -> bytes:
    """A list of levels, each holding the one before it twice: 2**levels leaves in a few bytes."""
    body = leaf + b"q\x00"
    for level in range(levels):
        recall = b"h" + bytes([level])
        body += make % (recall + recall) + b"q" + bytes([level + 1])
    return ft.list_of(body)


T2 = ft.name("torch._utils", "_rebuild_tensor_v2")
ODICT = ft.name("collections", "OrderedDict")
STRINGS = ft.tuple_of(ft.text("storage"), ft.text("FloatStorage"), ft.text("0"), ft.text("cpu"))
PAYLOADS = {
    "nested reduces": ft.reduce(ft.reduce(ft.name("torch", "Size"), ODICT), ft.text("x")),
    "reduce of a string": ft.reduce(ft.text("os.system"), ft.text(SENTINEL)),
    "reduce of a dtype": ft.reduce(ft.name("torch", "float32"), ft.text("x")),
    "reduce without a tuple": ODICT + ft.text("x") + b"R",
    "OrderedDict of something": ft.reduce(ODICT, ft.list_of()),
    "empty call": ft.reduce(ft.name("torch", "Size")),
    "INST": b"(" + ft.text(SENTINEL) + b"iposix\nsystem\n",
    "OBJ": b"(" + ODICT + b"o",
    "NEWOBJ of an allowed name": ODICT + b")\x81",
    "call of a Namespace": ft.reduce(ft.name("argparse", "Namespace"), ft.text("x")),
    "Namespace of something": ft.name("argparse", "Namespace") + ft.text("x") + b"\x85\x81",
    "NEWOBJ_EX": ODICT + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "DUP": b"}2",
    "POP": b"}}0",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**40),
    "NEXT_BUFFER": b"\x97",
    "EMPTY_SET": b"\x8f",
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "BINUNICODE": b"X\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**63),
    "BINBYTES": b"B\xff\xff\xff\x7f",
    "FRAME": b"\x95" + struct.pack("<Q", 2**63),
    "PROTO": b"\x80\xff",
    "bad text": b"X\x02\x00\x00\x00\xff\xfe",
    "bad decimal": b"I__import__('os')\n",
    "long decimal": b"L" + b"9" * 10**6 + b"L\n",
    "unterminated name": b"c" + b"x" * 10**6,
    "memo far away": b"}r\xff\xff\xff\xff",
    "memo empty": b"h\x05",
    "mark missing": b"t",
    "stack empty": b"R",
    "pop below a mark": ft.text("a") + b"(\x85",
    "SETITEM on a list": b"]K\x01K\x01s",
    "SETITEMS odd": b"}(K\x01u",
    "APPEND on a dict": b"}K\x01a",
    "tuple as a key": b"})K\x01s",
    "deep tuple as a key": b"})" + b"\x85" * 20_000 + b"K\x01s",
    "huge integer as a key": b"}" + ft.integer(2**200) + b"K\x01s",
    "BUILD on a tensor": ft.tensor(FLOATS, (6,), (1,)) + b"}b",
    "BUILD of an OrderedDict by a string": ft.reduce(ODICT) + ft.text("x") + b"b",
    "leftovers": b"}}",
    "deep lists": _nested(20_000, b"]", b"a")[:-1],
    "deep tuples": b")" + b"\x85" * 20_000,
    "deep dicts": b"}K\x01" * 20_000 + b"}" + b"s" * 20_000,
    "dict flood": ft.list_of(b"}" * 150_000),
    "mark flood": b"(" * 50_000,
    "none flood": b"]" + b"(" + b"N" * 50_000 + b"e",
    "list of recalls": ft.list_of(b"]q\x00" + b"h\x00" * 10**5),
    "doubling lists": _doubling(60, b"](%se"),
    "doubling tuples": _doubling(60, b"(%st"),
    "doubling tensor lists": _doubling(9, b"](%se", ft.tensor(FLOATS, (6,), (1,))),
    "doubling large tensors": _doubling(14, b"](%se", ft.tensor(FLOATS, (99, 2), (0, 1))),
    "cyclic list": b"]q\x00h\x00a",
    "cyclic dict": b"}q\x00K\x01h\x00s",
    "persistent id of a string": ft.text("0") + b"Q",
    "persistent id of None": b"NQ",
    "persistent id of itself": b"]q\x00h\x00ah\x00\x85Q",
    "persistent id, short": ft.tuple_of(ft.text("storage")) + b"Q",
    "persistent id of strings": STRINGS[:-1] + ft.integer(6) + b"tQ",
    "persistent id, module": ft.storage("0", "FloatStorage", 6, tag="module"),
    "storage of a function": STRINGS[: STRINGS.index(b"X", 2)] + T2 + b"X\x01\0\0\x000NK\x06tQ",
    "storage, negative": ft.storage("0", "FloatStorage", -6),
    "storage, absurd": ft.storage("0", "FloatStorage", 2**62),
    "storage as two types": ft.list_of(FLOATS, ft.storage("0", "LongStorage", 6)),
    "storage too long": ft.tensor(ft.storage("0", "FloatStorage", 7), (6,), (1,)),
    "storage bare": FLOATS,
    "storage missing": ft.tensor(ft.storage("../../etc/passwd", "FloatStorage", 6), (6,), (1,)),
    "storage view outside": ft.storage(
        "0", "FloatStorage", 6, ft.tuple_of(ft.text("v"), ft.integer(4), ft.integer(3))
    ),
    "tensor of a string": ft.tensor(ft.text("x"), (6,), (1,)),
    "tensor of a tensor": ft.tensor(ft.tensor(FLOATS, (6,), (1,)), (6,), (1,)),
    "tensor, few arguments": ft.reduce(T2, FLOATS),
    "tensor, metadata": ft.tensor(FLOATS, (6,), (1,), 0, ft.dict_of({"neg": ft.TRUE})),
    "parameter of a string": ft.reduce(
        ft.name("torch._utils", "_rebuild_parameter"), ft.text("x"), ft.TRUE, ft.NONE
    ),
    "shape of strings": ft.reduce(
        T2, FLOATS, ft.integer(0), ft.tuple_of(ft.text("6")), b"(K\x01t", ft.FALSE, ft.NONE
    ),
    "shape too large": ft.tensor(FLOATS, (7,), (1,)),
    "shape absurd": ft.tensor(FLOATS, (2**40,), (1,)),
    "shape overflowing": ft.tensor(FLOATS, (2**32, 2**32, 2**32), (0, 0, 0)),
    "shape overflowing, empty": ft.tensor(FLOATS, (0, 2**62, 2**62), (0, 0, 0)),
    "shape longer than 64 bits": ft.tensor(FLOATS, (2**70,), (0,)),
    "shape negative": ft.tensor(FLOATS, (-1, -6), (1, 1)),
    "65 axes": ft.tensor(FLOATS, (1,) * 65, (1,) * 65),
    "strides missing": ft.tensor(FLOATS, (6,), ()),
    "strides negative": ft.tensor(FLOATS, (6,), (-1,), 5),
    "strides absurd": ft.tensor(FLOATS, (2, 2), (2**62, 2**62)),
    "expanded beyond reason": ft.tensor(FLOATS, (2**40,), (0,)),
    "offset negative": ft.tensor(FLOATS, (1,), (1,), -1),
    "offset behind the end": ft.tensor(FLOATS, (1,), (1,), 6),
    "many large views": ft.list_of(*[ft.tensor(FLOATS, (1000, 1000), (0, 0))] * 4),
}
ALSO_HONEST = {"doubling tensor lists", "none flood"}  # not that many

HONEST = ft.dict_of({"w": ft.tensor(FLOATS, (2, 3), (3, 1))})


def _patch(content: bytes, signature: bytes, offset: int, layout: str, value: int) -> bytes:
    """Overwrites a field of the last record with that signature."""
    patched = bytearray(content)
    struct.pack_into(layout, patched, content.rindex(signature) + offset, value)
    return bytes(patched)


def zip_tricks() -> dict[str, bytes]:
    good = ft.zip_file(HONEST, RAW)
    entries = [("x/data.pkl", ft.pickled(HONEST)), ("x/data/0", RAW["0"])]
    bomb = [("x/data.pkl", ft.pickled(HONEST)), ("x/data/0", bytes(2**24))]
    central = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", central + 4)
    return {
        "bomb in a tensor": ft.zip_bytes(bomb, compressed=("x/data/0",)),
        "bomb in the pickle": ft.zip_bytes(
            [("x/data.pkl", b"\x80\x02" + b"}" * 2**24)], compressed=("x/data.pkl",)
        ),
        "bomb in the byte order": ft.zip_bytes(
            [*entries, ("x/byteorder", bytes(2**24))], compressed=("x/byteorder",)
        ),
        "long byte order": ft.zip_bytes([*entries, ("x/byteorder", bytes(2**16))]),
        "unknown byte order": ft.zip_file(HONEST, RAW, "middle"),
        "two entries of one name": ft.zip_bytes([*entries, entries[1]]),
        "two pickles": ft.zip_bytes([*entries, ("y/data.pkl", entries[0][1])]),
        "no pickle": ft.zip_bytes([("x/other.pkl", entries[0][1])]),
        "no storage": ft.zip_bytes(entries[:1]),
        "short storage": ft.zip_file(HONEST, {"0": RAW["0"][:-1]}),
        "parent folder": ft.zip_bytes([*entries, ("../../evil", b"x")]),
        "absolute name": ft.zip_bytes([*entries, ("/evil", b"x")]),
        "backslashes": ft.zip_bytes([*entries, ("..\\evil", b"x")]),
        "directory cut": good[:-30],
        "end cut": good[:-1],
        "no entries": _patch(_patch(good, b"PK\x05\x06", 10, "<H", 0), b"PK\x05\x06", 12, "<L", 0),
        "front cut": good[40:],
        "count of entries": _patch(good, b"PK\x05\x06", 10, "<H", 0xFFF0),
        "size of directory": _patch(good, b"PK\x05\x06", 12, "<L", 0xFFFFFFF0),
        "start of directory": _patch(good, b"PK\x05\x06", 16, "<L", 0xFFFFFFF0),
        "encrypted": _patch(good, b"PK\x01\x02", 8, "<H", 1),
        "another method": _patch(good, b"PK\x01\x02", 10, "<H", 8),
        "declared small": _patch(good, b"PK\x01\x02", 20, "<L", 1),
        "declared huge": _patch(
            _patch(good, b"PK\x01\x02", 20, "<L", 2**31), b"PK\x01\x02", 24, "<L", 2**31
        ),
        "no 64-bit field": _patch(good, b"PK\x01\x02", 42, "<L", 2**32 - 1),
        "local header elsewhere": _patch(good, b"PK\x01\x02", 42, "<L", 7),
        "overlap": overlapping_zip(),
        "directory twice": good[:second] + good[central:second] + good[second:],
    }


def overlapping_zip() -> bytes:
    """Fifield's bomb: the outer entry's data is the inner entry, header included."""
    inner = ft.zip_bytes([("x/data/0", RAW["0"])])
    local = inner[: inner.index(b"PK\x01\x02")]
    outer = ft.zip_bytes([("x/data.pkl", ft.pickled(HONEST)), ("x/data/1", local)])
    at, end = outer.index(local), outer.index(b"PK\x05\x06")
    record = bytearray(inner[inner.index(b"PK\x01\x02") : inner.index(b"PK\x05\x06")])
    struct.pack_into("<L", record, 42, at)
    tail = bytearray(outer[end:])
    size = struct.unpack_from("<L", tail, 12)[0] + len(record)
    struct.pack_into("<HHL", tail, 8, 3, 3, size)
    return outer[:end] + bytes(record) + bytes(tail)
