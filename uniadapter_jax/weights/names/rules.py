"""Conversion by a table of rules from foreign tensors to ours.

A format is a tuple of `Rule`s from its own names to the target's. `convert` applies them to all
tensors at once and reports every problem: tensors that match no rule or two rules, targets that no
tensor or two tensors fill, shapes that the config does not have. Most transforms return views, so
a conversion holds no copy of the weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from uniadapter_jax.weights.names.positions import resize_patches, resize_positions


@dataclasses.dataclass(frozen=True)
class Rule:
    """Source pattern to target patterns by a named transform; `{i}` stands for a layer's number."""

    source: str
    targets: tuple[str, ...]
    transform: str = "same"


@dataclasses.dataclass(frozen=True)
class Context:
    """Settings that a transform may use.

    grid: patches along a side of the new picture, None to leave position embeddings alone.
    """

    grid: int | None = None


Transform = Callable[[np.ndarray, Context], tuple[np.ndarray, ...]]


def _thirds(fused: np.ndarray, _: Context) -> tuple[np.ndarray, ...]:
    """q, k, v of torch's `in_proj`, stacked on the first axis."""
    if fused.ndim == 0 or len(fused) % 3:
        raise ValueError(f"{fused.shape} does not split into q, k and v")
    q, k, v = np.split(fused, 3)
    return q, k, v


def _transpose(matrix: np.ndarray, _: Context) -> tuple[np.ndarray]:
    if matrix.ndim != 2:
        raise ValueError(f"{matrix.shape} is no matrix")
    return (matrix.T,)


def _positions(table: np.ndarray, context: Context) -> tuple[np.ndarray]:
    return (table if context.grid is None else resize_positions(table, context.grid),)


def _patch_positions(table: np.ndarray, context: Context) -> tuple[np.ndarray]:
    """Resizes the positions of a tower without a class token."""
    return (table if context.grid is None else resize_patches(table, context.grid),)


def _batched_positions(table: np.ndarray, context: Context) -> tuple[np.ndarray]:
    """Resizes BLIP's table, which has an axis of size one in front."""
    if table.ndim != 3 or len(table) != 1:
        raise ValueError(f"{table.shape} is no table [1, positions, width]")
    return (_positions(table[0], context)[0][None],)


TRANSFORMS: Mapping[str, Transform] = {
    "same": lambda tensor, _: (tensor,),
    "transpose": _transpose,
    "split_qkv": _thirds,
    "positions": _positions,
    "patch_positions": _patch_positions,
    "batched_positions": _batched_positions,
}


def convert(
    tensors: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignored: Iterable[str] = (),
    context: Context = Context(),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """({target name: array}, problems); the arrays are complete only if there is no problem.

    `expected` gives the shape of every target; `ignored` are patterns of source names that hold
    no weights. The result keeps the order of `expected`.
    """
    rules = tuple(rules)
    by_source = [(_pattern(rule.source), rule) for rule in rules]
    skipped = [_pattern(name) for name in ignored]
    converted: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        wanted = [(match.groups(), r) for p, r in by_source if (match := p.fullmatch(name))]
        if not wanted:
            if not any(p.fullmatch(name) for p in skipped):
                problems.append(f"left over: {name}")
            continue
        if len(wanted) > 1:
            problems.append(f"used twice: {name}, by {[rule.source for _, rule in wanted]}")
        layer, rule = wanted[0]
        targets = [_fill_in(target, layer) for target in rule.targets]
        origin.update(dict.fromkeys(targets, name))
        if not _is_floating(tensor.dtype):
            problems.append(f"dtype of {name}: {tensor.dtype}, expected floating point")
            continue
        try:
            values = TRANSFORMS[rule.transform](tensor, context)
        except ValueError as error:
            problems.append(f"shape of {name}: {error}")
            continue
        for target, value in zip(targets, values, strict=True):
            if target in converted:
                problems.append(f"filled twice: {target}, again by {name}")
            converted[target] = value
    problems += _check(converted, origin, expected, rules)
    return {name: converted[name] for name in expected if name in converted}, problems


def _check(
    converted: Mapping[str, np.ndarray],
    origin: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    rules: tuple[Rule, ...],
) -> list[str]:
    by_target = [(_pattern(t), rule) for rule in rules for t in rule.targets]
    problems = []
    missing: dict[str, None] = {}  # in order, once for a fused tensor
    for name, shape in expected.items():
        if name in converted and converted[name].shape != shape:
            gives = "" if origin[name] == name else f"gives {name} "
            problems.append(
                f"shape of {origin[name]}: {gives}{converted[name].shape}, config says {shape}"
            )
        elif name not in origin:
            sources = [
                _fill_in(r.source, m.groups()) for p, r in by_target if (m := p.fullmatch(name))
            ]
            missing[sources[0] if sources else name] = None
    problems += [f"missing: {name}" for name in missing]
    surplus = dict.fromkeys(origin[name] for name in origin if name not in expected)
    return problems + [f"left over: {name}, beyond what the config has" for name in surplus]


def _pattern(name: str) -> re.Pattern[str]:
    # No leading zeros: "01" would be layer 1 again.
    return re.compile(re.escape(name).replace(r"\{i\}", "(0|[1-9][0-9]{0,5})"))


def _fill_in(pattern: str, layer: tuple[str, ...]) -> str:
    return pattern.replace("{i}", layer[0]) if layer else pattern


def _is_floating(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
