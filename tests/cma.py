"""Our Cross-Modal Adapter on the tensors of the authors' code, and what it gives under their names.

Used by the test on golden numbers and by the script that made them (`golden/make_cma.py`).
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from ml_collections import ConfigDict

from uniadapter_jax.adapters import get_method
from uniadapter_jax.config import base_config
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.losses import retrieval_loss
from uniadapter_jax.optimizers import make_optimizer
from uniadapter_jax.partition import flat_names, partition
from uniadapter_jax.randomness import generator
from uniadapter_jax.similarity import SIMILARITIES
from uniadapter_jax.weights import cma_names
from uniadapter_jax.weights.directory import load_backbone
from uniadapter_jax.weights.safetensors_file import read_safetensors
from uniadapter_jax.weights.sources import Hints

RECIPE = {"lr": 1e-3, "weight_decay": 0.2, "warmup": 0.1, "clip_norm": 1.0}
TOTAL_STEPS = 20
# Compiling takes far longer than running.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def load(tensors, heads, scratch):
    """The partition of an adapted model, from {official name: array} by way of `convert`."""
    scratch = pathlib.Path(scratch)
    file = scratch / "checkpoint.safetensors"
    safetensors.numpy.save_file({f"clip.{k}": v for k, v in tensors.items()}, file)
    convert_weights(str(file), str(scratch / "made"), hints=Hints(heads=heads))
    model = load_backbone(str(scratch / "made")).model
    written = json.loads((scratch / "made/adapter/adapter_config.json").read_text())
    method = get_method(written["method"])
    method.attach(model, ConfigDict(written["options"]), generator(0, "adapters"))
    part = partition(model, method.trainable)
    adapter = read_safetensors(scratch / "made/adapter/adapter_model.safetensors")
    assert set(adapter) == set(flat_names(part.trainable))
    part.trainable = jax.tree.map_with_path(
        lambda path, _: jnp.asarray(adapter[".".join(entry.key for entry in path)]), part.trainable
    )
    return part


def as_ours(pixels, mask, text):
    """A batch of theirs ("b f 3 H W", "b f", "b l") as one of ours."""
    return {
        "frames": jnp.asarray(np.moveaxis(np.asarray(pixels, np.float32), 2, -1)),
        "frame_mask": jnp.asarray(mask, bool),
        "text": jnp.asarray(text, jnp.int32),
        "item": jnp.arange(len(text), dtype=jnp.int32),
    }


def official(tree):
    """A nested dict like the trainables under the official names."""
    return cma_names.to_official({k: np.asarray(v) for k, v in flat_names(tree).items()})


def loss_function(part, similarity):
    """(trainable, batch) -> ((loss, {text, frames, sims}), gradients), jitted."""
    options = base_config().task

    def loss(trainable, batch):
        model = part.merge(trainable, part.frozen)
        text, frames = model.encode_text(batch["text"]), model.encode_frames(batch["frames"])
        mask, log_scale = batch["frame_mask"], model.logit_scale[...]
        loss, _ = retrieval_loss(
            text,
            frames,
            mask,
            batch["item"],
            log_scale,
            similarity=similarity,
            temperature=options.temperature,
            duplicates=options.duplicates,
        )
        sims = SIMILARITIES[similarity](text, frames, mask, options.temperature)
        return loss, {"text": text, "frames": frames, "sims": jnp.exp(log_scale) * sims}

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)


def train(part, batches, loss_and_grads):
    """The trainables after a step of the paper's recipe on each batch."""
    config = base_config().optimizer
    config.update({"recipe": "bert_adam_warmup_cosine", **RECIPE})
    optimizer = make_optimizer(config, TOTAL_STEPS, part.trainable)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def move(trainable, state, grads):
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state

    trainable, state = part.trainable, jax.jit(optimizer.init)(part.trainable)
    for batch in batches:
        trainable, state = move(trainable, state, loss_and_grads(trainable, batch)[1])
    return trainable


def apart(found, expected):
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def differences(case, tensors, heads, scratch, similarities=("mean_pool", "q_score")):
    """{what: how far ours are from the authors'} for one case of their numbers.

    The last of `similarities` is trained with. `case` has pixels, mask, text (a leading axis of
    batches), text_features, frame_features and, per similarity, its matrix, loss, `grad.NAME` and
    `after.NAME` by official name.
    """
    part = load(tensors, heads, scratch)
    batches = [
        as_ours(*parts) for parts in zip(case["pixels"], case["mask"], case["text"], strict=True)
    ]
    result = {}
    for similarity in similarities:
        loss_and_grads = loss_function(part, similarity)
        (loss, found), grads = loss_and_grads(part.trainable, batches[0])
        result[similarity] = apart(found["sims"], case[similarity])
        result[f"{similarity}.loss"] = apart(loss, case[f"{similarity}.loss"])
        result |= _by_name(case, f"{similarity}.grad.", official(grads))
    result["text_features"] = apart(found["text"], case["text_features"])
    result["frame_features"] = apart(found["frames"], case["frame_features"])
    trained = train(part, batches, loss_and_grads)
    return result | _by_name(case, "after.", official(trained))


def _by_name(case, prefix, found):
    expected = {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}
    assert set(found) == set(expected)
    return {prefix + name: apart(found[name], value) for name, value in expected.items()}
