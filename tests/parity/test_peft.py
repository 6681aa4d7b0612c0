"""PEFT beside our methods in transformers' CLIP, and an export in its layout that it reads."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from ml_collections import ConfigDict
from references import B32, apart, batch, features, odd_config, random_clip
from transformers import CLIPModel

from uniadapter_jax import load_model
from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.weights.adapter_directory import AdapterFiles, write_adapter
from uniadapter_jax.weights.directory import load_backbone, save_backbone
from uniadapter_jax.weights.names.peft import FURTHER_LAYOUTS, write_peft

pytestmark = pytest.mark.parity

EVERYWHERE = ("q", "k", "v", "out", "fc1", "fc2", "projection", "patch_embedding")
CASES = {
    "everywhere": (odd_config(), EVERYWHERE),
    "text_deeper": (odd_config("gelu", eos_id=69, deep="text"), ("attn.q", "text.blocks.mlp.fc1")),
    "vit_b_32": (B32, ("attn.q", "attn.v")),
}


def random_lora(directory, targets):
    """A LoRA whose both factors matter, and its backbone with that LoRA merged."""
    base = load_backbone(str(directory))
    method = get_method("lora")
    options = {**method.options, "targets": targets, "rank": 3, "alpha": 6.0}
    method.attach(base.model, ConfigDict(options), generator(0, "adapters"))
    part = partition(base.model, method.trainable)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(leaf.shape) * leaf.shape[-2] ** -0.5).astype(np.float32)
        for name, leaf in flat_names(part.trainable).items()
    }
    return AdapterFiles("lora", options, tensors, base.fingerprint)


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same(case, tmp_path):
    config, targets = CASES[case]
    reference = random_clip(config)
    reference.save_pretrained(tmp_path / "base")
    inputs = batch(reference)
    adapter = random_lora(tmp_path / "base", targets)
    write_adapter(tmp_path / "adapter", adapter)
    write_peft(tmp_path / "adapter" / "peft", adapter)
    model = load_model(tmp_path / "base", tmp_path / "adapter")
    pixels = inputs[0].permute(0, 2, 3, 1).numpy()
    ours = model.encode_frames(pixels), model.encode_text(inputs[1].numpy())
    bare = features(reference, *inputs)

    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter" / "peft").eval()
    adapted = features(theirs.base_model.model, *inputs)
    merged_here = merged(model, tmp_path / "merged")
    for found, wanted, frozen, whole in zip(
        ours, adapted, bare, features(merged_here, *inputs), strict=True
    ):
        assert apart(found, wanted) < 1e-5
        assert apart(whole, wanted) < 1e-5
        assert apart(frozen, wanted) > 1e-2


def merged(model, directory: pathlib.Path):
    """transformers' model of the merged backbone."""
    part = model.partition
    backbone = part.merge(part.trainable, part.frozen)
    get_method("lora").merge(backbone)
    save_backbone(backbone, directory, None)
    with torch.no_grad():
        return CLIPModel.from_pretrained(directory).eval()


# {method: (PEFT's config, our options, {PEFT's factor: ours})}
TUNERS = {
    "lora": (
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
        {"rank": 3, "alpha": 6.0},
        {"lora_A": "delta.a_kernel", "lora_B": "delta.b_kernel"},
    ),
    "dora": (
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["fc1", "v_proj"], use_dora=True),
        {"rank": 3, "alpha": 6.0, "targets": ("fc1", "attn.v")},
        {
            "lora_A": "reweighted.low.a_kernel",
            "lora_B": "reweighted.low.b_kernel",
            "lora_magnitude_vector": "reweighted.magnitude",
        },
    ),
    "vera": (
        peft.VeraConfig(r=7, target_modules=["q_proj", "fc2"]),
        {"rank": 7, "targets": ("attn.q", "fc2")},
        {"vera_lambda_b": "delta.beta", "vera_lambda_d": "delta.delta"},
    ),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
        {},
        {"ia3_l": "scale"},
    ),
}
MODULES = {
    **{f"{name}_proj": f"attn.{name}" for name in "qkv"},
    **{name: f"mlp.{name}" for name in ("fc1", "fc2")},
}
NAME = re.compile(r".*\.(text|vision)_model\..*layers\.(\d+)\..*?(\w+)\.(\w+)\.default.*")
SITES = {"k_proj": "delta.", "v_proj": "delta.", "fc2": "before."}  # of IA3's scales


def by_our_path(tensors, factors, cut):
    """{our path: array} from {PEFT's name: tensor}: layers stacked, kernels turned."""
    rows = {}
    for name, value in tensors.items():
        tower, layer, module, factor = NAME.fullmatch(name).groups()
        ours = factors[factor]
        site = SITES[module] if ours == "scale" else ""
        value = value.detach().numpy()
        value = value.T if ours.endswith("kernel") else value.reshape(-1)
        path = f"{tower}.blocks{cut}.{MODULES[module]}.{site}{ours}"
        rows.setdefault(path, {})[int(layer)] = value
    return {path: np.stack([of[i] for i in sorted(of)]) for path, of in rows.items()}


def wave(features, library):
    """Weights by which every feature counts in a loss."""
    return library.sin(library.arange(features.size, dtype=np.float32)).reshape(features.shape)


CASES_OF_TUNERS = [*((name, 0) for name in TUNERS), ("vera", 1), ("lora", 1)]


@pytest.mark.parametrize(("name", "from_layer"), CASES_OF_TUNERS)
def test_features_and_gradients_are_those_of_peft(name, from_layer, tmp_path):
    config, options, factors = TUNERS[name]
    config = dataclasses.replace(config)
    if from_layer:
        config.layers_to_transform = list(range(from_layer, 9))
    reference = random_clip(odd_config())
    reference.save_pretrained(tmp_path)
    pixels, ids = batch(reference)
    theirs = peft.get_peft_model(reference, config).eval()
    torch.manual_seed(3)
    trained = {k: p for k, p in theirs.named_parameters() if p.requires_grad}
    for key, parameter in trained.items():
        start = parameter.data if "magnitude" in key else float(name == "ia3")
        parameter.data = start + 0.3 * torch.randn_like(parameter)
    base, method = load_backbone(str(tmp_path)).model, get_method(name)
    chosen = ConfigDict({**method.options, **options, "from_layer": from_layer})
    method.attach(base, chosen, None)
    if name == "vera":
        for ours, buffers in (("a", theirs.base_model.vera_A), ("b", theirs.base_model.vera_B)):
            matrix = getattr(base.adapters, f"{ours}_kernel")
            assert matrix.shape == buffers["default"].T[None].shape
            matrix[...] = jnp.asarray(buffers["default"].T[None].numpy())
    part = partition(base, method.filter(chosen))
    cut = ".above" if from_layer else ""
    values = by_our_path(trained, factors, cut)
    assert set(values) == set(flat_names(part.trainable))
    put = [jnp.asarray(values[path]) for path in flat_names(part.trainable)]
    trainable = jax.tree.unflatten(jax.tree.structure(part.trainable), put)

    def run(trainable):
        model = part.merge(trainable, part.frozen)
        images = model.encode_images(pixels.permute(0, 2, 3, 1).numpy())
        both = images, model.encode_text(ids.numpy())
        return sum((y * wave(y, jnp)).sum() for y in both), both

    gradients, found = jax.jit(jax.grad(run, has_aux=True))(trainable)
    clip = theirs.base_model.model
    wanted = (
        clip.get_image_features(pixel_values=pixels).pooler_output,
        clip.get_text_features(input_ids=ids).pooler_output,
    )
    sum((y * torch.tensor(wave(y.detach().numpy(), np))).sum() for y in wanted).backward()
    for ours, expected in zip(found, wanted, strict=True):
        assert apart(ours, expected.detach().numpy()) < 2e-5
    expected = by_our_path({key: p.grad for key, p in trained.items()}, factors, cut)
    for path, gradient in flat_names(gradients).items():
        assert apart(gradient, expected[path]) < 2e-4, path
    if (name, "CLIP") in FURTHER_LAYOUTS:
        adapter = AdapterFiles(name, dict(chosen), values, "")
        write_peft(tmp_path / "peft", adapter, flat_names(part.frozen))
        again = peft.PeftModel.from_pretrained(random_clip(odd_config()), tmp_path / "peft").eval()
        for read, expected in zip(
            features(again.base_model.model, pixels, ids), wanted, strict=True
        ):
            assert apart(read, expected.detach().numpy()) < 1e-6
