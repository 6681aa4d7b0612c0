"""HuggingFace's CLIP tensors under OpenAI's names, spelt out by hand for tests.

Works for NumPy arrays; the library's table is not used.
"""

import numpy as np

TOWERS = {"vision_model": "visual.transformer", "text_model": "transformer"}
ALONE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
IN_BLOCK = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def to_openai(theirs):
    """{HuggingFace name: array} to {OpenAI name: contiguous array}."""
    ours = {new: theirs[old] for old, new in ALONE.items()}
    ours["visual.proj"] = theirs["visual_projection.weight"].T.copy()
    ours["text_projection"] = theirs["text_projection.weight"].T.copy()
    for tower, prefix in TOWERS.items():
        i = 0
        while f"{tower}.encoder.layers.{i}.layer_norm1.weight" in theirs:
            old, new = f"{tower}.encoder.layers.{i}", f"{prefix}.resblocks.{i}"
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                ours[f"{new}.attn.in_proj_{kind}"] = np.concatenate(qkv)
                for a, b in IN_BLOCK.items():
                    ours[f"{new}.{b}.{kind}"] = theirs[f"{old}.{a}.{kind}"]
            i += 1
    return ours
