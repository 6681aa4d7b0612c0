"""`python -m uniadapter_jax.convert` on files made by hand; PyTorch's own are in tests/parity."""

import gzip
import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
from openai_layout import to_openai
from torch_bytes import torch_file

from uniadapter_jax import convert
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.backbones.pixels import PIXEL_MEAN, PIXEL_STD
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import load_tokenizer, train_tokenizer
from uniadapter_jax.weights.directory import huggingface_tensors, load_backbone
from uniadapter_jax.weights.fingerprint import fingerprint
from uniadapter_jax.weights.names import cma as cma_names
from uniadapter_jax.weights.names import openai as openai_names
from uniadapter_jax.weights.safetensors_file import read_safetensors
from uniadapter_jax.weights.sources import Hints

HEADS = Hints(heads=(4, 4))
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 4,
            "width": 48,
            "head_width": 12,
            "mlp_ratio": 2.0,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 100,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "mlp_ratio": 2.0,
        },
    },
    "preprocess_cfg": {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic"},
}


@pytest.fixture(scope="module")
def tensors():
    """A tiny CLIP under HuggingFace's names, in values that float16 has."""
    rng = np.random.default_rng(0)
    return {
        name: np.array(rng.standard_normal(value.shape), np.float16).astype(np.float32)
        for name, value in huggingface_tensors(tiny.clip())
    }


@pytest.fixture(scope="module")
def expected(tensors):
    return fingerprint(tensors.items(), CLIPConfig.from_huggingface(tiny.hf_config()))


def hf(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.hf_config()))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def hf_bin(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.hf_config()))
    (folder / "pytorch_model.bin").write_bytes(torch_file(tensors))
    return folder


def hf_bin_shards(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.hf_config()))
    names, weight_map = list(tensors), {}
    for i in range(2):
        part = {name: tensors[name] for name in names[i::2]}
        (folder / f"part-{i}.bin").write_bytes(torch_file(part))
        weight_map.update(dict.fromkeys(part, f"part-{i}.bin"))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def open_clip(folder, tensors, described=OPEN_CLIP):
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(to_openai(tensors), folder / "open_clip_model.safetensors")
    return folder


def open_clip_custom_text(folder, tensors):
    folder.mkdir()
    described = {**OPEN_CLIP["model_cfg"], "custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    ours = {
        name if name.startswith(("visual", "logit")) else f"text.{name}": value
        for name, value in to_openai(tensors).items()
    }
    (folder / "open_clip_pytorch_model.bin").write_bytes(torch_file(ours))
    return folder


def openai(folder, tensors, layout="script"):
    folder.mkdir()
    path = folder / "ViT.pt"
    sizes = {name: np.array(7, np.float32) for name in ("input_resolution", "vocab_size")}
    sizes["transformer.resblocks.0.attn_mask"] = np.zeros((77, 77), np.float32)
    half = {name: value.astype(np.float16) for name, value in to_openai(tensors).items()}
    if layout == "legacy":
        sizes = {name: value.astype(np.float16) for name, value in sizes.items()}
    path.write_bytes(torch_file({**half, **sizes}, layout))
    return path


def openai_zip(folder, tensors):
    return openai(folder, tensors, "zip")


def openai_legacy(folder, tensors):
    return openai(folder, tensors, "legacy")


MAKERS = (hf, hf_bin, hf_bin_shards, open_clip, open_clip_custom_text)
MAKERS += (openai, openai_zip, openai_legacy)


@pytest.mark.parametrize("make", MAKERS)
def test_every_format_gives_the_same_backbone(make, tensors, expected, tmp_path, capsys):
    source = make(tmp_path / "source", tensors)
    found = convert.convert_weights(str(source), str(tmp_path / "made"), hints=HEADS)
    assert found == expected
    assert {p.name for p in (tmp_path / "made").iterdir()} == {
        "config.json",
        "digests.json",
        "fingerprint.json",
        "model.safetensors",
    }
    backbone = load_backbone(str(tmp_path / "made"))
    assert backbone.fingerprint == expected
    for name, value in huggingface_tensors(backbone.model):
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    stored = read_safetensors(tmp_path / "made" / "model.safetensors").values()
    assert {value.dtype.name for value in stored} == {
        "float16" if make in (openai, openai_zip, openai_legacy) else "float32"
    }
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path / "made").encode(["a cat"], 8)
    assert "no tokenizer (to encode strings, pass --tokenizer PATH" in capsys.readouterr().err


def test_the_command(tensors, expected, tmp_path, capsys):
    source = str(hf(tmp_path / "source", tensors))
    assert convert.main([source, str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.strip() == expected
    assert convert.main([source, str(tmp_path / "made")]) == 2
    assert "error: " in (said := capsys.readouterr().err) and "exists" in said
    with pytest.raises(SystemExit, match="2"):
        convert.main([source])


def refused(source, tmp_path, **options):
    """The error of a conversion, which must leave nothing behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        convert.convert_weights(str(source), str(tmp_path / "made"), **options)
    assert sorted(tmp_path.iterdir()) == before
    return str(error.value)


def test_all_problems_are_in_one_report(tensors, tmp_path):
    ours = to_openai(tensors)
    del ours["ln_final.bias"], ours["transformer.resblocks.1.attn.in_proj_bias"]
    ours["visual.proj"] = ours["visual.proj"].T.copy()
    ours["visual.ln_pre.bias"] = ours["visual.ln_pre.bias"][:-1].copy()
    ours["transformer.resblocks.0.attn.in_proj_weight"] = np.zeros((32, 32), np.float32)
    ours["transformer.resblocks.0.ln_1.weight"] = np.zeros(32, np.int64)
    ours["visual.transformer.resblocks.02.ln_1.bias"] = np.zeros(48, np.float32)
    ours["logit_bias"] = np.zeros((), np.float32)
    safetensors.numpy.save_file(ours, tmp_path / "clip.safetensors")
    said = refused(tmp_path / "clip.safetensors", tmp_path, hints=HEADS)
    for line in (
        "missing: ln_final.bias",
        "missing: transformer.resblocks.1.attn.in_proj_bias",
        "shape of visual.proj: gives visual_projection.weight (48, 24), config says (24, 48)",
        "shape of visual.ln_pre.bias: gives vision_model.pre_layrnorm.bias (47,), config says",
        "shape of transformer.resblocks.0.attn.in_proj_weight: (32, 32) does not split",
        "dtype of transformer.resblocks.0.ln_1.weight: int64",
        "left over: visual.transformer.resblocks.02.ln_1.bias",
        "left over: logit_bias",
    ):
        assert line in said
    assert "8 problems" in said


def test_a_layer_too_many(tensors, tmp_path):
    described = json.loads(json.dumps(OPEN_CLIP))
    described["model_cfg"]["text_cfg"]["layers"] = 1
    said = refused(open_clip(tmp_path / "source", tensors, described), tmp_path)
    assert "left over: transformer.resblocks.1.attn.in_proj_weight" in said
    assert "12 problems" in said


def test_another_activation_is_another_fingerprint(tensors, expected, tmp_path):
    described = json.loads(json.dumps(OPEN_CLIP))
    del described["model_cfg"]["quick_gelu"]  # open_clip's default is the exact GELU
    source = open_clip(tmp_path / "source", tensors, described)
    assert convert.convert_weights(str(source), str(tmp_path / "made")) != expected
    assert load_backbone(str(tmp_path / "made")).model.config.vision.activation == "gelu"
    plain = openai(tmp_path / "plain", tensors)
    hints = Hints(activation="gelu", heads=(4, 4))
    other = convert.convert_weights(str(plain), str(tmp_path / "other"), hints=hints)
    assert other == load_backbone(str(tmp_path / "made")).fingerprint


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip_without_its_config_may_have_either_activation(tensors, tmp_path, name):
    source = tmp_path / name
    if source.suffix == ".bin":
        source.write_bytes(torch_file(to_openai(tensors)))
    else:
        safetensors.numpy.save_file(to_openai(tensors), source)
    said = refused(source, tmp_path, hints=HEADS)
    assert name in said and "open_clip_config.json" in said and "--activation" in said
    for activation in ("gelu", "quick_gelu"):
        made = str(tmp_path / activation)
        convert.convert_weights(str(source), made, hints=Hints(activation, (4, 4)))
        assert load_backbone(made).model.config.vision.activation == activation


def test_heads_of_wide_towers_are_not_guessed():
    """ViT-H/14 has 16 heads of 80, not 20 of 64."""
    assert openai_names.usual_heads("vision", 1024) == 16
    with pytest.raises(UserError, match=r"1280 wide.*--heads"):
        openai_names.usual_heads("vision", 1280)
    assert openai_names.usual_heads("text", 1280) == 20


@pytest.mark.parametrize("options", [{}, {"image_size": 48}])
def test_a_damaged_conversion_is_not_converted_again(tensors, tmp_path, options):
    convert.convert_weights(str(hf(tmp_path / "source", tensors)), str(tmp_path / "first"))
    first = tmp_path / "first"
    convert.convert_weights(str(first), str(tmp_path / "second"), **options)
    config = (first / "config.json").read_text()
    (first / "config.json").write_text(config + " ")
    assert "config.json: has changed" in refused(first, tmp_path, **options)
    (first / "config.json").write_text(config)
    content = bytearray((first / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (first / "model.safetensors").write_bytes(content)
    assert "has changed since it was converted" in refused(first, tmp_path, **options)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "layers", [3, 4, 6, 3]),
        ("text_cfg", "hf_model_name", "roberta"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "a_new_field", 1),
        (None, "multimodal_cfg", {"layers": 3}),
    ],
)
def test_other_open_clip_models(tensors, tmp_path, section, field, value):
    described = json.loads(json.dumps(OPEN_CLIP))
    model = described["model_cfg"]
    (model[section] if section else model)[field] = value
    said = refused(open_clip(tmp_path / "source", tensors, described), tmp_path)
    assert f"{field}={value!r}" in said and "open_clip_config.json" in said


def test_other_pixels(tensors, tmp_path):
    described = {**OPEN_CLIP, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    assert "mean" in refused(open_clip(tmp_path / "source", tensors, described), tmp_path)
    folder = hf(tmp_path / "hf", tensors)
    (folder / "preprocessor_config.json").write_text('{"image_std": [0.5, 0.5, 0.5]}')
    assert "image_std" in refused(folder, tmp_path)


def test_heads_that_cannot_be_told(tensors, tmp_path):
    said = refused(openai(tmp_path / "source", tensors), tmp_path)
    assert "48 wide" in said and "--heads" in said


def test_unknown_files(tensors, tmp_path):
    assert "no such file" in refused(tmp_path / "gone.pt", tmp_path)
    (tmp_path / "folder").mkdir()
    assert "holds none of model.safetensors" in refused(tmp_path / "folder", tmp_path)
    safetensors.numpy.save_file({"trunk.a": np.zeros(3)}, tmp_path / "other.safetensors")
    assert "no known format (trunk.a" in refused(tmp_path / "other.safetensors", tmp_path)
    folder = hf(tmp_path / "source", tensors)
    (folder / "config.json").unlink()
    assert "config.json" in refused(folder, tmp_path)


@pytest.mark.parametrize("make", [hf, openai])
def test_image_size(make, tensors, tmp_path):
    source = make(tmp_path / "source", tensors)
    convert.convert_weights(str(source), str(tmp_path / "made"), image_size=48, hints=HEADS)
    model = load_backbone(str(tmp_path / "made")).model
    assert model.config.image_size == 48
    for name, value in huggingface_tensors(model):
        if name == "vision_model.embeddings.position_embedding.weight":
            assert value.shape == (37, 48)
        else:
            np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    assert "patch_size=8" in refused(source, tmp_path / "made", image_size=44, hints=HEADS)


def test_a_wrong_table_of_positions_is_never_resized_unasked(tensors, tmp_path):
    name = "vision_model.embeddings.position_embedding.weight"
    source = hf(tmp_path / "source", {**tensors, name: np.zeros((26, 48), np.float32)})
    assert f"shape of {name}: (26, 48), config says (17, 48)" in refused(source, tmp_path)


def official(r=3, shared=5, text_layers=2):
    """Random official tensors of an adapter for the tiny CLIP."""
    rng = np.random.default_rng(1)
    shapes = cma_names.official_shapes(
        layers=(4, text_layers), widths=(48, 32), bottleneck=r, shared_dim=shared
    )
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def checkpoint(path, tensors, adapter):
    content = {f"clip.{name}": value for name, value in {**to_openai(tensors), **adapter}.items()}
    path.write_bytes(torch_file(content))
    return path


@pytest.mark.parametrize("shared", [0, 5, 32])
def test_cross_modal_adapter(tensors, expected, tmp_path, shared):
    adapter = official(shared=shared)
    source = checkpoint(tmp_path / "pytorch_model.bin.4", tensors, adapter)
    found = convert.convert_weights(str(source), str(tmp_path / "made"), hints=HEADS)
    assert found == load_backbone(str(tmp_path / "made")).fingerprint == expected
    config = json.loads((tmp_path / "made" / "adapter" / "adapter_config.json").read_text())
    assert config["method"] == "cross_modal_adapter" and config["method_version"] == 1
    assert config["backbone_fingerprint"] == expected
    assert config["options"]["bottleneck"] == 3 and config["options"]["shared_dim"] == shared
    written = read_safetensors(tmp_path / "made" / "adapter" / "adapter_model.safetensors")

    options = {"bottleneck": 3, "shared_dim": shared}
    trainable = flat_names(tiny.split("cross_modal_adapter", options=options).trainable)
    assert {n: v.shape for n, v in written.items()} == {n: v.shape for n, v in trainable.items()}
    back = cma_names.to_official(written)
    assert set(back) == set(adapter)
    for name, value in adapter.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    kernel = written["vision.blocks.after_mlp.down_kernel"][2]
    np.testing.assert_array_equal(kernel, adapter["visual_adapter_down_weight"][5].T)


def test_an_adapter_that_does_not_fit(tensors, tmp_path):
    adapter = official(text_layers=3)
    del adapter["visual_adapter_up_unique_bias"]
    clip = to_openai(tensors)
    del clip["ln_final.bias"]
    content = {f"clip.{name}": value for name, value in {**clip, **adapter}.items()}
    content["similarity_dense.weight"] = np.zeros((1, 24), np.float32)
    (tmp_path / "model.bin").write_bytes(torch_file(content))
    said = refused(tmp_path / "model.bin", tmp_path, hints=HEADS)
    assert "missing: clip.visual_adapter_up_unique_bias" in said
    assert "missing: clip.ln_final.bias" in said
    assert "left over: similarity_dense.weight" in said
    assert "shape of clip.vt_adapter_up_share_bias: (6, 5), expected (4, 5)" in said


CAPTIONS = ["a cat sits on a mat", "a dog and a cat", "the quick brown fox", "the mat"] * 3


@pytest.fixture(scope="module")
def roomy():
    """A CLIP with room for a byte-level vocabulary, and its config."""
    config = tiny.hf_config()
    config["text_config"] |= {"vocab_size": 530, "eos_token_id": 529}
    model = CLIPConfig.from_huggingface(config)
    rng = np.random.default_rng(0)
    names = huggingface_tensors(tiny.CLIP(model, rng=rng))
    return config, {name: np.ascontiguousarray(v) if v.ndim else v for name, v in names}


def test_tokenizers(roomy, tmp_path):
    config, tensors = roomy
    source = hf(tmp_path / "source", tensors)
    (source / "config.json").write_text(json.dumps(config))
    known = train_tokenizer(CAPTIONS, 530, tmp_path / "tokenizer")
    merges = (tmp_path / "tokenizer" / "merges.txt").read_text()
    with gzip.open(tmp_path / "bpe.txt.gz", "wt") as file:
        file.write(merges + "too many\nof them\n")
    (tmp_path / "bpe.txt").write_text(merges)
    for name in ("tokenizer", "bpe.txt.gz", "bpe.txt"):
        made = tmp_path / f"from_{name}"
        convert.convert_weights(str(source), str(made), tokenizer=str(tmp_path / name))
        assert load_tokenizer(made).fingerprint == known.fingerprint
    again = tmp_path / "again"  # a source's own tokenizer travels with it
    convert.convert_weights(str(made), str(again))
    assert load_tokenizer(again).fingerprint == known.fingerprint


def test_tokenizers_that_do_not_fit(roomy, tensors, tmp_path):
    config, wide = roomy
    train_tokenizer(CAPTIONS, 530, tmp_path / "tokenizer")
    small = hf(tmp_path / "small", tensors)
    said = refused(small, tmp_path, tokenizer=str(tmp_path / "tokenizer"))
    assert "530 ids, the weights know 100" in said
    source = hf(tmp_path / "source", wide)
    (source / "config.json").write_text(json.dumps(config))
    assert "holds none of" in refused(source, tmp_path, tokenizer=str(tmp_path / "small"))
    (tmp_path / "short").write_text("#version\na b\n")
    assert "1 merges, the weights need 16" in refused(
        source, tmp_path, tokenizer=str(tmp_path / "short")
    )
    (tmp_path / "odd").write_text("#version\na b c\n" * 30)
    assert "line 2: not a pair" in refused(source, tmp_path, tokenizer=str(tmp_path / "odd"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a b\n" * 99)[:20])
    assert "cannot be read" in refused(source, tmp_path, tokenizer=str(tmp_path / "cut.gz"))


def test_a_large_file_of_a_tokenizer_is_not_copied(tensors, tmp_path):
    source = hf(tmp_path / "source", tensors)
    with (source / "merges.txt").open("wb") as file:
        file.truncate(10**10)  # sparse
    assert "merges.txt: has 10,000,000,000 bytes" in refused(source, tmp_path)


def test_a_full_disk_is_seen_beforehand(tensors, tmp_path, monkeypatch):
    source = hf(tmp_path / "source", tensors)
    usage = convert.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    said = refused(source, tmp_path)
    assert "bytes are needed, 1000 are free" in said
