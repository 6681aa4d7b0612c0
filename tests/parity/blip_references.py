"""transformers' BLIP models with random weights, and what they compute."""

import torch
from torch.nn.functional import normalize
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering

# Sizes of BLIP-base; pictures of 224, so that the comparison takes seconds.
BASE = {
    "vision_config": {"image_size": 224, "layer_norm_eps": 1e-6},
    "text_config": {"num_attention_heads": 12},
}


def odd_config(wide=False, head=8, deep="vision", vocab=70):
    """A config in which hardly two sizes are alike; `wide`: the towers differ in width."""
    layers = {"vision": (3, 2), "text": (1, 4)}[deep]
    return {
        "image_text_hidden_size": 10,
        "vision_config": {"hidden_size": (3 if wide else 5) * head, "intermediate_size": 44}
        | {"num_attention_heads": 3 if wide else 5, "num_hidden_layers": layers[0]}
        | {"image_size": 21, "patch_size": 7, "layer_norm_eps": 1e-6},
        "text_config": {"hidden_size": 5 * head, "intermediate_size": 52}
        | {"num_attention_heads": 5, "num_hidden_layers": layers[1], "vocab_size": vocab}
        | {"max_position_embeddings": 19, "bos_token_id": vocab - 2, "sep_token_id": 3},
    }


def random_blip(config, kind=BlipForImageTextRetrieval, seed=0):
    """A model whose every weight matters."""
    torch.manual_seed(seed)
    model = kind(BlipConfig(**config)).eval()
    for name, parameter in model.named_parameters():
        std = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        value = torch.randn_like(parameter) * std
        parameter.data = value + float(parameter.ndim == 1 and "orm" in name and "weight" in name)
    return model


def random_vqa(config, seed=0):
    return random_blip(config, BlipForQuestionAnswering, seed)


def batch(model, rows=3, length=9, seed=1):
    """(normalised pixels "b 3 H W", ids "b l", mask "b l"), texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    size, vocab = model.config.vision_config.image_size, model.config.text_config.vocab_size
    pixels = torch.randn(rows, 3, size, size, generator=generator)
    ids = torch.randint(4, vocab - 2, (rows, length), generator=generator)
    mask = torch.arange(length)[None] < torch.arange(length, length - 2 * rows, -2)[:, None]
    ids[:, 0] = vocab - 1
    return pixels, torch.where(mask, ids, 0), mask


def features(model, pixels, ids, mask):
    """Unit (image, text) features and all matching logits "images texts 2"."""
    with torch.no_grad():
        states = model.vision_model(pixels).last_hidden_state
        words = model.text_encoder(ids, attention_mask=mask.long()).last_hidden_state
        image = normalize(model.vision_proj(states[:, 0]), dim=-1)
        text = normalize(model.text_proj(words[:, 0]), dim=-1)
        logits = []
        for picture in pixels:
            pictures = picture.expand(len(ids), *picture.shape)
            logits.append(model(ids, pictures, attention_mask=mask.long()).itm_score)
    return image.numpy(), text.numpy(), torch.stack(logits).numpy()
