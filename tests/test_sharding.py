"""Weights cut over the mesh: every parameter has a rule, and training is that of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import tiny
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from test_methods import NOT_FOR_BLIP

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import METHODS, get_method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.export import export
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.attention import fused_form
from uniadapter_jax.parallel.sharding import Weights, axes_of
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import KINDS
from uniadapter_jax.tasks.base import Setting, place_state
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step

N, STEPS = 8, 10
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
# {name: (mesh, where the weights lie, other fields of the config)}.
WAYS = {
    "one": (ONE, "replicated", {}),
    "fsdp=4": ({"data": 2, "fsdp": 4, "tensor": 1}, "sharded", {}),
    "tensor=2": ({"data": 4, "fsdp": 1, "tensor": 2}, "replicated", {}),
    "data=fsdp=tensor=2": ({"data": 2, "fsdp": 2, "tensor": 2}, "sharded", {}),
    "fused": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        "sharded",
        {"compute.attention": "fused"},
    ),
    "ring": ({**ONE, "data": 8}, "replicated", {"task.loss": "ring"}),
    "accumulation": ({**ONE, "data": 2}, "replicated", {"train.accumulation": 4}),
    "ring, accumulation": (
        {"data": 1, "fsdp": 2, "tensor": 2},
        "sharded",
        {"task.loss": "ring", "train.accumulation": 4},
    ),
}
# By day what is combined, and what other tests here compile anyway.
QUICK = {
    ("retrieval", way)
    for way in ("fsdp=4", "tensor=2", "data=fsdp=tensor=2", "fused", "ring, accumulation")
}
ALIKE = [
    pytest.param(task, way, marks=() if (task, way) in QUICK else pytest.mark.slow)
    for task in ("retrieval", "matching")
    for way in WAYS
    if way != "one" and not (task == "matching" and "ring" in way)  # it has a queue
]
METHOD_OF = {"retrieval": "cross_modal_adapter", "matching": "uniadapter"}


def make_mesh(data=1, fsdp=1, tensor=1):
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return meshes.make_mesh(sizes, jax.devices()[: data * fsdp * tensor])


def attached(model, name):
    method = get_method(name)
    options = ConfigDict({**method.options})
    method.attach(model, options, generator(0, "adapters"))
    return partition(model, method.trainable), model.config


@functools.cache
def adapted(task):
    """(partition, config of the backbone): an adapter, none of whose parts is zero."""
    model = tiny.clip(vision_layers=2)
    if task == "matching":
        model = tiny.blip(parts=("BlipForImageTextRetrieval",))
    part, config = attached(model, METHOD_OF[task])
    rng = np.random.default_rng(0)
    part.trainable = jax.tree.map(
        lambda x: x + 0.05 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32), part.trainable
    )
    return part, config


def placed(part, config, mesh, weights):
    chosen = Weights.of({"weights": weights}, mesh, config)
    return dataclasses.replace(
        part,
        trainable=meshes.put_replicated(part.trainable, mesh),
        frozen=chosen.put(part.frozen),
        weights=chosen,
    )


NOT_FOR = {  # as docs/methods.md says
    "clip": set(),
    "blip": set(NOT_FOR_BLIP),
}


@pytest.mark.parametrize("family", NOT_FOR)
def test_every_parameter_of_every_method_has_a_rule(family):
    claimed = {}
    for name in METHODS:
        model = tiny.clip() if family == "clip" else tiny.blip()
        try:
            part, _ = attached(model, name)
        except UserError:
            continue  # the method does not fit
        for path in (*flat_names(part.trainable), *flat_names(part.frozen)):
            claimed.setdefault(name, {})[path] = axes_of(path)
    assert set(METHODS) - set(claimed) == NOT_FOR[family]
    frozen = claimed["zero_shot"]
    cut = {path for path, axes in frozen.items() if axes}
    # What is never cut is small: norms, temperatures, heads, and biases of what adds to states.
    kept = ("ln", "proj", "head", "scale", "temp", "out.bias", "fc2.bias", "embedding.bias")
    assert all(any(part in path for part in kept) for path in set(frozen) - cut)
    added = set(claimed["uniadapter"]) - set(frozen)
    assert added and not any(claimed["uniadapter"][path] for path in added)


def test_rules_by_hand():
    rules = {
        "vision.blocks.attn.q.kernel": ("fsdp", "tensor"),
        "text.blocks.cross.v.bias": ("tensor",),
        "decoder.blocks.attn.out.kernel": ("tensor", "fsdp"),
        "text.blocks.mlp.fc1.kernel": ("fsdp", "tensor"),
        "text.blocks.fc2.kernel": ("tensor", "fsdp"),
        "text.token_embedding": ("fsdp",),
        "vision.blocks.attn.q.delta.a_kernel": (),
        "adapters.rows.kernel": (),
    }
    assert {path: axes_of(path) for path in rules} == rules
    with pytest.raises(ValueError, match=r"claims the parameter 'text\.blocks\.gate'"):
        axes_of("text.blocks.gate")


def test_an_axis_that_does_not_divide_stays_whole():
    weights = Weights.of({"weights": "sharded"}, make_mesh(fsdp=3), adapted("retrieval")[1])
    for width, expected in ((48, P(None, "fsdp", None)), (32, P())):
        q = {"attn": {"q": {"kernel": jax.ShapeDtypeStruct((2, width, width), jnp.float32)}}}
        assert weights.shardings(q)["attn"]["q"]["kernel"].spec == expected


def test_heads_that_do_not_divide_are_refused():
    message = r"config\.mesh\.tensor=8 does not divide the 4 heads of the backbone's vision tower"
    with pytest.raises(UserError, match=message):
        Weights.of({"weights": "replicated"}, make_mesh(tensor=8), adapted("retrieval")[1])
    config = base_config()
    config.mesh.weights = "cut"
    with pytest.raises(UserError, match=r"config\.mesh\.weights='cut': choose one of replicated"):
        validate(config)


def test_a_device_holds_its_part():
    part, config = adapted("retrieval")
    whole = sum(x.nbytes for x in jax.tree.leaves(part.frozen))
    held = {}
    for name, mesh in {"fsdp": make_mesh(2, 4), "tensor": make_mesh(2, 1, 4)}.items():
        frozen = placed(part, config, mesh, "sharded").frozen
        shards = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(frozen)]
        held[name] = sum(shards) / whole
        for x, y in zip(*map(jax.tree.leaves, (frozen, part.frozen)), strict=True):
            np.testing.assert_array_equal(x, y)
    assert 0.25 < held["fsdp"] < 0.3
    assert 0.25 < held["tensor"] < 0.45  # embeddings stay whole


def make_batch(task, seed):
    batch = {name: np.array(x) for name, x in tiny.batch(N, 2, seed=seed).items()}
    if task == "matching":
        batch["text"] = np.random.default_rng(seed).integers(6, 58, (N, 6)).astype(np.int32)
        batch["frame_mask"][: N // 2, 1:] = False
    return batch


@functools.cache
def prepared(task, way):
    """Everything of a run on the first devices, up to the compiled step."""
    sizes, weights, fields = WAYS[way]
    mesh = make_mesh(**sizes)
    config = base_config(METHOD_OF[task], task)
    config.optimizer.lr, config.optimizer.warmup = 1e-3, 0.0
    if task == "matching":
        config.task.queue, config.task.momentum = 2 * N, 0.9
    config.update_from_flattened_dict(fields)
    part = placed(*adapted(task), mesh, weights)
    part.fused = fused_form(config.compute.attention, mesh)
    made = get_task(task).make(Setting(config.task, mesh, adapted(task)[1], N, 4))
    trainable = jax.tree.map(jnp.copy, part.trainable)
    optimizer = make_optimizer(config.optimizer, STEPS, trainable)
    state = [
        trainable,
        init_opt_state(optimizer, trainable, mesh),
        place_state(made, trainable, mesh),
    ]
    first = meshes.put_batch(make_batch(task, 0), mesh, N)
    step = make_step(made, part, optimizer, mesh, 0, config.train.accumulation)
    compiled = step.trace(*state, part.frozen, first, np.int32(0)).lower().compile()
    return mesh, part, state, step, compiled


@functools.cache
def trained(task, way):
    """(losses, trainables, how far each was from its start at most) of the real training step."""
    mesh, part, state, step, compiled = prepared(task, way)
    losses, far = [], {}
    started = flat_names(adapted(task)[0].trainable)
    for i in range(STEPS):
        batch = meshes.put_batch(make_batch(task, i), mesh, N)
        *state, metrics = compiled(*state, part.frozen, batch, np.int32(i), step.given)
        assert not np.any(metrics["nonfinite"])
        losses.append(float(metrics["loss"]))
        for name, x in flat_names(meshes.fetch(state[0])).items():
            far[name] = max(far.get(name, 0.0), np.abs(x - started[name]).max())
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state[0]))
    return losses, flat_names(meshes.fetch(state[0])), far


@pytest.mark.parametrize(("task", "way"), ALIKE)
def test_ten_steps_are_those_of_one_device(task, way):
    """Dropout, momentum and the queue of matching included."""
    expected, final, far = trained(task, "one")
    found, there, _ = trained(task, way)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, x in final.items():
        scale = np.abs(x).max()
        # A constant on all keys cancels in the softmax: no gradient.
        blind = "cross_key" in name and name.endswith("_bias")
        assert blind or far[name] > 1e-3 * scale, name
        np.testing.assert_allclose(there[name], x, atol=1e-4 * scale, err_msg=name)


def moved(task, way):
    """[(kind, shape, how often)] of the step's collectives, and its text."""
    text = prepared(task, way)[-1].as_text()
    found = []
    for _, line, times in Module(text):
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            found += [(kind, shape.dims, times) for shape in line.shapes]
    return found, text


def test_one_device_has_no_constraint_and_no_collective():
    found, text = moved("retrieval", "one")
    assert not found and "Sharding" not in text and "sharding_constraint" not in text


def test_a_layers_weights_are_gathered_when_it_comes():
    found, _ = moved("retrieval", "fsdp=4")
    layers = 2
    gathered = [dims for kind, dims, times in found if kind == "all-gather" and times == layers]
    kernels = [(48, 48)] * 4 + [(48, 96), (96, 48)] + [(32, 32)] * 4 + [(32, 64), (64, 32)]
    # Forward, and again for the gradient; nothing else, so no states of the batch.
    assert sorted(dims[-2:] for dims in gathered) == sorted(2 * kernels)
    assert not any(len(dims) == 3 and dims[0] == layers for _, dims, _ in found)  # no whole stack


def test_tensor_sums_states_twice_a_layer_and_direction():
    found, _ = moved("retrieval", "tensor=2")
    inside = [(kind, dims) for kind, dims, times in found if times == 2]
    assert {kind for kind, _ in inside} == {"all-reduce"}
    clips, frames = N // 4, 2
    for states in ((clips * frames, 17, 48), (clips, 6, 32)):
        # Forward after out and fc2; backward before fc1 and before q, k, v, which XLA may join.
        assert 4 <= sum(dims == states for _, dims in inside) <= 6


def test_fused_attention_moves_nothing():
    """Every device has the queries, keys and values of its rows and heads."""
    fused, text = moved("retrieval", "fused")
    plain, other = moved("retrieval", "data=fsdp=tensor=2")
    assert "attention_backward" in text and "attention_backward" not in other
    assert sorted(fused) == sorted(plain)


@pytest.mark.slow
def test_a_run_on_a_cut_backbone_leaves_what_one_device_leaves(small, whole):
    flags = ("data=1", "fsdp=2", "tensor=2", "weights=sharded")
    small.run("--workdir=cut", *(f"--config.mesh.{flag}" for flag in flags), devices=4)
    cut = small.root / "cut"
    np.testing.assert_allclose(small_run.losses(cut), small_run.losses(whole), rtol=3e-5)
    assert small_run.result(cut)["metrics"] == small_run.result(whole)["metrics"]
    here, there = small_run.checkpoint(cut), small_run.checkpoint(whole)
    assert here.keys() == there.keys()
    exported = {}
    for name, workdir in {"cut": cut, "one": whole}.items():
        export(str(workdir), str(small.root / f"adapter-{name}"))
        files = (small.root / f"adapter-{name}").iterdir()
        exported[name] = {file.name: file.stat().st_size for file in files}
    assert exported["cut"].keys() == exported["one"].keys()
    for name, x in there.items():
        if "trainable" in name:
            np.testing.assert_allclose(here[name], x, atol=1e-3 * np.abs(x).max(), err_msg=name)
