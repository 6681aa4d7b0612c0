"""The rules of single methods: golden counts on ViT-B/32, and formulas beside plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import count, flat_names, partition
from uniadapter_jax.adapters.registry import METHODS, AdapterParam, get_method
from uniadapter_jax.backbones import layers as modules
from uniadapter_jax.backbones import scan
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator

# Counted from shapes (768 and 512 wide, 12 + 12 layers), and those of published tables.
COUNTS = {
    ("full", ()): 151_277_313,
    ("projection", ()): 655_360,
    ("ia3", ()): 92_160,
    ("uniadapter", ()): 230_496,
    ("bitfit", ()): 171_008,
    ("layer_norm", ()): 65_536,
    ("houlsby", (("sites", ("attn",)),)): 1_982_976,
    ("houlsby", ()): 3_965_952,
    ("vpt_deep", ()): 46_080,
    ("vpt_deep", (("prompts", 20),)): 184_320,
    ("cross_modal_adapter", ()): 519_168,
    ("lora", ()): 491_520,
    ("lora_shared", ()): 491_520,
    ("tempme", ()): 491_520 + (12 + 6 + 3) * 768,
    ("tempme", (("frames", 64), ("joins", ("4:4", "3:4", "2:4")))): 491_520 + (64 + 16 + 4) * 768,
    ("dora", ()): 522_240,
    ("vera", ()): 43_008,
    ("ssf", ()): 202_752 + 135_168 + 2 * (3 * 768 + 512),  # the last: patches and single norms
    ("adaptformer", ()): 1_982_976,
    ("coop", ()): 8_192,
    ("coop", (("tokens", 64),)): 32_768,
    ("vl_prompt", ()): 122_880,
    ("maple", ()): 3_555_072,
    ("maple", (("prompts", 5), ("depth", 12))): 4_758_528,
    ("clip_adapter", ()): 131_072,
    ("unipt", ()): 9_584_642,
    ("partial", ()): 7_087_872 + 3_152_384,
    ("partial", (("layers", 12),)): 12 * (7_087_872 + 3_152_384),
}


# {method: why}: BERT's words take no further rows; BLIP's features are made by the heads of a task,
# of all tokens of a frame.
NOT_FOR_BLIP = {
    "coop": "its texts take no further tokens",
    "vl_prompt": "its texts take no further tokens",
    "maple": "its texts take no further tokens",
    "clip_adapter": "no place 'after_vision'",
    "unipt": "no place 'side'",
    "tempme": "no place 'joins'",
}


def attached(model, name, options=()):
    method = get_method(name)
    chosen = ConfigDict({**method.options, **dict(options)})
    method.attach(model, chosen, generator(0, "adapters"))
    return partition(model, method.filter(chosen))


@pytest.mark.parametrize(("name", "options"), COUNTS)
def test_trained_parameters_of_vit_b_32(name, options):
    trained = jax.eval_shape(
        lambda: attached(CLIP(CLIPConfig.from_huggingface({}), rng=None), name, options).trainable
    )
    assert count(trained) == COUNTS[name, options]


def test_every_method_that_trains_has_a_count():
    counted = {name for name, _ in COUNTS}
    assert counted == {name for name, of in METHODS.items() if of.trainable is not None}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_fits_a_blip_or_says_why(name):
    model = tiny.blip()
    if name in NOT_FOR_BLIP:
        with pytest.raises(UserError, match=rf"does not fit this backbone.*{NOT_FOR_BLIP[name]}"):
            attached(model, name)
        return
    part = attached(model, name)
    assert (part.counts()["trained"] > 0) == (name != "zero_shot")


def test_a_cross_modal_adapter_shares_its_slice_over_all_of_a_blip():
    model = tiny.blip()  # vision 3 x 24, text and decoder 2 x 32
    options = {"bottleneck": 5, "shared_dim": 8, "init_std": 0.3}
    part = attached(model, "cross_modal_adapter", options.items())
    shared = 2 * 2 * (5 * 8 + 8)
    towers = sum(2 * n * (d * 5 + 5 + (5 + 1) * (d - 8)) for n, d in ((3, 24), (2, 32), (2, 32)))
    assert part.counts()["trained"] == shared + towers
    ids = jnp.ones((1, 4), jnp.int32)

    def all_of_it():
        states = model.encode_images(jnp.full((1, 32, 32, 3), 100, jnp.uint8))
        fused = model.fuse(ids[None], jnp.ones((1, 1, 4), bool), Memory(states))
        question = Memory(fused.reshape(1, 4, -1), jnp.ones((1, 4), bool))
        answers = model.decode(ids[None], jnp.ones((1, 1, 4), bool), question)
        return states, model.encode_text(ids, None), fused, answers

    before = all_of_it()
    model.adapters.mlp_bias[...] += 1.0
    for old, new in zip(before, all_of_it(), strict=True):
        assert np.abs(new - old).max() > 1e-2


def test_prompts_are_seen_and_thrown_away():
    """As tokens with rows of their own, put in before each layer and dropped behind it."""
    model = tiny.clip()
    blocks, layers = model.vision.blocks, model.config.vision.layers
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.standard_normal((layers, 3, 48)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 48)), jnp.float32)
    graphdef, state = nnx.split(blocks)
    expected = x
    for i in range(layers):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        rows = jnp.concatenate([jnp.broadcast_to(tokens[i], (2, 3, 48)), expected], axis=1)
        expected = block(rows, None, scan.NO_INPUTS)[:, 3:]
    part = attached(model, "vpt_deep", [("prompts", 3)])
    model.vision.blocks.prompts.tokens[...] = tokens
    found = modules.run_stack(model.vision.blocks, x, layers=layers, remat="none")
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert part.counts()["trained"] == layers * 3 * 48


def test_prompts_in_the_layers_of_bert_are_seen_with_padding_and_word_by_word():
    model, rng = tiny.blip(), np.random.default_rng(1)

    class Prompts(nnx.Module):
        def __init__(self, tokens):
            self.tokens = AdapterParam(jnp.asarray(tokens, jnp.float32))

        def __call__(self, layer):
            return self.tokens[...]

    ids = jnp.asarray(rng.integers(1, 58, (2, 6)), jnp.int32)
    mask = jnp.asarray(np.arange(6) < np.array([[6], [4]]))
    bare = model.encode_text(ids, mask)
    width, layers = model.config.text.width, model.config.text.layers
    model.text.blocks.prompts = Prompts(rng.standard_normal((layers, 2, width)))
    prompted = model.encode_text(ids, mask)
    assert prompted.shape == bare.shape and np.abs(prompted - bare)[:, 0].max() > 1e-3
    short = model.encode_text(ids[1:, :4], None)
    np.testing.assert_allclose(prompted[1:, :4], short, atol=2e-5)


def test_scales_are_where_the_formula_has_them():
    model = tiny.clip()
    attached(model, "ia3")
    block = model.text.blocks
    assert block.attn.k.delta.scale.shape == (2, 32) == block.attn.v.delta.scale.shape
    assert block.mlp.fc2.before.scale.shape == (2, 64)
    assert block.attn.q.delta is None and block.mlp.fc1.before is None
    ids = tiny.batch()["text"]
    plain = model.encode_text(ids)
    block.attn.v.delta.scale[...] = block.attn.v.delta.scale[...] * 0.0
    block.mlp.fc2.before.scale[...] = block.mlp.fc2.before.scale[...] * 0.0
    silent = model.encode_text(ids)  # attention and the MLP add their biases alone, which are zero
    assert np.abs(plain - silent).max() > 1e-3
    first = np.asarray(model.text.token_embedding[...])[ids]
    first = first + np.asarray(model.text.position_embedding[...])[: ids.shape[1]]
    eos = (np.asarray(ids) == model.config.eos_id).argmax(-1)
    at_eos = first[np.arange(len(ids)), eos]
    expected = model.text.projection(model.text.ln_final(jnp.asarray(at_eos)))
    np.testing.assert_allclose(silent, expected, atol=1e-5)


def test_unknown_sites_are_named():
    with pytest.raises(UserError, match=r"method\.sites: 'fusion' is no sub-layer"):
        attached(tiny.clip(), "houlsby", [("sites", ("fusion",))])


def both_features(model):
    batch = tiny.batch(clips=2, frames=1)
    return jax.jit(
        lambda: (model.encode_frames(batch["frames"]), model.encode_text(batch["text"]))
    )()


def noisy(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32), tree
    )


# One by day; a method that is new is its author's to run: pytest -m slow -k merged.
BY_DAY = ("ssf",)
MERGED = [
    pytest.param(name, marks=() if name in BY_DAY else pytest.mark.slow)
    for name, method in METHODS.items()
    if method.merge is not None
]


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_backbone_is_a_plain_one_that_computes_the_same(name):
    depths = {"vision_layers": 2, "text_layers": 2}
    part = attached(tiny.clip(**depths), name)
    model = part.merge(noisy(part.trainable), part.frozen)
    wanted, bare = both_features(model), tiny.clip(**depths)
    get_method(name).merge(model)
    values = nnx.to_pure_dict(nnx.state(model))
    assert set(flat_names(values)) == set(flat_names(nnx.to_pure_dict(nnx.state(bare))))
    plain = nnx.state(bare)
    nnx.replace_by_pure_dict(plain, values)
    nnx.update(bare, plain)
    for found, expected in zip(both_features(bare), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_cut_tower_computes_the_same_and_joins_again():
    model, bare = tiny.clip(), tiny.clip()
    vision, text = model.towers()
    assert text.from_layer(0) == text
    upper = vision.from_layer(3)
    assert (upper.layers, model.towers()[0].layers) == (1, 1)
    assert upper.blocks is model.vision.blocks.above is model.towers()[0].blocks
    for found, expected in zip(both_features(model), both_features(bare), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    vision.join()
    for found, expected in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(bare)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_partial_trains_all_of_a_shallower_tower():
    part = attached(tiny.clip(vision_layers=4, text_layers=2), "partial", [("layers", 3)])
    paths = flat_names(part.trainable)
    assert {".".join(path.split(".")[:3]) for path in paths} == {
        "vision.blocks.above",
        *(f"text.blocks.{name}" for name in ("attn", "ln_1", "ln_2", "mlp")),
    }
    assert paths["vision.blocks.above.attn.q.kernel"].shape == (3, 48, 48)


def test_one_a_for_queries_keys_and_values():
    part = attached(tiny.clip(), "lora_shared")
    names = sorted(name for name in flat_names(part.trainable) if name.startswith("vision"))
    assert [name.rpartition(".")[2] for name in names].count("a_kernel") == 1
    assert len(names) == 4


def test_veras_matrices_are_frozen_and_drawn_again():
    one, other = (tiny.clip() for _ in range(2))
    part = attached(one, "vera")
    get_method("vera").attach(other, ConfigDict(dict(get_method("vera").options)), None)
    assert not [name for name in flat_names(part.trainable) if "kernel" in name]
    a, b = one.adapters.a_kernel, one.adapters.b_kernel
    assert a.shape == (1, 48, 256) and b.shape == (1, 256, 48)
    np.testing.assert_array_equal(a, other.adapters.a_kernel[...])
    assert np.abs(b[...]).max() <= (6 / 256) ** 0.5 and np.std(b[...]) > 0.08


def test_texts_with_learnt_tokens_that_have_no_room_are_refused():
    model = tiny.clip()
    attached(model, "coop", [("tokens", 72)])
    with pytest.raises(UserError, match="texts of 78 tokens, but this backbone has 77"):
        model.encode_text(tiny.batch()["text"])


def test_an_adapter_of_features_is_for_known_towers():
    with pytest.raises(UserError, match=r"method\.towers=\('sound',\): choose of vision, text"):
        attached(tiny.clip(), "clip_adapter", [("towers", ("sound",))])
