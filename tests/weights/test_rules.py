"""The table's engine: what does not fit is named, whatever the format."""

import numpy as np

from uniadapter_jax.weights.names.rules import Context, Rule, convert

RULES = (
    Rule("blocks.{i}.qkv", tuple(f"layers.{{i}}.{part}" for part in "qkv"), "split_qkv"),
    Rule("head", ("out",), "transpose"),
)
EXPECTED = {"layers.0.q": (2, 3), "layers.0.k": (2, 3), "layers.0.v": (2, 3), "out": (3, 4)}
QKV = np.arange(18, dtype=np.float32).reshape(6, 3)
HEAD = np.arange(12, dtype=np.float16).reshape(4, 3)


def test_what_fits():
    made, problems = convert({"head": HEAD, "blocks.0.qkv": QKV}, RULES, EXPECTED)
    assert not problems and list(made) == list(EXPECTED)
    np.testing.assert_array_equal(made["layers.0.k"], QKV[2:4])
    np.testing.assert_array_equal(made["out"], HEAD.T)
    assert made["out"].dtype == np.float16 and np.shares_memory(made["out"], HEAD)


def problems_of(tensors, rules=RULES, **options):
    return convert(tensors, rules, EXPECTED, **options)[1]


def test_used_twice_and_filled_twice():
    tensors = {"head": HEAD, "blocks.0.qkv": QKV}
    again = (*RULES, Rule("hea{i}", ("out",)), Rule("head", ("out",), "transpose"))
    assert problems_of(tensors, again) == ["used twice: head, by ['head', 'head']"]
    other = (*RULES, Rule("alias", ("out",), "transpose"))
    found = problems_of({**tensors, "alias": HEAD}, other)
    assert found == ["filled twice: out, again by alias"]


def test_missing_and_left_over():
    assert problems_of({"blocks.0.qkv": QKV}) == ["missing: head"]
    assert problems_of({"head": HEAD}) == ["missing: blocks.0.qkv"]  # once, for all three
    found = problems_of({"head": HEAD, "blocks.0.qkv": QKV, "blocks.1.qkv": QKV, "x": HEAD})
    assert found == ["left over: x", "left over: blocks.1.qkv, beyond what the config has"]
    tensors = {"head": HEAD, "blocks.0.qkv": QKV, "blocks.7.mask": HEAD}
    assert problems_of(tensors, ignored=("blocks.{i}.mask",)) == []


def test_a_dot_is_a_dot_and_numbers_are_plain():
    tensors = {"head": HEAD, "blocks.0.qkv": QKV, "blocks_0.qkv": QKV, "blocks.00.qkv": QKV}
    assert problems_of(tensors) == ["left over: blocks_0.qkv", "left over: blocks.00.qkv"]


def test_shapes_and_dtypes():
    found = problems_of({"head": HEAD[0], "blocks.0.qkv": QKV[:5]})
    assert found == [
        "shape of head: (3,) is no matrix",
        "shape of blocks.0.qkv: (5, 3) does not split into q, k and v",
    ]
    found = problems_of({"head": HEAD.T, "blocks.0.qkv": QKV.astype(int)})
    assert found == [
        "dtype of blocks.0.qkv: int64, expected floating point",
        "shape of head: gives out (4, 3), config says (3, 4)",
    ]


def test_positions_change_only_when_asked():
    rules, table = (Rule("p", ("p",), "positions"),), np.ones((5, 2), np.float32)
    made, problems = convert({"p": table}, rules, {"p": (5, 2)})
    assert made["p"] is table and not problems
    made, problems = convert({"p": table}, rules, {"p": (10, 2)}, context=Context(grid=3))
    assert made["p"].shape == (10, 2) and not problems
    _, problems = convert({"p": table[:4]}, rules, {"p": (10, 2)}, context=Context(grid=3))
    assert problems == ["shape of p: (4, 2) is no table of 1 + g * g positions"]
