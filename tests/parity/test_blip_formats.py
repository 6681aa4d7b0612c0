# ruff: noqa: RUF001 (look-alike letters are part of what is compared)
"""One random BLIP as transformers and as BLIP's own trainer write it, and BERT's tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip_layout import to_blip, with_momentum
from blip_references import batch, odd_config, random_blip, random_vqa
from references import apart
from transformers import BertTokenizerFast

from uniadapter_jax.convert import convert_weights
from uniadapter_jax.data.tokenizers.wordpiece import load_wordpiece
from uniadapter_jax.weights.directory import load_backbone
from uniadapter_jax.weights.safetensors_file import read_safetensors

pytestmark = pytest.mark.parity

TEMP = 0.046875
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a man is play ##ing the guitar , . ' t don cafe 的 ##s ! ?"
TEXTS = (
    "A man is PLAYING the guitars!",
    "Don't, café?  \t的guitar的",
    "a\u200bman [MASK] \x00is xyz",
    "cafe\u0301 ＡＢ İs",
    "",
    "the " * 30,
)


def special_last(config):
    """[SEP] as BLIP's own files imply it where there are fewer than 102 tokens."""
    config["text_config"]["sep_token_id"] = config["text_config"]["vocab_size"] - 1
    return config


@pytest.mark.parametrize("make", [random_blip, random_vqa])
def test_formats_have_one_fingerprint(make, tmp_path):
    model = make(special_last(odd_config(head=64)))
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "hf" / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    arrays = read_safetensors(tmp_path / "hf" / "model.safetensors")
    own = with_momentum(to_blip(arrays))
    own = {name: torch.tensor(np.array(value)) for name, value in own.items()}
    if make is random_blip:
        own["temp"] = torch.tensor(0.07)
    content = {"model": own, "optimizer": {"state": {}}, "config": {"vit": "base"}, "epoch": 5}
    torch.save(content, tmp_path / "own.pth")
    sources = ("hf", "bin", "own.pth")
    found = {convert_weights(str(tmp_path / s), str(tmp_path / f"{s}.made")) for s in sources}
    assert len(found) == 1
    assert found == {load_backbone(str(tmp_path / "hf")).fingerprint}
    if make is random_blip:
        own["temp"] = torch.tensor(TEMP)
        torch.save(content, tmp_path / "tuned.pth")
        assert convert_weights(str(tmp_path / "tuned.pth"), str(tmp_path / "made")) not in found
        assert load_backbone(str(tmp_path / "made")).model.temp[...] == TEMP


@pytest.mark.parametrize("size", [14, 35])
def test_another_image_size(tmp_path, size):
    """21 pixels in patches of 7; transformers interpolates by itself, also bicubically."""
    model = random_blip(odd_config())
    model.save_pretrained(tmp_path / "hf")
    convert_weights(str(tmp_path / "hf"), str(tmp_path / "made"), image_size=size)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    ours = load_backbone(str(tmp_path / "made")).model
    found = jax.jit(ours.encode_images)(jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    assert apart(found, theirs.numpy()) < 2e-5


def test_ids_are_those_of_berts_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n", encoding="utf-8")
    theirs = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(tmp_path / "saved")
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    expected = theirs(list(TEXTS), return_tensors="np", **options)
    for place in ("", "saved"):
        found = load_wordpiece(tmp_path / place).encode(list(TEXTS), 12)
        np.testing.assert_array_equal(found, expected["input_ids"])
        np.testing.assert_array_equal(found != 0, expected["attention_mask"] == 1)


def test_matching_reads_enc_first(tmp_path):
    """BLIP's fusion replaces [CLS] by [ENC]; transformers leaves that to its caller."""
    model = random_blip(odd_config())
    model.save_pretrained(tmp_path / "hf")
    ours = load_backbone(str(tmp_path / "hf")).model
    _, ids, _ = batch(model)
    plain = jnp.asarray(ids.numpy().astype("int32")).at[:, 0].set(2)
    np.testing.assert_array_equal(ours.fusion_ids(plain), ids.numpy())
