"""One random CLIP in every format that people have, written by torch and transformers."""

import argparse
import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import open_clip_model
import pytest
import torch
from openai_layout import to_openai
from references import apart, batch, features, odd_config, random_clip
from torch import nn
from torch.nn import functional
from transformers import CLIPModel

from uniadapter_jax import load_model
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.weights.directory import load_backbone
from uniadapter_jax.weights.names import cma as cma_names
from uniadapter_jax.weights.safetensors_file import read_safetensors

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model():
    """Towers whose heads are 64 wide, as all of OpenAI's; EOS by OpenAI's rule."""
    return random_clip(odd_config(head=64), representable=True)


@pytest.fixture(scope="module")
def openai(model):
    """The same tensors under OpenAI's names."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {name: torch.tensor(np.array(value)) for name, value in to_openai(arrays).items()}


class Module(nn.Module):
    """Nested modules with given parameters, as OpenAI's archives hold."""

    def __init__(self, tensors):
        super().__init__()
        below = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = tensor
            elif name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for head, inner in below.items():
            self.add_module(head, Module(inner))

    def forward(self, x):
        return x


def hf_safetensors(folder, model, openai):
    model.save_pretrained(folder)
    return folder


def hf_shards(folder, model, openai):
    model.save_pretrained(folder, max_shard_size="5MB")
    assert len(list(folder.glob("model-*"))) > 1
    return folder


def hf_bin(folder, model, openai):
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def open_clip(folder, model, openai):
    vision, text = model.config.vision_config, model.config.text_config
    described = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    torch.save(openai, folder / "open_clip_pytorch_model.bin")
    return folder


def openai_archive(folder, model, openai):
    sizes = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    # OpenAI's own mixture: products in half precision, the rest in float32.
    mixed = {
        name: tensor.half() if tensor.ndim > 1 and "embedding" not in name else tensor
        for name, tensor in openai.items()
    }
    torch.jit.save(torch.jit.script(Module({**mixed, **sizes})), folder / "ViT.pt")
    return folder / "ViT.pt"


def torch_zip(folder, model, openai):
    wrapped = {f"module.{name}": tensor for name, tensor in openai.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "model.pth")
    return folder / "model.pth"


def torch_legacy(folder, model, openai):
    half = {name: tensor.half() for name, tensor in openai.items()}
    torch.save(half, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


MAKERS = (hf_safetensors, hf_shards, hf_bin, open_clip, openai_archive, torch_zip, torch_legacy)


def test_formats_have_one_fingerprint(model, openai, tmp_path):
    # OpenAI's rule for the epsilon is 1e-5, so all of them must say so.
    config = copy.deepcopy(model.config)
    config.vision_config.layer_norm_eps = config.text_config.layer_norm_eps = 1e-5
    reference = CLIPModel(config).eval()
    reference.load_state_dict(model.state_dict())
    found = {}
    for make in MAKERS:
        folder = tmp_path / make.__name__
        folder.mkdir()
        source = make(folder, reference, openai)
        found[make.__name__] = convert_weights(str(source), str(tmp_path / f"{folder.name}.made"))
    assert len(set(found.values())) == 1, found

    inputs = batch(reference)
    expected = features(reference, *inputs)
    for name in ("open_clip", "openai_archive"):
        theirs = CLIPModel.from_pretrained(tmp_path / f"{name}.made").eval()
        assert theirs.dtype == torch.float32
        for a, b in zip(features(theirs, *inputs), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    ours = load_backbone(str(tmp_path / "openai_archive.made")).model
    pixels = jnp.asarray(inputs[0].permute(0, 2, 3, 1).numpy())
    ids = jnp.asarray(inputs[1].numpy().astype("int32"))
    assert apart(jax.jit(ours.encode_images)(pixels), expected[0]) < 1e-5
    assert apart(jax.jit(ours.encode_text)(ids), expected[1]) < 1e-5


@pytest.mark.parametrize("size", [14, 35])
def test_another_image_size(model, openai, tmp_path, size):
    """21 pixels in patches of 7; transformers interpolates by itself, also bicubically."""
    model.save_pretrained(tmp_path / "hf")
    convert_weights(str(tmp_path / "hf"), str(tmp_path / "made"), image_size=size)
    name = "vision_model.embeddings.position_embedding.weight"
    table = model.state_dict()[name]
    grid = table[1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    kind = {"mode": "bicubic", "align_corners": False}
    resized = functional.interpolate(grid, (size // 7, size // 7), **kind)
    expected = torch.cat([table[:1], resized.permute(0, 2, 3, 1).reshape(-1, table.shape[1])])
    made = read_safetensors(tmp_path / "made" / "model.safetensors")[name]
    assert apart(made, expected.numpy()) < 1e-6

    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
    ours = load_backbone(str(tmp_path / "made")).model
    found = jax.jit(ours.encode_images)(jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    assert apart(found, theirs.pooler_output.numpy()) < 1e-5


@pytest.mark.parametrize("shared", [0, 6, 192])
def test_cross_modal_adapter_checkpoint(model, openai, tmp_path, shared):
    shapes = cma_names.official_shapes(
        layers=(3, 2), widths=(192, 320), bottleneck=4, shared_dim=shared
    )
    adapter = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    if shared == 192:  # their vision tower keeps a unique part of no channels
        adapter["visual_adapter_up_unique_weight"] = torch.zeros(6, 0, 4).half()
        adapter["visual_adapter_up_unique_bias"] = torch.zeros(6, 0).half()
    state = {f"clip.{name}": tensor for name, tensor in {**openai, **adapter}.items()}
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 4}, tmp_path / "model.bin.4")
    convert_weights(str(tmp_path / "model.bin.4"), str(tmp_path / "made"))
    written = read_safetensors(tmp_path / "made" / "adapter" / "adapter_model.safetensors")
    back = cma_names.to_official(written)
    assert set(back) == set(shapes)
    for name, value in back.items():
        np.testing.assert_array_equal(value, adapter[name].float().numpy())


def test_open_clips_own_model(model, openai, tmp_path):
    """What open_clip builds from that config takes these tensors and computes what we do."""
    try:
        builder = open_clip_model.load()
    except ImportError:
        pytest.skip("open_clip is not installed; `make parity` installs it")
    for name in ("theirs", "plain"):
        (tmp_path / name).mkdir()
        open_clip(tmp_path / name, model, openai)
    described = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())
    theirs = builder.CLIP(**described["model_cfg"]).eval()
    theirs.load_state_dict(openai)
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "open_clip_pytorch_model.bin")
    found = [
        convert_weights(str(tmp_path / name), str(tmp_path / f"{name}.made"))
        for name in ("theirs", "plain")
    ]
    assert found[0] == found[1]

    pixels, ids = batch(model)
    ours = load_model(tmp_path / "theirs.made")
    # open_clip reads whole contexts only.
    padded = functional.pad(ids, (0, ours.config.positions - ids.shape[1]))
    with torch.no_grad():
        wanted = theirs.encode_image(pixels).numpy(), theirs.encode_text(padded).numpy()
    assert apart(ours.encode_frames(pixels.permute(0, 2, 3, 1).numpy()), wanted[0]) < 1e-5
    assert apart(ours.encode_text(ids.numpy()), wanted[1]) < 1e-5


def test_a_checkpoint_with_the_trainers_arguments(openai, tmp_path):
    """As Cross-Modal Adapter's trainer saves it: its command line is read as nothing."""
    state = {f"clip.{name}": tensor for name, tensor in openai.items()}
    content = {"model": state, "args": argparse.Namespace(lr=1e-4, device=torch.device("cpu"))}
    torch.save(content, tmp_path / "model.bin.4")
    torch.save(state, tmp_path / "plain.bin")
    found = [
        convert_weights(str(tmp_path / name), str(tmp_path / f"{name}.made"))
        for name in ("model.bin.4", "plain.bin")
    ]
    assert found[0] == found[1]
