"""Writes tests/golden/tome.npz: features of a tiny CLIP whose picture tokens are merged (ToMe).

    python tests/golden/make_tome.py                 # needs torch and transformers
    python tests/golden/make_tome.py CHECKOUT        # with tome/merge.py of facebookresearch/ToMe

Without a checkout the matching is written out here, from section 3 of the paper (Bolya et al., ICLR
2023). With one, its `bipartite_soft_matching` and `merge_wavg` do that work; files must be equal.
The model is that of tests/golden/clip/quick_gelu, and so are the pictures.
"""

import importlib.util
import pathlib
import sys

import numpy as np
import torch
from transformers import CLIPModel

FOLDER = pathlib.Path(__file__).parent
MERGED = (1, 2, 3, 9)  # of ten tokens; the last is more than a layer can


def plain_merge(metric, r, x, size):
    """Tokens of each picture one after another: pairs, means and sizes, in plain words."""
    rows, sizes = [], []
    for keys, tokens, weights in zip(metric, x, size, strict=True):
        a, b = list(range(0, len(keys), 2)), list(range(1, len(keys), 2))
        unit = keys / keys.norm(dim=-1, keepdim=True)
        best = {i: max(b, key=lambda j, i=i: float(unit[i] @ unit[j])) for i in a}
        pairs = sorted(a[1:], key=lambda i: -float(unit[i] @ unit[best[i]]))
        gone = pairs[: min(r, (len(keys) - 1) // 2)]
        kept = [i for i in a if i not in gone]
        groups = [[i] for i in kept] + [[j] + [i for i in gone if best[i] == j] for j in b]
        total = torch.stack([sum(weights[i] for i in group) for group in groups])
        means = [sum(weights[i] * tokens[i] for i in group) for group in groups]
        rows.append(torch.stack(means) / total)
        sizes.append(total)
    return torch.stack(rows), torch.stack(sizes)


def released_merge(checkout):
    """The same by the released code."""
    path = pathlib.Path(checkout) / "tome" / "merge.py"
    spec = importlib.util.spec_from_file_location("tome_merge", path)
    tome = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tome)

    def merge(metric, r, x, size):
        matched, _ = tome.bipartite_soft_matching(metric, r, class_token=True)
        return tome.merge_wavg(matched, x, size)

    return merge


def attend(attention, x, size):
    """(attention with log sizes added to scores, the keys' mean over heads)."""
    heads = attention.num_heads
    parts = (layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in parts)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + size.log()[:, None, None, :, 0]
    z = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return attention.out_proj(z), k.mean(1)


def features(model, pixels, r, merge):
    vision = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    size = torch.ones(*x.shape[:2], 1)
    for layer in vision.encoder.layers:
        z, metric = attend(layer.self_attn, layer.layer_norm1(x), size)
        x, size = merge(metric, r, x + z, size)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.visual_projection(vision.post_layernorm(x[:, 0])), size


def main() -> None:
    merge = released_merge(sys.argv[1]) if len(sys.argv) > 1 else plain_merge
    model = CLIPModel.from_pretrained(FOLDER / "clip" / "quick_gelu").eval()
    pixels = np.load(FOLDER / "clip" / "features.npz")["pixels"]
    arrays = {}
    with torch.no_grad():
        for r in MERGED:
            made, size = features(model, torch.tensor(pixels).permute(0, 3, 1, 2), r, merge)
            arrays |= {f"{r}.image": made.numpy(), f"{r}.size": size[..., 0].numpy()}
    np.savez(FOLDER / "tome.npz", **arrays)


if __name__ == "__main__":
    main()
