"""Tiny models for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common.randomness import generator

EOS = 99


def hf_config(vision_layers=4, text_layers=2, **vision):
    """A `config.json` of a CLIP that trains in milliseconds."""
    return {
        "model_type": "clip",
        "projection_dim": 24,
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            **vision,
        },
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "eos_token_id": EOS,
        },
    }


def clip(method=None, vision_layers=4, text_layers=2, seed=0, options=(), **kwargs):
    """A CLIP with random weights, with a method attached if one is named."""
    config = CLIPConfig.from_huggingface(hf_config(vision_layers, text_layers))
    model = CLIP(config, rng=generator(seed, "backbone"), **kwargs)
    if method:
        chosen = get_method(method)
        merged = ConfigDict({**chosen.options, **dict(options)})
        chosen.attach(model, merged, generator(seed, "adapters"))
    return model


def split(method, **kwargs):
    """The partition of a tiny CLIP with that method."""
    dtype = kwargs.get("dtype", "float32")
    return partition(clip(method, **kwargs), get_method(method).trainable, dtype)


def batch(clips=4, frames=3, words=6, seed=0):
    """Random frames and texts."""
    keys = jax.random.split(jax.random.key(seed), 2)
    pixels = jax.random.randint(keys[0], (clips, frames, 32, 32, 3), 0, 256).astype(jnp.uint8)
    text = jax.random.randint(keys[1], (clips, words), 1, 98).at[:, -1].set(EOS)
    return {
        "frames": pixels,
        "frame_mask": jnp.ones((clips, frames), bool),
        "text": text.astype(jnp.int32),
        "item": jnp.arange(clips, dtype=jnp.int32),
    }


def blip_config(parts=(MATCHING, ANSWERING), text_layers=2, **text):
    """A `config.json` of a BLIP with both heads and decoder; [DEC] is 58, [ENC] 59."""
    return {
        "architectures": list(parts),
        "model_type": "blip",
        "image_text_hidden_size": 16,
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "vocab_size": 60,
            "max_position_embeddings": 12,
            "bos_token_id": 58,
            "sep_token_id": 5,
            **text,
        },
    }


def blip(seed=0, parts=(MATCHING, ANSWERING), text_layers=2, **kwargs):
    """A BLIP with random weights, biases included: BERT's own start would hide them."""
    config = BLIPConfig.from_huggingface(blip_config(parts, text_layers))
    model = BLIP(config, rng=generator(seed, "backbone"), **kwargs)
    rng = generator(seed, "biases")
    state = nnx.state(model)

    def noisy(x):
        return jnp.asarray(np.asarray(x) + 0.2 * rng.standard_normal(x.shape), jnp.float32)

    nnx.update(model, jax.tree.map(noisy, state))
    return model
