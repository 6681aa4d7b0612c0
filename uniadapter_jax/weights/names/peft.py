"""Writes a LoRA, DoRA, VeRA or IA3 in PEFT's layout, so that PEFT can load it into a `CLIPModel`.

PEFT calls the two factors of a layer `base_model.model.<module>.lora_A.weight`, [rank, in], and
`lora_B.weight`, [out, rank], DoRA's lengths `lora_magnitude_vector`, VeRA's vectors `vera_lambda_b`
and `vera_lambda_d`, and IA3's scales `ia3_l`, [out, 1] or [1, in]; each layer of a tower is a
module of its own. VeRA's matrices are `base_model.vera_A` and `vera_B`. The patch embedding is a
convolution in transformers: its A is [rank, 3, p, p], its B [out, rank, 1, 1].
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from uniadapter_jax.weights.adapter_directory import (
    PEFT_FOLDER,
    PEFT_METADATA,
    AdapterFiles,
    write_pair,
)
from uniadapter_jax.weights.hub.names import hub_name
from uniadapter_jax.weights.names.base import HUGGINGFACE_CLIP, TRANSFORMS

_KERNELS = {
    ours.removesuffix(".kernel"): (theirs.removesuffix(".weight"), how)
    for ours, theirs, how in HUGGINGFACE_CLIP
    if ours.endswith(".kernel")
}


# {the end of our path: PEFT's name}
_FACTORS = {
    "delta.a_kernel": "lora_A.weight",
    "delta.b_kernel": "lora_B.weight",
    "reweighted.low.a_kernel": "lora_A.weight",
    "reweighted.low.b_kernel": "lora_B.weight",
    "reweighted.magnitude": "lora_magnitude_vector",
    "delta.beta": "vera_lambda_b",
    "delta.delta": "vera_lambda_d",
    "delta.scale": "ia3_l",
    "before.scale": "ia3_l",
}
# {our path: PEFT's name} of matrices that all layers share and that do not train
_MATRICES = {
    "adapters.a_kernel": "base_model.vera_A",
    "adapters.b_kernel": "base_model.vera_B",
}


def peft_tensors(
    ours: Mapping[str, np.ndarray], first: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """(PEFT's name, array) from our tensors `<linear layer>.<place>.<factor>`.

    first: the layer of the towers that the first in a stack is.
    """
    for path, tensor in ours.items():
        factor = next(end for end in _FACTORS if path.endswith(f".{end}"))
        module, how = _KERNELS[path.removesuffix(f".{factor}").replace(".above.", ".")]
        stacked = "{i}" in module
        for i, value in enumerate(tensor if stacked else tensor[None], first):
            name = f"base_model.model.{module.format(i=i) if stacked else module}"
            yield f"{name}.{_FACTORS[factor]}", _as_peft(value, factor, how)


def _as_peft(value: np.ndarray, factor: str, how: str) -> np.ndarray:
    patches = how == "patches"
    if factor.endswith("a_kernel"):
        return TRANSFORMS[how].write(value)
    if factor.endswith("b_kernel"):
        return value.T[..., None, None] if patches else value.T
    if factor == "delta.scale":
        return value[:, None]
    if factor == "before.scale":
        return value[None]
    return value[None, :, None, None] if patches else value


def _lora_config(adapter: AdapterFiles, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": adapter.options["rank"],
        "lora_alpha": adapter.options["alpha"],
        "lora_dropout": adapter.options["dropout"],
        "bias": "none",
        "use_dora": any(name.endswith("lora_magnitude_vector") for name in tensors),
    }


def _ia3_config(adapter: AdapterFiles, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    inputs = [name for name, value in tensors.items() if value.shape[0] == 1]
    return {"peft_type": "IA3", "feedforward_modules": _modules(inputs)}


def _vera_config(adapter: AdapterFiles, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "peft_type": "VERA",
        "r": adapter.options["rank"],
        "d_initial": adapter.options["start"],
        "projection_prng_key": adapter.options["projection_seed"],
        "save_projection": True,  # they are drawn otherwise than PEFT's
        "vera_dropout": 0.0,
        "bias": "none",
    }


def _base(backbone: str) -> dict[str, Any]:
    """Where PEFT finds the backbone: it has a field of its own for the revision."""
    name = hub_name(backbone)
    if name is None:
        return {"base_model_name_or_path": backbone}
    return {"base_model_name_or_path": name.repository, "revision": name.revision or None}


_FACTOR = re.compile(r"\.(lora|ia3|vera)_")
_CONFIGS = {"lora": _lora_config, "ia3": _ia3_config, "vera": _vera_config}


def _modules(names: Iterable[str]) -> list[str]:
    """transformers' modules that PEFT's tensors belong to."""
    bare = (name.removeprefix("base_model.model.") for name in names)
    return sorted({_FACTOR.split(name)[0] for name in bare})


def write_peft(
    directory: pathlib.Path, adapter: AdapterFiles, frozen: Mapping[str, Any] | None = None
) -> None:
    """Writes what `peft.PeftModel.from_pretrained(CLIPModel, directory)` reads.

    frozen: {our path: array} of what does not train in the adapted model.
    """
    tensors = dict(peft_tensors(adapter.tensors, adapter.options["from_layer"]))
    kinds = {match[1] for match in map(_FACTOR.search, tensors) if match}
    matrices = {
        theirs: np.asarray(frozen[ours])[0].T
        for ours, theirs in _MATRICES.items()
        if frozen and ours in frozen
    }
    config = {
        **_CONFIGS[kinds.pop()](adapter, tensors),
        "task_type": None,
        **_base(adapter.backbone),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _modules(tensors),
    }
    directory.mkdir()
    # PEFT warns of fields that it does not know, so the header has both digests.
    write_pair(directory, config, tensors | matrices, PEFT_METADATA, digest_in_config=False)


class Layout(NamedTuple):
    """A further layout of exported adapters: its folder, its writer, and Python that loads it."""

    folder: str
    write: Callable[[pathlib.Path, AdapterFiles, Mapping[str, Any]], None]
    usage: tuple[str, ...]


_PEFT = Layout(
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
# {(method, title of the family): the layout that an export writes beside our own}
FURTHER_LAYOUTS: Mapping[tuple[str, str], Layout] = {
    (method, "CLIP"): _PEFT for method in ("lora", "dora", "vera", "ia3")
}
