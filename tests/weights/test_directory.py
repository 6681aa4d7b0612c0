"""Backbone directories: what is written reads back, and what is wrong is named, all of it."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny

from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.weights.directory import (
    huggingface_shapes,
    huggingface_tensors,
    load_backbone,
    save_backbone,
)
from uniadapter_jax.weights.families import FAMILIES
from uniadapter_jax.weights.fingerprint import fingerprint
from uniadapter_jax.weights.safetensors_file import read_safetensors

SAVED = {"config.json", "model.safetensors", "fingerprint.json", "digests.json"}
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "clip"


@pytest.fixture(scope="module")
def model():
    return tiny.clip()


@pytest.fixture(scope="module")
def tensors(model):
    """What the model's file holds, in values that float16 and bfloat16 both represent."""
    return {
        name: np.ascontiguousarray(value.astype(ml_dtypes.bfloat16).astype(np.float32))
        if value.ndim
        else np.array(2.5, np.float32)
        for name, value in huggingface_tensors(model)
    }


@pytest.fixture
def write(tmp_path):
    """Writes a directory with these tensors, in one file or several."""

    def make(tensors, name="backbone", config=None, shards=1):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config or tiny.hf_config()))
        if shards == 1:
            safetensors.numpy.save_file(tensors, directory / "model.safetensors")
            return directory
        names, weight_map = sorted(tensors), {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[i::shards]}
            safetensors.numpy.save_file(part, directory / file)
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory

    return make


def assert_holds(model, tensors):
    found = dict(huggingface_tensors(model))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32), err_msg=name)


def test_what_is_saved_reads_back(model, tmp_path):
    save_backbone(model, tmp_path / "saved", None)
    loaded = load_backbone(str(tmp_path / "saved"))
    assert_holds(loaded.model, dict(huggingface_tensors(model)))
    assert loaded.model.config == model.config
    assert loaded.fingerprint == fingerprint(huggingface_tensors(model), model.config)
    assert {p.name for p in (tmp_path / "saved").iterdir()} == SAVED


def test_saved_file_is_what_safetensors_itself_reads(model, tmp_path):
    save_backbone(model, tmp_path / "saved", None)
    file = tmp_path / "saved" / "model.safetensors"
    theirs, ours = safetensors.numpy.load_file(file), read_safetensors(file)
    assert set(theirs) == set(ours) == set(huggingface_shapes(model.config))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_adapters_are_no_part_of_a_saved_backbone(tmp_path, model):
    adapted = tiny.clip("cross_modal_adapter")
    save_backbone(adapted, tmp_path / "saved", None)
    assert_holds(load_backbone(str(tmp_path / "saved")).model, dict(huggingface_tensors(model)))


def test_shards_equal_one_file(write, tensors):
    one = load_backbone(str(write(tensors)))
    several = load_backbone(str(write(tensors, "shards", shards=3)))
    assert_holds(several.model, tensors)
    assert several.fingerprint == one.fingerprint


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_stored_dtype_does_not_matter(write, tensors, dtype):
    # Small values would be below float16's normal range.
    wide = {k: np.where(np.abs(v) < 1e-3, np.float32(0), v) for k, v in tensors.items()}
    stored = {k: v.astype(dtype) for k, v in wide.items()}
    assert all((stored[k].astype(np.float32) == wide[k]).all() for k in wide)
    loaded = load_backbone(str(write(stored, "stored")))
    assert_holds(loaded.model, wide)
    assert loaded.fingerprint == load_backbone(str(write(wide, "wide"))).fingerprint


def test_buffers_of_older_files_are_passed_over(write, tensors):
    ids = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    older = load_backbone(str(write({**tensors, **ids}, "older")))
    assert older.fingerprint == load_backbone(str(write(tensors))).fingerprint


def test_every_bit_and_the_function_count(tensors):
    config = CLIPConfig.from_huggingface(tiny.hf_config())
    known = {fingerprint(tensors.items(), config)}

    def differs(tensors, config):
        found = fingerprint(tensors.items(), config)
        assert found not in known
        known.add(found)

    for name in ("logit_scale", "text_projection.weight"):
        changed = {**tensors, name: tensors[name].copy()}
        changed[name].reshape(-1)[-1:].view(np.uint32)[...] ^= 1
        differs(changed, config)
    for tower, field, value in (
        ("vision_config", "hidden_act", "gelu"),
        ("text_config", "layer_norm_eps", 1e-6),
        ("text_config", "num_attention_heads", 2),
        ("text_config", "eos_token_id", 7),
    ):
        other = tiny.hf_config()
        other[tower][field] = value
        differs(tensors, CLIPConfig.from_huggingface(other))


def test_two_ways_to_write_one_eos_rule_are_one_fingerprint(tensors):
    found = set()
    for eos_id in (2, 99):  # the largest id in the text; the largest of all ids
        config = tiny.hf_config()
        config["text_config"]["eos_token_id"] = eos_id
        found.add(fingerprint(tensors.items(), CLIPConfig.from_huggingface(config)))
    assert len(found) == 1


def test_order_does_not_matter(tensors):
    config = CLIPConfig.from_huggingface(tiny.hf_config())
    backwards = reversed(list(tensors.items()))
    assert fingerprint(backwards, config) == fingerprint(tensors.items(), config)


def test_all_problems_are_in_one_report(write, tensors):
    tensors = dict(tensors)
    del tensors["text_model.final_layer_norm.bias"], tensors["logit_scale"]
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].T.copy()
    layer = "vision_model.encoder.layers.1.mlp.fc1.bias"
    tensors[layer] = tensors[layer][:-1].copy()
    tensors["text_projection.weight"] = np.zeros((24, 32), np.int32)
    tensors["text_model.encoder.layers.2.mlp.fc1.bias"] = np.zeros(64, np.float32)
    with pytest.raises(UserError) as report:
        load_backbone(str(write(tensors)))
    message = str(report.value)
    assert "6 problems" in message and "backbone" in message
    for line in (
        "missing: text_model.final_layer_norm.bias",
        "missing: logit_scale",
        "shape of visual_projection.weight: (48, 24), config says (24, 48)",
        f"shape of {layer}: (95,), config says (96,)",
        "dtype of text_projection.weight: int32",
        "left over: text_model.encoder.layers.2.mlp.fc1.bias",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("\xff", "not UTF-8"),
        ("[1]", "holds a JSON array"),
        ('{"model_type": "align"}', "'align', expected 'clip' or 'blip' or 'siglip'"),
        ('{"vision_config": 3}', "vision_config is a int"),
        ('{"text_config": {"hidden_size": "wide"}}', "text_config.hidden_size='wide'"),
        ('{"text_config": {"num_hidden_layers": -1}}', "text_config.num_hidden_layers=-1"),
        ('{"vision_config": {"num_channels": 4}}', "num_channels=4"),
        ('{"vision_config": {"hidden_act": "relu"}}', "'relu'"),
        ('{"vision_config": {"num_attention_heads": 5}}', "5 heads"),
        ('{"vision_config": {"patch_size": 30}}', "patch_size=30"),
        ('{"projection_dim": null}', "projection_dim=None"),
    ],
)
def test_bad_config(write, tensors, text, named):
    directory = write(tensors)
    (directory / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_backbone(str(directory))
    assert named in str(error.value)


def test_what_is_not_there(write, tensors, tmp_path):
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=str(source)):
            load_backbone(str(source))
    directory = write(tensors)
    with pytest.raises(UserError, match="not a directory"):
        load_backbone(str(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        load_backbone(str(directory))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights(write, tensors, size):
    file = write(tensors) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_backbone(str(file.parent))


def test_bad_indices(write, tensors):
    directory = write(tensors, shards=2)
    index = directory / "model.safetensors.index.json"
    for text, named in (
        ("{", "is no index"),
        ('{"weight_map": 3}', "is no index"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "no plain file name"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors, which is not there"),
    ):
        index.write_text(text)
        with pytest.raises(UserError, match=named):
            load_backbone(str(directory))


def test_a_tensor_in_two_shards(write, tensors):
    directory = write(tensors, shards=2)
    files = sorted(directory.glob("model-*"))
    both = {**safetensors.numpy.load_file(files[1]), "logit_scale": tensors["logit_scale"]}
    both |= dict(list(safetensors.numpy.load_file(files[0]).items())[:1])
    safetensors.numpy.save_file(both, files[1])
    with pytest.raises(UserError, match="another shard again"):
        load_backbone(str(directory))


def test_random_weights_come_from_the_seed(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny.hf_config()))
    first, again, other = (load_backbone(f"random:{file}", seed=s) for s in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    expected = CLIP(first.model.config, rng=generator(3, "backbone"))
    assert_holds(first.model, dict(huggingface_tensors(expected)))
    with pytest.raises(UserError, match=r"gone\.json"):
        load_backbone(f"random:{tmp_path / 'gone.json'}")


def test_changed_after_conversion(write, tensors):
    directory = write(tensors)
    found = load_backbone(str(directory)).fingerprint
    note = directory / "fingerprint.json"
    note.write_text(json.dumps({"fingerprint": found}))
    assert load_backbone(str(directory)).fingerprint == found
    note.write_text(json.dumps({"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="has changed since it was converted") as error:
        load_backbone(str(directory))
    assert found in str(error.value) and "0" * 64 in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "fingerprint.json"])
def test_a_changed_file_of_a_saved_backbone_is_named(model, tmp_path, name):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    save_backbone(model, tmp_path / "saved", tmp_path / "tokenizer")
    load_backbone(str(tmp_path / "saved"))
    file = tmp_path / "saved" / name
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match=f"{name}: has changed since it was written"):
        load_backbone(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=f"{name}: has changed since it was written"):
        save_backbone(model, tmp_path / "again", tmp_path / "saved")


def test_a_flipped_bit_of_saved_weights_is_told(model, tmp_path):
    save_backbone(model, tmp_path / "saved", None)
    file = tmp_path / "saved" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"saved has changed since .* of model\.safetensors and"):
        load_backbone(str(tmp_path / "saved"))


def test_saving_spares_what_is_there(model, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    for target in (full, file):
        with pytest.raises(UserError, match="exists and is not empty"):
            save_backbone(model, target, None)
    assert (full / "mine.txt").read_text() == file.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"full", "file"}
    (tmp_path / "empty").mkdir()
    save_backbone(model, tmp_path / "empty", None)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


TOKENIZER_FILES = FAMILIES["clip"].tokenizer_files


def test_saving_copies_the_tokenizer(model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*TOKENIZER_FILES, "optimizer.bin"):
        (source / name).write_text(name)
    save_backbone(model, tmp_path / "saved", source)
    saved = {p.name for p in (tmp_path / "saved").iterdir()}
    assert saved == {*TOKENIZER_FILES, *SAVED}
    assert (tmp_path / "saved" / "vocab.json").read_text() == "vocab.json"


def test_nowhere_to_save(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save_backbone(model, tmp_path / "file" / "below", None)


def test_golden_clip():
    """A CLIP of transformers' own making and the features it computes."""
    golden = np.load(GOLDEN / "features.npz")
    for name in ("quick_gelu", "gelu"):
        model = load_backbone(str(GOLDEN / name)).model
        for ours, theirs in (
            (jax.jit(model.encode_images)(golden["pixels"]), golden[f"{name}.image"]),
            (jax.jit(model.encode_text)(golden["ids"]), golden[f"{name}.text"]),
        ):
            assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
