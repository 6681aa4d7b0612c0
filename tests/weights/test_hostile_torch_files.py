"""Files that want to run something, eat the memory or crash the reader: always our error."""

import io
import os
import pathlib
import struct
import sys
import tracemalloc
import zipfile

import fake_torch as ft
import numpy as np
import pytest

from uniadapter_jax.weights.errors import WeightFileError
from uniadapter_jax.weights.torch_file import read_torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch"
MUTANTS = 2000
FILE_MULTIPLE, GRACE = 10, 10 * 2**20  # of memory; the reader promises 8 and 8 MiB for objects
FLOATS = ft.storage("0", "FloatStorage", 6)
RAW = {"0": np.arange(6, dtype="f4").tobytes()}
EXECUTIONS = ("os.", "subprocess.", "exec", "compile", "pickle.", "ctypes.", "socket.", "shutil.")


class Watch:
    """Python reports what it executes to audit hooks, which cannot be removed: one, switched."""

    on = False
    seen: list[str] = []  # noqa: RUF012

    def __call__(self, event: str, args: tuple) -> None:
        if self.on and event.startswith(EXECUTIONS):
            self.seen.append(event)


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads bytes as a file; checks that nothing ran and little memory went."""
    monkeypatch.chdir(tmp_path)  # a relative sentinel would appear here
    path = tmp_path / "weights.pt"

    def run(content: bytes):
        path.write_bytes(content)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        WATCH.on = True
        try:
            return read_torch_file(path)
        finally:
            WATCH.on = False
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < FILE_MULTIPLE * len(content) + GRACE, f"{peak} bytes"

    tracemalloc.start()
    yield run
    tracemalloc.stop()
    assert not WATCH.seen
    assert os.listdir(tmp_path) in ([], ["weights.pt"]), "a payload ran"


def refused(read, content: bytes, match: str) -> WeightFileError:
    with pytest.raises(WeightFileError, match=match) as caught:
        read(content)
    assert "weights.pt" in str(caught.value)
    return caught.value


SENTINEL = "touch ran"
FORBIDDEN = (
    *("os.system", "posix.system", "nt.system", "os.popen", "subprocess.Popen", "pty.spawn"),
    *("builtins.eval", "builtins.exec", "builtins.__import__", "builtins.getattr", "builtins.open"),
    *("__builtin__.eval", "__main__.Model", "argparse.Namespace", "pickle.loads", "_pickle.loads"),
    *("torch.load", "torch.hub.load", "torch._utils.os", "torch.serialization.os.system"),
    *("torch.nn.modules.linear.Linear", "torch._utils._rebuild_tensor_v2.__globals__"),
    *("functools.partial", "operator.attrgetter", "collections.OrderedDict.fromkeys"),
    *("numpy.core.multiarray._reconstruct", "numpy.load", "copyreg._reconstructor"),
    *("__torch__.os.system", "__torch__.torch.nn.Module", "__torch_.x", "uniadapter_jax.main.main"),
)


@pytest.mark.parametrize("opcode", ["REDUCE", "STACK_GLOBAL", "NEWOBJ", "BUILD", "mention"])
@pytest.mark.parametrize("function", FORBIDDEN)
def test_forbidden_globals_are_refused_by_name(read, function, opcode):
    module, _, attribute = function.rpartition(".")
    called = ft.name(module, attribute)
    payload = {
        "REDUCE": ft.reduce(called, ft.text(SENTINEL)),
        "STACK_GLOBAL": ft.reduce(
            ft.text(module) + ft.text(attribute) + b"\x93", ft.text(SENTINEL)
        ),
        "NEWOBJ": called + ft.tuple_of(ft.text(SENTINEL)) + b"\x81",
        "BUILD": b"}" + ft.dict_of({"__setstate__": called}) + b"b" + ft.text(SENTINEL) + b"b",
        "mention": called,
    }[opcode]
    for body in (ft.dict_of({"x": payload}), payload):
        for content in (
            ft.zip_file(body, RAW),
            ft.legacy_file(body, RAW, 4),
            ft.pickled(payload),
            ft.pickled(ft.integer(ft.MAGIC)) + ft.pickled(payload),
        ):
            assert refused(read, content, "asks for").refused == function


@pytest.mark.parametrize("function", [f for f in FORBIDDEN if not f.startswith("__torch__.")])
def test_forbidden_globals_in_torchscript(read, function):
    call = ft.reduce(ft.name(*function.rsplit(".", 1)), ft.text(SENTINEL))
    body = ft.record("__torch__.Net", {"x": call})
    assert refused(read, ft.script_file(body, RAW), "asks for").refused == function


def test_torchscript_classes_stay_inert(read):
    weight = ft.tensor(FLOATS, (6,), (1,))
    for kind in ("__torch__.os.system", "__torch__.builtins.eval", "__torch__.M"):
        called = ft.reduce(ft.name(*kind.rsplit(".", 1)), ft.text(SENTINEL))
        body = ft.record(kind, {"weight": weight, "x": called, "__reduce__": called})
        assert list(read(ft.script_file(body, RAW))) == ["weight"]


def _nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + closing * depth


def _doubling(levels: int, make: bytes) -> bytes:
    """Each level holds the one before it twice: 2**levels leaves in a few bytes."""
    body = b"]q\x00"
    for level in range(levels):
        recall = b"h" + bytes([level])
        body += make % (recall + recall) + b"q" + bytes([level + 1])
    return body


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
    "deep tuple as a key": b"}" + _nested(20000, b")", b"") + b"\x85" * 20000 + b"K\x01s",
    "huge integer as a key": b"}" + ft.integer(2**200) + b"K\x01s",
    "BUILD on a tensor": ft.tensor(FLOATS, (6,), (1,)) + b"}b",
    "BUILD of an OrderedDict by a string": ft.reduce(ODICT) + ft.text("x") + b"b",
    "leftovers": b"}}",
    "deep lists": _nested(50_000, b"]", b"a")[:-1],
    "deep tuples": b")" + b"\x85" * 50_000,
    "deep dicts": b"}K\x01" * 50_000 + b"}" + b"s" * 50_000,
    "dict flood": b"}" * 150_000,
    "mark flood": b"(" * 150_000,
    "none flood": b"]" + b"(" + b"N" * 150_000 + b"e",
    "tuple of recalls": b"]q\x00(" + b"h\x00" * 10**5 + b"t",
    "doubling lists": _doubling(60, b"](%se"),
    "doubling tuples": _doubling(60, b"(%st"),
    "doubling tensor lists": ft.tensor(FLOATS, (6,), (1,)) + b"q\x00" + _doubling(9, b"](%se")[3:],
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
        T2, FLOATS, ft.integer(0), ft.tuple_of(ft.text("6")), b")", ft.FALSE, ft.NONE
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


@pytest.mark.parametrize("layout", ["zip", "legacy", "script"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_hand_made_payloads(read, payload, layout):
    bodies = [PAYLOADS[payload], b"}" + ft.text("x") + PAYLOADS[payload] + b"s"]
    if payload.startswith(("deep", "doubling", "cyclic")):  # TorchScript drops other attributes
        bodies = bodies[: 1 if layout == "script" else 2]
    elif layout == "script":
        bodies = [ft.record("__torch__.Net", {"x": PAYLOADS[payload]})]
    for body in bodies:
        try:
            if layout == "zip":
                content = read(ft.zip_file(body, RAW))
            elif layout == "legacy":
                content = read(ft.legacy_file(body, RAW, 4))
            else:
                content = read(ft.script_file(body, RAW))
        except WeightFileError:
            continue
        harmless = payload in ALSO_HONEST or (layout == "script" and content == {})
        assert harmless, f"{payload} was read"


def test_doubling_modules(read):
    module = b"N"
    for level in range(60):
        recall = b"h" + bytes([level - 1]) if level else module
        state = b"}(" + ft.text("a") + recall + ft.text("b") + recall + b"u"
        module = ft.name("__torch__", "M") + b")\x81" + state + b"bq" + bytes([level])
        body = module if not level else body + b"0" + module
    body = body.replace(b"0c__torch__", b"c__torch__")
    refused(read, ft.script_file(b"(" + body + b"t", {}), "archive of a tuple")
    last = b"(" + body + b"l" + b"h\x3b"
    refused(read, ft.script_file(last, {}), "not allowed")
    wrapped = b"}(" + ft.text("all") + b"(" + body + b"t" + ft.text("top") + b"h\x3bu"
    root = ft.name("__torch__", "Root") + b")\x81" + wrapped + b"b"
    refused(read, ft.script_file(root, {}), "far larger than the file")


HONEST = ft.dict_of({"w": ft.tensor(FLOATS, (2, 3), (3, 1))})


def _patch(content: bytes, signature: bytes, offset: int, layout: str, value: int) -> bytes:
    """Overwrites a field of the last record with that signature."""
    patched = bytearray(content)
    struct.pack_into(layout, patched, content.rindex(signature) + offset, value)
    return bytes(patched)


def _zip_tricks() -> dict[str, bytes]:
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
        "absolute name": ft.zip_bytes([*entries, ("/tmp/evil", b"x")]),
        "backslashes": ft.zip_bytes([*entries, ("..\\evil", b"x")]),
        "directory cut": good[:-30],
        "end cut": good[:-1],
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
        "overlap": _overlapping(),
        "directory twice": good[:second] + good[central:second] + good[second:],
    }


def _overlapping() -> bytes:
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


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_tricks(read):
    assert read(ft.zip_file(HONEST, RAW))["w"].sum() == 15
    for trick, content in _zip_tricks().items():
        with pytest.raises(WeightFileError):
            pytest.fail(f"{trick} was read as {list(read(content))}")
    assert zipfile.is_zipfile(io.BytesIO(_overlapping())), "the trick is a zip file to others"


def test_legacy_tricks(read):
    good = ft.legacy_file(HONEST, RAW, 4)
    assert read(good)["w"].sum() == 15
    count = len(good) - len(RAW["0"]) - 8
    tricks = {
        "count too large": good[:count] + struct.pack("<q", 2**60) + good[count + 8 :],
        "count negative": good[:count] + struct.pack("<q", -1) + good[count + 8 :],
        "storage unknown": ft.legacy_file(HONEST, {"1": RAW["0"]}, 4),
        "storage missing": ft.legacy_file(HONEST, {}, 4),
        "no magic": good[20:],
        "only magic": ft.pickled(ft.integer(ft.MAGIC)),
        "true as magic": ft.pickled(ft.TRUE) * 5,
        "another protocol": good.replace(ft.integer(1001), ft.integer(1002)),
        "keys of a dict": good.replace(ft.list_of(ft.text("0")), b"}"),
        "keys twice": good.replace(ft.list_of(ft.text("0")), ft.list_of(*[ft.text("0")] * 2)),
    }
    for trick, content in tricks.items():
        with pytest.raises(WeightFileError):
            pytest.fail(f"{trick} was read as {list(read(content))}")


def test_no_files_of_torch(read, tmp_path):
    for content in (b"", b"x", b"\x80", b"PK\x03\x04", b"not a weight file", bytes(1000)):
        refused(read, content, ".")
    refused(read, struct.pack("<Q", 40) + b'{"__metadata__":{}}' + bytes(50), "is no torch file")
    for path in (tmp_path / "missing.pt", tmp_path, pathlib.Path("/dev/null")):
        with pytest.raises(WeightFileError):
            read_torch_file(path)
    fifo = tmp_path / "weights.pt"
    fifo.unlink()
    os.mkfifo(fifo)
    with pytest.raises(WeightFileError, match="not a regular file"):
        read_torch_file(fifo)


def test_terminal_codes_in_names_are_shown_as_text(read):
    body = ft.name("\x1b[2Jevil", "\u202etxt")
    message = str(refused(read, ft.zip_file(body, {}), "asks for"))
    assert message.isascii() and message.isprintable() and r"\x1b[2Jevil" in message


OPCODES = np.frombuffer(b"()]}tRbQ\x81\x93\x85aeusqhN2l0cio", np.uint8)


def _mutate(rng: np.random.Generator, content: bytes) -> bytes:
    """One to four random edits: bytes, cuts, copies, opcodes, extreme numbers, forbidden names."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data)))
        other = int(rng.integers(len(data)))
        width = int(rng.integers(1, 40))
        match int(rng.integers(8)):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                del data[at : at + width]
            case 3:
                data[at:at] = data[other : other + width]
            case 4:
                data[at : at + width] = data[other : other + width]
            case 5:
                data[at:at] = bytes(rng.choice(OPCODES, 3))
            case 6:
                data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
            case _:
                data[at:at] = ft.reduce(ft.name("posix", "system"), ft.text(SENTINEL))
        if len(data) < 2 or rng.random() < 0.02:
            return bytes(data[:at])
    return bytes(data)


@pytest.mark.parametrize("part", range(4))
def test_mutated_files(read, part):
    """A quarter each: whole files, then pickles in fresh archives whose checksums hold."""
    rng = np.random.default_rng(part)
    files = [path.read_bytes() for path in sorted(GOLDEN.glob("*.pt"))]
    files += [ft.zip_file(HONEST, RAW), ft.legacy_file(HONEST, RAW, 4)]
    archives = []
    for path in sorted(GOLDEN.glob("*.pt")):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archives.append([(name, archive.read(name)) for name in archive.namelist()])
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTANTS // 4):
        if rng.random() < 0.5:
            content = _mutate(rng, files[rng.integers(len(files))])
        else:
            entries = archives[rng.integers(len(archives))]
            content = ft.zip_bytes(
                [(n, _mutate(rng, c) if n.endswith("/data.pkl") else c) for n, c in entries]
            )
        try:
            _touch(read(content))
            outcomes["read"] += 1
        except WeightFileError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 5 and outcomes["refused"] > 100, outcomes


def _touch(value) -> None:
    """Uses every array that was returned."""
    if isinstance(value, np.ndarray):
        value.tobytes()
    elif isinstance(value, dict):
        for item in value.values():
            _touch(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _touch(item)
