"""Honest torch files: hand-made ones, and golden ones that real torch wrote."""

import functools
import pathlib
import subprocess
import sys
import tracemalloc

import fake_torch as ft
import ml_dtypes
import numpy as np
import pytest

from uniadapter_jax.weights.errors import WeightFileError
from uniadapter_jax.weights.torch.file import read_state_dict, read_torch_file, state_dict

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch"
KINDS = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@pytest.fixture
def save(tmp_path):
    def write(content: bytes) -> pathlib.Path:
        path = tmp_path / "weights.pt"
        path.write_bytes(content)
        return path

    return write


def assert_same(got: dict, expected: dict) -> None:
    assert set(got) == set(expected)
    for key, array in expected.items():
        assert got[key].shape == array.shape, key
        np.testing.assert_array_equal(got[key].astype(array.dtype), array, err_msg=key)


@pytest.mark.parametrize("file", ["zip.pt", "zip_protocol_4.pt", "legacy.pt"])
def test_golden_checkpoint(file):
    content = read_torch_file(GOLDEN / file)
    around = {key: value for key, value in content.items() if key != "model"}
    assert around == {"epoch": 3, "lr": 1e-4, "betas": (0.9, 0.98), "best": None}
    expected = dict(np.load(GOLDEN / "expected.npz"))
    assert_same(read_state_dict(GOLDEN / file), expected)
    for key, array in content["model"].items():
        stored = ml_dtypes.bfloat16 if key == "bfloat16s" else expected[key].dtype
        assert array.dtype == stored and not array.flags.writeable, key


@pytest.mark.parametrize("file", ["script.pt", "state_dict.pt"])
def test_golden_module_has_the_names_of_its_state_dict(file):
    assert_same(read_state_dict(GOLDEN / file), dict(np.load(GOLDEN / "expected_tower.npz")))


def test_golden_whole_module_is_refused_by_name():
    with pytest.raises(WeightFileError, match="Conv2d, which no state dict needs") as caught:
        read_torch_file(GOLDEN / "whole_module.pt")
    assert caught.value.refused == "torch.nn.modules.conv.Conv2d"
    assert str(GOLDEN / "whole_module.pt") in str(caught.value)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_byte_orders(save, layout, order, kind):
    dtype = np.dtype(KINDS[kind])
    values = np.array([0, 1, 1, 0, 1, 1]) if kind == "BoolStorage" else np.arange(6)
    values = values.reshape(2, 3).astype(dtype)
    raw = values.tobytes()
    if order == "big":
        raw = values.view(f"u{dtype.itemsize}").byteswap().tobytes()
    body = ft.dict_of({"t": ft.tensor(ft.storage("7", kind, 6), (3, 2), (1, 3))})
    if layout == "zip":
        path = save(ft.zip_file(body, {"7": raw}, order))
    else:
        path = save(ft.legacy_file(body, {"7": raw}, dtype.itemsize, order))
    array = read_torch_file(path)["t"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, values.T)


def test_legacy_views_of_one_storage(save):
    raw = np.arange(10, dtype="f4").tobytes()
    view = ft.tuple_of(ft.text("view"), ft.integer(4), ft.integer(3))
    whole, part = (ft.storage("r", "FloatStorage", 10, v) for v in (ft.NONE, view))
    body = ft.dict_of({"w": ft.tensor(whole, (10,), (1,)), "p": ft.tensor(part, (2,), (1,), 1)})
    content = read_torch_file(save(ft.legacy_file(body, {"r": raw}, 4)))
    np.testing.assert_array_equal(content["p"], [5, 6])
    np.testing.assert_array_equal(content["w"], np.arange(10))


def test_strides_of_single_and_absent_elements_do_not_matter(save):
    source = ft.storage("0", "FloatStorage", 3)
    shapes = {"one": (1, 3), "none": (0, 3), "scalar": ()}
    strides = {"one": (2**62, 1), "none": (2**62, 2**62), "scalar": ()}
    body = ft.dict_of({key: ft.tensor(source, shapes[key], strides[key]) for key in shapes})
    content = read_torch_file(save(ft.zip_file(body, {"0": np.arange(3, dtype="f4").tobytes()})))
    assert {key: array.shape for key, array in content.items()} == shapes
    np.testing.assert_array_equal(content["one"], [[0, 1, 2]])


def test_script_module_tree(save):
    raw = np.arange(4, dtype="f4").tobytes()
    leaf = ft.tensor(ft.storage("0", "FloatStorage", 4), (4,), (1,))
    norm = ft.record("__torch__.torch.nn.Norm", {"weight": leaf, "training": ft.TRUE})
    types = ft.reduce(ft.name("torch.jit._pickle", "build_intlist"), ft.list_of(ft.integer(3)))
    root = {"proj": leaf, "sizes": types, "norm": norm, "bias": ft.NONE, "cache": ft.list_of(leaf)}
    body = ft.record("__torch__.___torch_mangle_1.Tower", root)
    content = read_torch_file(save(ft.script_file(body, {"0": raw})))
    assert_same(content, {key: np.arange(4, dtype="f4") for key in ("proj", "norm.weight")})


def test_arrays_are_views_so_reading_costs_no_memory(save):
    count = 2**22
    sources = {key: ft.storage(key, "FloatStorage", count) for key in "01"}
    body = ft.dict_of({key: ft.tensor(s, (count,), (1,)) for key, s in sources.items()})
    storages = {str(i): np.full(count, i, "f4").tobytes() for i in (0, 1)}
    for content in (ft.zip_file(body, storages), ft.legacy_file(body, storages, 4)):
        path = save(content)
        tracemalloc.start()
        arrays = read_state_dict(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22, "less than an eighth of the 32 MiB that it reads"
        assert arrays["1"].sum() == count and not arrays["0"].any()
        with pytest.raises(ValueError, match="read-only"):
            arrays["1"][0] = 2


def test_a_flipped_bit_in_a_tensor_fails_its_checksum(save):
    content = bytearray((GOLDEN / "state_dict.pt").read_bytes())
    floats = np.load(GOLDEN / "expected_tower.npz")["proj"].tobytes()
    content[content.index(floats) + 5] ^= 1
    with pytest.raises(WeightFileError, match="checksum"):
        read_torch_file(save(bytes(content)))


def test_state_dict_finds_the_model():
    weight = np.zeros(2)
    for content in (
        {"w": weight},
        {"w": weight, "note": "x"},
        {"model": {"w": weight}, "epoch": 3},
        {"state_dict": {"module.w": weight}, "optimizer": {"exp_avg": np.ones(2)}},
        {"model": {"state_dict": {"w": weight}}},
    ):
        assert list(state_dict(content)) == ["w"]
    assert list(state_dict({"module.a": weight, "b": weight})) == ["module.a", "b"]
    for content in ({}, {"epoch": 3}, {"model": [weight]}, {3: weight}, [weight]):
        with pytest.raises(WeightFileError, match=r"b\.pt: holds"):
            state_dict(content, "b.pt")


@pytest.mark.parametrize("make", [ft.zip_file, functools.partial(ft.legacy_file, width=4)])
def test_the_command_line_of_a_trainer_is_read_as_nothing(tmp_path, make):
    weight = ft.tensor(ft.storage("0", "FloatStorage", 2), (2,), (1,))
    settings = ft.record("argparse.Namespace", {"lr": ft.text("high"), "weight": weight})
    content = ft.dict_of({"model": ft.dict_of({"w": weight}), "args": settings})
    path = tmp_path / "m.bin"
    path.write_bytes(make(content, {"0": np.arange(2, dtype="f4").tobytes()}))
    assert read_torch_file(path)["args"] == {}
    assert_same(read_state_dict(path), {"w": np.arange(2, dtype="f4")})


def test_reading_imports_no_torch():
    code = (
        "import sys; from uniadapter_jax.weights.torch.file import read_state_dict;"
        f"read_state_dict({str(GOLDEN / 'script.pt')!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_parity_with_torch_load(tmp_path, legacy, protocol):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16)
    saved = {"model": model.state_dict(), "half": model.half().state_dict(), "step": 3}
    optimizer = torch.optim.Adam(model.parameters())
    saved["optimizer"] = optimizer.state_dict()
    path = tmp_path / "m.pt"
    kwargs = {"_use_new_zipfile_serialization": not legacy, "pickle_protocol": protocol}
    torch.save(saved, path, **kwargs)
    expected = torch.load(path, weights_only=False)  # our own file; protocols 4 and 5 need it
    content = read_torch_file(path)
    for part in ("model", "half"):
        assert_same(content[part], {k: v.numpy() for k, v in expected[part].items()})
    assert content["step"] == 3 and content["optimizer"] == expected["optimizer"]


@pytest.mark.parity
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("half", [False, True])
def test_parity_with_torch_jit_load(tmp_path, how, half):
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    layers = [torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.GELU()]
    model = torch.nn.Sequential(torch.nn.Sequential(*layers), torch.nn.Linear(6, 2)).eval()
    saved = torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.ones(3, 4))
    torch.jit.save(saved.half() if half else saved, tmp_path / "m.pt")
    expected = torch.jit.load(tmp_path / "m.pt").state_dict()
    assert_same(read_torch_file(tmp_path / "m.pt"), {k: v.numpy() for k, v in expected.items()})


@pytest.mark.parity
def test_parity_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch_file(tmp_path / "m.pt"), {"a": np.arange(3, dtype="f4")})
