"""BERT's modes and places: against plain formulas, and against itself with other weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.attention import attend
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError

WIDTH, ATTENDED, HEADS = 32, 24, 4


@functools.partial(jax.jit, static_argnums=0)
def _fuse(graphdef, state, ids, mask, memory):
    return nnx.merge(graphdef, state).fuse(ids, mask, memory)


def fuse(model, ids, mask, memory):
    """`model.fuse`, compiled once for all models of one structure."""
    return _fuse(*nnx.split(model), ids, mask, memory)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return tiny.blip()


@pytest.fixture(scope="module")
def inputs():
    """(ids "q p l", mask, states of media "m t e")."""
    rng = np.random.default_rng(0)
    ids = rng.integers(6, 58, (2, 3, 7)).astype(np.int32)
    mask = np.arange(7) < rng.integers(3, 8, (2, 3, 1))
    states = rng.standard_normal((2, 9, ATTENDED)).astype(np.float32)
    return jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(states)


def test_attention_equals_its_formula():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(s) for s in ((2, 4, 3, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)))
    bias = np.where(rng.random((2, 1, 1, 6)) < 0.7, 0.0, -1e9)
    factor = rng.random((2, 3, 6))
    expected = np.zeros_like(q)
    for g, h, p, w in np.ndindex(q.shape[:-1]):
        scores = [k[g, h, t] @ q[g, h, p, w] * factor[g, p, t] for t in range(6)]
        weights = np.exp(np.array(scores) / 8**0.5 + bias[g, 0, 0])
        expected[g, h, p, w] = weights / weights.sum() @ v[g, h]
    single = [jnp.asarray(x, jnp.float32) for x in (q, k, v, bias, factor)]
    close(attend(*single[:3], bias=single[3], factor=single[4]), expected)


def test_texts_of_one_picture_together_and_one_by_one(model, inputs):
    ids, mask, states = inputs
    together = fuse(model, ids, mask, Memory(states))
    for m, p in np.ndindex(2, 3):
        pair = (x[m, p][None, None] for x in (ids, mask))
        close(together[m, p], fuse(model, *pair, Memory(states[m][None]))[0, 0])


def test_groups_choose_their_picture(model, inputs):
    ids, mask, states = inputs
    seen = jnp.asarray(np.arange(9) < np.array([[9], [4]]))
    factor = jnp.asarray(np.random.default_rng(0).random((2, 3, 9)), jnp.float32)
    medium = jnp.array([1, 1])
    chosen = fuse(model, ids, mask, Memory(states, seen, medium, factor))
    close(chosen, fuse(model, ids, mask, Memory(states[medium], seen[medium], None, factor)))
    own = fuse(model, ids, mask, Memory(states, seen, None, factor))
    close(chosen[1], own[1])
    assert np.abs(chosen[0] - own[0]).max() > 1e-2


def all_shapes(jaxpr):
    """Shapes of everything that a program makes, scans and checkpoints included."""
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, out.aval.shape) for out in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from all_shapes(inner)


def test_keys_and_values_are_made_once_and_never_repeated(model):
    texts, words, tokens = 8, 3, 50
    ids, mask = jnp.ones((2, texts, words), jnp.int32), jnp.ones((2, texts, words), bool)
    states = jnp.ones((2, tokens, ATTENDED))
    repeated = 2 * texts * tokens * WIDTH

    def largest(ids, mask, states, medium=None):
        memory = Memory(states, None, medium)
        program = jax.make_jaxpr(lambda *x: model.fuse(x[0], x[1], memory))(ids, mask)
        made = list(all_shapes(program.jaxpr))
        products = [shape for name, shape in made if name == "dot_general"]
        return max(int(np.prod(shape)) for _, shape in made), products

    size, products = largest(ids, mask, states)
    assert size < repeated / 2
    assert products.count((2, tokens, WIDTH)) == 2  # keys and values in the scan's body
    pairs = ids.reshape(-1, 1, words), mask.reshape(-1, 1, words)
    size, products = largest(*pairs, jnp.repeat(states, texts, 0))
    assert size >= repeated and products.count((2 * texts, tokens, WIDTH)) == 2
    _, products = largest(*pairs, states, jnp.repeat(jnp.arange(2), texts))
    assert products.count((2, tokens, WIDTH)) == 2  # once per picture, copied for the groups


def test_padding_is_not_seen(model, inputs):
    ids, _, states = inputs
    row, words, tokens = ids[:1, :1], jnp.arange(7)[None, None] < 4, jnp.arange(9)[None] < 5
    padded = fuse(model, row, words, Memory(states[:1], tokens))
    close(padded[:, :, :4], fuse(model, row[..., :4], None, Memory(states[:1, :5])))


def test_a_decoder_does_not_look_ahead(model, inputs):
    ids, mask, _ = inputs
    states = jax.random.normal(jax.random.key(0), (2, 5, WIDTH))
    decode = jax.jit(model.decode)
    a, b = (decode(x, mask, Memory(states)) for x in (ids, ids.at[..., 2:].set(9)))
    assert a.shape == (2, 3, 7, 60) and a.dtype == jnp.float32
    close(a[:, :, :2], b[:, :, :2])
    assert np.abs(a[:, :, 2] - b[:, :, 2]).max() > 1e-2


def test_factors_scale_scores(model, inputs):
    """A factor on all tokens is the same as one on the keys, their biases included."""
    ids, mask, states = inputs
    ones = jnp.ones((2, 3, 9))
    plain = fuse(model, ids, mask, Memory(states))
    close(fuse(model, ids, mask, Memory(states, None, None, ones)), plain)
    scaled = tiny.blip()
    for param in (scaled.text.blocks.cross.k.kernel, scaled.text.blocks.cross.k.bias):
        param[...] = 1.7 * param[...]
    close(
        fuse(model, ids, mask, Memory(states, None, None, 1.7 * ones)),
        fuse(scaled, ids, mask, Memory(states)),
    )


class Linear(nnx.Module):
    """A method's module at a place: a product that takes the layer's inputs or none."""

    def __init__(self, width_in, width_out, seed=0):
        draw = np.random.default_rng(seed).standard_normal
        self.kernel = nnx.Param(jnp.asarray(draw((width_in, width_out)) * 0.3, jnp.float32))

    def __call__(self, x, layer=None):
        return functions.matmul(x, self.kernel[...])


class StackedLinear(Linear):
    """The same, with a leading axis of two layers."""

    def __init__(self, width, seed=0):
        draw = np.random.default_rng(seed).standard_normal
        self.kernel = nnx.Param(jnp.asarray(draw((2, width, width)) * 0.3, jnp.float32))


@pytest.mark.parametrize("which", ["key", "value"])
def test_key_and_value_additions_are_those_of_every_layer(model, inputs, which):
    ids, mask, states = inputs
    added, other = tiny.blip(), tiny.blip()
    place = Linear(ATTENDED, WIDTH)
    setattr(added.text, f"cross_{which}", place)
    kernel = getattr(other.text.blocks.cross, which[0]).kernel
    kernel[...] = kernel[...] + place.kernel[...][None]
    found = fuse(added, ids, mask, Memory(states))
    close(found, fuse(other, ids, mask, Memory(states)))
    assert np.abs(found - fuse(model, ids, mask, Memory(states))).max() > 1e-2


def layer_by_layer(model, ids, states, text=None, fusion=None):
    """The formula in the module's docstring, with what was added at the places."""
    graphdef, state = nnx.split(model.text.blocks)
    x = model.text.token_embedding[...][ids] + model.text.position_embedding[...][: ids.shape[1]]
    x = model.text.ln_embed(x)
    for i in range(2):
        block = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], state))
        none, bare = scan.NO_INPUTS, {"bias": None, "after": None, "beside": None}
        h = block.attn.add(x, block.attn.keys_and_values(x, none), none, **bare)
        c = h
        if states is not None:
            c = block.cross.add(h, block.cross.keys_and_values(states, none), none, **bare)
        x = block.ln_out(c + block.fc2(functions.gelu(block.fc1(c))))
        x = x + (0 if text is None else h @ text.kernel[...][i])
        x = x + (0 if fusion is None or states is None else c @ fusion.kernel[...][i])
    return x


class Added(nnx.Module):
    """At a place: what is there, and a linear function of what came in."""

    def __init__(self, linear):
        self.linear = linear

    def __call__(self, y, x, layer):
        return y + self.linear(x, layer)


def test_places_beside_a_layer(inputs):
    ids, _, states = inputs
    plain, text, fusion = tiny.blip(), StackedLinear(WIDTH, 1), StackedLinear(WIDTH, 2)

    @jax.jit
    def formula(ids, states):
        with jax.numpy_rank_promotion("allow"):
            bare = layer_by_layer(plain, ids, states)
            alone, fused = (layer_by_layer(plain, ids, m, text, fusion) for m in (None, states))
        return bare, alone, fused

    bare, alone, fused = formula(ids[:, 0], states)
    close(fuse(plain, ids[:, :1], None, Memory(states))[:, 0], bare)
    plain.text.blocks.beside_text, plain.text.blocks.beside_fusion = Added(text), Added(fusion)
    close(plain.encode_text(ids[:, 0], None), alone)
    close(fuse(plain, ids[:, :1], None, Memory(states))[:, 0], fused)


def test_dropout_needs_a_key(model, inputs):
    ids, mask, states = inputs
    dropping, quiet = tiny.blip(dropout=0.3), tiny.blip(dropout=0.0)
    run = jax.jit(lambda key: dropping.fuse(ids, mask, Memory(states), key=key))
    keys = jax.random.split(jax.random.key(0), 2)
    without = fuse(model, ids, mask, Memory(states))
    close(fuse(dropping, ids, mask, Memory(states)), without)
    close(quiet.fuse(ids, mask, Memory(states), key=keys[0]), without)
    a, b = run(keys[0]), run(keys[1])
    assert (a == run(keys[0])).all() and np.abs(a - b).max() > 1e-2


def test_remat_leaves_values_and_gradients(inputs):
    ids, mask, states = inputs

    def both(remat):
        model = tiny.blip(remat=remat)

        def loss(states):
            return (model.fuse(ids, mask, Memory(states)) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))(states)

    jax.tree.map(close, both("full"), both("none"))


def test_bfloat16_stays_close_and_keeps_its_dtype(model, inputs):
    ids, mask, states = inputs
    half = tiny.blip(dtype="bfloat16").fuse(ids, mask, Memory(states.astype(jnp.bfloat16)))
    exact = fuse(model, ids, mask, Memory(states))
    assert half.dtype == jnp.bfloat16
    error = np.abs(half.astype(jnp.float32) - exact).max() / np.abs(exact).max()
    assert 0 < error < 4e-2


def test_texts_that_do_not_fit_say_so(model, inputs):
    with pytest.raises(UserError, match=r"13 tokens.*12 positions"):
        model.encode_text(jnp.ones((1, 13), jnp.int32), None)
    memory = Memory(inputs[2])
    with pytest.raises(UserError, match="5 texts do not fill 2 groups"):
        model.text(jnp.ones((5, 3), jnp.int32), None, dtype=jnp.float32, memory=memory)
