"""Every config is valid, says how it is run, and fits together: one step of it, by shapes alone."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import re

import jax
import pytest
import small_run

from uniadapter_jax.adapters.partition import count
from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.data.tokenizers.wordpiece import train_wordpiece
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import OPTIMIZER, TRAIN, abstract_partition, build
from uniadapter_jax.planning.sizes import known_config
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.weights.directory import read_config
from uniadapter_jax.weights.families import check_tokenizer

FILES = sorted((small_run.ROOT / "configs").glob("*.py"))
# A trace takes a second or more, so all methods are tried with one config of CLIP; elsewhere one
# argument for each family that the config can take, or the config as it is.
EVERY = tuple(f"method={method}" for method in METHODS)
ARGUMENTS = {
    "demo": EVERY,
    "msrvtt": EVERY,
    "activitynet": ("method=cross_modal_adapter", "method=uniadapter"),
    "coco": ("method=uniadapter", "backbone=clip"),
    "didemo": ("method=cross_modal_adapter", "method=lora,backbone=blip"),
    "flickr30k": ("method=zero_shot", "backbone=clip"),
    "lsmdc": ("method=projection",),
    "msrvtt_uniadapter": ("method=uniadapter",),
    "msrvtt_qa": ("method=uniadapter",),
    "msvd": ("method=full",),
    "own": ("method=cross_modal_adapter", "backbone=blip"),
    "vatex": ("method=zero_shot",),
    "vqav2": ("method=lora",),
}
VIT_B32 = CLIPConfig.from_huggingface({})  # transformers' defaults


def module_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases():
    """(file, argument) of every config, and of every method with some.

    By day demo.py stands for MSR-VTT's methods but one, since both are a CLIP.
    """
    for file in FILES:
        takes_argument = inspect.signature(module_of(file).get_config).parameters
        every = ARGUMENTS.get(file.stem, (None,))
        for argument in every if takes_argument else (None,):
            again = file.stem == "msrvtt" and argument != "method=cross_modal_adapter"
            yield pytest.param(
                *(file, argument),
                id=f"{file.stem}-{argument or 'as it is'}",
                marks=pytest.mark.slow if again else (),
            )


def built(file, argument):
    get_config = module_of(file).get_config
    return validate(get_config() if argument is None else get_config(argument))


def backbone_config(config):
    """Of the weights that the config names; base size where they are not part of the repository."""
    source = config.backbone.removeprefix("random:")
    path = pathlib.Path(source) if source.endswith(".json") else pathlib.Path(source, "config.json")
    path = small_run.ROOT / path
    if path.exists():
        return read_config(path)
    is_clip = get_task(config.task.name).families[0] == "clip"
    return VIT_B32 if is_clip else known_config("blip-base-capfilt-480")


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize(("file", "argument"), list(cases()))
def test_a_step_of_every_config_has_the_right_shapes(file, argument):
    config = built(file, argument)
    backbone = backbone_config(config)
    if config.method.name in ("coop", "vl_prompt"):  # their tokens need positions, too
        config.data.words = min(config.data.words, backbone.positions - 16)
    assert config.data.words <= backbone.positions
    mesh = meshes.make_mesh(config.mesh)
    run = build(config, backbone, mesh, "cpu")
    if run.partition.trainable == {}:
        assert config.method.name == "zero_shot" and TRAIN not in run.programs
        return
    meshes.check_divides(mesh, config.train.batch_size, "train.batch_size")
    trainable, new_state, _, metrics = run.lower(TRAIN).out_info
    assert shapes((trainable, new_state)) == shapes((run.partition.trainable, run.state[OPTIMIZER]))
    assert metrics["loss"].shape == ()
    assert metrics["nonfinite"].shape == (len(jax.tree.leaves(trainable)),)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_docstring_holds_the_commands(file):
    text = module_of(file).__doc__
    for command in ("prepare", "main"):
        asked = rf"python -m uniadapter_jax\.{command} --config=configs/{file.stem}\.py\b"
        assert re.search(asked, text), f"{file} does not say how to {command}"


@pytest.mark.parametrize(
    ("name", "method", "trainable"),
    [
        ("coco", "uniadapter", 19_520_132),
        ("msrvtt_uniadapter", "uniadapter", 5_359_748),
        ("flickr30k", "projection", 393_216 + 512 + 1538),
        ("coco", "lora", None),
        ("coco", "full", None),
    ],
)
def test_methods_on_blip_train_what_they_should(name, method, trainable):
    config = built(small_run.ROOT / "configs" / f"{name}.py", f"method={method}")
    part = abstract_partition(config, known_config("blip-base-384"), "cpu")
    assert trainable in (None, count(part.trainable)) and part.trainable


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fields_of_one_recipe_fit(file):
    """What is read elsewhere, and would fail only at the end of a long run."""
    config = module_of(file).get_config()
    task = config.task
    if task.name == "matching":
        assert task.queue % config.train.batch_size == 0
    if task.name == "vqa":
        assert config.data.answer_words >= 3
        assert config.data.answers == 10 or task.metric == "exact"
    if config.optimizer.recipe == "adamw_cosine_per_epoch":
        assert (config.optimizer.warmup, config.optimizer.clip_norm) == (0, 0)


def test_the_official_vqa_files_have_no_visual_genome():
    get_config = module_of(small_run.ROOT / "configs" / "vqav2.py").get_config
    assert get_config().data.train_split == "train,val,vg"
    official = get_config("source=vqav2").data
    assert (official.prepare.source, official.train_split) == ("vqav2", "train,val")


def test_the_small_blip_has_the_ids_of_a_learned_vocabulary(tmp_path):
    """`prepare --train-wordpiece=126`, as configs/easy_vqa.py says."""
    config = module_of(small_run.ROOT / "configs" / "easy_vqa.py").get_config()
    backbone = backbone_config(config)
    assert "--train-wordpiece=126" in module_of(FILES[0].with_name("easy_vqa.py")).__doc__
    tokenizer = train_wordpiece(["is it red", "yes"], 126, tmp_path)
    check_tokenizer(tokenizer, backbone, str(tmp_path), config.backbone)
    assert tokenizer.vocab_size == backbone.vocab_size


def test_the_paper_counts_our_adapter():
    config = built(small_run.ROOT / "configs" / "msrvtt.py", "method=cross_modal_adapter")
    part = abstract_partition(config, VIT_B32, "cpu")
    assert count(part.trainable) == 519_168
    assert f"{part.counts()['percent']:.3f}" == "0.342"


def test_fields_that_do_not_exist_are_refused():
    config = base_config()
    config.train.batchsize = 3
    with pytest.raises(UserError, match=r"config\.train has no field 'batchsize'; did you mean"):
        validate(config)


def test_a_method_comes_with_its_options():
    config = base_config("lora")
    config.method.name = "cross_modal_adapter"
    with pytest.raises(UserError, match=r"config\.method has no 'bottleneck'.*method=NAME"):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("compute.dtype", "float16", "choose one of float32, bfloat16"),
        ("data.words", 2, "BOS, a token and EOS"),
        ("train.batch_size", 0, "at least 1"),
        ("selection", "val", "needs config.data.val"),
        ("selection_metric", "v2t/R@2", "Rsum, or one of t2v, v2t"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = base_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message) as caught:
        validate(config)
    assert f"config.{field}=" in str(caught.value)
