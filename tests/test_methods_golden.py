"""Methods beside their authors' modules; `golden/make_methods.py` ran those on the same weights."""

import pathlib

import method_cases
import numpy as np
import pytest

from uniadapter_jax.adapters.targets import WITHOUT_GRADIENT

GOLDEN = pathlib.Path(__file__).parent / "golden" / "methods.npz"


FAST = ("ssf",)  # a program to compile for each
ALL = [
    pytest.param(case, marks=() if case in FAST else pytest.mark.slow)
    for case in method_cases.CASES
]


@pytest.mark.parametrize("case", ALL)
def test_features_and_gradients_are_the_authors(case):
    with np.load(GOLDEN) as file:
        names = [name for name in file if name.startswith(f"{case}/")]
        wanted = {name.removeprefix(f"{case}/"): file[name] for name in names}
    found = method_cases.ours(case)
    assert set(found) == set(wanted)
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape, name
        if WITHOUT_GRADIENT.fullmatch(name):  # rounding alone
            assert max(np.abs(found[name]).max(), np.abs(expected).max()) < 1e-5
            continue
        limit = (2e-4 if name.startswith("grad.") else 2e-5) * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=limit, err_msg=name)
