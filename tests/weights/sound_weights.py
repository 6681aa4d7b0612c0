"""Sound directories of every kind, for tests that harm them: backbones, adapters, a tokenizer."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
import tiny

from uniadapter_jax import load_model
from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.data.tokenizers.clip import train_tokenizer
from uniadapter_jax.data.tokenizers.wordpiece import write_wordpiece
from uniadapter_jax.weights.adapter_directory import AdapterFiles, write_adapter
from uniadapter_jax.weights.directory import (
    copy_tokenizer,
    huggingface_tensors,
    load_backbone,
    save_backbone,
)
from uniadapter_jax.weights.families import family_of
from uniadapter_jax.weights.names.peft import write_peft

TEXTS = ["a cat sits on a mat", "w3 w4 the fox"]
_CAPTIONS = ["a cat sits on a mat", "a dog and a cat", "the quick brown fox", "the mat"] * 3
_TOKENS = 530
_TASKS = {
    "cma": {"similarity": "q_score", "temperature": 0.01, "words": 10, "preprocess": "none"},
    "lora": {},
    "uniadapter": {"frame_weights": True, "words": 10, "preprocess": "blip", "max_words": 30},
}


def make(root: pathlib.Path) -> pathlib.Path:
    """clip/ and blip/ (backbones), cma/ and lora/ (of clip), uniadapter/ (of blip), tokenizer/."""
    train_tokenizer(_CAPTIONS, _TOKENS, root / "tokenizer")
    config = clip_config()
    model = CLIP(CLIPConfig.from_huggingface(config), rng=generator(0, "backbone"))
    source = write_huggingface(root / "source", config, dict(huggingface_tensors(model)))
    convert_weights(str(source), str(root / "clip"), tokenizer=str(root / "tokenizer"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "a", "[SEP]", *(f"w{i}" for i in range(52))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    (root / "words").mkdir()
    write_wordpiece(root / "vocab.txt", root / "words")
    save_backbone(tiny.blip(), root / "blip", root / "words")
    for name, method, backbone in (
        ("cma", "cross_modal_adapter", "clip"),
        ("lora", "lora", "clip"),
        ("uniadapter", "uniadapter", "blip"),
    ):
        write_trained(root / name, method, root / backbone, _TASKS[name])
    return root


def clip_config() -> dict[str, Any]:
    """A config with room for a byte-level vocabulary."""
    config = tiny.hf_config()
    config["text_config"] |= {"vocab_size": _TOKENS, "eos_token_id": _TOKENS - 1}
    return config


def write_huggingface(
    folder: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> pathlib.Path:
    """A directory as transformers writes one."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    own = {name: np.array(value, order="C") for name, value in tensors.items()}
    safetensors.numpy.save_file(own, folder / "model.safetensors")
    return folder


def write_trained(
    place: pathlib.Path, method: str, backbone: pathlib.Path, task: dict[str, Any]
) -> None:
    """An adapter as `export` writes one, with random values."""
    base, chosen = load_backbone(str(backbone)), get_method(method)
    options = dict(chosen.options)
    chosen.attach(base.model, tiny.ConfigDict(options), generator(0, "adapters"))
    trained = flat_names(partition(base.model, chosen.trainable).trainable)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=leaf.shape) for name, leaf in trained.items()}
    family = family_of(base.model.config)
    tokenizer = family.load_tokenizer(backbone).fingerprint
    adapter = AdapterFiles(method, options, tensors, base.fingerprint, task, tokenizer, "clip")
    write_adapter(place, adapter)
    if method == "lora":
        write_peft(place / "peft", adapter)
    write_digests(place, copy_tokenizer(backbone, place, family))
    (place / "README.md").write_text("what it is\n")


def numbers(model: Any) -> tuple[Any, ...]:
    """All that a model's answers depend on."""
    parts = (model.partition.trainable, model.partition.frozen)
    arrays = [sorted((k, np.asarray(v).tobytes()) for k, v in flat_names(p).items()) for p in parts]
    ids = model.tokenizer.encode(TEXTS, 12).tolist()
    return arrays, repr(model.config), dict(model.task), ids, model.method, model.fingerprint


LOADERS: dict[str, Callable[[pathlib.Path, pathlib.Path], Any]] = {
    # name of what is harmed: (its place, the sound root) to a model
    "clip": lambda place, root: load_model(place),
    "blip": lambda place, root: load_model(place),
    "cma": lambda place, root: load_model(root / "clip", place),
    "lora": lambda place, root: load_model(root / "clip", place),
    "uniadapter": lambda place, root: load_model(root / "blip", place),
    "tokenizer": lambda place, root: load_model(root / "clip", tokenizer=place),
    "words": lambda place, root: load_model(root / "blip", tokenizer=place),
}
