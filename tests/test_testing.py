"""`uniadapter_jax.testing`: what it computes is the real task and the real step.

Agreement with the authors' code is in test_cross_modal_golden.py and test_uniadapter_golden.py.
"""

import cma
import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.data.tokenizers.clip import MissingTokenizer
from uniadapter_jax.inference.blip_model import AdaptedBLIP
from uniadapter_jax.inference.model import AdaptedModel
from uniadapter_jax.testing import (
    loss_and_grads,
    momentum_update,
    official_names,
    recipe_steps,
    reference_batch,
    trained_counts,
)


def adapted(method, **options):
    part = tiny.split(method, options=options)
    config = tiny.clip().config
    tokenizer = MissingTokenizer("nowhere")
    return AdaptedModel(
        part, config, tokenizer, method=method, fingerprint="", task={}, batch_size=4
    )


@pytest.fixture(scope="module", autouse=True)
def _compiling_fast():
    with cma.compiling_fast():
        yield


@pytest.fixture(scope="module")
def lora():
    return adapted("lora", dropout=0.5)


@pytest.fixture(scope="module")
def batch():
    return {name: np.asarray(value) for name, value in tiny.batch().items()}


def test_gradients_are_those_of_the_loss(lora, batch):
    """Central differences along the gradient itself; B starts at 0, so A's gradient is 0."""
    losses, grads = loss_and_grads(lora, batch)
    assert set(grads) == set(flat_names(lora.partition.trainable))
    assert all(not g.any() for name, g in grads.items() if "a_kernel" in name)
    square = sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values())
    step = 1e-2 / square**0.5
    part, kept = lora.partition, lora.partition.trainable
    ends = []
    for sign in (1, -1):
        part.trainable = jax.tree.map_with_path(
            lambda path, x: x + sign * step * grads[".".join(e.key for e in path)],  # noqa: B023
            kept,
        )
        ends.append(loss_and_grads(lora, batch)[0]["loss"])
    part.trainable = kept
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(square, rel=1e-2)
    assert ends[1] < losses["loss"] < ends[0]


def test_dropout_only_on_request(lora, batch):
    found = [
        loss_and_grads(lora, batch, deterministic=False, seed=seed)[1][
            "text.blocks.attn.q.delta.b_kernel"
        ]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


def test_the_first_step_of_a_warm_up_moves_nothing_and_the_model_stays(lora, batch):
    before = official_names("lora", lora.partition.trainable)
    recipe = {"lr": 1e-2, "total_steps": 10, "warmup": 0.5}
    one, two = (recipe_steps(lora, [batch] * 2, recipe, n) for n in (1, 2))
    for name, value in before.items():
        np.testing.assert_array_equal(one[name], value)
    assert any(np.abs(two[name] - value).max() > 1e-4 for name, value in before.items())
    for name, value in official_names("lora", lora.partition.trainable).items():
        np.testing.assert_array_equal(value, before[name])


def test_tensors_of_cross_modal_adapter_have_their_official_names():
    model = adapted("cross_modal_adapter", bottleneck=3, shared_dim=5)
    named = official_names(model.method, model.partition.trainable)
    assert named["clip.visual_adapter_down_weight"].shape == (8, 3, 48)
    assert named["clip.vt_adapter_up_share_weight"].shape == (4, 5, 3)
    ours = flat_names(model.partition.trainable)
    np.testing.assert_array_equal(
        named["clip.text_adapter_up_unique_bias"][3], ours["text.blocks.after_mlp.up_bias"][1]
    )


def test_wrong_words_are_named(lora, batch):
    with pytest.raises(UserError, match=r"recipe has no field 'lrr'; did you mean 'lr'"):
        recipe_steps(lora, [batch], {"lrr": 1}, 1)
    with pytest.raises(UserError, match="2 steps, but only 1 batches"):
        recipe_steps(lora, [batch], {}, 2)
    with pytest.raises(UserError, match="the batch has no field 'mask'"):
        loss_and_grads(lora, {**batch, "mask": 1})
    with pytest.raises(UserError, match="task 'matcing' is not known"):
        loss_and_grads(lora, batch, "matcing")
    with pytest.raises(UserError, match="the task itc needs a blip, the model is a CLIP"):
        loss_and_grads(lora, batch, "itc")
    with pytest.raises(UserError, match="task has no field 'pooling'"):
        loss_and_grads(lora, batch, {"pooling": "mean"})
    with pytest.raises(UserError, match=r"are not \(b, f, H, W, 3\)"):
        loss_and_grads(lora, {**batch, "frames": batch["frames"][0]})


def test_reference_batches_are_turned():
    pixels = np.zeros((2, 3, 3, 8, 6))
    found = reference_batch(pixels, np.ones((2, 3)), np.ones((2, 5)))
    assert found["frames"].shape == (2, 3, 8, 6, 3) and found["frame_mask"].dtype == bool


@pytest.fixture(scope="module")
def blip():
    """A tiny BLIP with UniAdapter for questions, and for matching."""
    model, method = tiny.blip(), get_method("uniadapter")
    options = ConfigDict({**method.options, "bottleneck": 3, "key_value_bottleneck": 2})
    method.attach(model, options, np.random.default_rng(0))
    part = partition(model, method.trainable)
    return AdaptedBLIP(
        part,
        model.config,
        MissingTokenizer("nowhere"),
        method="uniadapter",
        fingerprint="",
        task={},
        batch_size=4,
    )


def test_wrong_words_of_blips_tasks_are_named(blip):
    rng = np.random.default_rng(0)
    pairs = {"frames": rng.random((2, 1, 32, 32, 3)), "text": rng.integers(6, 58, (2, 5))}
    needed = "the task retrieval needs a clip or a siglip, the model is a BLIP"
    with pytest.raises(UserError, match=needed):
        loss_and_grads(blip, pairs)
    for name in ("matching", "itm"):
        with pytest.raises(
            UserError, match=rf"{name} without dropout draws nothing: .*'negatives'"
        ):
            loss_and_grads(blip, pairs, name)
    with pytest.raises(UserError, match=r"negatives\['clip'\] are \[2, 0\]: 2 rows"):
        loss_and_grads(blip, {**pairs, "negatives": {"clip": [2, 0], "text": [1, 0]}}, "itm")
    queue = {"image": np.ones((4, 16)), "text": np.ones((4, 16)), "item": np.arange(4)}
    with pytest.raises(UserError, match="a queue, but no momentum features"):
        loss_and_grads(blip, {**pairs, "queue": queue}, "itc")
    with pytest.raises(UserError, match="the batch has no 'question'"):
        loss_and_grads(blip, {"frames": pairs["frames"]}, "vqa")
    with pytest.raises(UserError, match="a step makes its own negatives"):
        negatives = {"clip": [1, 0], "text": [1, 0]}
        recipe_steps(blip, [{**pairs, "negatives": negatives}], {}, 1, "matching")
    with pytest.raises(UserError, match=r"averaged tensors are not those that train: itm_head"):
        named = official_names("uniadapter", blip.partition.trainable)
        named.pop("itm_head.bias")
        momentum_update(blip, named, 0.5)


def test_what_trains_is_counted_as_released_too(blip):
    """The second set of adapters has what layers have: all but encoders' and heads' tensors."""
    found = trained_counts(blip)
    layers = sum(
        value.size
        for name, value in official_names("uniadapter", blip.partition.trainable).items()
        if name.startswith("adapters.") and "text_rows" not in name
    )
    assert found["as_released"] - found["trained"] == layers > 0


def test_what_the_authors_do_not_have_keeps_its_path():
    method = get_method("cross_modal_adapter")
    blip = tiny.blip()
    options = ConfigDict({**method.options, "bottleneck": 3})
    method.attach(blip, options, generator(0, "adapters"))
    tree = partition(blip, method.filter(options)).trainable
    assert official_names(method.name, tree).keys() == flat_names(tree).keys()
