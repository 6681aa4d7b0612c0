"""Writes tests/golden/clip: two tiny CLIPs of transformers' and the features that it computes.

python tests/golden/make_clip.py        # needs torch and transformers; the files here: 5.23.0
"""

import pathlib

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

FOLDER = pathlib.Path(__file__).parent / "clip"
TOWERS = {
    # activation of both towers, its id of EOS (2: the largest id of a text ends it)
    "quick_gelu": ("quick_gelu", 2),
    "gelu": ("gelu", 61),
}


def make(activation: str, eos_id: int) -> CLIPModel:
    common = {"hidden_act": activation, "num_hidden_layers": 2, "layer_norm_eps": 1e-4}
    config = CLIPConfig(
        projection_dim=10,
        vision_config=common
        | {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
        | {"image_size": 15, "patch_size": 5},
        text_config=common
        | {"hidden_size": 16, "intermediate_size": 36, "num_attention_heads": 4}
        | {"vocab_size": 64, "max_position_embeddings": 9, "eos_token_id": eos_id},
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # transformers' are too small to matter
        parameter.data = torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1) * 0.5
    model.logit_scale.data = torch.tensor(2.0)
    return model


def main() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(3, 3, 15, 15)
    ids = torch.randint(0, 60, (4, 9))
    ids[:, 5], ids[0, 3], ids[1, 8] = 61, 61, 61  # two of them have two
    arrays = {"pixels": pixels.permute(0, 2, 3, 1).numpy(), "ids": ids.numpy().astype(np.int32)}
    for name, options in TOWERS.items():
        model = make(*options)
        model.save_pretrained(FOLDER / name)
        with torch.no_grad():
            image = model.get_image_features(pixel_values=pixels).pooler_output
            text = model.get_text_features(input_ids=ids).pooler_output
        arrays |= {f"{name}.image": image.numpy(), f"{name}.text": text.numpy()}
    np.savez(FOLDER / "features.npz", **arrays)


if __name__ == "__main__":
    main()
