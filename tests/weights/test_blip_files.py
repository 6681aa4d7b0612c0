"""BLIP's directories and its own files; PyTorch's own are in tests/parity."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
from blip_layout import to_blip, with_momentum
from torch_bytes import torch_file

from uniadapter_jax import convert
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.wordpiece import load_wordpiece
from uniadapter_jax.weights.directory import huggingface_tensors, load_backbone, save_backbone
from uniadapter_jax.weights.fingerprint import fingerprint
from uniadapter_jax.weights.names.positions import resize_positions
from uniadapter_jax.weights.safetensors_file import read_safetensors
from uniadapter_jax.weights.sources import Hints

HEADS = Hints(heads=(2, 4))
KINDS = {"retrieval": [MATCHING], "vqa": [ANSWERING], "pretrained": [MATCHING, ANSWERING]}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(54))]


def tensors_of(model):
    """What a file holds; safetensors writes contiguous arrays only."""
    return {name: np.array(value, order="C") for name, value in huggingface_tensors(model)}


def config_of(parts):
    """As BLIP's own files imply: [SEP] would be 102, but there are 60 tokens."""
    return tiny.blip_config(parts, sep_token_id=59)


@pytest.fixture(scope="module", params=KINDS)
def found(request):
    """(kind, config.json, HuggingFace's tensors, fingerprint) of a tiny BLIP."""
    config = config_of(KINDS[request.param])
    ours = BLIPConfig.from_huggingface(config)
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in huggingface_tensors(BLIP(ours, rng=None))}
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if "temp" in tensors:
        tensors["temp"] = np.array(0.0625, np.float32)
    return request.param, config, tensors, fingerprint(tensors.items(), ours)


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_saved_loads_bit_for_bit(found, tmp_path):
    _, config, tensors, expected = found
    loaded = load_backbone(str(write(tmp_path / "theirs", config, tensors)))
    assert isinstance(loaded.model, BLIP) and loaded.fingerprint == expected
    save_backbone(loaded.model, tmp_path / "saved", None)
    saved = read_safetensors(tmp_path / "saved" / "model.safetensors")
    assert set(saved) == set(tensors)
    for name, value in saved.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    again = load_backbone(str(tmp_path / "saved"))
    assert again.fingerprint == expected and again.model.config == loaded.model.config


@pytest.mark.parametrize("momentum", [False, True])
def test_own_files_give_the_same_backbone(found, tmp_path, momentum, capsys):
    kind, _, tensors, expected = found
    own = with_momentum(to_blip(tensors)) if momentum else to_blip(tensors)
    (tmp_path / "model.pth").write_bytes(torch_file(own))
    source = str(tmp_path / "model.pth")
    assert convert.convert_weights(source, str(tmp_path / "made"), hints=HEADS) == expected
    assert "BLIP -> " in capsys.readouterr().err
    made = load_backbone(str(tmp_path / "made"))
    assert made.fingerprint == expected
    assert (made.model.config.matching, made.model.config.decoder) == (
        kind != "vqa",
        kind != "retrieval",
    )
    for name, value in huggingface_tensors(made.model):
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


def test_transformers_leaves_out_the_temperature(tmp_path):
    config, tensors = config_of([MATCHING]), tensors_of(tiny.blip(parts=[MATCHING]))
    del tensors["temp"]
    without = load_backbone(str(write(tmp_path / "without", config, tensors)))
    assert without.model.temp[...] == np.float32(0.07)
    tensors["temp"] = np.array(0.07, np.float32)
    assert load_backbone(str(write(tmp_path / "with", config, tensors))).fingerprint == (
        without.fingerprint
    )
    tensors["temp"] = np.array(0.08, np.float32)
    assert load_backbone(str(write(tmp_path / "other", config, tensors))).fingerprint != (
        without.fingerprint
    )


def test_the_decoders_head_is_tied(tmp_path):
    tensors = tensors_of(tiny.blip(parts=[ANSWERING]))
    config, head = config_of([ANSWERING]), "text_decoder.cls.predictions.decoder"
    expected = load_backbone(str(write(tmp_path / "one", config, tensors))).fingerprint
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    other = {name: value for name, value in tensors.items() if name != words}
    other[f"{head}.weight"] = tensors[words]
    assert load_backbone(str(write(tmp_path / "two", config, other))).fingerprint == expected
    other[words] = tensors[words] + 1
    with pytest.raises(UserError, match=rf"{head}\.weight is not {words}"):
        load_backbone(str(write(tmp_path / "three", config, other)))


def test_another_image_size(tmp_path):
    tensors = tensors_of(tiny.blip(parts=[MATCHING]))
    own = to_blip(tensors)
    safetensors.numpy.save_file(own, tmp_path / "own.safetensors")
    convert.convert_weights(
        str(tmp_path / "own.safetensors"), str(tmp_path / "made"), image_size=48, hints=HEADS
    )
    name = "vision_model.embeddings.position_embedding"
    made = read_safetensors(tmp_path / "made" / "model.safetensors")[name]
    assert made.shape == (1, 37, 24)
    np.testing.assert_array_equal(made[0], resize_positions(tensors[name][0], 6))
    assert load_backbone(str(tmp_path / "made")).model.config.image_size == 48


def test_a_decoder_of_pictures_is_left_out(tmp_path):
    """A pre-trained ViT-L is wider than its texts, so its decoder cannot read questions."""
    own = to_blip(tensors_of(tiny.blip()))
    for i in range(2):
        for part in ("key", "value"):
            name = f"text_decoder.bert.encoder.layer.{i}.crossattention.self.{part}.weight"
            own[name] = own[name][:, :24].copy()
    safetensors.numpy.save_file(own, tmp_path / "own.safetensors")
    convert.convert_weights(str(tmp_path / "own.safetensors"), str(tmp_path / "m"), hints=HEADS)
    assert not load_backbone(str(tmp_path / "m")).model.config.decoder


def test_what_is_wrong_is_named(tmp_path):
    tensors = tensors_of(tiny.blip(parts=[MATCHING]))
    own = to_blip(tensors)
    qkv, key = "visual_encoder.blocks.1.attn.qkv.weight", "crossattention.self.key.weight"
    own[qkv] = own[qkv][:-1].copy()
    del own[f"text_encoder.encoder.layer.0.{key}"], own["itm_head.bias"]
    own["surplus"] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(own, tmp_path / "own.safetensors")
    with pytest.raises(UserError) as report:
        convert.convert_weights(
            str(tmp_path / "own.safetensors"), str(tmp_path / "made"), hints=HEADS
        )
    message = str(report.value)
    assert "4 problems" in message and not (tmp_path / "made").exists()
    for line in (f"shape of {qkv}", f"layer.0.{key}", "missing: itm_head.bias", "over: surplus"):
        assert line in message
    safetensors.numpy.save_file({"visual_encoder.a": np.zeros(3)}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"missing: visual_encoder\.pos_embed"):
        convert.convert_weights(str(tmp_path / "bad.safetensors"), str(tmp_path / "made"))


def test_heads_that_cannot_be_told(tmp_path):
    own = to_blip(tensors_of(tiny.blip(parts=[MATCHING])))
    safetensors.numpy.save_file(own, tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="--heads VISION,TEXT"):
        convert.convert_weights(str(tmp_path / "own.safetensors"), str(tmp_path / "made"))


def test_random_weights(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny.blip_config()))
    first, again, other = (load_backbone(f"random:{file}", seed=s) for s in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_tokenizer_comes_along(tmp_path, given, capsys):
    tensors = tensors_of(tiny.blip(parts=[MATCHING]))
    source = write(tmp_path / "source", config_of([MATCHING]), tensors)
    named = source if given == "folder" else tmp_path
    (named / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    passed = None if given == "folder" else str(tmp_path / "vocab.txt")
    convert.convert_weights(str(source), str(tmp_path / "made"), tokenizer=passed)
    assert "tokenizer of 60 ids" in capsys.readouterr().err
    assert load_wordpiece(tmp_path / "made").encode(["w0 w1"], 5).tolist() == [[2, 4, 5, 3, 0]]
    save_backbone(load_backbone(str(tmp_path / "made")).model, tmp_path / "s", tmp_path / "made")
    assert load_wordpiece(tmp_path / "s").vocab_size == 60
    (named / "vocab.txt").write_text("\n".join(TOKENS[:-1]) + "\n")
    with pytest.raises(UserError, match="has 59 ids, the weights know 60"):
        convert.convert_weights(str(source), str(tmp_path / "fewer"), tokenizer=passed)


def test_without_a_tokenizer_only_strings_raise(tmp_path, capsys):
    tensors = tensors_of(tiny.blip(parts=[MATCHING]))
    source = write(tmp_path / "source", config_of([MATCHING]), tensors)
    convert.convert_weights(str(source), str(tmp_path / "made"))
    assert "no tokenizer (to encode strings, pass --tokenizer PATH" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json, or vocab.txt\)"):
        load_wordpiece(tmp_path / "made").encode(["a cat"], 8)
