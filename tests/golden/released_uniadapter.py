"""The authors' UniAdapter as PyTorch models of any size, from a checkout that is run as it is.

    theirs = Released(CHECKOUT)
    model = theirs.retrieval(TINY, frame_aware_attention=True)
    randomize(model)

It was written for transformers 4.15, timm and fairscale. What today's transformers no longer has,
and the few lines of timm and fairscale that it calls, stand here, written by what they are
documented to do. Sizes and depth, which its code fixes at BLIP-base's, are put in from outside, and
texts are rows of ids, so that no tokenizer is needed. The checkout is imported, never copied.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import importlib
import importlib.machinery
import json
import pathlib
import sys
import tempfile
import types
import zlib

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of both towers, which are equally deep and wide; [DEC] and [ENC] are the last ids."""

    width: int
    layers: int
    heads: tuple[int, int]  # vision, text
    hidden: tuple[int, int]
    image: int
    patch: int
    vocab: int
    positions: int
    embed: int
    bottleneck: int
    key_value: int
    queue: int


BASE = Sizes(768, 12, (12, 12), (3072, 3072), 224, 16, 30524, 512, 256, 512, 64, 57600)
TINY = Sizes(18, 2, (3, 2), (36, 30), 12, 4, 40, 12, 10, 5, 3, 8)


class _PreTrained(nn.Module):
    """What the released text model calls of transformers 4.15's `PreTrainedModel`."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def dtype(self):
        return torch.float32

    def init_weights(self):
        self.apply(self._init_weights)
        if hasattr(self, "get_output_embeddings"):
            self.get_output_embeddings().weight = self.bert.get_input_embeddings().weight

    def get_head_mask(self, head_mask, count):
        assert head_mask is None
        return [None] * count

    def invert_attention_mask(self, mask):
        return (1.0 - mask[:, None, None, :].float()) * -1e9


class _Patches(nn.Module):
    """timm's `PatchEmbed`: a convolution, flattened."""

    def __init__(self, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Texts:
    """Stands for the tokenizer: texts are rows of ids already, 0 is padding."""

    def __init__(self, sizes):
        self.pad_token_id, self.sep_token_id = 0, 3
        self.bos_token_id, self.enc_token_id = sizes.vocab - 2, sizes.vocab - 1

    def __call__(self, ids, **_):
        found = types.SimpleNamespace(input_ids=ids.clone(), attention_mask=(ids != 0).long())
        found.to = lambda device: found
        return found


def _module(name, **attributes):
    module = sys.modules.setdefault(name, types.ModuleType(name))
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(attributes)


def _stand_ins():
    """Modules of timm and fairscale, and names that transformers has moved or dropped."""
    import transformers.modeling_utils as modeling
    import transformers.pytorch_utils as moved

    def absent(*_, **__):
        """What the authors' modules import, but the models made here never call."""
        raise NotImplementedError("this part of timm, fairscale or transformers has no stand-in")

    for package in ("timm", "timm.models", "fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        _module(package)
    _module("timm.models.vision_transformer", _cfg=absent, PatchEmbed=_Patches)
    _module("timm.models.registry", register_model=absent)
    _module("timm.models.layers", trunc_normal_=nn.init.trunc_normal_, DropPath=nn.Identity)
    _module("timm.models.helpers", named_apply=absent, adapt_input_conv=absent)
    _module("timm.models.hub", download_cached_file=absent)
    _module("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=absent)
    modeling.PreTrainedModel = _PreTrained
    modeling.apply_chunking_to_forward = moved.apply_chunking_to_forward
    modeling.prune_linear_layer = moved.prune_linear_layer
    modeling.find_pruneable_heads_and_indices = absent


class Released:
    """Makes the authors' models; one process, one checkout."""

    def __init__(self, checkout):
        _stand_ins()
        sys.path.insert(0, str(checkout))
        names = ("adapter", "med", "vit", "blip", "blip_retrieval", "blip_vqa")
        self.modules = {name: importlib.import_module(f"models.{name}") for name in names}
        self.without_momentum = self._other_branch(checkout)
        if not torch.distributed.is_initialized():
            rendezvous = pathlib.Path(tempfile.mkdtemp()) / "rendezvous"
            torch.distributed.init_process_group(
                "gloo", rank=0, world_size=1, init_method=f"file://{rendezvous}"
            )

    def _other_branch(self, checkout):
        """Their retrieval module with the constant turned that hides its loss without momentum."""
        source = (pathlib.Path(checkout) / "models/blip_retrieval.py").read_text()
        assert source.count("momentum = True\n") == 1
        module = types.ModuleType("models.blip_retrieval_alone")
        module.__package__ = "models"
        exec(source.replace("momentum = True\n", "momentum = False\n"), vars(module))
        return module

    def retrieval(self, sizes, momentum=True, **switches):
        module = self.modules["blip_retrieval"] if momentum else self.without_momentum
        return self._make(
            module.BLIP_Retrieval,
            module,
            sizes,
            {"embed_dim": sizes.embed, "queue_size": sizes.queue, "negative_all_rank": True},
            switches,
        )

    def vqa(self, sizes, **switches):
        module = self.modules["blip_vqa"]
        return self._make(module.BLIP_VQA, module, sizes, {}, switches)

    def _make(self, kind, module, sizes, arguments, switches):
        self._put_in(module, sizes)
        config = {
            "adapter": True,
            "adapter_textual": True,
            "adapter_visual": True,
            "adapter_multimodal": True,
            "adapter_dim": sizes.bottleneck,
            "adapter_visual_dim": sizes.bottleneck,
            "frame_aware_attention": False,
            "video_key_adapter": True,
            "video_key_adapter_dim": sizes.key_value,
            "temporal_embed": False,
            "temporal_attention": False,
            "modality": "image",
            **switches,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(_bert_config(sizes), file)
            file.flush()
            model = kind(config=config, med_config=file.name, image_size=sizes.image, **arguments)
        return model.eval()  # no dropout; its losses do not ask

    def _put_in(self, module, sizes):
        adapter, vit = self.modules["adapter"], self.modules["vit"]

        def create_vit(kind, image_size, *_, config=None, adapters=None, **__):
            tower = vit.VisionTransformer(
                img_size=image_size,
                patch_size=sizes.patch,
                embed_dim=sizes.width,
                depth=sizes.layers,
                num_heads=sizes.heads[0],
                mlp_ratio=sizes.hidden[0] / sizes.width,
                config=config,
                adapters=adapters,
            )
            return tower, sizes.width

        def adapters(d_model, **options):
            return adapter.UniAdapter(d_model=sizes.width, **options)

        def depth(*bounds):
            return builtins.range(*((sizes.layers,) if bounds == (12,) else bounds))

        module.create_vit, module.UniAdapter, module.range = create_vit, adapters, depth
        module.init_tokenizer = lambda: Texts(sizes)
        states = functools.partial(adapter.Adapter_Lora, d_model=sizes.width)
        self.modules["med"].Adapter_Lora = states


def _bert_config(sizes):
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.hidden[1],
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads[1],
        "num_hidden_layers": sizes.layers,
        "pad_token_id": 0,
        "vocab_size": sizes.vocab,
        "encoder_width": sizes.width,
        "add_cross_attention": True,
        "chunk_size_feed_forward": 0,
        "use_cache": True,
    }


def randomize(model):
    """Random weights that float16 has, too; a tensor's name decides its values."""
    for name, parameter in model.named_parameters():
        torch.manual_seed(zlib.crc32(name.encode()))
        is_scale = name.endswith("scale") or ("orm" in name and name.endswith("weight"))
        std = 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        value = torch.randn_like(parameter) * std + float(is_scale)
        parameter.data = value.half().float()
    if hasattr(model, "temp"):
        model.temp.data.fill_(0.0625)
    return model


def named(model):
    """Its tensors by name, each once, momentum and what is never used left out."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if "_m." not in name and not name.startswith("adapters_dec.")
    }
