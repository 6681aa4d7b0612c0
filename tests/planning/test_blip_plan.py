"""Plans of a BLIP: which programs there are, and that they do the products that are useful."""

from __future__ import annotations

import json

import jax
import pytest
import tiny

from uniadapter_jax.config import base_config, validate
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.plan import plan
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.advice import _candidates
from uniadapter_jax.planning.compilation import compile_program
from uniadapter_jax.planning.flops import useful_flops
from uniadapter_jax.planning.report import tables
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.tasks.matching.programs import RERANK
from uniadapter_jax.tasks.programs import FRAMES, STATES, TEXT
from uniadapter_jax.tasks.vqa.programs import ANSWER

PAIRS, CLIPS, SHOWN, WORDS, QUEUE, K, ROWS = 8, 8, 3, 6, 16, 4, 8
# Of tiny.blip_config: patches, pixels of a patch, the vision tower's width, the joint one.
PATCHES, PIXELS, WIDTH, EMBED = 16, 192, 24, 16


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A `config.json`."""
    path = tmp_path_factory.mktemp("blip") / "config.json"
    path.write_text(json.dumps(tiny.blip_config()))
    return str(path)


@pytest.fixture
def run_of(blip):
    """Makes a run of a task on so many devices."""

    def make(task, devices=1, method="uniadapter", **options):
        sizes, _ = backbone_config(config := config_of(blip, task, method, **options), None)
        mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
        return build(config, sizes, mesh, "cpu")

    return make


def config_of(blip, task, method="uniadapter", **options):
    config = base_config(method, task)
    config.backbone = f"random:{blip}"
    config.data.frames, config.data.words = SHOWN, WORDS
    config.data.answers, config.data.answer_words = 3, 5
    config.train.batch_size, config.eval.batch_size = PAIRS, CLIPS
    config.compute.dropout = 0.0  # whose programs take longer to compile
    config.task.frame_weights = True
    own = {"matching": {"queue": QUEUE, "rerank_k": K, "rerank_rows": ROWS}, "vqa": {"rank_k": 7}}
    config.task.update({**own[task], **options})
    return validate(config)


def executed(run, program):
    """FLOPs of one device."""
    return compile_program(run, program, None).work.flops


def test_the_programs_of_each_task(run_of):
    matching = run_of("matching")
    assert matching.programs == (TRAIN, FRAMES, TEXT, STATES, RERANK)
    assert run_of("matching", rerank_k=0).programs == (TRAIN, FRAMES, TEXT)
    assert run_of("matching", method="zero_shot").programs == (FRAMES, TEXT, STATES, RERANK)
    assert run_of("vqa").programs == (TRAIN, STATES, ANSWER)


def test_the_step_of_matching_does_the_products_that_are_useful(run_of):
    """But momentum's patches, which it takes from the other tower."""
    run = run_of("matching")
    patches = 2 * PAIRS * SHOWN * PATCHES * PIXELS * WIDTH
    assert executed(run, TRAIN) == useful_flops(run, TRAIN) - patches


def test_the_step_of_answering_does_the_products_that_are_useful(run_of):
    run = run_of("vqa")
    assert executed(run, TRAIN) == useful_flops(run, TRAIN)


def test_the_evaluation_of_matching_does_the_products_that_are_useful(run_of):
    run = run_of("matching", devices=2)
    # Eight pairs on each device, two items with four texts each: half of a batch's items.
    assert run.arguments(RERANK)["batch"]["ids"].shape == (4, K, WORDS)
    for program in (FRAMES, TEXT, STATES, RERANK):
        assert 2 * executed(run, program) == useful_flops(run, program), program


@pytest.mark.parametrize("inference", ["rank", "generate"])
def test_answers_take_the_products_that_are_useful(run_of, inference):
    run = run_of("vqa", devices=2, inference=inference)
    program = compile_program(run, ANSWER, None)
    assert program.work.unknown_loops == (inference == "generate")
    questions, alone = 4 * CLIPS, 0
    if inference == "rank":  # a first word attends to itself, for which no product is needed
        alone = 4 * questions * 32 * 2
    assert 2 * program.work.flops == useful_flops(run, ANSWER) - alone
    # States of clips and questions are cut over devices, answers are not.
    assert program.resident["batch"] == CLIPS // 2 * 4 * WORDS * 4
    assert program.resident.get("answers") == (7 * 5 * 4 if inference == "rank" else None)


def test_the_list_of_answers_counts_where_it_is(run_of, tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([f"answer {i}" for i in range(11)]))
    run = run_of("vqa", answers=str(path))
    assert run.arguments(ANSWER)["answers"].shape == (11, 5)


def test_the_states_of_a_run_lie_beside_its_evaluation(run_of):
    run = run_of("matching", devices=2)
    program = compile_program(run, TEXT, None)
    kept = jax.tree.leaves((run.partition.trainable, run.partition.frozen, run.state))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    assert sum(program.resident.values()) + program.beside == held + program.resident["batch"]


def test_keys_and_values_of_a_picture_count_once(blip):
    """However many texts look at it."""

    def flops(frames):
        config = config_of(blip, "matching", frame_weights=False)
        config.data.frames = frames
        sizes, _ = backbone_config(config, None)
        mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
        return useful_flops(build(config, sizes, mesh, "cpu"), RERANK)

    clips, tokens, d = ROWS // K, PATCHES + 1, 32
    kernels = 2 * (2 * WIDTH * d) + 2 * (WIDTH * 64 + 64 * d)  # two layers; both adapters, once
    attention = 2 * 4 * K * WORDS * d  # of a clip's texts
    assert flops(2) - flops(1) == clips * tokens * (2 * kernels + attention)


def test_fewer_pairs_come_first(run_of):
    found = list(_candidates(run_of("matching", devices=2), RERANK))
    assert found[:4] == [{"task.rerank_rows": n} for n in (4, 2, 1)] + [{"eval.batch_size": 4}]


@pytest.mark.parametrize(
    ("task", "frames", "said"),
    [
        ("vqa", 1, "7 questions a step, 3.5 a chip; 1 frame, 6 words"),
        ("matching", 1, "7 pictures a step"),
        ("matching", 3, "7 clips a step, 3.5 a chip; 3 frames, 6 words"),
    ],
)
def test_a_batch_is_called_what_it_is(blip, task, frames, said):
    config = config_of(blip, task, frame_weights=False)
    config.data.frames, config.train.batch_size = frames, 7  # which two devices do not divide
    assert said in "\n".join(tables(plan(config, "cpu:2")))


@pytest.mark.parametrize(("family", "refused"), [("blip", True), ("clip", False)])
def test_options_of_the_compiler_are_of_family_and_device(run_of, monkeypatch, family, refused):
    """The step of another family goes without; an option that is not known shows which got it."""
    monkeypatch.setattr(
        "uniadapter_jax.training.step._COMPILER_OPTIONS",
        {(family, "cpu"): {"no_such_option": True}},
    )
    lowered = run_of("vqa").lower(TRAIN)
    if refused:
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            lowered.compile()
    else:
        lowered.compile()


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_a_tpus_programs(blip, chip):
    """A v6e's training step has an option of its own (`step.py`)."""
    pytest.importorskip("libtpu")
    found = plan(config_of(blip, "matching"), f"{chip}:2x2")
    assert found["fits"] and list(found["programs"]) == [TRAIN, FRAMES, TEXT, STATES, RERANK]
    for program in found["programs"].values():
        assert program["executed_flops"] >= 0.9 * program["useful_flops"] > 0
