"""Recipes against float64 re-implementations, and whole-tree freezing against split trees."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.training.optimizers import (
    RECIPES,
    clip_by_norm,
    decays,
    frozen_partition,
    lr_schedule,
    make_optimizer,
)


def config(recipe="bert_adam_warmup_cosine", **changes):
    values = {"lr": 1e-2, "weight_decay": 0.2, "warmup": 0.1, "clip_norm": 1.0, **changes}
    return ml_collections.ConfigDict({"recipe": recipe, **values})


def tree(seed=0, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"up": {"kernel": (4, 3), "bias": (3,)}, "ln": {"scale": (4,)}, "logit_scale": ()}
    return jax.tree.map(
        lambda s: np.asarray(rng.normal(size=s) * scale, dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def reference(recipe, params, gradients, *, lr, wd, warmup, clip, steps):
    """The update rules as the papers' code states them, leaf by leaf in float64."""
    flat = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    everything = recipe == "adamw_cosine_per_epoch"
    decayed = [everything or x.ndim == 2 for x in flat]
    fall, eps = (0.999, 1e-8) if everything else (0.98, 1e-6)
    m, v = [0 * x for x in flat], [0 * x for x in flat]
    for t in range(steps):
        g = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradients[t])]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        g = [x * min(1, clip / (norm + 1e-6)) for x in g]
        x = t / steps
        if x < warmup:
            rate = lr * x / warmup
        elif recipe == "bert_adam_warmup_cosine":
            rate = lr * 0.5 * (1 + np.cos(np.pi * x))
        else:
            rate = lr * 0.5 * (1 + np.cos(np.pi * (x - warmup) / (1 - warmup)))
        for i, grad in enumerate(g):
            m[i] = 0.9 * m[i] + 0.1 * grad
            v[i] = fall * v[i] + (1 - fall) * grad**2
            mean, square = m[i], v[i]
            if recipe.startswith("adamw"):
                mean, square = mean / (1 - 0.9 ** (t + 1)), square / (1 - fall ** (t + 1))
            step = mean / (np.sqrt(square) + eps)
            if decayed[i]:
                step = step + wd * flat[i]
            flat[i] = flat[i] - rate * step
    return flat


def run(tx, params, gradients):
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_equals_float64(recipe):
    steps = 25
    params = tree()
    gradients = [tree(seed=t + 1, scale=10.0 ** (t % 4 - 2)) for t in range(steps)]
    got, state = run(make_optimizer(config(recipe), steps, params), params, gradients)
    wanted = reference(
        recipe, params, gradients, lr=1e-2, wd=0.2, warmup=0.1, clip=1.0, steps=steps
    )
    for ours, theirs in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-7)
    assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}


def test_adamw_equals_optax():
    steps, params = 10, tree()
    gradients = [tree(seed=t + 1) for t in range(steps)]
    rate = lr_schedule(config("adamw_warmup_cosine"), steps)
    theirs = optax.adamw(rate, 0.9, 0.98, 1e-6, weight_decay=0.2, mask=decays)
    ours = make_optimizer(config("adamw_warmup_cosine", clip_norm=0), steps, params)
    got, _ = run(ours, params, gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax's own adamw mixes int32 and float32
        wanted, _ = run(theirs, params, gradients)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_rate_per_epoch_stays_within_one_and_follows_the_cosine_of_epochs():
    schedule = lr_schedule(config("adamw_cosine_per_epoch", warmup=0.0), 24, epoch_steps=4)
    rates = [float(schedule(step)) for step in range(24)]
    wanted = [1e-2 * 0.5 * (1 + np.cos(np.pi * (step // 4) / 6)) for step in range(24)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


def test_bert_adam_schedule_starts_at_zero_and_drops_after_warmup():
    rate = lr_schedule(config(lr=2.0), 1000)
    assert rate(0) == 0
    assert rate(99) == pytest.approx(2 * 0.99, rel=1e-6)
    assert rate(100) == pytest.approx(2 * 0.97552826, rel=1e-6)
    assert rate(1000) == pytest.approx(0, abs=1e-6) and rate(5000) == pytest.approx(0, abs=1e-6)


def test_adamw_schedule_is_continuous():
    rate = lr_schedule(config("adamw_warmup_cosine", lr=2.0), 1000)
    assert rate(0) == 0 and rate(100) == pytest.approx(2.0, rel=1e-6)
    values = np.asarray(rate(jnp.arange(1001)))
    assert np.abs(np.diff(values)).max() < 0.021


def test_no_warmup():
    for recipe in RECIPES:
        assert lr_schedule(config(recipe, lr=2.0, warmup=0.0), 10)(0) == 2.0


def test_clip_adds_its_epsilon_to_the_norm():
    gradient = {"a": jnp.asarray([3e-6, 4e-6])}
    clipped, _ = clip_by_norm(5e-6).update(gradient, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], np.array([3e-6, 4e-6]) * 5 / 6, rtol=1e-6)
    kept, _ = clip_by_norm(1.0).update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(kept["a"], gradient["a"])


def test_decay_spares_biases_and_scales():
    assert decays(tree()) == {
        "up": {"kernel": True, "bias": False},
        "ln": {"scale": False},
        "logit_scale": False,
    }
    assert decays({"up_shared_bias": 0, "scaler": {"w": 0}}) == {
        "up_shared_bias": False,
        "scaler": {"w": True},
    }


def test_multipliers_scale_whole_steps_by_path():
    params, gradients = tree(), [tree(seed=1), tree(seed=2)]
    plain, _ = run(make_optimizer(config(), 5, params), params, gradients)
    grouped = config(lr_multipliers={"^up/": 10.0, "scale$": 0.0})
    scaled, _ = run(make_optimizer(grouped, 5, params), params, gradients)
    step = jax.tree.map(lambda a, b, p: (a - p, b - p), plain, scaled, params)
    np.testing.assert_allclose(step["up"]["bias"][1], 10 * step["up"]["bias"][0], rtol=1e-3)
    np.testing.assert_array_equal(step["ln"]["scale"][1], 0)


def test_a_multiplier_that_matches_nothing_raises():
    with pytest.raises(UserError, match="heads"):
        make_optimizer(config(lr_multipliers={"heads": 10.0}), 5, tree())


def test_unknown_recipe_and_empty_run_raise():
    with pytest.raises(UserError, match="bert_adam_warmup_cosine"):
        make_optimizer(config("adam"), 5, tree())
    with pytest.raises(UserError, match="total_steps=0"):
        make_optimizer(config(), 0, tree())


def whole_and_labels():
    whole = {
        "adapter": tree(),
        "backbone": {"kernel": jnp.ones((300, 300), jnp.bfloat16), "bias": -jnp.zeros(7)},
        "tail": {"kernel": np.asarray(tree(seed=3)["up"]["kernel"])},
    }
    return whole, {"adapter": "trainable", "backbone": "frozen", "tail": "trainable"}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("form", ["prefix", "tree", "callable"])
def test_frozen_partition_equals_the_split_path_bit_for_bit(recipe, form):
    whole, labels = whole_and_labels()
    full_labels = jax.tree.map(lambda x, part: jax.tree.map(lambda _: x, part), labels, whole)
    form_of = {"prefix": labels, "tree": full_labels, "callable": lambda p: full_labels}
    options = config(recipe, lr_multipliers={"tail": 3.0})
    split = {name: whole[name] for name in ("adapter", "tail")}
    tx = make_optimizer(options, 5, split)
    frozen_tx = frozen_partition(make_optimizer(options, 5, whole), form_of[form])

    def gradients(seed, params):
        rng = np.random.default_rng(seed)
        draw = lambda p: jnp.asarray(rng.normal(size=np.shape(p)), np.float32).astype(p.dtype)  # noqa: E731
        return jax.tree.map(draw, params)

    params, state, whole_state = whole, tx.init(split), frozen_tx.init(whole)
    update, whole_update = jax.jit(tx.update), jax.jit(frozen_tx.update)
    for step in range(4):
        gradient = gradients(step, params)
        gradient["backbone"] = jax.tree.map(lambda g: g * 1000, gradient["backbone"])
        ours, whole_state = whole_update(gradient, whole_state, params)
        part = {name: gradient[name] for name in split}
        theirs, state = update(part, state, split)
        split = optax.apply_updates(split, theirs)
        params = optax.apply_updates(params, ours)
        for name, value in split.items():
            for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(value), strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(
        jax.tree.leaves(params["backbone"]), jax.tree.leaves(whole["backbone"]), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert bytes_of(whole_state) == bytes_of(state)


def bytes_of(state):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))


def test_frozen_leaves_have_no_moments_even_with_any_optax_optimizer():
    whole, labels = whole_and_labels()
    state = frozen_partition(optax.adamw(1e-3), labels).init(whole)
    trainable = sum(
        np.asarray(x).nbytes for k in ("adapter", "tail") for x in jax.tree.leaves(whole[k])
    )
    assert bytes_of(state) == 2 * trainable + 4


def test_negative_zero_stays_negative_zero():
    whole, labels = whole_and_labels()
    tx = frozen_partition(optax.sgd(1.0), labels)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, whole), tx.init(whole), whole)
    after = optax.apply_updates(whole, updates)["backbone"]["bias"]
    assert np.signbit(np.asarray(whole["backbone"]["bias"])).all() and np.signbit(after).all()


@pytest.mark.parametrize("labels", [{"a": "frozen"}, lambda params: {"a": "frozen"}])
def test_nothing_trainable_raises(labels):
    with pytest.raises(UserError, match="nothing would be trained"):
        frozen_partition(optax.sgd(1.0), labels).init({"a": jnp.ones(3)})


def test_unknown_label_raises():
    with pytest.raises(UserError, match="trainabel"):
        frozen_partition(optax.sgd(1.0), {"a": "trainabel", "b": "trainable"})


def test_bfloat16_parameters_get_float32_moments():
    params = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), tree())
    tx = make_optimizer(config(), 5, params)
    after, state = run(tx, params, [params, params])
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}
    assert jnp.dtype(jnp.bfloat16) not in {x.dtype for x in jax.tree.leaves(state)}
