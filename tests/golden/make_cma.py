"""Writes tests/golden/cma.npz: what the authors' PyTorch code of Cross-Modal Adapter computes.

    python tests/golden/make_cma.py CHECKOUT              # of LeapLabTHU/Cross-Modal-Adapter
    python tests/golden/make_cma.py CHECKOUT --vit-b-32 0 16 512

The second compares with ours at full size, for these shared widths, and writes nothing (6 GB).

Needs torch and transformers beside this package; made with torch 2.13 at their commit 07b2203.
The checkout is run as it is, in float32, and nothing of it is kept but numbers: features of texts
and frames, q-score and mean-pool similarity, the loss, its gradients, and the adapters after three
steps of their optimizer, on random weights.
"""

import argparse
import importlib.machinery
import pathlib
import re
import sys
import tempfile
import types

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

TINY = {
    "embed_dim": 24,
    "image_resolution": 16,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 12,
    "vocab_size": 64,
    "transformer_width": 32,
    "transformer_heads": 2,
    "transformer_layers": 3,  # deeper than vision
}
B32 = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 32,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}
SHARED = (0, 16, 32)  # the last is the whole width of the text tower
# Of what `cma.differences` returns.
KINDS = {
    "features": ".*_features",
    "similarities": "q_score|mean_pool",
    "losses": r".*\.loss",
    "gradients": r".*\.grad\..*",
    "after a step": r"after\..*",
}
BATCHES, CLIPS, FRAMES, WORDS = 3, 3, 4, 9


def random_model(sizes, bottleneck, shared):
    """Their model with random weights that float16 has too, wrapped for retrieval."""
    for absent in ("boto3", "botocore", "botocore.exceptions"):  # downloads, never used here
        stub = sys.modules.setdefault(absent, types.ModuleType(absent))
        stub.__spec__ = importlib.machinery.ModuleSpec(absent, None)
        stub.ClientError = OSError
    from modules import modeling_jointvt_upshare_adapter as theirs
    from modules.until_module import CrossEn

    clip = theirs.CLIP(
        **sizes,
        adapter_reduction_dims=bottleneck,
        adapter_share_dim=shared,
        adapter_non_linearity="quick_gelu",
    ).float()
    torch.manual_seed(0)  # their own initialisation has drawn, too
    parameters = list(clip.named_parameters())
    parameters.sort(key=lambda pair: "adapter" in pair[0])  # so the rest is alike in all cases
    for name, parameter in parameters:
        mean, std = 0.0, 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        if "adapter" in name:
            std = 0.1
        elif ".ln_" in f".{name}" and name.endswith("weight"):
            mean = 1.0
        value = torch.randn_like(parameter) * std + mean
        parameter.data = value.half().float()
        parameter.requires_grad = "adapter" in name  # as their trainer has it
    clip.logit_scale.data = torch.tensor(2.5)
    model = theirs.CLIP4Clip.__new__(theirs.CLIP4Clip)
    nn.Module.__init__(model)
    model.clip, model.loss_fct = clip, CrossEn()
    model.task_config = types.SimpleNamespace(
        t_emb_norm=False,
        v_emb_norm=False,
        v_agg_norm=False,
        linspace_samp=False,
        q_score_temp=5.0,
        jcl=False,
    )
    return model.eval()  # else similarities are gathered over processes


def random_batches(sizes, count, clips, frames, words):
    size, vocab = sizes["image_resolution"], sizes["vocab_size"]
    pixels = torch.randn(count, clips, frames, 3, size, size).half().float()
    mask = torch.ones(count, clips, frames)
    mask[:, 0, -1] = 0
    text = torch.randint(1, vocab - 1, (count, clips, words))
    for i in range(clips):  # the largest id ends a text
        text[:, i, words - 1 - i % 3] = vocab - 1
    return pixels, mask, text


def similarity(model, name, pixels, mask, text):
    """(text features, frame features, similarity, loss) of one batch."""
    model.task_config.q_score = name == "q_score"
    words = model.get_sequence_output(text, text, text, shaped=True)
    frames = model.get_visual_output(pixels.flatten(0, 1), mask, shaped=True)
    sims = model._loose_similarity(words, frames, text, mask)
    return words[:, 0], frames, sims, (model.loss_fct(sims) + model.loss_fct(sims.T)) / 2


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in adapters(model)}


def adapters(model):
    """Those of no channels have no place in our layout."""
    return [(n, p) for n, p in model.clip.named_parameters() if "adapter" in n and p.numel()]


def optimizer_of(model):
    from cma import RECIPE
    from modules.optimization import BertAdam

    groups = [
        {"params": [p for n, p in adapters(model) if "bias" not in n], "weight_decay": 0.2},
        {"params": [p for n, p in adapters(model) if "bias" in n], "weight_decay": 0.0},
    ]
    assert RECIPE["weight_decay"] == 0.2
    return BertAdam(
        groups,
        lr=RECIPE["lr"],
        warmup=RECIPE["warmup"],
        schedule="warmup_cosine",
        b1=0.9,
        b2=0.98,
        e=1e-6,
        t_total=RECIPE["total_steps"],
        max_grad_norm=0.0,
    )


def numbers(model, batches):
    """What `cma.differences` compares with."""
    first = [part[0] for part in batches]
    case = dict(zip(("pixels", "mask", "text"), batches, strict=True))
    for name in ("q_score", "mean_pool"):
        text, frames, sims, loss = similarity(model, name, *first)
        case |= {"text_features": text, "frame_features": frames, name: sims}
        case[f"{name}.loss"] = loss
        grads = gradients(model, loss)
        case |= {f"{name}.grad.{key}": value for key, value in grads.items()}
    optimizer = optimizer_of(model)
    for batch in zip(*batches, strict=True):
        gradients(model, similarity(model, "q_score", *batch)[-1])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    case |= {f"after.{name}": p for name, p in adapters(model)}
    return {key: value.detach().numpy().copy() for key, value in case.items()}


def state(model):
    return {name: p.detach().numpy().copy() for name, p in model.clip.named_parameters()}


def make():
    arrays = {}
    for shared in SHARED:
        model = random_model(TINY, 4, shared)
        torch.manual_seed(1)  # the same batches for all
        batches = random_batches(TINY, BATCHES, CLIPS, FRAMES, WORDS)
        for name, value in state(model).items():
            case = f"{shared}/" if "adapter" in name else ""
            arrays[f"{case}tensors/{name}"] = value.astype(np.float16)
        for name, value in numbers(model, batches).items():
            inputs = name in ("pixels", "mask", "text")
            arrays[name if inputs else f"{shared}/{name}"] = value
    np.savez_compressed(HERE / "cma.npz", **arrays)


def compare_b32(widths):
    import cma

    for shared in widths:
        model = random_model(B32, 8, shared)
        batches = random_batches(B32, 1, 2, 2, 32)
        tensors, case = state(model), numbers(model, batches)
        with tempfile.TemporaryDirectory() as scratch:
            found = cma.differences(case, tensors, None, scratch)
        for kind, pattern in KINDS.items():
            worst = max(value for key, value in found.items() if re.fullmatch(pattern, key))
            print(f"ViT-B/32, d_s={shared}, {kind}: {worst:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout")
    parser.add_argument("--vit-b-32", type=int, nargs="+", metavar="SHARED")
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    compare_b32(args.vit_b_32) if args.vit_b_32 else make()


if __name__ == "__main__":
    main()
