"""Writes tests/golden/tempme.npz: what TempMe's PyTorch code computes on random weights.

    python tests/golden/make_tempme.py CHECKOUT

CHECKOUT is of LunarShen/TempMe at e624930, whose `VTRModel` is run as it is, in float32: nothing of
it is kept but numbers. Features are taken where its `ln_post` gives them, before they are
normalised and averaged. With `--print` it says instead how many tokens each layer of a ViT-B/32 and
of a ViT-B/16 hands on for 12 frames. Needs torch and tqdm beside this package.
"""

import pathlib
import sys
import tempfile
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import method_cases  # noqa: E402
import openai_layout  # noqa: E402
import safetensors.numpy  # noqa: E402
import tempme_case  # noqa: E402

from uniadapter_jax.weights.directory import save_backbone  # noqa: E402

VISION, TEXT = ("vision", 5, 128), ("text", 2, 64)


def tensor(x):
    return torch.tensor(np.asarray(x, np.float32))


def official():
    """{OpenAI's name: tensor} of the backbone."""
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch) / "backbone"
        save_backbone(tempme_case.backbone(), place, None)
        theirs = safetensors.numpy.load_file(place / "model.safetensors")
    return {name: tensor(x) for name, x in openai_layout.to_openai(theirs).items()}


def settings(folder, **changes):
    """What `main.py` would pass on; defaults are its own."""
    usual = {
        "base_encoder": "ViT-B/32",
        "pretrained_path": str(folder),
        "lora_dim": 8,
        "max_frames": 12,
        "tome_r": 2,
        "tome_tracesource": False,
        "tome_propattn": True,
        "merge_layer": "8-9-10",
        "merge_frame_num": "2-2-3",
        "merge_token_proportion": "30-10",
        "frame_pos": 1,
    }
    return types.SimpleNamespace(**{**usual, **changes})


def model_of(weights, **changes):
    from tvr.models.modeling import VTRModel

    with tempfile.TemporaryDirectory() as scratch:
        torch.save(weights, pathlib.Path(scratch) / "ViT-B-32.pt")
        return VTRModel(settings(scratch, **changes)).float().eval()


def put(parameter, value):
    """Gives a parameter of theirs the value of ours."""
    assert parameter.shape == value.shape
    parameter.data = value


def ours(path, *shape):
    return tensor(method_cases.value(path, shape))


def lora(model):
    """Gives all branches their values; {path of ours: what reads the gradient}."""
    found = {}
    for (tower, layers, width), blocks in (
        (VISION, model.clip.visual.transformer.resblocks),
        (TEXT, model.clip.transformer.resblocks),
    ):
        place, rank = f"{tower}.blocks.attn", tempme_case.RANK
        a = ours(f"{place}.k.delta.a_kernel", layers, width, rank)
        b = [ours(f"{place}.{x}.delta.b_kernel", layers, rank, width) for x in "qkv"]
        theirs = [block.attn for block in blocks]
        for i, attn in enumerate(theirs):
            put(attn.TVPt_LoRA_a, a[i].t())
            put(attn.TVPt_LoRA_b, torch.cat([x[i].t() for x in b]))
        found[f"{place}.k.delta.a_kernel"] = lambda of=theirs: torch.stack(
            [attn.TVPt_LoRA_a.grad.t() for attn in of]
        )
        for part, name in enumerate("qkv"):
            found[f"{place}.{name}.delta.b_kernel"] = lambda of=theirs, part=part: torch.stack(
                [attn.TVPt_LoRA_b.grad.chunk(3)[part].t() for attn in of]
            )
    return found


def features(model):
    """{what: tensor}, before they are normalised."""
    kept = []
    hook = model.clip.visual.ln_post.register_forward_hook(lambda _, given, made: kept.append(made))
    frames = tensor(tempme_case.clips().transpose(0, 1, 4, 2, 3))
    model.get_video_feat(frames.flatten(0, 1), torch.ones(frames.shape[:2]))
    hook.remove()
    ids = torch.tensor(tempme_case.texts().astype(np.int64))
    words = torch.arange(ids.shape[1]) <= ids.argmax(-1)[:, None]
    return {"frames": kept[0] @ model.clip.visual.proj, "texts": model.get_text_feat(ids, words)}


def prepare() -> None:
    """Lets the checkout be imported; of timm it has a function that it never calls."""
    sys.path.insert(0, sys.argv[1])
    for name in ("timm", "timm.models", "timm.models.layers"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.layers"].drop_path = None


def main() -> None:
    prepare()
    if "--print" in sys.argv:
        for patches, name in ((50, "ViT-B/32"), (197, "ViT-B/16")):
            print(name, *counts(patches))
        return
    changes = {"merge_layer": "1-3", "merge_frame_num": "2-2", "max_frames": tempme_case.FRAMES}
    model = model_of(official(), lora_dim=tempme_case.RANK, **changes)
    model.patch_list[0] = 17  # it is told by the name of the encoder
    grads = lora(model)
    positions = ours("vision.joins.positions", 6, 128)
    places = [
        model.clip.visual.transformer.resblocks[i].TVPt_Video_Positional_embedding for i in (1, 3)
    ]
    for place, rows in zip(places, positions.split((4, 2)), strict=True):
        put(place, rows[None, :, None])
    made = features(model)
    sum(
        (y * torch.cos(torch.arange(y.numel()).float()).reshape(y.shape)).sum()
        for y in made.values()
    ).backward()
    arrays = {name: y.detach().numpy() for name, y in made.items()}
    arrays |= {f"grad.{path}": read().numpy() for path, read in grads.items()}
    arrays["grad.vision.joins.positions"] = torch.cat(
        [place.grad[0, :, 0] for place in places]
    ).numpy()
    print({name: x.shape for name, x in arrays.items()})
    np.savez_compressed(HERE / "tempme.npz", **arrays)


def counts(patches):
    """(tokens of each group behind a join, and behind a layer) of the defaults, by running it."""
    model, seen = model_of(small_state(patches), lora_dim=1), []
    model.patch_list[0] = patches
    for block in model.clip.visual.transformer.resblocks:
        block.ln_1.register_forward_hook(lambda _, given, made: seen.append(made.shape[1]))
        block.register_forward_hook(lambda _, given, made: seen.append(made.shape[1]))
    side = 8 * round((patches - 1) ** 0.5)
    with torch.no_grad():
        model.get_video_feat(torch.randn(12, 3, side, side), torch.ones(1, 12))
    return list(zip(seen[::2], seen[1::2], strict=True))


def small_state(patches):
    """Weights of 12 narrow layers for pictures of so many tokens, random."""
    torch.manual_seed(0)
    narrow = official()
    for name in [name for name in narrow if name.startswith("visual.transformer.resblocks.0.")]:
        for i in range(12):
            narrow[name.replace("resblocks.0", f"resblocks.{i}")] = narrow[name]
    narrow["visual.positional_embedding"] = torch.randn(patches, 128)
    return narrow


if __name__ == "__main__":
    main()
