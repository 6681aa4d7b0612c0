"""What a plan says, against the compiler and against what it must be."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys

import jax
import pytest
import small_run
from shares import DATA, FSDP, TENSOR, assert_each_row_once

from uniadapter_jax.adapters.partition import count
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.plan import plan
from uniadapter_jax.planning import topology
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.advice import _candidates, find_change
from uniadapter_jax.planning.chips import CHIPS
from uniadapter_jax.planning.compilation import _sizes, compile_program
from uniadapter_jax.planning.report import tables
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.tasks.programs import FRAMES


def run_of(config, devices=8):
    sizes, _ = backbone_config(config, None)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    return build(config, sizes, mesh, "cpu")


@pytest.fixture(scope="module")
def planned(backbone):
    """A plan on a mesh of two axes."""
    from uniadapter_jax.config import base_config

    config = base_config()
    config.backbone = f"random:{backbone}"
    config.data.frames, config.data.words = 3, 6
    config.mesh.data, config.mesh.fsdp = 4, -1
    config.eval.batch_size = 13
    return plan(config, "cpu:8", batch_per_chip=2)


def test_predicted_bytes_are_the_compilers(planned):
    assert planned["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    for program in planned["programs"].values():
        memory = program["memory_bytes"]
        predicted = sum(program["argument_bytes"].values())
        assert predicted > 0
        assert abs(memory["padding"]) <= 0.01 * predicted
        assert memory["total"] >= predicted + memory["temporaries"] > predicted


def test_predicted_bytes_by_hand(planned, config):
    run = run_of(config)
    found = planned["programs"][TRAIN]["argument_bytes"]
    assert found["frozen weights"] == 4 * count(run.partition.frozen)
    assert found["trained weights"] == 4 * count(run.partition.trainable)
    # Two moments, and the steps as Adam and as the schedule count them.
    assert found["optimizer state"] == 2 * 4 * count(run.partition.trainable) + 2 * 4
    assert found["batch"] == 2 * (3 * 32 * 32 * 3 + 3 + 6 * 4 + 4)
    # Of a clip's three pictures only; 13 clips become 16, the least that 8 devices divide.
    frames = planned["programs"][FRAMES]
    assert frames["argument_bytes"]["batch"] == 2 * 3 * 32 * 32 * 3
    weights = found["frozen weights"] + found["trained weights"] + found["optimizer state"]
    held = sum(frames["argument_bytes"].values()) - frames["argument_bytes"]["batch"]
    mask = 2 * 3  # of frames, which no program of a CLIP's encoders reads
    assert held < weights and held + frames["beside_bytes"] == weights + mask


def test_a_mesh_of_two_axes_has_collectives(planned):
    found = planned["programs"][TRAIN]["collectives"]
    gradients = planned["programs"][TRAIN]["argument_bytes"]["trained weights"]
    # Every trained parameter's gradient is summed over all devices.
    assert found["all-reduce"]["bytes"] >= gradients
    assert found["all-reduce"]["sent"] == pytest.approx(2 * 7 / 8 * found["all-reduce"]["bytes"])


def test_executed_flops_are_those_that_are_useful(planned):
    for program in planned["programs"].values():
        ratio = program["executed_flops"] / program["useful_flops"]
        assert 0.9 < ratio < 1.2, planned["programs"]


def test_seed_and_learning_rate_are_no_part_of_the_program(config):
    """So the trials and seeds of a search compile once."""

    def text():
        return run_of(config, 1).lower(TRAIN).as_text()

    before = text()
    config.seed, config.optimizer.lr = 7, 3e-3
    assert text() == before
    config.optimizer.warmup = 0.5
    assert text() != before


def test_one_device_has_no_collectives(config):
    run = run_of(config, devices=1)
    program = compile_program(run, TRAIN, None)
    assert program.fits and program.work.collectives == {}


def test_the_table_says_what_the_numbers_say(planned):
    text = "\n".join(tables(planned))
    assert text.endswith("\nfits") and "mesh data 4, fsdp 2" in text and "all-reduce" in text
    assert "at best" not in text.lower()  # a CPU has no published rates


def test_cut_weights_are_found(config):
    config.compute.remat = "full"
    run = run_of(config)
    whole = compile_program(run, TRAIN, None)
    limit = whole.memory.total - whole.resident["frozen weights"] // 4
    change = find_change(run, compile_program(run, TRAIN, limit), lambda _: None)
    assert change.fields == {"mesh.weights": "sharded", "mesh.data": 1, "mesh.fsdp": 8}
    assert change.program.resident["frozen weights"] < whole.resident["frozen weights"] / 5


def test_halving_the_batch_is_found(config):
    run = run_of(config)
    whole = compile_program(run, FRAMES, None)
    limit = whole.memory.total + whole.beside - 1
    failed = compile_program(run, FRAMES, limit)
    assert not failed.fits and failed.needed == limit + 1
    said = []
    change = find_change(run, failed, said.append)
    assert change.fields == {"eval.batch_size": 8} and change.program.fits
    assert change.program.needed <= limit
    assert said == ["encode frames with --config.eval.batch_size=8: fits"]


def test_nothing_makes_weights_fit(config):
    config.train.batch_size = 8
    config.eval.batch_size = 8
    config.compute.remat = "full"
    found = plan(config, "cpu:8", hbm=1000)
    assert not found["fits"] and found["changes"] == dict.fromkeys(found["programs"])
    assert "Neither remat, nor cut weights, nor a smaller batch makes it fit." in "\n".join(
        tables(found)
    )


def test_the_smallest_changes_come_first(config):
    full = {"compute.remat": "full"}
    cut = {**full, "mesh.weights": "sharded", "mesh.data": 1, "mesh.fsdp": 4}
    smaller = [{**cut, "train.batch_size": 8}, {**cut, "train.batch_size": 4}]
    found = list(_candidates(run_of(config, 4), TRAIN))
    found = [fields for fields in found if "train.accumulation" not in fields]
    assert found == [{"compute.remat": "dots"}, full, cut, *smaller]
    config.mesh.data, config.mesh.fsdp, config.mesh.weights = 2, 2, "sharded"
    assert not any("mesh.weights" in fields for fields in _candidates(run_of(config, 4), TRAIN))


def test_a_batch_that_does_not_divide(config):
    config.train.batch_size = 12
    found = plan(config, "cpu:8")
    assert not found["fits"] and "programs" not in found
    assert found["misfit"]["smallest_batch"] == 16
    assert found["misfit"]["largest_slice"] == "cpu:6"
    assert "The next batch that does is 16" in "\n".join(tables(found))


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("HLO temporaries (126.20G) exceeds available HBM (15.75G).", (126.2, 15.75)),
        ("Ran out of memory in memory space hbm. Used 26.68G of 15.75G hbm.", (26.68, 15.75)),
    ],
)
def test_what_the_compiler_asked_for(message, sizes):
    assert _sizes(message) == tuple(int(size * 2**30) for size in sizes)
    assert _sizes("something else") == (None, None)


@pytest.mark.parametrize("name", ["v5e:3x5", "v9:2x2", "v5e", "cpu:0", "cpu:many"])
def test_a_slice_that_does_not_exist(config, name):
    with pytest.raises(UserError, match=r"does not exist; there are v4:2x2x1, .*v5e:16x16.*cpu:N"):
        plan(config, name)


def test_without_libtpu(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'uniadapter_jax\[tpu\]'"):
        plan(config, "v5e:2x4")


def test_axes_that_do_not_divide(config):
    config.mesh.tensor = 3
    with pytest.raises(UserError, match="tensor=3 does not fit 8 devices"):
        plan(config, "cpu:8")


def test_a_backbone_that_is_not_there(config):
    config.backbone = "weights/mine"
    with pytest.raises(UserError, match=r"config.backbone='weights/mine'.*--backbone-config=FILE"):
        plan(config, "cpu:8")
    config.backbone = "weights/clip-vit-base-patch16"
    sizes, source = backbone_config(config, None)
    assert sizes.patch_size == 16 and "published sizes" in source
    sizes, _ = backbone_config(config, "vit-l-14-336")
    assert (sizes.vision.layers, sizes.patches, sizes.text.width) == (24, 576, 768)


@pytest.mark.parametrize(
    ("config_of", "backbone"), [("coco", "vit-b-32"), ("msrvtt", "blip-base-224")]
)
def test_a_backbone_of_the_other_family(config_of, backbone):
    path = small_run.ROOT / "configs" / f"{config_of}.py"
    config = runpy.run_path(str(path))["get_config"]()
    told = r"is a task for a (BLIP|CLIP or a SigLIP), and the published sizes of"
    with pytest.raises(UserError, match=told):
        plan(config, "cpu:8", backbone=backbone)


def test_published_sizes_count_as_published():
    """Parameters of OpenAI's models."""
    from uniadapter_jax.config import base_config
    from uniadapter_jax.planning.abstract import abstract_partition
    from uniadapter_jax.planning.sizes import known_config

    expected = {
        "vit-b-32": 151_277_313,
        "vit-b-16": 149_620_737,
        "vit-l-14": 427_616_513,
        "vit-l-14-336": 427_944_193,
    }
    for name, parameters in expected.items():
        sizes = known_config(name)
        assert isinstance(sizes, CLIPConfig)
        part = abstract_partition(base_config("zero_shot"), sizes, "tpu")
        assert count(part.frozen) == parameters, name


def command(small, *flags, method="zero_shot"):
    arguments = [f"--config={small.config}:method={method}", "--topology=cpu:4", *flags]
    return subprocess.run(
        [sys.executable, "-m", "uniadapter_jax.plan", *arguments],
        env=os.environ | {"PYTHONPATH": str(small_run.ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_status_0_and_one_json_object(small):
    done = command(small, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["slice"] == {"name": "cpu:4", "chips": 4, "devices": 4}
    assert set(found["programs"]) == {"encode frames", "encode text"}


def test_status_1_where_it_does_not_fit(small):
    done = command(small, "--config.train.batch_size=6", method="lora")
    assert done.returncode == 1, done.stderr
    assert "the largest slice that 6 divides over is cpu:3" in done.stdout
    assert done.stdout.endswith("\ndoes not fit\n")


def test_status_2_for_wrong_input(small):
    done = command(small, "--topology=v5e:7x7")
    assert done.returncode == 2 and "--topology=v5e:7x7 does not exist" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.tpu_compiler
class TestTpuCompiler:
    """With libtpu: pip install -e '.[test,tpu]', then `pytest -m tpu_compiler`."""

    @pytest.fixture(autouse=True)
    def _libtpu(self):
        pytest.importorskip("libtpu")

    def test_every_slice_that_we_name_exists(self):
        for family, chip in CHIPS.items():
            for size in chip.slices:
                found = topology.open_slice(f"{family}:{size}")
                counts = topology.device_counts(found)
                assert counts[found.name] == len(found.devices)
                assert len({tuple(device.coords) for device in found.devices}) == found.chips

    @pytest.mark.parametrize("family", CHIPS)
    def test_the_processes_of_every_slice_supply_each_row_once(self, family):
        for size in CHIPS[family].slices:
            devices = topology.open_slice(f"{family}:{size}").devices
            for sizes in (DATA, FSDP, TENSOR):
                if len(devices) % (sizes["fsdp"] * sizes["tensor"]) == 0:
                    mesh = meshes.make_mesh(sizes, devices)
                    assert_each_row_once(mesh, 2 * meshes.batch_shards(mesh))

    def test_hosts_interleave_along_a_slice(self):
        mesh = meshes.make_mesh(DATA, topology.open_slice("v5e:4x4").devices)
        processes = [device.process_index for device in mesh.devices.flat]
        assert processes == [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
        assert meshes.rows_of_process(mesh, 16, 0).tolist() == [0, 1, 6, 15]

    @pytest.mark.parametrize(
        ("name", "tensor"), [("v4:2x2x1", 1), ("v5p:2x2x2", 2), ("v6e:4x8", 2)]
    )
    def test_slices_whose_mesh_jax_does_not_make_alone(self, config, name, tensor):
        config.mesh.tensor = tensor
        found = plan(config, name, batch_per_chip=2, train_only=True)
        assert found["fits"] and found["mesh"]["tensor"] == tensor
        assert found["slice"]["chips"] == found["slice"]["devices"]

    def test_the_tpus_program_does_the_same_products(self, config, planned):
        config.train.batch_size = 8
        found = plan(config, "v5e:2x2")
        assert found["fits"] and found["programs"][TRAIN]["loops_counted_once"] == 0
        for program in found["programs"].values():
            assert 0.9 < program["executed_flops"] / program["useful_flops"] < 1.2
            assert program["memory_bytes"]["padding"] >= 0
            assert program["estimate"]["seconds"] > 0
        step = found["programs"][TRAIN]
        assert step["collectives"]["all-reduce"]["bytes"] > 0
        assert found["estimate"]["examples_per_second"] == pytest.approx(
            8 / step["estimate"]["seconds"]
        )

    @pytest.mark.parametrize("tensor", [1, 2])
    def test_attention_is_a_kernel_of_a_device(self, config, tensor):
        config.mesh.tensor, config.compute.dtype = tensor, "bfloat16"
        config.train.batch_size = 64
        found = {}
        for form in ("auto", "xla"):
            config.compute.attention = form
            found[form] = plan(config, "v5e:2x2", train_only=True)["programs"][TRAIN]
        fused, plain = found["auto"], found["xla"]
        # The backward pass makes the scores once more.
        assert plain["executed_flops"] < fused["executed_flops"] < 1.1 * plain["executed_flops"]
        assert fused["useful_flops"] == plain["useful_flops"]
        assert fused["collectives"] == plain["collectives"]

    def test_out_of_memory_is_read(self, config):
        config.train.batch_size = 400_000
        sizes, _ = backbone_config(config, None)
        where = topology.open_slice("v5e:2x2")
        run = build(config, sizes, meshes.make_mesh(config.mesh, where.devices), "tpu")
        program = compile_program(run, TRAIN, None)
        assert not program.fits and program.memory is None
        assert program.needed > program.limit == int(15.75 * 2**30)
