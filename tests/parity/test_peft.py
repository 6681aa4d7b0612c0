"""An exported LoRA in PEFT's layout: PEFT puts it into transformers' model, and features agree."""

import pathlib

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
from uniadapter_jax.weights.names.peft import write_peft

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
