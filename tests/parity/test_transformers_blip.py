"""The same weights give the same numbers here and in transformers' BLIP, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip_references import BASE, batch, features, odd_config, random_blip, random_vqa
from flax import nnx
from references import apart
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.tasks.vqa.answering import generate_answers
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
    inputs = batch(reference, rows=2 if name == "base" else 3)
    expected = features(reference, *inputs)
    backbone = load_backbone(str(tmp_path / "theirs"))

    graphdef, state = nnx.split(backbone.model)  # as constants, weights take long to compile

    @jax.jit
    def ours(state, pixels, ids, mask):
        model = nnx.merge(graphdef, state)
        images = model.encode_images(pixels)
        words = model.encode_text(ids, mask)
        pairs = tuple(jnp.broadcast_to(x, (len(pixels), *x.shape)) for x in (ids, mask))
        fused = model.fuse(*pairs, Memory(images))
        logits = model.match_logits(fused[:, :, 0])
        return model.image_features(images[:, 0]), model.text_features(words[:, 0]), logits

    for found, wanted in zip(ours(state, *arrays(*inputs)), expected, strict=True):
        assert apart(found, wanted) < CLOSE
    if name == "base":
        return
    save_backbone(backbone.model, tmp_path / "ours", None)
    theirs = BlipForImageTextRetrieval.from_pretrained(tmp_path / "ours").eval()
    for found, wanted in zip(features(theirs, *inputs), expected, strict=True):
        assert (found == wanted).all()
    assert load_backbone(str(tmp_path / "ours")).fingerprint == backbone.fingerprint


def our_scores(model, pixels, ids, mask, answers, answer_mask):
    """Scores "b l v" of one answer to each question."""

    @jax.jit
    def run(pixels, ids, mask, answers, answer_mask):
        memory = Memory(model.encode_images(pixels))
        question = model.fuse(ids[:, None], mask[:, None], memory)[:, 0]
        memory = Memory(question, mask)
        return model.decode(answers[:, None], answer_mask[:, None], memory)[:, 0]

    _, answers, answer_mask = arrays(pixels, answers, answer_mask)
    return run(*arrays(pixels, ids, mask), answers, answer_mask)


def their_scores(model, pixels, ids, mask, answers, answer_mask):
    """The same scores, and the loss."""
    taken = []
    taker = model.text_decoder.cls.register_forward_hook(lambda *io: taken.append(io[-1]))
    with torch.no_grad():
        out = model(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=mask.long(),
            decoder_input_ids=answers,
            decoder_attention_mask=answer_mask.long(),
            labels=answers.masked_fill(~answer_mask, -100),
        )
    taker.remove()
    return taken[0].numpy(), out.loss.item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_answers(tmp_path, smoothing):
    config = odd_config()
    config["text_config"]["label_smoothing"] = smoothing
    reference = random_vqa(config)
    reference.save_pretrained(tmp_path / "theirs")
    pixels, ids, mask = batch(reference)
    _, answers, answer_mask = batch(reference, length=6, seed=2)
    inputs = (pixels, ids, torch.ones_like(mask), answers, answer_mask)
    backbone = load_backbone(str(tmp_path / "theirs"))
    expected, loss = their_scores(reference, *inputs)
    scores = our_scores(backbone.model, *inputs)
    assert apart(scores, expected) < CLOSE
    _, words, counts = arrays(pixels, answers, answer_mask)
    log = jax.nn.log_softmax(scores[:, :-1])
    likely = jnp.take_along_axis(log, words[:, 1:, None], -1)[..., 0]
    each = -(1 - smoothing) * likely - smoothing * log.mean(-1)
    found = np.asarray(each)[np.asarray(counts[:, 1:])].mean()
    assert abs(found - loss) < CLOSE * loss

    save_backbone(backbone.model, tmp_path / "ours", None)
    again = BlipForQuestionAnswering.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(their_scores(again, *inputs)[0], expected)
    assert load_backbone(str(tmp_path / "ours")).fingerprint == backbone.fingerprint


@pytest.mark.parametrize("beams, length", [(3, 10), (1, 4), (5, 6)])
def test_generated_answers(tmp_path, beams, length):
    """What `generate` returns with beams, and its scores; it attends to questions' padding."""
    reference = random_vqa(odd_config())
    bias = reference.text_decoder.cls.predictions.bias.data
    bias[3] = bias.max() + 2  # [SEP], so that texts of several lengths come
    reference.save_pretrained(tmp_path / "theirs")
    pixels, ids, mask = batch(reference, rows=6, length=14)
    with torch.no_grad():
        expected = reference.generate(
            ids,
            pixels,
            attention_mask=mask.long(),
            num_beams=beams,
            num_return_sequences=beams,
            max_length=length,
            min_length=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    model = load_backbone(str(tmp_path / "theirs")).model

    @jax.jit
    def ours(pixels, ids, mask):
        memory = Memory(model.encode_images(pixels))
        question = model.fuse(ids[:, None], mask[:, None], memory)[:, 0]
        return generate_answers(model, Memory(question), beams=beams, length=length)

    words, scores = ours(*arrays(pixels, ids, mask))
    theirs = np.zeros((len(pixels) * beams, length), int)
    theirs[:, : expected.sequences.shape[1]] = expected.sequences
    ended = np.cumsum(theirs == 3, axis=1) - (theirs == 3) > 0
    theirs[ended] = 0  # there [SEP] fills the rest, where the id of padding is 0
    np.testing.assert_array_equal(words.reshape(-1, length), theirs)
    if beams > 1:  # greedy search has no scores there
        np.testing.assert_allclose(scores.reshape(-1), expected.sequences_scores, rtol=1e-4)
        assert len({(row != 0).sum() for row in theirs}) > 1


def test_the_padding_of_questions_is_not_seen(tmp_path):
    """transformers 5.23 drops the mask of cross-attention, so it gets each question unpadded."""
    reference = random_vqa(odd_config())
    reference.save_pretrained(tmp_path / "theirs")
    pixels, ids, mask = batch(reference)
    _, answers, answer_mask = batch(reference, length=6, seed=2)
    found = our_scores(
        load_backbone(str(tmp_path / "theirs")).model, pixels, ids, mask, answers, answer_mask
    )
    for row, length in enumerate(mask.sum(1)):
        alone = [x[row : row + 1] for x in (pixels, ids, mask, answers, answer_mask)]
        alone[1:3] = (x[:, :length] for x in alone[1:3])
        assert apart(found[row : row + 1], their_scores(reference, *alone)[0]) < CLOSE
