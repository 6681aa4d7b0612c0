"""Models of transformers' and how far two results are apart."""

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

B32 = {
    "projection_dim": 512,
    "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
}


def odd_config(activation="quick_gelu", eos_id=2, deep="vision", vocab=70, head=8):
    """A config in which no two sizes are alike."""
    common = {"hidden_act": activation, "layer_norm_eps": 3e-5}
    layers = {"vision": (3, 2), "text": (1, 4)}[deep]
    return {
        "projection_dim": 10,
        "vision_config": common
        | {"hidden_size": 3 * head, "intermediate_size": 44, "num_attention_heads": 3}
        | {"num_hidden_layers": layers[0], "image_size": 21, "patch_size": 7},
        "text_config": common
        | {"hidden_size": 5 * head, "intermediate_size": 52, "num_attention_heads": 5}
        | {"num_hidden_layers": layers[1], "vocab_size": vocab, "max_position_embeddings": 11}
        | {"eos_token_id": eos_id, "bos_token_id": 0, "pad_token_id": 0},
    }


def random_clip(config, seed=0, representable=False):
    """A transformers `CLIPModel` whose every weight matters.

    `representable`: every weight is a number that float16 has too.
    """
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(**config)).eval()
    for name, parameter in model.named_parameters():
        std = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        value = torch.randn_like(parameter) * std
        value += float(parameter.ndim == 1 and name.endswith("norm.weight"))
        parameter.data = value.half().float() if representable else value
    model.logit_scale.data = torch.tensor(2.5)
    return model


def batch(model, texts=3, pictures=2, seed=1):
    """(normalised pixels "b 3 H W", ids "n l") with something behind the EOS, too."""
    generator = torch.Generator().manual_seed(seed)
    vision, text = model.config.vision_config, model.config.text_config
    size, length = vision.image_size, min(text.max_position_embeddings, 32)
    pixels = torch.randn(pictures, 3, size, size, generator=generator)
    last = text.vocab_size - 1
    ids = torch.randint(3, last, (texts, length), generator=generator)
    ids[ids == text.eos_token_id] = 3
    eos = text.eos_token_id if text.eos_token_id != 2 else last
    ids[torch.arange(texts), torch.arange(texts) % (length - 2) + 2] = eos
    return pixels, ids


def features(model, pixels, ids):
    """(image, text) features of a transformers model, as float32 arrays."""
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
    return image.numpy(), text.numpy()


def apart(found, expected):
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()
