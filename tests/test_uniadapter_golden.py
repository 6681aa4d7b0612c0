"""UniAdapter in BLIP against numbers that the authors' PyTorch code computed (see golden/)."""

import pathlib

import numpy as np
import pytest
import uniadapter
from cma import compiling_fast

FORWARD, GRADIENT, NONE = 2e-5, 2e-4, 1e-7
GOLDEN = pathlib.Path(__file__).parent / "golden" / "uniadapter.npz"
HEADS = (3, 2)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


def under(golden, prefix):
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def tensors_of(golden, case):
    """Those of the case's model: the decoder answers, heads match, one has no key adapters."""
    other = ("vision_proj", "text_proj", "itm_head", "temp") if case == "vqa" else "text_decoder"
    return {
        name: value
        for name, value in under(golden, "tensors/").items()
        if not name.startswith(other) and not (case == "bare" and "video_" in name)
    }


# Every case compiles its own programs; those with less of everything are not for every day.
OTHERS = [pytest.param(case, marks=pytest.mark.parity) for case in ("alone", "bare")]


@pytest.mark.parametrize("case", ["image", "video", "vqa", *OTHERS])
def test_equals_the_authors_code(case, golden, tmp_path):
    """States, features, logits, losses, all gradients, an update of momentum."""
    numbers = under(golden, f"{case}/")
    given, tensors = under(golden, "given/"), tensors_of(golden, case)
    with compiling_fast():
        found = uniadapter.differences(case, numbers, given, tensors, HEADS, tmp_path)
    for name, distance in found.items():
        bound = GRADIENT if ".grad." in name else FORWARD
        bound = NONE if name.startswith("none.") else bound
        assert distance < bound, f"{name}: {distance:.1e} apart"
