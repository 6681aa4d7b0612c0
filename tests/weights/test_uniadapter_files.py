"""Checkpoints of UniAdapter: backbone and adapter; the authors' own tensors are in the golden file.

Numbers by the imported model are in test_uniadapter_golden.py.
"""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
from blip_layout import to_blip, with_momentum
from flax import nnx
from ml_collections import ConfigDict
from torch_bytes import torch_file

from uniadapter_jax import convert
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.adapters.registry import AdapterParam, get_method
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.load import put_adapter
from uniadapter_jax.testing import official_names
from uniadapter_jax.weights.adapter_directory import read_adapter
from uniadapter_jax.weights.directory import huggingface_tensors, load_backbone
from uniadapter_jax.weights.names import uniadapter as uniadapter_names
from uniadapter_jax.weights.sources import Hints

HEADS, WIDTH, LAYERS, R, KV = Hints(heads=(4, 4)), 32, 2, 3, 5
SHAPES = {
    "adapter_layer_norm_before.weight": (WIDTH,),
    "adapter_layer_norm_before.bias": (WIDTH,),
    "adapter_layer_norm_cross_modal.weight": (WIDTH,),
    "adapter_layer_norm_cross_modal.bias": (WIDTH,),
    "down_proj.weight": (R, WIDTH),
    "down_proj.bias": (R,),
    "up_proj.weight": (WIDTH, R),
    "up_proj.bias": (WIDTH,),
    "visual_up_proj.weight": (WIDTH, R),
    "visual_up_proj.bias": (WIDTH,),
    "multi_up_proj.weight": (WIDTH, R),
    "multi_up_proj.bias": (WIDTH,),
}
STATES = {
    "scale": (1,),
    "down_proj.weight": (KV, WIDTH),
    "down_proj.bias": (KV,),
    "up_proj.weight": (WIDTH, KV),
    "up_proj.bias": (WIDTH,),
}
LN_X = "adapter_layer_norm_cross_modal"


def config_of(parts):
    config = tiny.blip_config(parts, text_layers=LAYERS, sep_token_id=59)
    config["vision_config"] |= {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    config["vision_config"]["num_attention_heads"] = 4
    return BLIPConfig.from_huggingface(config)


def official(parts=(MATCHING,), keys=True):
    """Random tensors of an adapter, each once, heads left out; LN_x as it starts."""
    rng = np.random.default_rng(1)
    shapes = {f"adapters.{i}.{name}": s for i in range(LAYERS) for name, s in SHAPES.items()}
    encoders = ["text_encoder.encoder"]
    if ANSWERING in parts:
        encoders.append("text_decoder.bert.encoder")
    for encoder in encoders if keys else ():
        for part in ("key", "value"):
            shapes |= {f"{encoder}.video_{part}_adapter.{name}": s for name, s in STATES.items()}
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    for i in range(LAYERS):
        tensors[f"adapters.{i}.{LN_X}.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"adapters.{i}.{LN_X}.bias"] = np.zeros(WIDTH, np.float32)
    return tensors


def everywhere(adapter, parts):
    """The same as a released file has it: a copy at every place that uses it."""
    found = dict(adapter)
    for name, value in adapter.items():
        if not name.startswith("adapters."):
            continue
        _, i, rest = name.split(".", 2)
        found[f"visual_encoder.adapters.{i}.{rest}"] = value
        found[f"visual_encoder.blocks.{i}.adapter.{rest}"] = value
        found[f"text_encoder.encoder.layer.{i}.adapter.{rest}"] = value
        if ANSWERING in parts:
            found[f"text_decoder.bert.encoder.layer.{i}.adapter.{rest}"] = value
            found[f"adapters_dec.{i}.{rest}"] = value + 1  # never used
        else:
            found[f"adapters_m.{i}.{rest}"] = value + 1
    return found


@pytest.fixture(scope="module")
def blips():
    """{parts: BLIP's own tensors}."""
    found = {}
    for parts in ((MATCHING,), (ANSWERING,)):
        model = BLIP(config_of(parts), rng=np.random.default_rng(0))
        tensors = {name: np.array(value, order="C") for name, value in huggingface_tensors(model)}
        found[parts] = to_blip(tensors)
    return found


def imported(tmp_path, tensors):
    """The file converted: (backbone, adapter's files)."""
    (tmp_path / "checkpoint.pth").write_bytes(torch_file(tensors))
    source = str(tmp_path / "checkpoint.pth")
    fingerprint = convert.convert_weights(source, str(tmp_path / "made"), hints=HEADS)
    base, adapter = load_backbone(str(tmp_path / "made")), read_adapter(tmp_path / "made/adapter")
    assert base.fingerprint == adapter.fingerprint == fingerprint
    return base, adapter


@pytest.mark.parametrize(
    ("parts", "copies"), [((MATCHING,), True), ((ANSWERING,), True), ((MATCHING,), False)]
)
def test_a_released_file(blips, tmp_path, parts, copies, capsys):
    """Momentum, queue, copies and the unused set are no parts of the model."""
    adapter, own = official(parts), blips[parts]
    tensors = with_momentum(own) | everywhere(adapter, parts) if copies else own | adapter
    base, found = imported(tmp_path, tensors)
    assert "UniAdapter -> " in capsys.readouterr().err
    config = json.loads((tmp_path / "made/adapter/adapter_config.json").read_text())
    assert config["method"] == "uniadapter" and set(config["options"]) == set(
        get_method("uniadapter").options
    )
    assert (found.options["bottleneck"], found.options["key_value_bottleneck"]) == (R, KV)
    assert found.options["train_heads"] and not found.options["train_cross_norm"]
    part = put_adapter(base, found)
    named = official_names("uniadapter", part.trainable)
    heads = {k: v for k, v in own.items() if k.startswith(("vision_proj", "text_proj", "itm"))}
    assert set(named) == {k for k in adapter if LN_X not in k} | set(heads)
    for name, value in named.items():
        np.testing.assert_array_equal(value, (adapter | heads)[name], err_msg=name)
    for name, value in huggingface_tensors(load_backbone(str(tmp_path / "made")).model):
        if name in heads:
            np.testing.assert_array_equal(value, heads[name])


def test_a_cross_norm_that_has_trained_comes_along(blips, tmp_path):
    adapter = official()
    name = f"adapters.1.{LN_X}.bias"
    adapter[name] = adapter[name] + np.float32(0.5)
    base, found = imported(tmp_path, blips[(MATCHING,)] | adapter)
    assert found.options["train_cross_norm"]
    np.testing.assert_array_equal(found.tensors["adapters.ln_cross_bias"][1], adapter[name])
    named = official_names("uniadapter", put_adapter(base, found).trainable)
    assert set(named) >= set(adapter)


def test_without_adapters_of_keys_and_values(blips, tmp_path):
    base, found = imported(tmp_path, blips[(MATCHING,)] | official(keys=False))
    assert found.options["key_value_bottleneck"] == 0
    put_adapter(base, found)
    assert base.model.text.cross_key is None


def test_everything_wrong_is_in_one_report(blips, tmp_path):
    adapter = everywhere(official(), (MATCHING,))
    layer = "text_encoder.encoder.layer.1.adapter.up_proj.weight"
    adapter[layer] = adapter[layer] + 1
    for place in ("adapters", "visual_encoder.adapters"):
        adapter[f"{place}.0.down_proj.weight"] = np.zeros((R, WIDTH + 1), np.float32)
    for name in [name for name in adapter if name.endswith("1.multi_up_proj.bias")]:
        del adapter[name]
    del adapter["visual_encoder.blocks.1.adapter.multi_up_proj.bias"]
    del adapter["text_encoder.encoder.layer.1.adapter.multi_up_proj.bias"]
    adapter["adapters.0.scale"] = np.ones(1, np.float32)
    tensors = blips[(MATCHING,)] | adapter
    del tensors["itm_head.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as report:
        convert.convert_weights(str(tmp_path / "bad.safetensors"), str(tmp_path / "m"), hints=HEADS)
    message = str(report.value)
    assert not (tmp_path / "m").exists()
    for line in (
        f"{layer} is not adapters.1.up_proj.weight, of which it should be a copy",
        "shape of adapters.0.down_proj.weight: (3, 33), config says (3, 32)",
        "missing: adapters.1.multi_up_proj.bias",
        "left over: adapters.0.scale",
        "missing: itm_head.bias",
    ):
        assert line in message, message


def test_what_tells_the_sizes_must_be_there(blips, tmp_path):
    adapter = official()
    del adapter["adapters.0.down_proj.bias"]
    safetensors.numpy.save_file(blips[(MATCHING,)] | adapter, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"adapters\.0\.down_proj\.bias is missing; it tells"):
        convert.convert_weights(str(tmp_path / "bad.safetensors"), str(tmp_path / "m"), hints=HEADS)


def test_towers_that_differ_have_no_official_file(tmp_path):
    tensors = {name: np.array(v, order="C") for name, v in huggingface_tensors(tiny.blip())}
    tensors = to_blip(tensors) | official()
    safetensors.numpy.save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="layer i of both towers, but vision is 3 x 24 and text"):
        convert.convert_weights(
            str(tmp_path / "bad.safetensors"), str(tmp_path / "m"), hints=Hints(heads=(2, 4))
        )


def test_names_there_and_back():
    """Of a model whose towers differ, what the official layout lacks keeps our paths."""
    model = tiny.blip()
    method = get_method("uniadapter")
    options = {**method.options, "bottleneck": R, "key_value_bottleneck": KV}
    method.attach(model, ConfigDict(options), np.random.default_rng(0))
    ours = flat_names(nnx.to_pure_dict(nnx.state(model, AdapterParam)))
    named = uniadapter_names.to_official(ours)
    back = dict(uniadapter_names.from_official(named))
    own = set(ours) - set(back)
    assert own == {f"adapters.text_rows.{name}" for name in ("scale", "bias", "kernel")}
    assert own <= set(named)
    for name, value in back.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    np.testing.assert_array_equal(
        named["adapters.2.visual_up_proj.weight"], ours["vision.blocks.beside_mlp.up_kernel"][2].T
    )
