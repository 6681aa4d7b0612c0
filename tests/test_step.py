"""What a step is given, seed and schedule, acts in it, though it is no part of its program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uniadapter_jax.common.randomness import stream
from uniadapter_jax.config import base_config
from uniadapter_jax.training.optimizers import lr_schedule, make_optimizer
from uniadapter_jax.training.step import Given, pure_step


class Task:
    """Its loss is the parameter times a random number, as of dropout."""

    def begin(self, state, *of_step):
        return None, state

    def loss(self, model, batch, key, given):
        return model["w"] * jax.random.normal(key), {}


class Part:
    def merge(self, trainable, frozen):
        return trainable


def taken(seed, lr, step=3):
    """(loss, rate, parameter) after one step of an optimizer that was made with another rate."""
    options = base_config().optimizer
    options.recipe, options.lr, options.clip_norm = "adamw_warmup_cosine", 1.0, 0.0
    options.warmup, options.weight_decay = 0.0, 0.0
    params = {"w": jnp.float32(2.0)}
    optimizer = make_optimizer(options, 10, params)
    options.lr = lr
    given = Given.of(seed, lr_schedule(options, 10))
    step_fn = jax.jit(pure_step(Task(), Part(), optimizer, None))
    state = optimizer.init(params)
    trainable, _, _, metrics = step_fn(params, state, {}, {}, {}, np.int32(step), given)
    return float(metrics["loss"]), float(metrics["lr"]), float(trainable["w"])


def test_the_seed_given_makes_the_random_numbers():
    for seed in (0, 7, 2**32 - 1):
        key = jax.random.fold_in(stream(seed, "dropout"), 3)
        np.testing.assert_allclose(taken(seed, 0.1)[0], 2 * jax.random.normal(key), rtol=1e-6)


def test_the_schedule_given_moves_the_parameter():
    """Adam's first step is the rate itself, whatever rate the optimizer was made with."""
    for lr in (0.5, 0.01):
        loss, rate, after = taken(0, lr)
        # Float32 near 2 resolves 1.2e-7, which is 1.2e-5 of the smaller rate.
        np.testing.assert_allclose(2.0 - after, np.sign(loss) * lr, rtol=1e-4)
        cosine = optax.cosine_decay_schedule(lr, 10)(3)
        np.testing.assert_allclose(rate, cosine, rtol=1e-5)
