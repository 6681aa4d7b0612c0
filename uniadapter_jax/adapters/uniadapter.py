"""UniAdapter (Lu et al., ICLR 2024; arXiv 2302.06605): one down-projection for all modalities.

Layer i of both towers has ONE down-projection; each tower has its own up-projection. The branch
of a pre-LayerNorm block runs beside the MLP, fed by the residual stream:

    down_i(x) = relu(D_i LN(x) + b_i)
    block     x + mlp(ln_2(x)) + .1 (U_i down_i(x) + u_i)

The paper places it in BLIP; what BLIP's text and fusion layers have is in `uniadapter_blip`. CLIP
has no fusion encoder, and the paper says nothing of it: both its towers have the branch above.

Where towers differ, which the paper's do not, the following is our choice. D_i acts on the first
min(w_v, w_t) channels of both; the wider tower has rows of its own for the others. There are as
many shared slots as text layers; a deeper vision tower spreads over them as in Cross-Modal Adapter
(`slot_of_layer`).

share_down=False gives each tower a down-projection of its own: what the paper compares with.

init=paper: D kaiming-uniform, U of vision normal with std .02, U of text zero, as released for
retrieval. init=identity: both U zero, so that a fresh model computes what the frozen one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, fill_place, slot_of_layer
from uniadapter_jax.adapters.bottleneck import constant, linear, train_linear
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import normal, uniform
from uniadapter_jax.common.types import Array, Float

SCALE = 0.1  # of what a branch adds (paper, section 4.1: s)
EPSILON = 1e-5
STD = 0.02  # of up-projections that do not start at zero
INITS = ("paper", "identity")


class Rows(nnx.Module):
    """LN's and the down-projection's parameters of some channels: "z d", "z d", "z d r"."""

    def __init__(self, slots: int, width: int, fan_in: int, bottleneck: int, rng: Any):
        # torch's kaiming_uniform with a = sqrt(5), as its linear layers have it.
        self.kernel = AdapterParam(uniform(rng, fan_in**-0.5, slots, width, bottleneck))
        self.scale = constant(1.0, slots, width)
        self.bias = constant(0.0, slots, width)


class Shared(nnx.Module):
    """The half that both towers use, and the bias of the down-projection "z r"."""

    def __init__(self, slots: int, width: int, bottleneck: int, rng: Any):
        self.rows = Rows(slots, width, width, bottleneck, rng)
        self.down_bias = constant(0.0, slots, bottleneck)
        self.slots = slots

    def layer_slices(self, tower: str, count: int) -> dict[str, Array]:
        """For a tower of `count` layers: one row a layer of scale, bias, kernel, down_bias."""
        del tower  # both use the same
        slots = slot_of_layer(count, self.slots)
        parts = {
            "scale": self.rows.scale,
            "bias": self.rows.bias,
            "kernel": self.rows.kernel,
            "down_bias": self.down_bias,
        }
        return {name: param[...][slots] for name, param in parts.items()}


class Separate(nnx.Module):
    """A down-projection for each tower, by the tower's name: nothing is shared."""

    def __init__(self, **downs: Shared):
        for tower, down in downs.items():
            setattr(self, tower, down)

    def layer_slices(self, tower: str, count: int) -> dict[str, Array]:
        """What the tower's own has."""
        return getattr(self, tower).layer_slices(tower, count)


class Branch(nnx.Module):
    """A tower's half: its up-projection, and the rows of the channels that only it has."""

    def __init__(
        self,
        count: int,
        width: int,
        shared_width: int,
        *,
        bottleneck: int,
        up_std: float,
        dropout: float,
        rng: Any,
    ):
        own = width - shared_width
        self.rows = nnx.data(Rows(count, own, width, bottleneck, rng) if own else None)
        self.up_kernel = AdapterParam(normal(rng, up_std, count, bottleneck, width))
        self.up_bias = constant(0.0, count, width)
        self.dropout = dropout

    def __call__(
        self, y: Float[Array, "b s d"], x: Float[Array, "b s d"], layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        shared = layer.shared
        assert shared is not None
        if self.rows is not None:
            shared = {**shared, **join_rows(shared, self.rows)}
        down = functions.dropout(project_down(x, shared), self.dropout, layer.key_of("uniadapter"))
        return y + linear(down, self.up_kernel[...] * SCALE, self.up_bias[...] * SCALE)


def join_rows(shared: Mapping[str, Array], rows: Rows) -> dict[str, Array]:
    """scale, bias and kernel of a tower that has channels of its own; of one layer or of all."""
    own = {"scale": rows.scale, "bias": rows.bias, "kernel": rows.kernel}
    return {
        name: jnp.concatenate([shared[name], param[...]], axis=-2 if name == "kernel" else -1)
        for name, param in own.items()
    }


def project_down(x: Float[Array, "b s d"], shared: Mapping[str, Array]) -> Float[Array, "b s r"]:
    """relu(D LN(x) + b) of one layer."""
    normal = functions.layer_norm(x, shared["scale"], shared["bias"], EPSILON)
    return jax.nn.relu(linear(normal, shared["kernel"], shared["down_bias"]))


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a branch beside the MLP of every layer of both towers."""
    config = backbone.config
    check(options)
    width = min(config.vision.width, config.text.width)
    towers = {tower.name: tower for tower in backbone.towers()}
    shared: Shared | Separate
    if options.share_down:
        shared = Shared(towers["text"].layers, width, options.bottleneck, rng)
    else:
        shared = Separate(
            **{
                name: Shared(tower.layers, tower.width, options.bottleneck, rng)
                for name, tower in towers.items()
            }
        )
    fill_place(backbone, "adapters", shared)
    for name, tower in towers.items():
        branch = Branch(
            tower.layers,
            tower.width,
            width if options.share_down else tower.width,
            bottleneck=options.bottleneck,
            up_std=STD if (options.init, name) == ("paper", "vision") else 0.0,
            dropout=options.dropout,
            rng=rng,
        )
        fill_place(tower.blocks, "beside_mlp", branch)
        if options.train_projections:
            train_linear(tower.owner.projection)


def check(options: Any) -> None:
    """Raises `UserError` for options that no backbone can have."""
    if options.bottleneck < 1:
        raise UserError(f"method.bottleneck={options.bottleneck}: at least 1")
    if options.init not in INITS:
        raise UserError(f"method.init={options.init!r}: choose one of {', '.join(INITS)}")
