"""Cross-Modal Adapter (Jiang et al., Pattern Recognition 159, 2025; arXiv 2211.09623).

A bottleneck adapter follows each sub-layer of both CLIP towers, inside the residual:

    a    = quick_gelu(D z + b_d)                       down, r channels, one per tower and layer
    A(z) = z + concat[U_unique a + b_u, U_shared a + b_s]

The last `shared_dim` output channels come from U_shared, b_s: ONE parameter per layer and
sub-layer that both towers use (`Shared`, at home in the backbone's `adapters`). There are as many
shared slots as text layers. Layer i of a tower uses slot i; a vision tower deeper than the text
tower (ViT-L/14: 24 and 12 layers, where the released code fails) uses slot floor(i * L_t / L_v).

In BLIP, which the paper does not have, the same sub-layers of vision, text transformer and decoder
have adapters, and one slice is shared by all; cross-attention has none.

Initialised near, not at, the identity: D and both U are normal with std .01, biases zero.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place, slot_of_layer
from uniadapter_jax.adapters.bottleneck import constant, random_normal
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.linear import Rng
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import BELOW_ONE, at_least
from uniadapter_jax.common.types import Array, Float

SITES = ("attn", "mlp")


class Shared(nnx.Module):
    """The slice of the up-projections that both towers use: kernels "z r i", biases "z i"."""

    def __init__(self, slots: int, bottleneck: int, width: int, std: float, rng: Rng):
        self.attn_kernel = random_normal(rng, std, slots, bottleneck, width)
        self.attn_bias = constant(0.0, slots, width)
        self.mlp_kernel = random_normal(rng, std, slots, bottleneck, width)
        self.mlp_bias = constant(0.0, slots, width)
        self.slots = slots

    def layer_slices(self, tower: str, count: int) -> dict[str, dict[str, Array]]:
        """For a tower of `count` layers: {site: {kernel "z r i", bias "z i"}}, one row a layer."""
        rows = slot_of_layer(count, self.slots)
        identity = np.array_equal(rows, np.arange(self.slots))

        def pick(param: AdapterParam) -> Array:
            return param[...] if identity else param[...][rows]

        return {
            "attn": {"kernel": pick(self.attn_kernel), "bias": pick(self.attn_bias)},
            "mlp": {"kernel": pick(self.mlp_kernel), "bias": pick(self.mlp_bias)},
        }


class Adapter(nnx.Module):
    """The residual branch of one site, stacked over the layers of a tower."""

    def __init__(
        self,
        site: str,
        count: int,
        width: int,
        *,
        bottleneck: int,
        shared_dim: int,
        std: float,
        dropout: float,
        rng: Rng,
    ):
        unique = width - shared_dim
        self.down_kernel = random_normal(rng, std, count, width, bottleneck)
        self.down_bias = constant(0.0, count, bottleneck)
        has_unique = unique > 0
        self.up_kernel = nnx.data(
            random_normal(rng, std, count, bottleneck, unique) if has_unique else None
        )
        self.up_bias = nnx.data(constant(0.0, count, unique) if has_unique else None)
        self.site = site
        self.dropout = dropout

    def __call__(
        self, z: Float[Array, "b s d"], x: Float[Array, "b s d"], layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        a = functions.matmul(z, self.down_kernel[...])
        a = functions.quick_gelu(a + functions.along_last(self.down_bias[...].astype(a.dtype), a))
        a = functions.dropout(a, self.dropout, layer.key_of(f"after_{self.site}"))
        # One product: joining the kernels costs r x d once, joining outputs costs s x d per row.
        kernels, biases = [], []
        if self.up_kernel is not None and self.up_bias is not None:
            kernels.append(self.up_kernel[...])
            biases.append(self.up_bias[...])
        if layer.shared is not None:
            kernels.append(layer.shared[self.site]["kernel"])
            biases.append(layer.shared[self.site]["bias"])
        up = functions.matmul(a, jnp.concatenate(kernels, axis=-1))
        return z + (up + functions.along_last(jnp.concatenate(biases).astype(up.dtype), up))


def attach(backbone: Any, options: Any, rng: Rng) -> None:
    """Puts an adapter after attention and after the MLP of every layer of both towers."""
    config = backbone.config
    r, shared_dim, std = options.bottleneck, options.shared_dim, options.init_std
    narrow = min(config.vision.width, config.text.width)
    if r < 1:
        raise UserError(f"method.bottleneck={r}: at least 1")
    if not 0 <= shared_dim <= narrow:
        raise UserError(
            f"method.shared_dim={shared_dim} must lie in 0..{narrow}: the towers are "
            f"{config.vision.width} (vision) and {config.text.width} (text) wide"
        )
    if shared_dim:
        slots = next(tower.layers for tower in backbone.towers() if tower.name == "text")
        shared = Shared(slots, r, shared_dim, std, rng)
        fill_place(backbone, "adapters", shared)
    for tower in backbone.towers():
        for site in SITES:
            adapter = Adapter(
                site,
                tower.layers,
                tower.width,
                bottleneck=r,
                shared_dim=shared_dim,
                std=std,
                dropout=options.dropout,
                rng=rng,
            )
            fill_place(tower.blocks, f"after_{site}", adapter)


METHOD = Method(
    name="cross_modal_adapter",
    attach=attach,
    options={"bottleneck": 8, "shared_dim": 16, "init_std": 0.01, "dropout": 0.0},
    ranges={
        "bottleneck": at_least(1),
        "shared_dim": at_least(0),
        "init_std": at_least(0),
        "dropout": BELOW_ONE,
    },
    layered=True,
)
