"""Tokens of a method as further rows of a tower: put among them, and put in their place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import scan
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Float


class Rows(NamedTuple):
    """Where so many rows of a method stand.

    ahead: how many rows of the tower's own stand ahead of them; None counts from the end.
    behind: how many stand behind them, where `ahead` is None.
    """

    size: int
    ahead: int | None = None
    behind: int = 0

    def put(
        self, x: Float[Array, "b s d"], tokens: Float[Array, "p d"], *, over: bool
    ) -> Float[Array, "b m d"]:
        """x with the tokens; `over` the rows that stand there, or ahead of what stands there."""
        taken = self.size if over else 0
        at = x.shape[1] - self.behind - taken if self.ahead is None else self.ahead
        rows = jnp.broadcast_to(tokens.astype(x.dtype), (len(x), *tokens.shape))
        return jnp.concatenate([x[:, :at], rows, x[:, at + taken :]], axis=1)


def put_all(
    groups: tuple[Rows, ...], x: Float[Array, "b s d"], tokens: Array, *, over: bool
) -> Float[Array, "b m d"]:
    """Every group with its share of the tokens, one after the other."""
    start = 0
    for group in groups:
        x = group.put(x, tokens[start : start + group.size], over=over)
        start += group.size
    return x


def first_word(backbone: Any) -> int:
    """Where words begin in a text; raises `UserError` if the texts take no further rows."""
    if not hasattr(backbone.text, "FIRST_WORD"):
        raise UserError(
            "this method does not fit this backbone: its texts take no further tokens "
            "(docs/methods.md says which method is for which backbone)"
        )
    return int(backbone.text.FIRST_WORD)


class FirstRows(nnx.Module):
    """The tokens of the first layer join the rows of a tower, ahead of its layers."""

    def __init__(self, *groups: Rows):
        self.groups = nnx.static(groups)
        self.rows = sum(group.size for group in groups)

    def __call__(
        self, y: Float[Array, "b s d"], x: Float[Array, "b s d"], layer: scan.LayerInputs
    ) -> Float[Array, "b m d"]:
        shared: Any = layer.shared
        return put_all(self.groups, y, shared["tokens"], over=False)


class NewRows(nnx.Module):
    """The rows of the layer before make room for the tokens of a layer, where it has its own."""

    def __init__(self, *groups: Rows):
        self.groups = nnx.static(groups)

    def __call__(
        self, y: Float[Array, "b s d"], x: Float[Array, "b s d"], layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        shared: Any = layer.shared
        return jnp.where(shared["new"], put_all(self.groups, y, shared["tokens"], over=True), y)
