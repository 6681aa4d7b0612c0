"""The kernels of attention, interpreted, against its plain form: values and gradients."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones import attention_kernels as kernels
from uniadapter_jax.backbones.attention import KeysValues, attend, mask_bias
from uniadapter_jax.backbones.functions import causal_mask
from uniadapter_jax.backbones.fused_attention import CuDNN, Inputs
from uniadapter_jax.backbones.memory import Memory, Sets
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.inference import load
from uniadapter_jax.parallel import attention
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.attention import fused_form, tried_form
from uniadapter_jax.planning import topology
from uniadapter_jax.planning.flops import count_flops
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import hbm_bytes

ONE = meshes.one_device()
KERNEL = fused_form("fused", ONE)


def normal(seed, shape, dtype="float32"):
    """Numbers that bfloat16 has, too."""
    rounded = jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(jnp.bfloat16)
    return rounded.astype(dtype)


def padding(rows, length):
    lengths = jnp.arange(rows)[:, None] % (length - 1) + 1
    seen = jnp.arange(length)[None] < lengths
    return jnp.where(seen, 0.0, -1e9)[:, None, None]


@dataclasses.dataclass
class Case:
    """Shapes "q h p rows k" (p is 0 without that axis) and t; what is added and multiplied."""

    q: int
    h: int
    p: int
    rows: int
    k: int
    t: int
    bias: object = None
    factor: bool = False
    rate: float = 0.0

    def operands(self, dtype):
        texts = (self.p,) if self.p else ()
        q = normal(0, (self.q, self.h, *texts, self.rows, self.k), dtype)
        k, v = (normal(seed, (self.q, self.h, self.t, self.k), dtype) for seed in (1, 2))
        factor = 1 + 0.3 * normal(3, (self.q, self.p, self.t)) if self.factor else None
        return q, k, v, factor


CASES = {
    "pictures": Case(3, 4, 0, 17, 64, 17),
    "one head of 128": Case(2, 3, 0, 9, 128, 9),
    "heads that fill no lanes": Case(2, 3, 0, 5, 8, 5),
    "causal": Case(2, 2, 0, 12, 8, 12, mask_bias(causal_mask(12))),
    "padding": Case(5, 2, 0, 12, 8, 12, padding(5, 12)),
    "padding and causal": Case(3, 2, 0, 6, 8, 6, padding(3, 6) + mask_bias(causal_mask(6)) / 2),
    "texts of a medium": Case(2, 2, 3, 5, 8, 11, padding(2, 11)),
    "a bias for all keys": Case(2, 2, 0, 5, 8, 11, jnp.full((1, 1, 1, 1), 0.5)),
    "a bias of texts": Case(2, 2, 3, 5, 8, 11, normal(9, (2, 3, 5, 11))),
    "frame factors": Case(2, 4, 3, 5, 64, 11, padding(2, 11), factor=True),
    "frame factors alone": Case(2, 2, 2, 5, 8, 6, factor=True),
    "dropout": Case(3, 4, 0, 17, 64, 17, rate=0.5),
    "dropout of texts": Case(2, 4, 3, 5, 64, 11, padding(2, 11), factor=True, rate=0.1),
    "dropout of joined texts": Case(2, 2, 3, 5, 8, 11, padding(2, 11), rate=0.1),
    "one word of decoding": Case(3, 2, 0, 1, 8, 7, padding(3, 7)),
    "rows in parts": Case(2, 2, 0, 40, 64, 1500),
}


def values_and_gradients(case, dtype, fused):
    operands = case.operands(dtype)
    weigh = normal(7, operands[0].shape)

    def total(q, k, v, factor):
        dropout = {"rate": case.rate, "key": jax.random.key(5)}
        z = attend(q, k, v, bias=case.bias, factor=factor, **dropout, fused=fused)
        return (z.astype(jnp.float32) * weigh).sum(), z

    wanted = (0, 1, 2, 3) if case.factor else (0, 1, 2)
    call = jax.jit(jax.value_and_grad(total, argnums=wanted, has_aux=True))
    (_, z), gradients = call(*operands)
    return z, *gradients


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_plain_form(name):
    case = CASES[name]
    plain = values_and_gradients(case, "float32", None)
    for dtype, tolerance in (("float32", 2e-5), ("bfloat16", 1e-2)):
        made = values_and_gradients(case, dtype, KERNEL)
        q, *more = case.operands(dtype)
        likes = (q, q, *more)
        for x, y, of in zip(made, plain, likes[: len(made)], strict=True):
            assert (x.dtype, x.shape) == (of.dtype, of.shape)
            size = jnp.abs(y).max()
            assert jnp.abs(x.astype(jnp.float32) - y).max() <= tolerance * size


def jaxpr_of(function, *operands):
    return str(jax.make_jaxpr(function)(*operands))


def test_where_the_kernels_do_not_apply_the_plain_form_is_used():
    q, k, v, _ = CASES["padding"].operands("float32")

    def text(**options):
        return jaxpr_of(lambda q, k, v: attend(q, k, v, fused=KERNEL, **options), q, k, v)

    key = jax.random.key(0)
    assert "pallas_call" in text() and "pallas_call" in text(rate=0.1, key=key)
    assert "pallas_call" not in text(bias=jnp.zeros((1, 2, 1, 12)))  # by head
    assert KERNEL(Inputs(q, k.astype("bfloat16"), v)) is None
    many = jax.ShapeDtypeStruct((2, 2, 60_000, 64), jnp.float32)
    one = jax.ShapeDtypeStruct((2, 2, 1, 64), jnp.float32)
    assert "pallas_call" not in jaxpr_of(lambda *x: attend(*x, fused=KERNEL), one, many, many)


def test_a_trained_bias_is_refused():
    q, k, v, _ = CASES["padding"].operands("float32")

    def total(bias):
        return attend(q, k, v, bias=bias, fused=KERNEL).sum()

    with pytest.raises(UserError, match=r"config\.compute\.attention: .* set it to xla"):
        jax.grad(total)(padding(5, 12))


def test_what_a_kernel_costs_is_what_its_jaxpr_says():
    for name in ("pictures", "frame factors", "rows in parts"):
        case = CASES[name]
        p, e = case.p or 1, case.h * case.k
        texts = (p,) if case.factor else ()
        q, k = normal(0, (case.q, *texts, case.rows, e)), normal(1, (case.q, case.t, e))
        factor = jnp.ones((case.q, p, case.t)) if case.factor else None
        of = kernels.Operands(q, k, k, None, factor)
        run = {"heads": case.h, "interpret": False}
        for products, made in (
            (2, jax.make_jaxpr(functools.partial(kernels.forward, **run))(of)),
            (5, jax.make_jaxpr(functools.partial(kernels.backward, **run))(of, q)),
        ):
            (call,) = (e for e in made.eqns if e.primitive.name == "pallas_call")
            said = call.params["cost_estimate"]
            assert said.flops == 2 * products * q.size * case.t == count_flops(made)
            assert said.transcendentals == case.q * p * case.rows * case.t * case.h
            arrays = (*call.invars, *call.outvars)
            assert said.bytes_accessed == sum(x.aval.size * x.aval.dtype.itemsize for x in arrays)


def test_blocks_fill_lanes_and_fit():
    def blocks(b, length, t, heads, width, dtype="bfloat16"):
        q, k = (jax.ShapeDtypeStruct((b, n, heads * width), dtype) for n in (length, t))
        return kernels.cut(kernels.Operands(q, k, k, None, None), heads)

    base = blocks(192, 197, 197, 12, 64)
    assert (base.heads, base.rows) == (2, ((0, 197),)) and 192 % base.media == 0
    assert blocks(32, 256, 256, 16, 72).heads == 16  # no fewer fill groups of 128
    assert blocks(32, 197, 197, 3, 64).heads == 3
    large = blocks(32, 901, 901, 12, 64)
    assert large.rows[0][0] == 0 and large.rows[-1][1] == 901
    assert all(a[1] == b[0] and a[1] % 16 == 0 for a, b in itertools.pairwise(large.rows))
    assert max(x.bytes for x in (base, large)) < 14 * 2**20 < blocks(1, 1, 60_000, 1, 64).bytes


def test_the_platform_of_the_meshs_devices_decides():
    def mesh(platform, **more):
        device = types.SimpleNamespace(platform=platform, **more)
        return types.SimpleNamespace(devices=np.array([device]))

    assert fused_form("auto", ONE) is None and fused_form("xla", mesh("tpu")) is None
    assert KERNEL.interpret and not fused_form("auto", mesh("tpu")).interpret
    assert isinstance(fused_form("auto", mesh("gpu", compute_capability="8.0")), CuDNN)
    assert fused_form("auto", mesh("gpu", compute_capability="7.5")) is None
    assert fused_form("auto", mesh("gpu", compute_capability="gfx942")) is None
    assert fused_form("fused", mesh("other")) is None


def test_cudnns_operands_are_those_of_the_plain_form():
    """No GPU: JAX's plain implementation behind the same call."""
    form = CuDNN("xla")
    for name in ("pictures", "texts of a medium"):
        case = CASES[name]
        q, k, v, _ = case.operands("bfloat16")
        plain = attend(q, k, v).astype(jnp.float32)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            made = attend(q, k, v, fused=form)
        assert (made.dtype, made.shape) == (q.dtype, q.shape)
        np.testing.assert_allclose(made.astype(jnp.float32), plain, atol=2e-2)
    for more in ({"bias": jnp.zeros((1, 1, 1, 1))}, {"keep": jnp.ones((2, 2, 3, 5, 11), bool)}):
        assert form(Inputs(q, k, v, **more)) is None
    assert form(Inputs(*case.operands("float32")[:3])) is None


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_devices_share_rows_and_heads(axes):
    """Nothing of the operands moves; the gradient of factors is summed over heads."""
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, axes, strict=True)))
    case = Case(8, 4, 2, 5, 64, 7, padding(8, 7), factor=True)
    dropout = {"rate": 0.3, "key": jax.random.key(5)}
    form, operands = fused_form("fused", mesh), case.operands("float32")
    by, heads = P(meshes.BATCH_AXES, "tensor"), P(meshes.BATCH_AXES)
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), operands, (by, by, by, heads)
    )

    def total(fused, q, k, v, factor):
        z = attend(q, k, v, bias=case.bias, factor=factor, **dropout, fused=fused)
        return (z * normal(7, z.shape)).sum(), z

    def call(fused, operands):
        whole = jax.value_and_grad(total, argnums=(1, 2, 3, 4), has_aux=True)
        return jax.jit(whole, static_argnums=0).lower(fused, *operands).compile()

    compiled = call(form, placed)
    moved = [k for k in ("all-gather", "all-to-all", "permute") if k in compiled.as_text()]
    assert not moved
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5),
        compiled(*placed),
        call(None, operands)(*operands),
    )


def test_rows_or_heads_that_do_not_divide_are_left_to_the_plain_form():
    mesh = meshes.make_mesh({"data": 4, "fsdp": 1, "tensor": 2})
    form = fused_form("fused", mesh)
    for q, h, applies in ((8, 4, True), (6, 4, False), (8, 3, False)):
        x = normal(0, (q, h, 5, 8))
        assert ("pallas_call" in jaxpr_of(lambda x: attend(x, x, x, fused=form), x)) == applies


def noisy(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + 0.05 * jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )


def equal_with_kernels(part, measure):
    """A number of a model, and its gradients; `measure` takes the model."""
    trainable, found = noisy(part.trainable), []
    for fused in (None, KERNEL):
        here = dataclasses.replace(part, fused=fused)

        def total(trainable, here=here):
            return measure(here.merge(trainable, here.frozen))

        call = jax.jit(jax.value_and_grad(total))
        text = str(call.trace(trainable).jaxpr)
        assert ("attention_backward" in text) == (fused is not None)
        found.append(call(trainable))
    (x, dx), (y, dy) = found
    np.testing.assert_allclose(x, y, rtol=2e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(dx))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-4 * largest), dx, dy)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cross_modal_adapter", {"remat": "dots"}),
        ("cross_modal_adapter", {"remat": "full"}),
        ("maple", {}),
        ("cross_modal_adapter", {"merge": 2}),
    ],
)
def test_a_clip_with_the_kernels_is_the_clip(method, options):
    batch = tiny.batch(clips=2, frames=2)

    def measure(model):
        frames, texts = model.encode_frames(batch["frames"]), model.encode_text(batch["text"])
        return (frames * jnp.cos(frames)).sum() + (texts * jnp.sin(texts)).sum()

    equal_with_kernels(tiny.split(method, vision_layers=2, **options), measure)


def test_a_blip_with_the_kernels_is_the_blip():
    """Fusion with frame factors that are trained, and a decoder with cached keys."""
    model = tiny.blip()
    method = get_method("uniadapter")
    method.attach(model, ConfigDict(dict(method.options)), generator(0, "adapters"))
    part = partition(model, method.trainable)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3)), jnp.uint8)
    ids = jnp.asarray(rng.integers(6, 58, (2, 3, 6)), jnp.int32)
    mask = jnp.asarray(np.arange(6) < 1 + rng.integers(0, 6, (2, 3, 1)))

    def measure(model):
        states = model.encode_images(pixels)
        states = states.reshape(2, -1, states.shape[-1])
        factor = 1 + 0.1 * jnp.tanh(states[..., 0])[:, None] * jnp.arange(1.0, 4.0)[None, :, None]
        fused = model.fuse(ids, mask, Memory(states, factor=factor))
        attended = model.attend_to_questions(Memory(fused[:, 0], mask[:, 0]))
        past = model.no_answers(4, 5)
        first, past = model.decode_next(ids[:, :2, 0], jnp.int32(0), past, attended)
        return (fused * jnp.cos(fused)).mean() + (first * jnp.cos(first)).mean()

    equal_with_kernels(part, measure)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("dropout", [False, True])
def test_the_tpus_compiler_takes_kernels_that_move_fewer_bytes(dropout):
    """A layer of ViT-B/16, 64 pictures, forward and backward."""
    pytest.importorskip("libtpu")
    mesh = meshes.make_mesh(
        {"data": 1, "fsdp": 1, "tensor": 1}, topology.open_slice("v5e:1x1").devices
    )
    own = NamedSharding(mesh, P())
    rows = jax.ShapeDtypeStruct((64, 197, 768), jnp.bfloat16, sharding=own)
    options = {"rate": 0.1, "key": jax.random.key(0)} if dropout else {}

    def total(fused, *rows):
        q, k, v = (x.reshape(64, 197, 12, 64).swapaxes(1, 2) for x in rows)
        z = attend(q, k, v, fused=fused, **options)
        return jnp.cos(z.astype(jnp.float32)).sum()

    moved = []
    for fused in (fused_form("auto", mesh), None):
        call = jax.jit(jax.grad(total, argnums=(1, 2, 3)), static_argnums=0)
        compiled = call.trace(fused, rows, rows, rows).lower().compile()
        assert ("tpu_custom_call" in compiled.as_text()) == (fused is not None)
        moved.append(hbm_bytes(Module(compiled.as_text())))
    assert moved[0] < 0.6 * moved[1]


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"medium": jnp.asarray([2, 0, 0, 1])}, [2, 0, 0, 1]),
        ({"sets": Sets((0, 1, 0))}, [0, 1, 0, 2, 3, 2]),
    ],
    ids=["in order", "medium", "sets"],
)
def test_keys_of_groups_are_the_same_however_they_move(fields, rows):
    made = KeysValues(*(normal(seed, (4, 2, 3, 8)) for seed in (0, 1)))
    memory = Memory(jnp.zeros((4, 3, 1)), **fields)
    assert memory.groups == len(rows)
    apart, side = (memory.made_of_groups(made, side) for side in (False, True))
    jax.tree.map(np.testing.assert_array_equal, apart, side)
    np.testing.assert_array_equal(side.values, made.values[jnp.asarray(rows)])


def test_gradients_of_sets_are_added_without_a_scatter():
    media, weights = normal(0, (4, 3, 5)), normal(1, (6, 3, 5))
    chosen = jnp.asarray([0, 1, 0, 2, 3, 2])

    def total(taken, media):
        return jnp.sum(taken(media) * weights)

    sets, plain = (
        jax.jit(jax.grad(functools.partial(total, taken)))
        for taken in (Sets((0, 1, 0)).rows, lambda media: media[chosen])
    )
    np.testing.assert_array_equal(sets(media), plain(media))
    texts = [program.lower(media).as_text() for program in (sets, plain)]
    assert [" scatter" in text or ".scatter" in text for text in texts] == [False, True]


def test_a_form_that_is_right_is_taken():
    assert tried_form("fused", ONE) == KERNEL and tried_form("auto", ONE) is None


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_form_that_is_wrong_on_a_device_is_refused(monkeypatch, name):
    real = getattr(kernels, name)

    def wrong(*args, **kwargs):
        return jax.tree.map(lambda x: x.at[-1].multiply(1.2), real(*args, **kwargs))

    monkeypatch.setattr(kernels, name, wrong)
    jax.clear_caches()
    with pytest.raises(UserError, match=r"is wrong on this device, by .*compute\.attention=xla"):
        tried_form("fused", ONE)
    monkeypatch.undo()
    jax.clear_caches()


def test_a_form_that_a_device_refuses_is_told(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "forward", lambda *args, **kwargs: 1 / 0)
    jax.clear_caches()
    with pytest.raises(UserError, match=r"cannot run on this device: division by zero"):
        tried_form("fused", ONE)
    monkeypatch.setattr(attention, "_AUTO", ("cpu",))
    assert load.attention_of_device() is None
    assert "warning: the fused form" in capsys.readouterr().err
    monkeypatch.undo()
    jax.clear_caches()
