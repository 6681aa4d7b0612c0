"""Useful FLOPs: what the products of a program cost, counted in its jaxpr, before any compiler.

A product of [a, b] by [b, c] counts 2abc; norms and activations count nothing. What a run computes
twice to save memory or traffic does not count twice: the program that is counted has one device,
the whole batch in one piece, and no remat (`AbstractRun.plain`).

    useful_flops(run, TRAIN)                             of the whole slice
    count_flops(jax.jit(function).trace(*shapes).jaxpr)  of any function
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.planning.abstract import AbstractRun


def useful_flops(run: AbstractRun, program: str) -> int:
    """FLOPs of one of `run.programs`, with the arguments of the run, of the whole slice."""
    shapes = [_without_places(tree) for tree in run.arguments(program).values()]
    return count_flops(run.plain.trace(program, shapes).jaxpr)


def count_flops(program: ClosedJaxpr) -> int:
    """FLOPs of the products that the results of a program depend on.

    A loop counts as often as it runs; where that depends on data (`while`), once. Of branches the
    dearest counts.
    """
    jaxpr = program.jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops(used)


def _without_places(tree: PyTree) -> PyTree:
    """Shapes for any mesh, from those of one."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return _times(name, params) * sum(inner)


def _product_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * depth


def _convolution_flops(equation: JaxprEqn) -> int:
    """Every output meets every place of the kernel, but for the zeros between dilated inputs."""
    params, kernel = equation.params, _shape(equation.invars[1])
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    met = math.prod(kernel) // outputs
    products = math.prod(_shape(equation.outvars[0])) * met
    return 2 * products // math.prod(params["lhs_dilation"])


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _times(name: str, params: Mapping[str, Any]) -> int:
    """How often an equation runs what it calls, on all devices together."""
    if name == "scan":
        return int(params["length"])
    if name == "shard_map":  # its shapes are those of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":  # of one block
        return math.prod(params["grid_mapping"].grid)
    return 1
