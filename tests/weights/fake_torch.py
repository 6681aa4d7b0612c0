"""Writes torch files by hand, honest and hostile, opcode by opcode; no torch and no pickler."""

import io
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def list_of(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def dict_of(pairs: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def reduce(function: bytes, *args: bytes) -> bytes:
    return function + tuple_of(*args) + b"R"


def record(kind: str, state: dict[str, bytes]) -> bytes:
    """An instance of a TorchScript class."""
    return name(*kind.rsplit(".", 1)) + b")\x81" + dict_of(state) + b"b"


def storage(key: str, kind: str, count: int, view: bytes = b"", tag: str = "storage") -> bytes:
    parts = (text(tag), name("torch", kind), text(key), text("cpu"), integer(count))
    return tuple_of(*parts, *([view] if view else [])) + b"Q"


def tensor(source: bytes, shape: tuple, strides: tuple, offset: int = 0, *extra: bytes) -> bytes:
    sizes = [tuple_of(*(integer(n) for n in numbers)) for numbers in (shape, strides)]
    hooks = reduce(name("collections", "OrderedDict"))
    function = name("torch._utils", "_rebuild_tensor_v2")
    return reduce(function, source, integer(offset), *sizes, FALSE, hooks, *extra)


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zip_bytes(entries: list[tuple[str, bytes]], compressed: tuple[str, ...] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in entries:
            method = zipfile.ZIP_DEFLATED if entry in compressed else zipfile.ZIP_STORED
            archive.writestr(entry, content, compress_type=method)
    return file.getvalue()


def zip_file(body: bytes, storages: dict[str, bytes], order: str = "little") -> bytes:
    entries = [("x/data.pkl", pickled(body)), ("x/byteorder", order.encode())]
    entries += [(f"x/data/{key}", content) for key, content in storages.items()]
    return zip_bytes([*entries, ("x/version", b"3\n")])


def script_file(body: bytes, storages: dict[str, bytes]) -> bytes:
    entries = [(f"x/data/{key}", content) for key, content in storages.items()]
    entries += [("x/data.pkl", pickled(body)), ("x/code/__torch__.py", b"import os\n" * 99)]
    entries.append(("x/constants.pkl", pickled(b")")))
    return zip_bytes(entries, compressed=("x/code/__torch__.py",))


def legacy_file(
    body: bytes, storages: dict[str, bytes], width: int, order: str = "little"
) -> bytes:
    """`width`: bytes per element of all storages."""
    system = dict_of({"little_endian": TRUE if order == "little" else FALSE})
    parts = [integer(MAGIC), integer(1001), system, body, list_of(*(text(k) for k in storages))]
    count = "<q" if order == "little" else ">q"
    raw = [struct.pack(count, len(s) // width) + s for s in storages.values()]
    return b"".join(pickled(part) for part in parts) + b"".join(raw)
