"""The same weights give the same features here and in transformers, in both directions."""

import jax
import jax.numpy as jnp
import pytest
from references import B32, apart, batch, features, odd_config, random_clip
from transformers import CLIPModel

from uniadapter_jax.weights.directory import load_backbone, save_backbone

pytestmark = pytest.mark.parity

CONFIGS = {
    "vit_b_32": B32,
    "quick_gelu": odd_config(),
    "gelu": odd_config("gelu", eos_id=69),
    "eos_amid_the_vocabulary": odd_config(eos_id=40, deep="text"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def reference(request, tmp_path_factory):
    """A transformers model, the directory that it wrote, inputs, and its features of them."""
    model = random_clip(CONFIGS[request.param])
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    inputs = batch(model)
    return directory, inputs, features(model, *inputs)


def ours(model, pixels, ids):
    pixels = jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())
    ids = jnp.asarray(ids.numpy().astype("int32"))
    return jax.jit(model.encode_images)(pixels), jax.jit(model.encode_text)(ids)


def test_features(reference, tmp_path):
    directory, inputs, expected = reference
    backbone = load_backbone(str(directory))
    for found, wanted in zip(ours(backbone.model, *inputs), expected, strict=True):
        assert apart(found, wanted) < 1e-5

    save_backbone(backbone.model, tmp_path / "saved", None)
    theirs = CLIPModel.from_pretrained(tmp_path / "saved").eval()
    for found, wanted in zip(features(theirs, *inputs), expected, strict=True):
        assert (found == wanted).all()
    assert load_backbone(str(tmp_path / "saved")).fingerprint == backbone.fingerprint


def test_sharded_and_half(tmp_path):
    model = random_clip(odd_config(), representable=True)
    inputs = batch(model)
    expected = features(model, *inputs)
    found = set()
    for name, options in {"whole": {}, "shards": {"max_shard_size": "10KB"}}.items():
        model.save_pretrained(tmp_path / name, **options)
        found.add(load_backbone(str(tmp_path / name)).fingerprint)
    assert len(list((tmp_path / "shards").glob("model-*"))) > 2
    model.half().save_pretrained(tmp_path / "half")
    half = load_backbone(str(tmp_path / "half"))
    assert found == {half.fingerprint}
    for a, b in zip(ours(half.model, *inputs), expected, strict=True):
        assert apart(a, b) < 1e-5
