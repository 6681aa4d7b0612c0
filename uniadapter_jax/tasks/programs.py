"""Programs of an evaluation as `plan` compiles them: to features, which are compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Program, Runnable
from uniadapter_jax.tasks.encoding import TEXTS_PER_CLIP, make_encoders

FRAMES, TEXT = "encode frames", "encode text"  # to features
STATES = "encode states"  # of clips, which texts are read with


def encoding_programs(run: Runnable) -> dict[str, Program]:
    """Features of clips, and of texts."""
    frames, text = make_encoders(run.task, run.partition, run.mesh)
    rows = meshes.batch_sharding(run.mesh)
    ids = (eval_clips(run) * TEXTS_PER_CLIP, run.config.data.words)
    batch = {"text": jax.ShapeDtypeStruct(ids, jnp.int32)}
    return {
        FRAMES: Program(frames, lambda: given_frames(run)),
        TEXT: Program(text, lambda: {"batch": meshes.placed(batch, rows)}),
    }


def eval_clips(run: Runnable) -> int:
    """Clips of an evaluation batch."""
    return meshes.round_up(run.mesh, run.config.eval.batch_size)


def given_frames(run: Runnable) -> dict[str, PyTree]:
    """The batch of a program that encodes clips."""
    clips, frames, size = eval_clips(run), run.config.data.frames, run.model_config.image_size
    batch = {
        "frames": jax.ShapeDtypeStruct((clips, frames, size, size, 3), jnp.uint8),
        "frame_mask": jax.ShapeDtypeStruct((clips, frames), jnp.bool_),
    }
    return {"batch": meshes.placed(batch, meshes.batch_sharding(run.mesh))}


def states_of(run: Runnable, encode: Any) -> PyTree:
    """The shapes that `encode` makes of a batch."""
    return jax.eval_shape(
        encode, run.partition.trainable, run.partition.frozen, given_frames(run)["batch"]
    )
