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
from hostile_files import (
    ALSO_HONEST,
    FLOATS,
    FORBIDDEN,
    HONEST,
    PAYLOADS,
    RAW,
    SENTINEL,
    overlapping_zip,
    zip_tricks,
)

from uniadapter_jax.weights.errors import WeightFileError
from uniadapter_jax.weights.torch.file import read_torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch"
MUTANTS = 2000
FILE_MULTIPLE, GRACE = 10, 10 * 2**20  # of memory; the reader promises 8 and 8 MiB for objects
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
    modules = b""
    for level in range(60):
        child = b"h" + bytes([level - 1]) if level else b"N"
        state = b"}(" + ft.text("a") + child + ft.text("b") + child + b"u"
        modules += ft.name("__torch__", "M") + b")\x81" + state + b"bq" + bytes([level])
    state = b"}(" + ft.text("all") + b"(" + modules + b"t" + ft.text("top") + b"h\x3bu"
    root = ft.name("__torch__", "Root") + b")\x81" + state + b"b"
    refused(read, ft.script_file(root, {}), "far larger than the file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_tricks(read):
    assert read(ft.zip_file(HONEST, RAW))["w"].sum() == 15
    for trick, content in zip_tricks().items():
        with pytest.raises(WeightFileError):
            pytest.fail(f"{trick} was read as {list(read(content))}")
    assert zipfile.is_zipfile(io.BytesIO(overlapping_zip())), "the trick is a zip file to others"


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
