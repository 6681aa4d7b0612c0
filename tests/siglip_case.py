"""A tiny SigLIP for tests: sizes of which no two are alike, and batches of it."""

import jax.numpy as jnp
import numpy as np

from uniadapter_jax.backbones.siglip import SigLIP
from uniadapter_jax.backbones.siglip_config import SigLIPConfig
from uniadapter_jax.common.randomness import generator

CONFIG = {
    "model_type": "siglip",
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 92,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 18,  # two pixels more than whole patches
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 60,
        "max_position_embeddings": 12,
        "projection_size": 48,
    },
}


def siglip(seed=0, **options):
    return SigLIP(SigLIPConfig.from_huggingface(CONFIG), rng=generator(seed, "backbone"), **options)


def batch(clips=8, frames=2, words=6, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(2, 60, (clips, words), np.int32)
    text[:, -1] = 1
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (clips, frames, 18, 18, 3), np.uint8)),
        "frame_mask": jnp.ones((clips, frames), bool),
        "text": jnp.asarray(text),
        "item": jnp.arange(clips, dtype=jnp.int32),
    }
