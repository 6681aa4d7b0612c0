"""The same weights give the same features and loss here and in transformers, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from references import apart
from siglip_case import CONFIG
from transformers import SiglipConfig, SiglipModel

from uniadapter_jax.tasks.retrieval.losses import Comparison, Pairs, sigmoid_loss
from uniadapter_jax.tasks.retrieval.ring_loss import ring_sigmoid_loss
from uniadapter_jax.weights.directory import load_backbone, save_backbone

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A transformers model whose every weight matters, its directory, pixels and ids."""
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(**CONFIG)).eval()
    for name, parameter in model.named_parameters():
        std = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        value = torch.randn_like(parameter) * std
        parameter.data = value + float(parameter.ndim == 1 and "norm" in name and "weight" in name)
    model.logit_scale.data, model.logit_bias.data = torch.tensor([2.5]), torch.tensor([-3.0])
    directory = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(directory)
    pixels, ids = torch.randn(3, 3, 18, 18), torch.randint(0, 60, (3, 12))
    return model, directory, pixels, ids


def theirs(model, pixels, ids):
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, return_loss=True)


def features(model, pixels, ids):
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        return image.numpy(), model.get_text_features(input_ids=ids).pooler_output.numpy()


def test_features_and_the_sigmoid_loss(reference, tmp_path):
    model, directory, pixels, ids = reference
    backbone = load_backbone(str(directory))
    ours = backbone.model
    image = jax.jit(ours.encode_images)(jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    text = jax.jit(ours.encode_text)(jnp.asarray(ids.numpy().astype(np.int32)))
    wanted = features(model, pixels, ids)
    assert apart(image, wanted[0]) < 1e-5
    assert apart(text, wanted[1]) < 1e-5
    for loss in (sigmoid_loss, ring_sigmoid_loss):
        pairs = Pairs(text, image[:, None], jnp.ones((3, 1), bool), jnp.arange(3))
        line = ours.logit_scale[...], ours.logit_bias[...]
        found, _ = loss(pairs, *line, Comparison("mean_pool", 5.0))
        np.testing.assert_allclose(found, theirs(model, pixels, ids).loss.numpy(), rtol=1e-5)

    save_backbone(ours, tmp_path / "saved", None)
    back = SiglipModel.from_pretrained(tmp_path / "saved").eval()
    for found, expected in zip(features(back, pixels, ids), wanted, strict=True):
        assert (found == expected).all()
    assert load_backbone(str(tmp_path / "saved")).fingerprint == backbone.fingerprint


def test_pixels_are_normalised_as_theirs(reference):
    _, directory, _, _ = reference
    ours = load_backbone(str(directory)).model
    pixels = np.random.default_rng(0).integers(0, 256, (2, 18, 18, 3), np.uint8)
    normal = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert apart(ours.encode_images(pixels), ours.encode_images(jnp.asarray(normal))) < 1e-6


def test_the_tokenizer_is_theirs(tmp_path):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    pytest.importorskip("google.protobuf")
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    from uniadapter_jax.data.tokenizers.sentencepiece import load_sentencepiece

    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyzéü")
    words = ["".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 8)) for _ in range(1000)]
    trainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=300,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    theirs = SiglipTokenizer(vocab_file=str(tmp_path / "spiece.model"))
    odd = [
        "A photo of a CAT.",
        "",
        "\uff46ull \uff37idth",
        "don't-stop!",
        "x  y\tz\n",
        "日本 café ①",
    ]
    odd += ["".join(rng.choice(list("ab cd.é,- ü?'①½\uff46"), 20)) for _ in range(100)]
    cases = texts[:50] + odd
    found = load_sentencepiece(tmp_path).encode(cases, 16)
    wanted = theirs(cases, padding="max_length", max_length=16, truncation=True).input_ids
    assert found.tolist() == wanted
