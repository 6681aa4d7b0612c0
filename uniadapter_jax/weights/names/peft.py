"""Writes a LoRA in PEFT's layout, so that PEFT can load it into transformers' `CLIPModel`.

PEFT calls the two factors of a layer `base_model.model.<module>.lora_A.weight`, [rank, in], and
`lora_B.weight`, [out, rank]; each layer of a tower is a module of its own. The patch embedding is
a convolution in transformers: its A is [rank, 3, p, p], its B [out, rank, 1, 1].
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from uniadapter_jax.weights.adapter_directory import (
    PEFT_FOLDER,
    PEFT_METADATA,
    AdapterFiles,
    write_pair,
)
from uniadapter_jax.weights.names.base import HUGGINGFACE_CLIP, TRANSFORMS

_KERNELS = {
    ours.removesuffix(".kernel"): (theirs.removesuffix(".weight"), how)
    for ours, theirs, how in HUGGINGFACE_CLIP
    if ours.endswith(".kernel")
}


def peft_tensors(ours: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(PEFT's name, array) from our LoRA tensors `<linear layer>.delta.{a,b}_kernel`."""
    for path, tensor in ours.items():
        layer, factor = path.split(".delta.")
        module, how = _KERNELS[layer]
        stacked = "{i}" in module
        for i, kernel in enumerate(tensor if stacked else tensor[None]):
            name = f"base_model.model.{module.format(i=i) if stacked else module}"
            if factor == "a_kernel":
                yield f"{name}.lora_A.weight", TRANSFORMS[how].write(kernel)
            else:
                b = kernel.T
                yield f"{name}.lora_B.weight", b[..., None, None] if how == "patches" else b


def write_peft(directory: pathlib.Path, adapter: AdapterFiles) -> None:
    """Writes what `peft.PeftModel.from_pretrained(CLIPModel, directory)` reads."""
    tensors = dict(peft_tensors(adapter.tensors))
    modules = sorted({name.split(".lora_")[0] for name in tensors})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.backbone,
        "r": adapter.options["rank"],
        "lora_alpha": adapter.options["alpha"],
        "lora_dropout": adapter.options["dropout"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [name.removeprefix("base_model.model.") for name in modules],
    }
    directory.mkdir()
    # PEFT warns of fields that it does not know, so the header has both digests.
    write_pair(directory, config, tensors, PEFT_METADATA, digest_in_config=False)


class Layout(NamedTuple):
    """A further layout of exported adapters: its folder, its writer, and Python that loads it."""

    folder: str
    write: Callable[[pathlib.Path, AdapterFiles], None]
    usage: tuple[str, ...]


# {(method, title of the family): the layout that an export writes beside our own}
FURTHER_LAYOUTS: Mapping[tuple[str, str], Layout] = {
    ("lora", "CLIP"): Layout(
        folder=PEFT_FOLDER,
        write=write_peft,
        usage=(
            "from peft import PeftModel",
            "from transformers import CLIPModel",
            "",
            'model = PeftModel.from_pretrained(CLIPModel.from_pretrained("BACKBONE"),',
            '                                  "THIS_DIRECTORY/peft")',
        ),
    )
}
