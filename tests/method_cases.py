"""Methods with weights that are made from names: used by golden tests and the script behind them.

Every parameter, the backbone's and the method's, is drawn by its dotted path, so that a golden file
holds results alone.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import MATCHING, BLIPConfig
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig

EOS = 63
CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 14,
        "eos_token_id": EOS,
    },
}
# {case: (family, method, options)}; of a BLIP the vision tower alone, a plain ViT.
CASES = {
    "maple": ("clip", "maple", {"prompts": 3, "depth": 2}),
    "coop": ("clip", "coop", {"tokens": 3}),
    "vl_prompt": ("clip", "vl_prompt", {"prompts": 3, "prefix": 2, "suffix": 2}),
    "unipt": ("clip", "unipt", {"factor": 2}),
    "adaptformer": ("vit", "adaptformer", {"bottleneck": 5}),
    "ssf": ("vit", "ssf", {}),
    "vpt_deep": ("vit", "vpt_deep", {"prompts": 3}),
}


def value(path, shape):
    """Random numbers of that name; what scales is near one."""
    rng, last = np.random.default_rng(zlib.crc32(path.encode())), path.rpartition(".")[2]
    std = 0.2 if len(shape) < 3 and "kernel" not in last else shape[-2] ** -0.5
    return (rng.standard_normal(shape) * std + (last == "scale")).astype(np.float32)


def fill(model):
    """Gives every parameter its value."""
    state = nnx.state(model, graph=True)
    values = {path: value(path, leaf.shape) for path, leaf in _flat(state).items()}
    flat = [jnp.asarray(values[path]) for path in _flat(state)]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), flat))
    return model


def _flat(state):
    return flat_names(nnx.to_pure_dict(state))


def backbone(family):
    """The bare model of a case."""
    if family == "clip":
        return fill(CLIP(CLIPConfig.from_huggingface(CLIP_CONFIG), rng=None))
    config = tiny.blip_config(parts=(MATCHING,))
    config["vision_config"] |= {"intermediate_size": 96, "image_size": 16}
    return fill(BLIP(BLIPConfig.from_huggingface(config), rng=None))


def inputs():
    """(normalised pixels "b H W 3", ids "n l" of two lengths)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, EOS - 1, (3, 9))
    ids[0, 8], ids[1, 5], ids[2, 3] = EOS, EOS, EOS
    ids[1, 6:], ids[2, 4:] = 0, 0
    return rng.standard_normal((2, 16, 16, 3)).astype(np.float32), ids.astype(np.int32)


def loss(features):
    """A number that every feature matters to."""
    return sum(
        (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()
        for y in features.values()
    )


def ours(case):
    """{what: array}: features, and gradients by the path of what trains."""
    family, name, options = CASES[case]
    model, method = backbone(family), get_method(name)
    chosen = ConfigDict({**method.options, **options})
    method.attach(model, chosen, None)
    part = partition(fill(model), method.filter(chosen))
    pixels, ids = inputs()

    def run(trainable):
        model = part.merge(trainable, part.frozen)
        features = {"pictures": model.encode_images(pixels)}
        if family == "clip":
            features["texts"] = model.encode_text(ids)
        else:  # the state of the class token
            features["pictures"] = features["pictures"][:, 0]
        return loss(features), features

    gradient, features = jax.jit(jax.grad(run, has_aux=True))(part.trainable)
    grads = flat_names(gradient)
    if family == "vit":
        grads = {path: grad for path, grad in grads.items() if path.startswith("vision.")}
    return features | {f"grad.{path}": grad for path, grad in grads.items()}
