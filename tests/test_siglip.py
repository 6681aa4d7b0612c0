"""SigLIP as a family: a training step, the sigmoid losses, files, tokenizer, FLOPs, misfits."""

import functools
import json

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import siglip_case
import tiny
import tokenizers
from ml_collections import ConfigDict
from test_ring_loss import assert_equal, mesh_of
from test_similarity import data, f32
from tokenizers import models

import uniadapter_jax
from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import METHODS, get_method
from uniadapter_jax.backbones import functions
from uniadapter_jax.backbones.siglip_config import SigLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.data.tokenizers.sentencepiece import canonical, load_sentencepiece
from uniadapter_jax.inference.load import put_adapter
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.sharding import Weights
from uniadapter_jax.planning.flops import count_flops
from uniadapter_jax.tasks.base import Setting
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval import ring_loss
from uniadapter_jax.tasks.retrieval.losses import Comparison, Pairs, sigmoid_loss
from uniadapter_jax.tasks.retrieval.ring_loss import ring_sigmoid_loss
from uniadapter_jax.training.step import make_step
from uniadapter_jax.weights.adapter_directory import AdapterFiles, read_adapter, write_adapter
from uniadapter_jax.weights.directory import load_backbone, save_backbone
from uniadapter_jax.weights.names.rules import TRANSFORMS, Context


def adapted(method, **options):
    model, chosen = siglip_case.siglip(), get_method(method)
    merged = ConfigDict({**chosen.options, **options})
    chosen.attach(model, merged, generator(0, "adapters"))
    return model, chosen.trainable


@functools.cache
def step_of(sizes, loss):
    """The metrics and trainables of one step on a mesh of those sizes."""
    mesh, config = mesh_of(*sizes), base_config()
    config.task.loss, config.task.similarity = loss, "mean_pool"
    config.mesh.weights = "sharded"
    model, trainable = adapted("cross_modal_adapter", bottleneck=4)
    part = partition(model, trainable)
    part.weights = Weights.of(config.mesh, mesh, model.config)
    frozen = part.weights.put(part.frozen)
    task = get_task("retrieval").make(Setting(config.task, mesh, model.config, 8, 1))
    optimizer = optax.sgd(1.0)
    step = make_step(task, part, optimizer, mesh, seed=0)
    batch = meshes.put_batch(jax.tree.map(np.asarray, siglip_case.batch(frames=1)), mesh, 8)
    trained = meshes.put_replicated(part.trainable, mesh)
    state = optimizer.init(trained)
    trained, _, _, metrics = step(trained, state, {}, frozen, batch, jnp.int32(0))
    return jax.device_get((metrics, trained))


def test_a_step_on_eight_devices_is_that_of_one():
    one, eight = step_of((1, 1, 1), "sigmoid"), step_of((2, 4, 1), "sigmoid_ring")
    assert one[0]["logit_bias"] == -10
    assert one[0]["grad_norm"] > 0
    assert_equal(eight, one, 1e-4)


def test_the_sigmoid_loss_is_its_formula():
    """Equation 1 of the paper in NumPy, with one frame a clip."""
    text, frames, _ = data(n=6, m=6, f=1, c=8)
    text, image = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (text, frames[:, 0]))
    item, t, b = np.array([0, 1, 2, 1, 4, 5]), 7.0, -3.0
    for duplicates, same in (
        ("negative", np.eye(6, dtype=bool)),
        ("positive", item[:, None] == item[None, :]),
    ):
        z = np.where(same, 1.0, -1.0)
        wanted = -np.log(1 / (1 + np.exp(-z * (t * text @ image.T + b)))).sum() / 6
        pairs = Pairs(*f32(text, image[:, None]), jnp.ones((6, 1), bool), jnp.asarray(item))
        how = Comparison("mean_pool", 5.0, duplicates)
        found, _ = sigmoid_loss(pairs, jnp.log(jnp.float32(t)), jnp.float32(b), how)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "similarity, duplicates, mesh, most",
    [("q_score", "positive", (2, 4, 1), 1024), ("mean_pool", "negative", (1, 1, 1), 4)],
)
def test_the_ring_equals_the_dense_loss(similarity, duplicates, mesh, most, monkeypatch):
    monkeypatch.setattr(ring_loss, "MOST_TEXTS", most)
    text, frames, mask = data(n=16, m=16, f=3, c=8)
    item = jnp.arange(16).at[jnp.array([3, 13])].set(5)
    line = jnp.float32(1.2), jnp.float32(-2.0)
    arrays = (*f32(text, frames), jnp.asarray(mask), item, *line)

    def gradients(loss, mesh):
        how = Comparison(similarity, 5.0, duplicates, mesh)

        def value(text, frames, mask, item, scale, bias):
            return loss(Pairs(text, frames, mask, item), scale, bias, how)

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 4, 5), has_aux=True))

    found = gradients(ring_sigmoid_loss, mesh_of(*mesh))(*arrays)
    assert_equal(found, gradients(sigmoid_loss, None)(*arrays), 5e-6)


def test_a_clip_has_no_bias_for_a_sigmoid_loss():
    options = ConfigDict({**get_task("retrieval").options, "loss": "sigmoid"})
    with pytest.raises(UserError, match="'sigmoid' needs a backbone with a bias"):
        get_task("retrieval").make(Setting(options, None, tiny.clip().config, 0, 0))


NOT_FOR_SIGLIP = {"tempme": "no place 'joins'"}  # its pictures have no class token that could stay


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_fits_or_says_why(method):
    if method in NOT_FOR_SIGLIP:
        with pytest.raises(UserError, match=f"not fit this backbone.*{NOT_FOR_SIGLIP[method]}"):
            adapted(method)
        return
    model, trainable = adapted(method)
    part = partition(model, trainable)
    assert bool(jax.tree.leaves(part.trainable)) == (trainable is not None)
    if method == "projection":
        assert set(part.trainable) == {"text", "vision"}


PROMPTS = {
    "coop": {"tokens": 2},
    "vl_prompt": {"prompts": 2, "prefix": 1, "suffix": 1},
    "maple": {"prompts": 2, "depth": 2},
}
SHARE = [pytest.param(n, marks=() if n == "coop" else pytest.mark.slow) for n in PROMPTS]


@pytest.mark.parametrize("name", SHARE)
def test_prompts_train_and_travel(name, tmp_path):
    """A step moves all tokens; the adapter that is written computes what the trained model does."""
    save_backbone(siglip_case.siglip(), tmp_path / "base", None)
    base, method, config = load_backbone(str(tmp_path / "base")), get_method(name), base_config()
    options = {**method.options, **PROMPTS[name]}
    method.attach(base.model, ConfigDict(options), generator(0, "adapters"))
    part, mesh, optimizer = (
        partition(base.model, method.trainable),
        mesh_of(1, 1, 1),
        optax.sgd(1.0),
    )
    before = {path: np.asarray(x) for path, x in flat_names(part.trainable).items()}
    config.task.loss, config.task.similarity = "sigmoid", "mean_pool"
    task = get_task("retrieval").make(Setting(config.task, mesh, base.model.config, 8, 1))
    step = make_step(task, part, optimizer, mesh, seed=0)
    batch = meshes.put_batch(jax.tree.map(np.asarray, siglip_case.batch(frames=1)), mesh, 8)
    state = optimizer.init(part.trainable)
    trained, *_ = step(part.trainable, state, {}, part.frozen, batch, jnp.int32(0))
    tensors = {path: np.asarray(x) for path, x in flat_names(trained).items()}
    assert all((tensors[path] != start).any() for path, start in before.items())
    write_adapter(tmp_path / "out", AdapterFiles(name, options, tensors, base.fingerprint))
    again = put_adapter(load_backbone(str(tmp_path / "base")), read_adapter(tmp_path / "out"))
    one, other = part.merge(trained, part.frozen), again.merge(again.trainable, again.frozen)
    for encode in ("encode_frames", "encode_text"):
        given = siglip_case.batch()["frames" if "frames" in encode else "text"]
        assert (getattr(one, encode)(given) == getattr(other, encode)(given)).all()


def test_gelu_tanh_has_its_own_derivative():
    x = jnp.linspace(-4, 4, 41)
    wanted = jax.grad(lambda x: jax.nn.gelu(x, approximate=True).sum())(x)
    found = jax.grad(lambda x: functions.gelu_tanh(x).sum())(x)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def unigram(directory):
    """A directory with a SigLIP tokenizer of 60 pieces, as `tokenizers` writes it."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581cat", "c", "a", "t"]
    pieces += [f"\u2581w{i}" for i in range(60 - len(pieces))]
    vocab = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    made = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2))
    made.save(str(directory / "tokenizer.json"))
    return pieces


def test_texts_are_cleaned_end_with_eos_and_are_padded(tmp_path):
    assert canonical("  A (photo)\tof:  a CAT's. ") == "a photo of a cats"
    pieces = unigram(tmp_path)
    found = load_sentencepiece(tmp_path).encode(["A  cat!", "", "a a a a a a"], 4)
    cat, a = pieces.index("\u2581cat"), pieces.index("\u2581a")
    assert found.tolist() == [[a, cat, 1, 1], [1, 1, 1, 1], [a, a, a, 1]]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("tokenizer.json", b'{"model": {"type": "BPE"}}', "expected a Unigram, found 'BPE'"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": [1]}}', "is damaged"),
        ("spiece.model", b"\x0a\x7f", "is no SentencePiece model: the file ends early"),
        ("spiece.model", b"", "has no pieces"),
    ],
)
def test_broken_tokenizers_are_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        load_sentencepiece(tmp_path)


def test_a_saved_one_is_loaded_for_inference(tmp_path):
    """Squashed pictures; features do not depend on how many words a row has room for."""
    (tmp_path / "tokenizer").mkdir()
    unigram(tmp_path / "tokenizer")
    save_backbone(siglip_case.siglip(), tmp_path / "saved", tmp_path / "tokenizer")
    assert load_backbone(str(tmp_path / "saved")).model.logit_bias[...] == -10
    model = uniadapter_jax.load_model(tmp_path / "saved")
    assert model.task["resize"] == "squash"
    wide = model.encode_text(["a cat", "A cat."])
    assert (wide[0] == wide[1]).all()
    model.task["words"] = 4
    np.testing.assert_allclose(model.encode_text(["a cat"])[0], wide[0], rtol=1e-6)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), np.uint8)
    assert model.encode_frames(pictures).shape == (2, 48)


def test_positions_of_another_size_have_no_class_token():
    table = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    (resized,) = TRANSFORMS["patch_positions"](table, Context(grid=2))
    assert resized.shape == (4, 4)
    (same,) = TRANSFORMS["patch_positions"](table, Context(grid=3))
    assert same is table
    with pytest.raises(ValueError, match="no table of g"):
        TRANSFORMS["patch_positions"](table[1:], Context(grid=2))


@pytest.mark.parametrize(
    "section, field, value, reason",
    [
        ("vision_config", "patch_size", 19, "patch_size=19 exceeds image_size=18"),
        ("vision_config", "vision_use_head", False, "without a head"),
        ("text_config", "projection_size", 40, "projection_size=40: expected the vision tower's"),
        ("text_config", "pad_token_id", 60, "pad_token_id=60: expected an id below vocab_size=60"),
    ],
)
def test_a_config_that_cannot_be_is_named(section, field, value, reason):
    config = json.loads(json.dumps(siglip_case.CONFIG))
    config[section][field] = value
    with pytest.raises(UserError, match=reason):
        SigLIPConfig.from_huggingface(config)


def test_useful_flops_by_hand():
    """Of both towers, and of the head that pools, whose query is that of its probe."""
    part = partition(siglip_case.siglip(), None)

    def encode(frozen, batch):
        model = part.merge({}, frozen)
        return model.encode_frames(batch["frames"]), model.encode_text(batch["text"])

    def tower(items, tokens, d, e):
        return 2 * items * tokens * (8 * d * d + 4 * d * e + 4 * tokens * d)

    pictures, tokens, d, e = 3 * 2, 4, 48, 92
    patches = 2 * pictures * tokens * (3 * 8 * 8) * d
    pooled = 4 * d * d + 4 * tokens * d + tokens * 4 * d * d + 4 * d * e
    text = tower(3, 12, 40, 64) + 2 * 3 * 40 * d  # padded to all positions
    found = count_flops(jax.jit(encode).trace(part.frozen, siglip_case.batch(3)).jaxpr)
    assert found == patches + tower(pictures, tokens, d, e) + pictures * pooled + text
