"""Useful FLOPs: the counter against single products, and whole steps against values by hand."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import lax
from jax.sharding import PartitionSpec as P

from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.flops import count_flops, useful_flops
from uniadapter_jax.tasks.programs import FRAMES, TEXT

N = 8
PRODUCT = 2 * N**3
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)


def counted(function, *shapes):
    return count_flops(jax.jit(function).trace(*shapes).jaxpr)


def repeated(x):
    return lax.scan(lambda y, _: (y @ y, None), x, length=5)[0]


def branched(x):
    return lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)


def awaited(x):
    return lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ y, x)


def unused(x):
    dead = x @ x
    (y, _), _ = lax.scan(lambda c, _: ((c[0] @ x, c[1] @ x @ x), dead), (x, x), length=3)
    return y


def learnt(frozen, x):
    return jax.grad(lambda x: jnp.sum((x @ frozen) ** 2))(x)


def rematerialised(x):
    return jax.value_and_grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(x @ x) ** 2)))(x)


def on_devices(x):
    mesh = meshes.make_mesh(base_config().mesh, jax.devices()[:8])
    return jax.shard_map(lambda y: y @ y.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(x)


@pytest.mark.parametrize(
    ("function", "operands", "flops"),
    [
        (jnp.dot, 2, PRODUCT),
        (repeated, 1, 5 * PRODUCT),
        (branched, 1, 2 * PRODUCT),
        (awaited, 1, PRODUCT),
        (unused, 1, 3 * PRODUCT),
        (learnt, 2, 2 * PRODUCT),
        (rematerialised, 1, 4 * PRODUCT),
        (jax.checkpoint(jnp.dot), 2, PRODUCT),
        (on_devices, 1, 8 * 2 * N),
    ],
)
def test_products_are_counted_wherever_they_are(function, operands, flops):
    assert counted(function, *[SQUARE] * operands) == flops


def test_a_convolution_is_the_product_of_its_patches():
    pictures = jax.ShapeDtypeStruct((3, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 4, 5), jnp.float32)

    def patches(pictures, kernel):
        return lax.conv_general_dilated(
            pictures, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    flops = 2 * (3 * 4 * 4) * (2 * 2 * 4) * 5
    assert counted(patches, pictures, kernel) == flops
    for argument in (0, 1):
        gradient = jax.grad(lambda *xs: jnp.sum(patches(*xs)), argument)
        assert counted(gradient, pictures, kernel) == flops


CLIPS, SHOWN, WORDS, EMBED = 16, 3, 6, 24
# Of tiny.hf_config: pictures or texts, tokens, width, hidden width, layers.
VISION, TEXTS = (CLIPS * SHOWN, 17, 48, 96, 2), (CLIPS, WORDS, 32, 64, 2)
PATCHES = 2 * CLIPS * SHOWN * 16 * (3 * 8 * 8) * 48
HEADS = {FRAMES: 2 * CLIPS * SHOWN * 48 * EMBED, TEXT: 2 * CLIPS * 32 * EMBED}
LOSS = 3 * 2 * CLIPS * CLIPS * EMBED  # cosines, and the gradient of both their factors
CHANNELS = {"full": 0, "projection": 0, "cross_modal_adapter": 8}


def kernels(items, tokens, d, e, layers):
    return layers * items * tokens * (8 * d * d + 4 * d * e)


def attention(items, tokens, d, e, layers):
    return layers * items * tokens * 4 * tokens * d


def adapters(method, items, tokens, d, e, layers):
    """Two bottlenecks in each layer."""
    return layers * items * tokens * 8 * d * CHANNELS[method]


def forward(method):
    towers = VISION, TEXTS
    heads = PATCHES + sum(HEADS.values())
    return heads + sum(kernels(*t) + attention(*t) + adapters(method, *t) for t in towers)


def step(method):
    """Forward, gradient of activations, gradient of what trains."""
    both = sum(attention(*tower) for tower in (VISION, TEXTS))
    trained = {
        "full": forward("full") - both,
        "projection": sum(HEADS.values()),
        "cross_modal_adapter": sum(adapters(method, *tower) for tower in (VISION, TEXTS)),
    }[method]
    # Pixels need no gradient, nor does any activation ahead of the first that trains.
    back = 0 if method == "projection" else forward(method) + both - PATCHES
    return forward(method) + back + trained + LOSS


def run_of(method, devices=1, **fields):
    config = base_config(method)
    config.backbone, config.task.similarity = "random:tiny", "mean_pool"
    config.data.frames, config.data.words = SHOWN, WORDS
    config.train.batch_size = config.eval.batch_size = CLIPS
    config.update_from_flattened_dict(fields)
    config = validate(config)
    sizes = CLIPConfig.from_huggingface(tiny.hf_config(2, 2))
    return build(config, sizes, meshes.make_mesh(config.mesh, jax.devices()[:devices]), "cpu")


@pytest.mark.parametrize(
    ("method", "devices", "fields"),
    [
        pytest.param("full", 1, {}, marks=pytest.mark.slow),
        ("projection", 1, {}),
        (
            "cross_modal_adapter",
            8,
            {
                **{"compute.remat": "full", "train.accumulation": 2, "task.loss": "ring"},
                **{"mesh.weights": "sharded", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
            },
        ),
    ],
)
def test_a_step_by_hand(method, devices, fields):
    """A step that computes things twice, to save memory or traffic, is as useful as the plain."""
    assert useful_flops(run_of(method, devices, **fields), TRAIN) == step(method)


def test_an_evaluation_by_hand():
    run = run_of("zero_shot", devices=8)
    towers = {FRAMES: VISION, TEXT: TEXTS}
    for program, tower in towers.items():
        products = kernels(*tower) + attention(*tower) + HEADS[program]
        given = next(iter(run.arguments(program)["batch"].values())).shape[0]
        rows = given // CLIPS
        assert useful_flops(run, program) == rows * (products + PATCHES * (program == FRAMES))
