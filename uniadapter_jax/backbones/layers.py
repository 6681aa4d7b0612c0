"""Pre-LayerNorm layers with the places where a method may act; docs/methods.md has their table.

The layers of a tower are stacked (`scan`). Beside the places of every linear layer (`linear`) each
layer has, with x what goes into it:

    Block.before          x = before(x, x), ahead of everything
    Block.after_attn      z = after_attn(attn(ln_1(x)), x), before x + z; after_mlp likewise
    merging               behind attention; not a method's (`merging`)
    Block.beside_mlp      z = beside_mlp(mlp(ln_2(x)), x), after stochastic depth

A module at `Block.prompts` is called with `layer` alone and returns tokens "p d", which stand ahead
of the layer's x as it goes into attention's keys and values, and are seen from everywhere. They
have no row of their own, so what a layer returns has the shape that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.attention import Attention, mask_bias
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng, at_place
from uniadapter_jax.common.types import Array, Bool, Float, PyTree


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, layers: int, activation: str, *, rng: Rng):
        stack = (layers,)
        self.fc1 = Linear(width, hidden, stack=stack, std=(2 * width) ** -0.5, rng=rng)
        std_out = width**-0.5 * (2 * layers) ** -0.5
        self.fc2 = Linear(hidden, width, stack=stack, std=std_out, rng=rng)
        self.activation = activation

    def __call__(self, x: Float[Array, "b s d"], layer: scan.LayerInputs) -> Float[Array, "b s d"]:
        return self.fc2(functions.ACTIVATIONS[self.activation](self.fc1(x, layer)), layer)


class Block(scan.Stack):
    """A pre-LayerNorm layer; `config.layers` of them stacked."""

    SUBLAYERS = ("attn", "mlp")
    before: Any
    prompts: Any
    after_attn: Any
    beside_attn: Any
    after_mlp: Any
    beside_mlp: Any

    def __init__(self, config: TowerConfig, *, rng: Rng):
        width, layers = config.width, config.layers
        stack = (layers,)
        # CLIP's own initialisation (OpenAI's CLIP.initialize_parameters).
        std = {"std": width**-0.5, "std_out": width**-0.5 * (2 * layers) ** -0.5}
        self.ln_1 = LayerNorm(width, eps=config.eps, stack=stack)
        self.attn = Attention(width, config.heads, stack=stack, **std, rng=rng)
        self.ln_2 = LayerNorm(width, eps=config.eps, stack=stack)
        self.mlp = MLP(width, config.hidden, layers, config.activation, rng=rng)
        sides = ("after_attn", "beside_attn", "after_mlp", "beside_mlp")
        for place in ("before", "prompts", *sides):
            setattr(self, place, nnx.data(None))

    def __call__(
        self,
        x: Float[Array, "b s d"],
        bias: Float[Array, "1 1 s s"] | None,
        layer: scan.LayerInputs,
        merging: Any = None,
    ) -> Any:
        """The states behind the layer; with `merging.Merging` fewer, and what each stands for."""
        x = at_place(self.before, x, x, layer)
        normed, seen, keys = self.ln_1(x), None, None
        if self.prompts is not None or merging is not None:
            own = seen = self.attn.keys_and_values(normed, layer)
            if merging is not None:
                keys, bias = own.keys, merging.bias
            if self.prompts is not None:
                prompts = self.ln_1(self.prompts(layer))
                seen, bias = self.attn.with_prompts(prompts, own, bias, layer)
        z = self.attn(normed, seen, layer, bias=bias)
        z = at_place(self.after_attn, z, x, layer)
        z = functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.attn"))
        x = x + at_place(self.beside_attn, z, x, layer)
        size = None
        if merging is not None:
            x, size = merging(x, keys)
        z = at_place(self.after_mlp, self.mlp(self.ln_2(x), layer), x, layer)
        z = functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.mlp"))
        x = x + at_place(self.beside_mlp, z, x, layer)
        return x if merging is None else (x, size)


class Tower(NamedTuple):
    """A stack of layers of a backbone, as methods find it.

    name: "vision", "text" or "decoder"; also what `layer_slices` of shared parameters is asked for.
    owner: the module whose `blocks` the layers are.
    blocks: the stacked layers; `blocks.SUBLAYERS` names the sub-layers, which have places. Of a
      tower that is cut, those above the cut.
    """

    name: str
    owner: Any
    blocks: Any
    layers: int
    width: int

    @classmethod
    def of(cls, name: str, owner: Any, size: TowerConfig) -> Tower:
        """The layers of `owner.blocks` that methods act on."""
        blocks, rows = owner.blocks.segments(size.layers)[-1]
        return cls(name, owner, blocks, rows.stop - rows.start, size.width)

    def from_layer(self, at: int) -> Tower:
        """The layers from `at` on, the tower being cut there; all of them where `at` is 0.

        The parameters below, and those of `owner.AHEAD`, become `scan.Below`.
        """
        if at <= 0:
            return self
        self.owner.blocks = scan.Cut(self.blocks, at)
        self._retype_ahead(nnx.Param, scan.Below)
        return self._replace(blocks=self.owner.blocks.above, layers=self.layers - at)

    def join(self) -> None:
        """Joins the layers of a tower that was cut."""
        self.owner.blocks = self.owner.blocks.joined()
        self._retype_ahead(scan.Below, nnx.Param)

    def _retype_ahead(self, old: type[nnx.Param], new: type[nnx.Param]) -> None:
        for name in self.owner.AHEAD:
            part = getattr(self.owner, name)
            if isinstance(part, nnx.Module):
                scan.retype(part, old, new)
            elif type(part) is old:
                setattr(self.owner, name, new(part[...]))


class States(NamedTuple):
    """The states of a tower, for a module at its place `side`.

    layers: ahead of the layers and behind each of them.
    mask: False at rows of padding; None where there is none.
    read: of the states of one layer, those that stand for a picture or a text.
    """

    layers: Float[Array, "z b s d"]
    mask: Bool[Array, "b s"] | None
    read: Callable[[Float[Array, "b s d"]], Float[Array, "b d"]]


class Backbone(nnx.Module):
    """A frozen model of several towers.

    `adapters` is the place for a module with `layer_slices(tower, layers) -> tree`, whose leaves
    lead with the axis of layers.
    """

    adapters: Any

    def __init__(self, config: Any, dtype: str):
        self.adapters = nnx.data(None)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    def shared(self, tower: str, count: int) -> PyTree | None:
        """A method's parameters that towers share, cut for the layers of one tower.

        Of a tower that is itself cut, for the layers above alone.
        """
        if self.adapters is None:
            return None
        rows = getattr(self, tower).blocks.segments(count)[-1].rows
        return self.adapters.layer_slices(tower, rows.stop - rows.start)


def run_stack(blocks: Block, x: Float[Array, "b s d"], **options: Any) -> Float[Array, "b s d"]:
    """The states behind the last layer; with the options of `run_and_keep`."""
    return run_and_keep(blocks, x, keep=False, **options)[0]


def run_and_keep(
    blocks: Block,
    x: Float[Array, "b s d"],
    *,
    keep: bool,
    layers: int,
    remat: str,
    mask: Bool[Array, "s s"] | None = None,
    shared: PyTree | None = None,
    key: Array | None = None,
    drop_path: float = 0.0,
    above_only: bool = False,
) -> tuple[Float[Array, "b s d"], Float[Array, "z b s d"] | None]:
    """The states behind the last layer; and if `keep`, those ahead of all and behind each.

    Args:
      shared: a tree whose leaves lead with the axis of layers; layer i gets slice i.
      key: a key for dropout, split over the layers; None is deterministic.
      remat: a name of `scan.REMAT`.
      drop_path: the rate of stochastic depth in the last layer; it rises linearly from 0.
      above_only: as of `scan.collect_layers`.
    """
    rates = jnp.linspace(0.0, drop_path, layers) if drop_path and key is not None else None
    bias = mask_bias(mask)

    def call(
        block: Block, x: Array, layer: scan.LayerInputs, own: None
    ) -> tuple[Array, Array | None]:
        x = block(x, bias, layer)
        return x, x if keep else None

    last, states = scan.collect_layers(
        call,
        blocks,
        x,
        None,
        layers,
        remat=remat,
        shared=shared,
        key=key,
        drop_path=rates,
        above_only=above_only,
    )
    return last, jnp.concatenate([x[None], states]) if keep else None
