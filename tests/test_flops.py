"""Useful FLOPs against the formula written out for ViT-B/32, and against what a compiler counts."""

import jax
import pytest
import tiny

from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.config import base_config
from uniadapter_jax.planning.abstract import abstract_partition
from uniadapter_jax.planning.flops import forward_flops, kernel_flops, step_flops
from uniadapter_jax.planning.sizes import known_config

SIZES = {"clips": 8, "frames": 12, "words": 32}
PATCHES = 2 * 8 * 12 * 49 * 3 * 32**2 * 768


def written_out(r):
    """Forward products of ViT-B/32 with two bottlenecks of r channels in each layer."""

    def tower(rows, s, d, e):
        return 12 * rows * s * (8 * d * d + 4 * d * e + 4 * s * d + 8 * d * r)

    pictures = 8 * 12
    joint = 2 * 512 * (pictures * 768 + 8 * 512)
    return tower(pictures, 50, 768, 3072) + tower(8, 32, 512, 2048) + PATCHES + joint


def test_the_formula_of_vit_b_32():
    config = known_config("vit-b-32")
    part = abstract_partition(base_config("cross_modal_adapter"), config, "tpu")
    trained = kernel_flops(config, part.trainable, **SIZES)
    whole = forward_flops(config, part, **SIZES)
    assert whole == written_out(r=8)
    assert trained == written_out(8) - written_out(0)
    attention = 12 * (8 * 12 * 50 * 4 * 50 * 768 + 8 * 32 * 4 * 32 * 512)
    assert step_flops(config, part, **SIZES) == 2 * whole + attention - PATCHES + trained


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_compiler_counts_no_fewer_products(name):
    """XLA counts activations, norms and softmax as well; at these sizes that is less than half."""
    part = tiny.split(name, vision_layers=1, text_layers=1)  # a scan's body counts once
    batch = tiny.batch(clips=8)
    config = part.merge(part.trainable, part.frozen).config
    sizes = {"clips": 8, "frames": 3, "words": 6}

    def forward(trainable, frozen):
        model = part.merge(trainable, frozen)
        return model.encode_frames(batch["frames"]), model.encode_text(batch["text"])

    counted = jax.jit(forward).lower(part.trainable, part.frozen).cost_analysis()["flops"]
    useful = forward_flops(config, part, **sizes)
    assert useful < counted < 1.5 * useful
