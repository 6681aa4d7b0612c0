"""The same weights give the same numbers here and in transformers' BLIP, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip_references import BASE, batch, features, odd_config, random_blip, random_vqa
from references import apart
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_jax.backbones.bert import Memory
from uniadapter_jax.weights.directory import load_backbone, save_backbone

pytestmark = pytest.mark.parity

CLOSE = 2e-5
CONFIGS = {
    "base": BASE,
    "odd": odd_config(),
    "towers_of_two_widths": odd_config(wide=True, deep="text"),
}


def arrays(pixels, ids, mask):
    pixels = jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())
    return pixels, jnp.asarray(ids.numpy().astype("int32")), jnp.asarray(mask.numpy())


@pytest.mark.parametrize("name", CONFIGS)
def test_retrieval(name, tmp_path):
    reference = random_blip(CONFIGS[name])
    reference.save_pretrained(tmp_path / "theirs")
    inputs = batch(reference)
    expected = features(reference, *inputs)
    backbone = load_backbone(str(tmp_path / "theirs"))

    @jax.jit
    def ours(pixels, ids, mask):
        model = backbone.model
        images = model.encode_images(pixels)
        words = model.encode_text(ids, mask)
        pairs = tuple(jnp.broadcast_to(x, (len(pixels), *x.shape)) for x in (ids, mask))
        fused = model.fuse(*pairs, Memory(images))
        logits = model.match_logits(fused[:, :, 0])
        return model.image_features(images[:, 0]), model.text_features(words[:, 0]), logits

    for found, wanted in zip(ours(*arrays(*inputs)), expected, strict=True):
        assert apart(found, wanted) < CLOSE
    if name == "base":
        return
    save_backbone(backbone.model, tmp_path / "ours", None)
    theirs = BlipForImageTextRetrieval.from_pretrained(tmp_path / "ours").eval()
    for found, wanted in zip(features(theirs, *inputs), expected, strict=True):
        assert (found == wanted).all()
    assert load_backbone(str(tmp_path / "ours")).fingerprint == backbone.fingerprint


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_answers(tmp_path, smoothing):
    config = odd_config()
    config["text_config"]["label_smoothing"] = smoothing
    reference = random_vqa(config)
    reference.save_pretrained(tmp_path / "theirs")
    pixels, ids, mask = batch(reference)
    _, answers, answer_mask = batch(reference, length=6, seed=2)
    labels = answers.masked_fill(~answer_mask, -100)
    backbone = load_backbone(str(tmp_path / "theirs"))

    @jax.jit
    def ours(pixels, ids, mask, answers, answer_mask):
        model = backbone.model
        memory = Memory(model.encode_images(pixels))
        question = model.fuse(ids[:, None], mask[:, None], memory)[:, 0]
        memory = Memory(question, mask)
        return model.decode(answers[:, None], answer_mask[:, None], memory)[:, 0]

    def theirs(model):
        taken = []
        taker = model.text_decoder.cls.register_forward_hook(lambda *io: taken.append(io[-1]))
        with torch.no_grad():
            out = model(
                input_ids=ids,
                pixel_values=pixels,
                attention_mask=mask.long(),
                decoder_input_ids=answers,
                decoder_attention_mask=answer_mask.long(),
                labels=labels,
            )
        taker.remove()
        return taken[0].numpy(), out.loss.item()

    expected, loss = theirs(reference)
    _, our_answers, our_mask = arrays(pixels, answers, answer_mask)
    scores = ours(*arrays(pixels, ids, mask), our_answers, our_mask)
    assert apart(scores, expected) < CLOSE
    log = jax.nn.log_softmax(scores[:, :-1])
    likely = jnp.take_along_axis(log, our_answers[:, 1:, None], -1)[..., 0]
    each = -(1 - smoothing) * likely - smoothing * log.mean(-1)
    found = (each * our_mask[:, 1:]).sum() / our_mask[:, 1:].sum()
    assert abs(float(found) - loss) < CLOSE * loss

    save_backbone(backbone.model, tmp_path / "ours", None)
    again = BlipForQuestionAnswering.from_pretrained(
        tmp_path / "ours", text_config=reference.config.text_config
    ).eval()
    np.testing.assert_array_equal(theirs(again)[0], expected)
    assert load_backbone(str(tmp_path / "ours")).fingerprint == backbone.fingerprint
