"""Writes tests/golden/methods.npz: what authors' PyTorch modules compute on random weights.

    python tests/golden/make_methods.py CHECKOUTS

CHECKOUTS holds CoOp (KaiyangZhou, ff61507), multimodal-prompt-learning (muzairkhattak, 69bce21),
modelscope (2905da1), AdaptFormer (ShoufaChen, 6967d67), SSF (dongzelian, e94e0e7), vpt (KMnP,
4410440) and UniPT (Paranioar, 3fa457d), which are run as they are, in float32: nothing of them is
kept but numbers. Needs torch and scipy beside this package. Packages
that the modules import and do not use are stubs.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys
import tempfile
import types
from unittest import mock

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "parity"))

import blip_layout  # noqa: E402
import method_cases  # noqa: E402
import openai_layout  # noqa: E402
import safetensors.numpy  # noqa: E402

from uniadapter_jax.weights.directory import save_backbone  # noqa: E402

SIZES = {
    "embed_dim": 24,
    "image_resolution": 16,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 14,
    "vocab_size": 64,
    "transformer_width": 32,
    "transformer_heads": 2,
    "transformer_layers": 3,
}
STUBS = (
    *("dassl", "dassl.engine", "dassl.metrics", "dassl.utils", "dassl.optim", "ipdb", "turtle"),
    *("torchvision", "torchvision.transforms", "modelscope", "modelscope.metainfo"),
    *("modelscope.models.base.base_torch_model", "modelscope.models.builder"),
    *("modelscope.utils.config", "modelscope.utils.constant", "clip.clip", "clip.simple_tokenizer"),
    *(
        "timm",
        "timm.data",
        "timm.models",
        "timm.models.helpers",
        "timm.models.layers",
        "timm.models.layers.helpers",
    ),
    *("timm.models.registry", "vop.backbone", "vop.basic_utils"),
)


class Stub(types.ModuleType):
    """A module that has everything, of which nothing does anything."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)


def stub(names):
    for name in names:
        sys.modules[name] = Stub(name)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, sys.modules[name])


def load(name, path):
    """A file as the module of that name."""
    package = name.rpartition(".")[0]
    if package and package not in sys.modules:
        sys.modules[package] = Stub(package)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(decorated=None, **_):
    """A decorator that does nothing, with or without arguments."""
    return decorated if callable(decorated) else (lambda function: function)


def prepare_stubs():
    stub(STUBS)
    sys.modules["dassl.engine"].TRAINER_REGISTRY = types.SimpleNamespace(register=same)
    sys.modules["dassl.engine"].TrainerX = object
    sys.modules["modelscope.models.base.base_torch_model"].TorchModel = nn.Module
    registry = types.SimpleNamespace(register_module=lambda *_, **__: same)
    sys.modules["modelscope.models.builder"].MODELS = registry
    layers = sys.modules["timm.models.layers"]
    layers.DropPath, layers.trunc_normal_ = nn.Identity, nn.init.trunc_normal_
    layers._assert = lambda *_: None
    sys.modules["timm.models.layers.helpers"].to_2tuple = lambda x: (x, x)
    sys.modules["timm.models.registry"].register_model = same
    sys.modules["timm.models.helpers"].named_apply = lambda function, module: None


def tensor(x):
    return torch.tensor(np.asarray(x, np.float32))


def value(path, *shape):
    """A trained parameter of ours, by its path."""
    return tensor(method_cases.value(path, shape)).requires_grad_()


@functools.cache
def official(family):
    """{official name: tensor} of the backbone."""
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch) / "backbone"
        save_backbone(method_cases.backbone(family), place, None)
        theirs = safetensors.numpy.load_file(place / "model.safetensors")
    layout = openai_layout.to_openai if family == "clip" else blip_layout.to_blip
    return {name: tensor(x) for name, x in layout(theirs).items()}


def vit():
    """timm's names of the vision transformer."""
    own = official("vit").items()
    return {k.removeprefix("visual_encoder."): x for k, x in own if k.startswith("visual_encoder.")}


def pictures():
    return tensor(method_cases.inputs()[0].transpose(0, 3, 1, 2))


def texts(length):
    ids = method_cases.inputs()[1]
    return torch.tensor(np.pad(ids, ((0, 0), (0, length - ids.shape[1]))).astype(np.int64))


def result(features, trained):
    """Features, and the gradients of `method_cases.loss` by our path."""
    parts = [(y * torch.cos(torch.arange(y.numel()).float()).reshape(y.shape)).sum()
             for y in features.values()]  # fmt: skip
    grads = torch.autograd.grad(sum(parts), list(trained.values()))
    features = {name: y.detach().numpy() for name, y in features.items()}
    return features | {f"grad.{name}": g.numpy() for name, g in zip(trained, grads, strict=True)}


def maple(root):
    folder = root / "multimodal-prompt-learning"
    design = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
    clip = load("maple_clip", folder / "clip/model.py").CLIP(
        **SIZES, design_details={"trainer": "MaPLe", "maple_length": 3, **design}
    )
    clip.load_state_dict(official("clip"))
    encoder = load("maple_trainer", folder / "trainers/maple.py").TextEncoder(clip.eval())
    tokens = value("adapters.tokens", 2, 3, 32)
    kernel, shift = value("adapters.to_vision", 2, 32, 64), value("adapters.to_vision_shift", 2, 64)
    ids = texts(11)
    words = clip.token_embedding(ids)
    prompts = torch.cat([words[:, :1], tokens[0].expand(len(ids), -1, -1), words[:, 1:]], 1)
    moved = torch.cat([ids[:, :1], torch.zeros(len(ids), 3, dtype=ids.dtype), ids[:, 1:]], 1)
    visual = [tokens[i] @ kernel[i] + shift[i] for i in range(2)]
    features = {
        "pictures": clip.visual(pictures(), visual[0], visual[1:]),
        "texts": encoder(prompts, moved, [tokens[1]]),
    }
    names = ("adapters.tokens", "adapters.to_vision", "adapters.to_vision_shift")
    return result(features, dict(zip(names, (tokens, kernel, shift), strict=True)))


def coop_clip(root):
    clip = load("coop_clip", root / "CoOp/clip/model.py").CLIP(**SIZES)
    clip.load_state_dict(official("clip"))
    return clip.eval()


def coop(root):
    clip = coop_clip(root)
    module = load("coop_trainer", root / "CoOp/trainers/coop.py")
    tokens, ids = value("text.before.tokens", 3, 32), texts(11)
    learner = module.PromptLearner.__new__(module.PromptLearner)
    nn.Module.__init__(learner)
    words = clip.token_embedding(ids)
    learner.ctx, learner.n_cls, learner.class_token_position = tokens, len(ids), "end"
    learner.token_prefix, learner.token_suffix = words[:, :1], words[:, 1:]
    moved = torch.cat([ids[:, :1], torch.zeros(len(ids), 3, dtype=ids.dtype), ids[:, 1:]], 1)
    features = {
        "pictures": clip.visual(pictures()),
        "texts": module.TextEncoder(clip)(learner(), moved),
    }
    return result(features, {"text.before.tokens": tokens})


def vl_prompt(root):
    clip = coop_clip(root)
    clip.positional_embedding.data = clip.positional_embedding.data[:13]  # 9 words and 4 prompts
    clip.transformer.resblocks.apply(lambda m: setattr(m, "attn_mask", causal(13)))
    file = root / "modelscope/modelscope/models/cv/vop_retrieval/model.py"
    module = load("vop.model", file)
    vision = value("adapters.vision", 2, 3, 64)
    text = value("adapters.text", 3, 4, 32)
    config = types.SimpleNamespace(
        vpt_layers=[0, 1],
        tpt_layers=[0, 1, 2],
        vp_token_num=3,
        num_frames=1,
        tp_prefix_token_num=2,
        tp_suffix_token_num=2,
    )
    features = {
        "pictures": module.ImageEncoder(clip, config)(vision[:, None], pictures()),
        "texts": module.TextEncoder(clip, config)((text[:, :2], text[:, 2:]), texts(9)),
    }
    return result(features, {"adapters.vision": vision, "adapters.text": text})


def causal(length):
    return torch.full((length, length), float("-inf")).triu_(1)


def adaptformer(root):
    folder = root / "AdaptFormer/models"
    load("adaptformer.adapter", folder / "adapter.py")
    module = load("adaptformer.custom_modules", folder / "custom_modules.py")
    config = types.SimpleNamespace(
        ffn_adapt=True,
        ffn_option="parallel",
        ffn_num=5,
        ffn_adapter_init_option="lora",
        ffn_adapter_scalar="0.1",
        ffn_adapter_layernorm_option="none",
        d_model=24,
    )
    weights, place = vit(), "vision.blocks.beside_mlp"
    trained = {
        f"{place}.down_kernel": value(f"{place}.down_kernel", 3, 24, 5),
        f"{place}.down_bias": value(f"{place}.down_bias", 3, 5),
        f"{place}.up_kernel": value(f"{place}.up_kernel", 3, 5, 24),
        f"{place}.up_bias": value(f"{place}.up_bias", 3, 24),
    }
    x = embedded(weights)
    for i in range(3):
        block = module.Block(24, 2, qkv_bias=True, config=config, norm_layer=norm).eval()
        own = {k.removeprefix(f"blocks.{i}."): v for k, v in weights.items()}
        own = {k: v for k, v in own.items() if not k.startswith(("blocks", "norm.", "patch"))}
        for kind in ("weight", "bias"):
            parts = zip("qkv", own.pop(f"attn.qkv.{kind}").chunk(3), strict=True)
            own |= {f"attn.{part}_proj.{kind}": x for part, x in parts}
        own = {k.replace("mlp.", ""): v for k, v in own.items()}
        adapter = {
            f"adaptmlp.{side}_proj.{kind}": trained[f"{place}.{side}_{ours}"][i].t()
            for side in ("down", "up")
            for kind, ours in (("weight", "kernel"), ("bias", "bias"))
        }
        names = dict(block.named_parameters())
        given = {k: v for k, v in {**own, **adapter}.items() if k in names}
        assert set(given) == set(names)
        x = torch.func.functional_call(block, given, (x,))
    return result({"pictures": last(x, weights)}, trained)


norm = functools.partial(nn.LayerNorm, eps=1e-6)


def embedded(weights):
    """Patches with positions, and the class token."""
    x = nn.functional.conv2d(
        pictures(), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=8
    )
    x = x.flatten(2).transpose(1, 2)
    return torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1) + weights["pos_embed"]


def last(x, weights):
    """The class token behind the last LayerNorm."""
    return nn.functional.layer_norm(x, (24,), weights["norm.weight"], weights["norm.bias"], 1e-6)[
        :, 0
    ]


def ssf(root):
    module = load("ssf_vit", root / "SSF/models/vision_transformer.py")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    model = module.VisionTransformer(**sizes, num_classes=0, tuning_mode="ssf").eval()
    trained, given = {}, dict(vit())

    def put(ours, theirs, number, width, layer=None):
        for kind in ("scale", "shift"):
            path = f"vision.{ours}.delta.{kind}"
            shape = (width,) if layer is None else (3, width)
            trained.setdefault(path, value(path, *shape))
            x = trained[path] if layer is None else trained[path][layer]
            name = f"{theirs}ssf_{kind}_{number}"
            given[name] = torch.cat([given[name], x]) if name in given else x

    put("patch_embedding", "patch_embed.", 1, 24)
    put("ln_post", "", 1, 24)
    for i in range(3):
        for ours, theirs, number, width in (
            *(("ln_1", "", 1, 24), ("ln_2", "", 2, 24)),
            *((f"attn.{x}", "attn.", 1, 24) for x in "qkv"),
            *(("attn.out", "attn.", 2, 24), ("mlp.fc1", "mlp.", 1, 96), ("mlp.fc2", "mlp.", 2, 24)),
        ):
            put(f"blocks.{ours}", f"blocks.{i}.{theirs}", number, width, i)
    assert set(given) == set(dict(model.named_parameters()))
    return result({"pictures": torch.func.functional_call(model, given, (pictures(),))}, trained)


def vpt_deep(root):
    folder = root / "vpt/src"
    for package in ("vpt", "vpt.models", "vpt.utils", "vpt.models.vit_prompt"):
        stub([package])
    load("vpt.configs.vit_configs", folder / "configs/vit_configs.py")
    sys.modules["vpt.configs"].vit_configs = sys.modules["vpt.configs.vit_configs"]
    stub(["vpt.models.vit_backbones"])
    load("vpt.models.vit_backbones.vit", folder / "models/vit_backbones/vit.py")
    module = load("vpt.models.vit_prompt.vit", folder / "models/vit_prompt/vit.py")
    config = sys.modules["vpt.configs.vit_configs"].get_b16_config()
    config.patches.size, config.hidden_size = (8, 8), 24
    config.transformer.update({"mlp_dim": 96, "num_heads": 2, "num_layers": 3})
    prompts = types.SimpleNamespace(
        LOCATION="prepend",
        INITIATION="random",
        NUM_DEEP_LAYERS=None,
        DEEP_SHARED=False,
        NUM_TOKENS=3,
        DROPOUT=0.0,
        PROJECT=-1,
        DEEP=True,
    )
    model = module.PromptedTransformer(prompts, config, 16, False)
    model.train(False)
    tokens, weights, given = value("vision.blocks.prompts.tokens", 3, 3, 24), vit(), {}
    given["prompt_embeddings"], given["deep_prompt_embeddings"] = tokens[:1], tokens[1:]
    given["embeddings.cls_token"] = weights["cls_token"]
    given["embeddings.position_embeddings"] = weights["pos_embed"]
    for kind in ("weight", "bias"):
        given[f"embeddings.patch_embeddings.{kind}"] = weights[f"patch_embed.proj.{kind}"]
        given[f"encoder.encoder_norm.{kind}"] = weights[f"norm.{kind}"]
        for i in range(3):
            own, theirs = f"blocks.{i}", f"encoder.layer.{i}"
            qkv = weights[f"{own}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), qkv, strict=True):
                given[f"{theirs}.attn.{name}.{kind}"] = part
            for old, new in (
                *(("attn.proj", "attn.out"), ("norm1", "attention_norm"), ("norm2", "ffn_norm")),
                *(("mlp.fc1", "ffn.fc1"), ("mlp.fc2", "ffn.fc2")),
            ):
                given[f"{theirs}.{new}.{kind}"] = weights[f"{own}.{old}.{kind}"]
    assert set(given) == set(dict(model.named_parameters()))
    states, _ = torch.func.functional_call(model, given, (pictures(),))
    return result({"pictures": states[:, 0]}, {"vision.blocks.prompts.tokens": tokens})


def unipt(root):
    clip = coop_clip(root)
    module = load("unipt_adapter", root / "UniPT/CLIP4Clip/modules/module_adapter.py")
    ids, trained = texts(14), {}
    with torch.no_grad():
        kept = states_of(clip.visual.transformer, lambda: clip.visual(pictures()))
        hidden = {"vision": (kept, clip.visual(pictures()))}
        kept = states_of(clip.transformer, lambda: clip.encode_text(ids))
        hidden["text"] = (kept, clip.encode_text(ids))
    options = {"text": {"mask": (ids != 0).float(), "position": ids.argmax(-1)}}
    features = {}
    for tower, name in (("vision", "pictures"), ("text", "texts")):
        states, frozen = hidden[tower]
        z, width = len(states), states[0].shape[-1]
        side = module.Our_tuning_for_transformer(z, [width] * z, 24, 2)
        own = {
            f"{part}_{kind}": value(f"{tower}.side.{part}_{kind}", *shape)
            for part, *shapes in (
                *(("down", (z, width, 12), (z, 12)), ("anchor", (24, 12), (12,))),
                *(("gate", (12, 1), (1,)), ("up", (12, 24), (24,))),
            )
            for kind, shape in zip(("kernel", "bias"), shapes, strict=True)
        }
        theirs = {"anchor": "downsample_layer.1", "gate": "gate_layer", "up": "upsample_layer.1"}
        given = {}
        for ours, name_there in theirs.items():
            given[f"{name_there}.weight"] = own[f"{ours}_kernel"].t()
            given[f"{name_there}.bias"] = own[f"{ours}_bias"]
        for i in range(z):
            given[f"downsample_layers.{i}.1.weight"] = own["down_kernel"][i].t()
            given[f"downsample_layers.{i}.1.bias"] = own["down_bias"][i]
        assert set(given) == set(dict(side.named_parameters()))
        call = (states, frozen[:, None])
        features[name] = torch.func.functional_call(side, given, call, options.get(tower))
        trained |= {f"{tower}.side.{key}": x for key, x in own.items()}
    return result(features, trained)


def states_of(transformer, run):
    """What goes into the first layer and what comes out of each, pictures or texts first."""
    kept, first = [], transformer.resblocks[0]
    hooks = [first.register_forward_pre_hook(lambda _, given: kept.append(given[0]))]
    for layer in transformer.resblocks:
        hooks.append(layer.register_forward_hook(lambda _, given, made: kept.append(made)))
    run()
    for hook in hooks:
        hook.remove()
    return [x.transpose(0, 1) for x in kept]


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    prepare_stubs()
    torch.Tensor.half = lambda self: self  # MaPLe's prompts are cut to float16
    arrays = {}
    for make in (maple, coop, vl_prompt, adaptformer, ssf, vpt_deep, unipt):
        numbers = make(root)
        arrays |= {f"{make.__name__}/{name}": x for name, x in numbers.items()}
        print(make.__name__, {k: v.shape for k, v in numbers.items()}, flush=True)
    np.savez_compressed(HERE / "methods.npz", **arrays)


if __name__ == "__main__":
    main()
