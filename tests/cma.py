"""Our Cross-Modal Adapter on the tensors of the authors' code, and what it gives under their names.

Used by the test on golden numbers and by the script that made them (`golden/make_cma.py`).
"""

import contextlib
import pathlib

import jax
import numpy as np
import safetensors.numpy

from uniadapter_jax import load_model
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.testing import loss_and_grads, recipe_steps, reference_batch
from uniadapter_jax.weights.sources import Hints

RECIPE = {
    "recipe": "bert_adam_warmup_cosine",
    "lr": 1e-3,
    "weight_decay": 0.2,
    "warmup": 0.1,
    "clip_norm": 1.0,
    "total_steps": 20,
}


def load(tensors, heads, scratch):
    """An adapted model from {official name: array} by way of `convert`."""
    scratch = pathlib.Path(scratch)
    file = scratch / "checkpoint.safetensors"
    safetensors.numpy.save_file({f"clip.{k}": v for k, v in tensors.items()}, file)
    convert_weights(str(file), str(scratch / "made"), hints=Hints(heads=heads))
    return load_model(scratch / "made", scratch / "made/adapter")


def apart(found, expected):
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@contextlib.contextmanager
def compiling_fast():
    """Compiling takes far longer than running what is tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def differences(case, tensors, heads, scratch, similarities=("mean_pool", "q_score")):
    """{what: how far ours are from the authors'} for one case of their numbers.

    The last of `similarities` is trained with. `case` has pixels, mask, text (a leading axis of
    batches), text_features, frame_features and, per similarity, its matrix, loss, `grad.NAME` and
    `after.NAME` by official name without `clip.`.
    """
    model = load(tensors, heads, scratch)
    scale = np.exp(np.float32(model.partition.frozen["logit_scale"]))
    batches = [
        reference_batch(*parts)
        for parts in zip(case["pixels"], case["mask"], case["text"], strict=True)
    ]
    frames = batches[0]["frames"]
    features = model.encode_frames(frames.reshape(-1, *frames.shape[2:]))
    features = features.reshape(*frames.shape[:2], -1)
    text = model.encode_text(batches[0]["text"])
    result = {
        "text_features": apart(text, case["text_features"]),
        "frame_features": apart(features, case["frame_features"]),
    }
    for similarity in similarities:
        model.task["similarity"] = similarity
        cosines = model.similarity(text, features, batches[0]["frame_mask"])
        losses, grads = loss_and_grads(model, batches[0])
        result[similarity] = apart(scale * cosines, case[similarity])
        result[f"{similarity}.loss"] = apart(losses["loss"], case[f"{similarity}.loss"])
        result |= _by_name(case, f"{similarity}.grad.", grads)
    trained = recipe_steps(model, batches, RECIPE, len(batches))
    return result | _by_name(case, "after.", trained)


def _by_name(case, prefix, found):
    expected = {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}
    assert set(found) == {f"clip.{name}" for name in expected}
    return {prefix + k: apart(found[f"clip.{k}"], value) for k, value in expected.items()}
