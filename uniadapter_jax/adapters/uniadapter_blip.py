"""UniAdapter in BLIP, as its authors place it (arXiv 2302.06605, sections 3.2 and 3.3).

Layer i of the vision tower, of the text transformer and of the decoder use one adapter with one
down-projection, down = relu(D LN(x) + b):

    vision        x + mlp(ln_2(x)) + A_v(x)             A_v(x) = .1 (U_v down(x) + u_v)
    text          y + A_t(h)                            A_t(h) = .1 (U_t down(h) + u_t)
    fusion        y + A_t(h) + A_m(c)
                  A_m(c) = .1 LN_x((U_m + U_t) down(c) + u_m + u_t)

where h is the state after self-attention, c after cross-attention and y the layer's output: A_t(h)
in a fusion layer is the query residual. Keys and values of cross-attention get in every layer

    scale * (W_up (W_down e + b_down) + b_up)

of the raw states e, without a non-linearity, from one pair of adapters per text transformer.

init=paper: D kaiming-uniform, U_t zero, the others normal with std .02. LN_x normalises even a
small U_m, so that is not the frozen model. init=identity: all U, and W_up of keys and values, zero.

What the paper's ablations leave out can be left out: share_down=False gives vision, text and fusion
a D, a LN and a b each; query_residual=False leaves A_t(h) out of fusion layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters import uniadapter
from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.bottleneck import constant, linear, train_linear
from uniadapter_jax.adapters.uniadapter import (
    EPSILON,
    INITS,
    SCALE,
    STD,
    Branch,
    Rows,
    Shared,
    check,
    join_rows,
    project_down,
)
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.ranges import BELOW_ONE, at_least
from uniadapter_jax.common.types import Array, Float

_OF_TEXT = (
    *("text_kernel", "text_bias", "cross_kernel", "cross_bias"),
    *("ln_cross_scale", "ln_cross_bias"),
)


class SharedWithText(Shared):
    """Parameters that all layers use, and those of text, fusion and decoder layers beside them.

    ln_cross_scale, ln_cross_bias are LN_x; as released they do not train (`train_cross_norm`).
    """

    def __init__(self, config: BLIPConfig, options: Any, rng: Any):
        vision, text, paper = config.vision, config.text, options.init == "paper"
        slots, text_width, r = text.layers, text.width, options.bottleneck
        width = min(vision.width, text_width) if options.share_down else text_width
        super().__init__(slots, width, r, rng)
        own = text_width - width
        self.text_rows = nnx.data(Rows(slots, own, text_width, r, rng) if own else None)
        self.text_kernel = constant(0.0, slots, r, text_width)
        self.text_bias = constant(0.0, slots, text_width)
        self.cross_kernel = AdapterParam(normal(rng, STD if paper else 0.0, slots, r, text_width))
        self.cross_bias = constant(0.0, slots, text_width)
        kind = AdapterParam if options.train_cross_norm else nnx.Param
        self.ln_cross_scale = kind(jnp.ones((slots, text_width), jnp.float32))
        self.ln_cross_bias = kind(jnp.zeros((slots, text_width), jnp.float32))
        self.vision_down, self.fusion_down = nnx.data(None), nnx.data(None)
        if not options.share_down:
            self.vision_down = Shared(vision.layers, vision.width, r, rng)
            self.fusion_down = Shared(slots, text_width, r, rng)

    def layer_slices(self, tower: str, count: int) -> dict[str, Any]:
        """For vision what it shares; for text and decoder also their up-projections and LN_x.

        A down-projection that only fusion has is under `fusion`.
        """
        if tower == "vision" and self.vision_down is not None:
            return self.vision_down.layer_slices(tower, count)
        shared: dict[str, Any] = super().layer_slices(tower, count)
        if tower == "vision":
            return shared
        if self.fusion_down is not None:
            shared["fusion"] = self.fusion_down.layer_slices(tower, count)
        if self.text_rows is not None:
            shared |= join_rows(shared, self.text_rows)
        return shared | {name: getattr(self, name)[...] for name in _OF_TEXT}


def _down(
    x: Float[Array, "b l d"], layer: scan.LayerInputs, dropout: float, name: str
) -> tuple[Mapping[str, Array], Float[Array, "b l r"]]:
    """The slice of `SharedWithText` that a layer has, and what it makes of x."""
    assert layer.shared is not None
    key = layer.key_of(f"uniadapter.{name}")
    down = project_down(x, layer.shared.get(name, layer.shared))
    return layer.shared, functions.dropout(down, dropout, key)


class TextBranch(nnx.Module):
    """A_t; its parameters are in `SharedWithText`.

    in_fusion: whether it acts in fusion layers, too, as the query residual.
    """

    def __init__(self, dropout: float, in_fusion: bool):
        self.dropout, self.in_fusion = dropout, in_fusion

    def __call__(
        self, y: Float[Array, "b l d"], h: Float[Array, "b l d"], layer: scan.LayerInputs
    ) -> Float[Array, "b l d"]:
        shared, down = _down(h, layer, self.dropout, "text")
        return y + linear(down, shared["text_kernel"] * SCALE, shared["text_bias"] * SCALE)


class FusionBranch(nnx.Module):
    """A_m; its parameters are in `SharedWithText`."""

    def __init__(self, dropout: float):
        self.dropout = dropout

    def __call__(
        self, y: Float[Array, "b l d"], c: Float[Array, "b l d"], layer: scan.LayerInputs
    ) -> Float[Array, "b l d"]:
        shared, down = _down(c, layer, self.dropout, "fusion")
        # One product for both up-projections.
        kernel = shared["cross_kernel"] + shared["text_kernel"]
        up = linear(down, kernel, shared["cross_bias"] + shared["text_bias"])
        scale, bias = shared["ln_cross_scale"] * SCALE, shared["ln_cross_bias"] * SCALE
        return y + functions.layer_norm(up, scale, bias, EPSILON)


class StatesAdapter(nnx.Module):
    """An adapter of the media's states: added to keys, or values, of all cross-attentions."""

    def __init__(self, attended: int, width: int, bottleneck: int, paper: bool, rng: Any):
        self.scale = AdapterParam(jnp.ones((), jnp.float32))
        self.down_kernel = AdapterParam(normal(rng, STD, attended, bottleneck))
        self.down_bias = constant(0.0, bottleneck)
        self.up_kernel = AdapterParam(normal(rng, STD if paper else 0.0, bottleneck, width))
        self.up_bias = constant(0.0, width)

    def __call__(self, states: Float[Array, "m t e"]) -> Float[Array, "m t d"]:
        down = linear(states, self.down_kernel[...], self.down_bias[...])
        scale = self.scale[...]
        return linear(down, self.up_kernel[...] * scale, self.up_bias[...] * scale)


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Fills the places of a backbone whose texts attend to pictures (BLIP), or of two towers."""
    fuses = any("cross" in tower.blocks.SUBLAYERS for tower in backbone.towers())
    (attach_to_blip if fuses else uniadapter.attach)(backbone, options, rng)


def attach_to_blip(backbone: BLIP, options: Any, rng: np.random.Generator | None) -> None:
    """Fills the places of the vision tower, the text transformer and, if there is one, the decoder.

    With `train_heads`, the projections and the matching head train, too. A `key_value_bottleneck`
    of 0 leaves keys and values as they are.
    """
    check(options)
    if options.key_value_bottleneck < 0:
        raise UserError(f"method.key_value_bottleneck={options.key_value_bottleneck}: at least 0")
    config = backbone.config
    vision, text = config.vision, config.text
    paper = options.init == "paper"
    towers = {tower.name: tower for tower in backbone.towers()}
    fill_place(backbone, "adapters", SharedWithText(config, options, rng))
    branch = Branch(
        towers["vision"].layers,
        vision.width,
        min(vision.width, text.width) if options.share_down else vision.width,
        bottleneck=options.bottleneck,
        up_std=STD if paper else 0.0,
        dropout=options.dropout,
        rng=rng,
    )
    fill_place(towers.pop("vision").blocks, "beside_mlp", branch)
    for name, tower in towers.items():
        # The decoder attends to a question's states.
        attended = vision.width if name == "text" else text.width
        fill_place(tower.blocks, "beside_text", TextBranch(options.dropout, options.query_residual))
        fill_place(tower.blocks, "beside_fusion", FusionBranch(options.dropout))
        for place in ("cross_key", "cross_value") if options.key_value_bottleneck else ():
            adapter = StatesAdapter(attended, text.width, options.key_value_bottleneck, paper, rng)
            fill_place(tower.owner, place, adapter)
    if options.train_heads:
        for head in (backbone.vision_proj, backbone.text_proj, backbone.itm_head):
            if head is not None:
                train_linear(head)


METHOD = Method(
    name="uniadapter",
    attach=attach,
    options={
        "bottleneck": 8,
        "init": "paper",
        "dropout": 0.0,
        "train_projections": False,  # CLIP: its two projections
        "train_heads": True,  # BLIP: its two projections and the matching head
        "train_cross_norm": False,  # BLIP: LN_x
        "key_value_bottleneck": 64,  # BLIP: of the adapters of keys and values; 0: none
        "share_down": True,  # one down-projection for all modalities; False: one each
        "query_residual": True,  # BLIP: A_t(h) in fusion layers
    },
    ranges={
        "bottleneck": at_least(1),
        "dropout": BELOW_ONE,
        "key_value_bottleneck": at_least(0),
    },
    choices={"init": INITS},
    layered=True,
)
