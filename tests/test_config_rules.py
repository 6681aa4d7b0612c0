"""Every field of a config has a type, and every number a range; a wrong value is named."""

from __future__ import annotations

import math
import re

import pytest
import small_run
from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import INT32
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.config.rules import MULTIPLIERS, RANGES, choices_of, leaves, ranges_of
from uniadapter_jax.weights.directory import load_backbone

PAIRS = [(method, task) for method in METHODS for task in ("retrieval", "matching", "vqa")]
FIELDS = sorted(
    {
        (method if path.startswith("method.") else "lora", task, path)
        for method, task in PAIRS
        for path, _ in leaves(base_config(method, task))
        if path not in (MULTIPLIERS, "method.name", "task.name")
        and (path.startswith("task.") or task == "retrieval")
    }
)


def changed(method, task, path, value):
    """A config without types, as one that was read from a file."""
    config = ConfigDict(base_config(method, task).to_dict(), type_safe=False)
    config.update_from_flattened_dict({path: value})
    return config


def refused(method, task, path, value):
    with pytest.raises(UserError) as caught:
        validate(changed(method, task, path, value))
    said = str(caught.value)
    assert said.startswith(f"config.{path}="), (value, said)


@pytest.mark.parametrize(("method", "task", "path"), FIELDS)
def test_a_value_of_another_kind_is_refused_by_name(method, task, path):
    default = dict(leaves(base_config(method, task)))[path]
    wrong = [None, {"a": 1}, [1, 2]]
    wrong += [3, True] if isinstance(default, str | tuple) else ["3", "much"]
    wrong += [0.5, True] if isinstance(default, int) and not isinstance(default, bool) else []
    wrong += [1, 0.5] if isinstance(default, bool) else []
    for value in wrong:
        refused(method, task, path, value)


@pytest.mark.parametrize(("method", "task", "path"), FIELDS)
def test_a_number_out_of_range_is_refused_by_name(method, task, path):
    default = dict(leaves(base_config(method, task)))[path]
    if isinstance(default, bool) or not isinstance(default, int | float):
        assert path not in ranges_of(method, task)
        return
    allowed = ranges_of(method, task)[path]  # every number has one
    step = 1 if isinstance(default, int) else 1e-6
    for end, side, is_open in (
        (allowed.low, -1, allowed.low_open),
        (allowed.high, 1, allowed.high_open),
    ):
        if math.isfinite(end):
            refused(method, task, path, end + side * step)
            if is_open:
                refused(method, task, path, type(default)(end))
    if isinstance(default, int):
        refused(
            method, task, path, max(INT32, allowed.high if math.isfinite(allowed.high) else 0) + 1
        )
        refused(method, task, path, 10**400)
        assert math.isfinite(allowed.low)
    else:
        for value in (math.nan, math.inf, -math.inf):
            refused(method, task, path, value)


def test_what_has_no_limit_is_known():
    """A float that may be as large as one likes; no number may be as low as one likes but one."""
    unlimited = {
        path
        for method, task in PAIRS
        for path, allowed in ranges_of(method, task).items()
        if isinstance(dict(leaves(base_config(method, task)))[path], float)
        and not math.isfinite(allowed.high)
    }
    assert unlimited == {
        *("optimizer.lr", "optimizer.weight_decay", "optimizer.clip_norm", "task.temperature"),
        *("task.rerank_beta", "method.alpha", "method.init_std", "method.scale", "method.start"),
    }
    text = (small_run.ROOT / "docs" / "results.md").read_text()
    assert all(f"`{path}`" in text for path in unlimited)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seed", -1), ("seed", 2**32), ("compute.dropout", 1.5), ("compute.drop_path", 1.0)),
        *(("optimizer.clip_norm", -1.0), ("optimizer.warmup", 7.0), ("data.workers", -1)),
        *(("optimizer.weight_decay", -0.1), ("data.prepare.quality", 500), ("data.words", 2)),
        *(("task.temperature", 0.0), ("train.epochs", -1), ("train.steps", 2**31)),
    ],
)
def test_what_trained_wrongly_before(field, value):
    refused("cross_modal_adapter", "retrieval", field, value)


def test_every_range_and_choice_is_of_a_field():
    fields = dict(leaves(base_config()))
    assert all(path in fields for path in RANGES)
    for method, task in PAIRS:
        fields = dict(leaves(base_config(method, task)))
        assert set(ranges_of(method, task)) | set(choices_of(method, task)) <= set(fields)
        for path, values in choices_of(method, task).items():
            assert fields[path] in values
            refused(method, task, path, "nothing of this")


def test_a_seed_of_32_bits_is_accepted():
    assert validate(changed("lora", "retrieval", "seed", 2**32 - 1)).seed == 2**32 - 1


@pytest.mark.parametrize(
    ("value", "report"),
    [
        ("text", r"lr_multipliers='text': expected \{'regular expression': factor"),
        ({"(": 2.0}, r"lr_multipliers: '\(' is no regular expression"),
        ({"text": -1.0}, r"the factor of 'text'=-1.0: at least 0"),
        ({"text": math.nan}, r"the factor of 'text'=nan"),
        ({"text": "2"}, r"the factor of 'text'='2': expected a number"),
        ([("text", 1.0, 2.0)], "expected"),
    ],
)
def test_multipliers_that_are_none_are_refused(value, report):
    config = base_config()
    config.optimizer.lr_multipliers = value
    with pytest.raises(UserError, match=report):
        validate(config)


@pytest.mark.parametrize("kind", [dict, tuple, list])
def test_multipliers_keep_their_order_and_dots(kind):
    config = base_config()
    pairs = [("text.*kernel", 2.0), ("bias", 1), (".", 0.5)]
    config.optimizer.lr_multipliers = kind(pairs)
    for valid in (validate(config), validate(validate(config).copy_and_resolve_references())):
        assert valid.optimizer.lr_multipliers == tuple((name, float(x)) for name, x in pairs)


LINES = """
import runpy


def get_config():
    config = runpy.run_path({small!r})["get_config"]("method=projection")
    {line}
    return config
"""


def with_line(small, name, line):
    path = small.root / f"{name}.py"
    path.write_text(LINES.format(small=str(small.config), line=line))
    return f"--config={path}"


def test_multipliers_from_a_file_and_from_the_command_line(small):
    """The same run either way, in which a factor of 0 moves nothing; another factor is another.

    A workdir refuses another run: that the flag goes on in the file's says they are one.
    """
    steps = "--config.train.steps=4"
    line = 'config.optimizer.lr_multipliers = {"text.*kernel": 0.0, "vision": 3}'
    small.fork(with_line(small, "rates", line), steps, "--workdir=rates").end(0)
    flag = "--config.optimizer.lr_multipliers={'text.*kernel': 0.0, 'vision': 3}"
    assert "resumed from step 4" in small.run(flag, steps, "--workdir=rates", method="projection")
    assert len(small_run.losses(small.root / "rates")) == 4
    state = small_run.checkpoint(small.root / "rates")
    model = load_backbone(f"random:{small.backbone}").model
    for tower, moved in (("text", False), ("vision", True)):
        (name,) = (n for n in state if re.search(f"trainable.*{tower}.*kernel", n))
        start = getattr(model, tower).projection.kernel[...]
        assert bool((state[name] != start).any()) == moved
    arguments = (flag.replace("3}", "2}"), steps, "--workdir=rates")
    said = small.refused(*small.arguments(*arguments, method="projection"))
    assert "optimizer.lr_multipliers: there [['text.*kernel', 0.0], ['vision', 3.0]]" in said


def test_a_wrong_type_in_a_config_file_is_told_with_its_line(small):
    said = small.refused(with_line(small, "typed", 'config.train.batch_size = "8"'))
    assert re.search(r"typed\.py, line 7: .*'batch_size'", said) and said.count("\n") == 1
