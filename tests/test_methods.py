"""The rules of single methods: golden counts on ViT-B/32, and formulas beside plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import count, partition
from uniadapter_jax.adapters.registry import METHODS, AdapterParam, get_method
from uniadapter_jax.backbones import layers as modules
from uniadapter_jax.backbones import scan
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator

# Counted from shapes (768 and 512 wide, 12 + 12 layers), and those of published tables.
COUNTS = {
    ("projection", ()): 655_360,
    ("bitfit", ()): 171_008,
    ("layer_norm", ()): 65_536,
    ("houlsby", (("sites", ("attn",)),)): 1_982_976,
    ("houlsby", ()): 3_965_952,
    ("ia3", ()): 92_160,
    ("vpt_deep", ()): 46_080,
    ("vpt_deep", (("prompts", 20),)): 184_320,
    ("cross_modal_adapter", ()): 519_168,
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


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_fits_a_blip_or_says_why(name):
    model = tiny.blip()
    if name == "cross_modal_adapter":  # the paper has none for cross-attention
        with pytest.raises(UserError, match=r"does not fit this backbone.*attn, cross, mlp"):
            attached(model, name)
        return
    part = attached(model, name)
    assert (part.counts()["trained"] > 0) == (name != "zero_shot")


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
