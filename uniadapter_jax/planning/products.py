"""FLOPs of the products in a compiled program: `dot` on a CPU, `convolution` on a TPU."""

from __future__ import annotations

import math
import re

import numpy as np

from uniadapter_jax.planning.hlo import Instruction, Module


def executed_flops(module: Module) -> int:
    """FLOPs of all products that one device executes; an addition and a product are two.

    Remat and whatever else is computed twice is in it, padding is not.
    """
    total = 0
    for computation, line, times in module:
        lines = module.computations[computation]
        if line.opcode == "dot":
            total += times * _dot(line, lines)
        elif line.opcode == "convolution":
            total += times * _convolution(line, lines)
        elif line.is_kernel:
            total += times * _kernel(line)
    return total


def _dot(line: Instruction, lines: dict[str, Instruction]) -> int:
    left = lines[line.operands[0]].shapes[0].dims
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", line.attributes)
    contracted = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
    return 2 * math.prod(line.shapes[0].dims) * math.prod(contracted)


def _kernel(line: Instruction) -> int:
    """As the kernel's author says, which is as its jaxpr says."""
    said = re.search(r'"flops":"?([0-9]+)', line.attributes)
    return int(said[1]) if said else 0


def _convolution(line: Instruction, lines: dict[str, Instruction]) -> int:
    """2 x batch x features in x features out x the (output, kernel) places that meet an input.

    The TPU compiler writes the batch axes of a product as spatial axes of which, by dilation and
    stride, each output place meets one input place.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    assert labels, line
    inputs, kernels, outputs = (
        dict(zip(names, dims, strict=True))
        for names, dims in zip(
            labels.groups(),
            (*(lines[name].shapes[0].dims for name in line.operands[:2]), line.shapes[0].dims),
            strict=True,
        )
    )
    window = _window(line.attributes)
    places = 1
    for axis in sorted(set(inputs) - {"b", "f"}):
        options = {name: values[int(axis)] for name, values in window.items()}
        places *= _meetings(inputs[axis], kernels[axis], outputs[axis], **options)
    return 2 * outputs["b"] * kernels["i"] * outputs["f"] * places


def _window(attributes: str) -> dict[str, list[int]]:
    """{option: value per spatial axis} of those that are given."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    window = {}
    for option in found[1].split() if found else ():
        name, _, values = option.partition("=")
        if name == "pad":
            window[name] = [int(value.partition("_")[0]) for value in values.split("x")]
        elif name in ("stride", "lhs_dilate", "rhs_dilate"):
            window[name] = [int(value) for value in values.split("x")]
    return window


def _meetings(
    size: int,
    kernel: int,
    output: int,
    *,
    stride: int = 1,
    pad: int = 0,
    lhs_dilate: int = 1,
    rhs_dilate: int = 1,
) -> int:
    """Pairs of an output place and a kernel place that fall on an input place."""
    at = np.arange(output)[:, None] * stride + np.arange(kernel)[None, :] * rhs_dilate - pad
    return int(((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < size)).sum())
