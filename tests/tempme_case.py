"""TempMe on a tiny CLIP with weights made from names: for golden tests and the script behind them.

Layers: 0 merges per frame, 1 joins two of four frames, 2 merges within two, 3 joins the two, 4
merges within all.
"""

import jax
import jax.numpy as jnp
import method_cases
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common.randomness import generator

METHOD = get_method("tempme")
EOS = method_cases.EOS
FRAMES, RANK = 4, 3
OPTIONS = {"rank": RANK, "frames": FRAMES, "joins": ("4:2", "2:2"), "merged": 2}
CONFIG = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 14,
        "eos_token_id": EOS,
    },
}


def backbone(**options):
    """The bare model."""
    return method_cases.fill(CLIP(CLIPConfig.from_huggingface(CONFIG), rng=None, **options))


def attached(model, **options):
    """The partition of a model with the method."""
    chosen = ConfigDict({**METHOD.options, **OPTIONS, **options})
    METHOD.attach(model, chosen, generator(0, "adapters"))
    return partition(method_cases.fill(model), METHOD.filter(chosen))


def clips():
    """Normalised frames "b f H W 3"."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, FRAMES, 32, 32, 3)).astype(np.float32)


def texts():
    """Ids "n l" of two lengths."""
    return method_cases.inputs()[1]


def ours():
    """{what: array}: features, and gradients by the path of what trains."""
    part = attached(backbone())

    def run(trainable):
        model = part.merge(trainable, part.frozen)
        features = {
            "frames": model.encode_frames(jnp.asarray(clips())),
            "texts": model.encode_text(jnp.asarray(texts())),
        }
        return method_cases.loss(features), features

    gradient, features = jax.jit(jax.grad(run, has_aux=True))(part.trainable)
    return features | {f"grad.{path}": grad for path, grad in flat_names(gradient).items()}
