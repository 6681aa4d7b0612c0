"""Cross-Modal Adapter against numbers that the authors' PyTorch code computed (see golden/)."""

import pathlib

import cma
import numpy as np
import pytest

FORWARD, GRADIENT, RECIPE = 2e-5, 2e-4, 1e-5
GOLDEN = pathlib.Path(__file__).parent / "golden" / "cma.npz"


# Every case compiles its own programs, so only one of them is for every day.
OTHERS = [pytest.param(shared, marks=pytest.mark.parity) for shared in (0, 32)]


@pytest.mark.parametrize("shared", [16, *OTHERS])
def test_equals_the_authors_code(shared, tmp_path):
    """Features, both similarities, loss, gradients, three steps of the recipe; text is deeper."""
    golden = dict(np.load(GOLDEN))
    inputs = {key: golden[key].astype(np.float32) for key in ("pixels", "mask", "text")}
    own = {k.removeprefix(f"{shared}/"): v for k, v in golden.items() if k.startswith(f"{shared}/")}
    tensors = {
        key.removeprefix("tensors/"): value.astype(np.float32)
        for key, value in {**golden, **own}.items()
        if key.startswith("tensors/")
    }
    case = inputs | {k: v for k, v in own.items() if not k.startswith("tensors/")}
    with cma.compiling_fast():
        found = cma.differences(case, tensors, (1, 2), tmp_path)
    assert len(found) == 6 + 3 * (8 + 2 * (0 < shared) - 2 * (shared == 32))
    for name, distance in found.items():
        bound = GRADIENT if ".grad." in name else RECIPE if "after." in name else FORWARD
        assert distance < bound, f"{name}: {distance:.1e} apart"
