"""HuggingFace's BLIP tensors under the names of BLIP's own files, spelt out by hand for tests.

Works for NumPy arrays; the library's table is not used.
"""

import numpy as np

ALONE = {
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding.weight": "visual_encoder.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.bias": "visual_encoder.patch_embed.proj.bias",
    "vision_model.post_layernorm.weight": "visual_encoder.norm.weight",
    "vision_model.post_layernorm.bias": "visual_encoder.norm.bias",
}
IN_BLOCK = {
    "layer_norm1": "norm1",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def to_blip(theirs):
    """{HuggingFace name: array} to {BLIP's name: array}."""
    ours = {}
    for name, value in theirs.items():
        if name.startswith("vision_model.encoder.layers."):
            number, rest = name.removeprefix("vision_model.encoder.layers.").split(".", 1)
            module, kind = rest.rsplit(".", 1)
            ours[f"visual_encoder.blocks.{number}.{IN_BLOCK[module]}.{kind}"] = value
        else:
            ours[ALONE.get(name, name)] = value
    if "text_decoder.cls.predictions.bias" in ours:
        head = "text_decoder.cls.predictions"
        ours[f"{head}.decoder.weight"] = ours["text_decoder.bert.embeddings.word_embeddings.weight"]
        ours[f"{head}.decoder.bias"] = ours[f"{head}.bias"]
    length = len(ours["text_encoder.embeddings.position_embeddings.weight"])
    ours["text_encoder.embeddings.position_ids"] = np.arange(length)[None]
    return ours


def with_momentum(ours):
    """The same with the copies and queues that a checkpoint of training holds."""
    modules = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    copies = {}
    for name, value in ours.items():
        module, _, rest = name.partition(".")
        if module in modules:
            copies[f"{module}_m.{rest}"] = value
    queue = np.ones((16, 8), np.float32)
    state = {"ptr_queue": np.zeros(1, np.int64), "idx_queue": np.zeros((1, 8), np.int64)}
    return {**ours, **copies, "image_queue": queue, "text_queue": queue, **state}
