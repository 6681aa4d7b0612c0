"""The page of plans is what the script makes of its lines."""

import importlib.util
import sys

import pytest
import small_run


@pytest.fixture(scope="module")
def script():
    path = small_run.ROOT / "scripts" / "plan_tables.py"
    spec = importlib.util.spec_from_file_location("plan_tables", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_says_what_was_compiled(script):
    kept = script.read_kept()
    assert script.PAGE.read_text() == script.page(kept)
    assert set(kept) <= {case.name for case in script.cases()}


def test_a_batch_below_the_chips_and_a_change_are_said(script):
    model = script.MODELS[0]
    one, few = (script.Case(model, "v5e-256", "v5e:16x16", 256, batch) for batch in (128, 4096))
    none = {"fits": False, "fields": {}}
    assert "n/a: 128 < 256 chips" in script._row(one, none)
    line = {
        **{"fits": True, "fields": {"compute.remat": "full"}, "bytes": 2**32, "limit": 2**34},
        **{"sent": {"all-reduce": 2_500_000}, "step_seconds": 0.1, "bound": "hbm"},
        "useful_flops": 197e11 / 2,
    }
    wanted = "compute.remat=full | 4.0 of 16 | 2.5 | 100.0 (hbm) | 40,960 | 50 % |"
    assert script._row(few, line).endswith(wanted)


def test_a_change_is_tried_on_other_slices_of_the_chip(script):
    first, other, large = (
        script.Case(script.MODELS[0], name, f"v5e:{sides}", chips, 16 * chips)
        for name, sides, chips in (("v5e-8", "2x4", 8), ("v5e-64", "8x8", 64), ("v5e-4", "2x2", 4))
    )
    fields = {"mesh.weights": "sharded", "mesh.fsdp": 8, "mesh.data": 1, "compute.remat": "full"}
    line = {"case": first.name, "chips": 8, "batch": 128, "fits": True, "fields": fields}
    assert script._hint(other, [line]) == {**fields, "mesh.data": -1}
    assert script._hint(other, [{**line, "batch": 64}]) == {}
    assert script._hint(large, [{**line, "fits": False}]) == {}
