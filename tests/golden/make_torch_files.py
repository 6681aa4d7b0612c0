"""Writes tests/golden/torch: small files by real torch, and the numbers in them as expected.npz.

    python tests/golden/make_torch_files.py        # needs torch >= 2.6; the files here: 2.13

The reader's tests compare with these, so that they need no torch.
"""

import collections
import pathlib

import numpy as np
import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "torch"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.mlp(self.ln(x))


class Tower(nn.Module):
    """What OpenAI's archives consist of: nested modules, bare parameters, scalar buffers."""

    scale: float
    sizes: list[int]

    def __init__(self):
        super().__init__()
        self.scale, self.sizes = 0.5, [2, 3]
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.conv = nn.Conv2d(3, 4, 2, bias=False)
        self.proj = nn.Parameter(torch.randn(4, 3))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.scale * x @ self.proj + self.sizes[0]


def checkpoint() -> dict:
    """Every dtype, odd strides, one storage under several names, and what trainers add."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = collections.OrderedDict(
        {f"{name}s": torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in DTYPES}
    )
    tensors["bools"] = torch.tensor([True, False, True])
    tensors["uint16s"] = torch.tensor([0, 1, 65535], dtype=torch.uint16)
    tensors["scalar"], tensors["empty"] = torch.tensor(2.5), torch.zeros(0, 3)
    tensors["base"], tensors["tied"] = base, base
    tensors["transposed"], tensors["slice"] = base.t(), base[1:, ::2]
    tensors["expanded"] = torch.ones(1, 3).expand(2, 3)
    tensors["parameter"] = nn.Parameter(base[2])
    return {"model": tensors, "epoch": 3, "lr": 1e-4, "betas": (0.9, 0.98), "best": None}


def numbers(tensors: dict) -> dict[str, np.ndarray]:
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    return {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for k, t in plain.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    saved, tower = checkpoint(), Tower()
    torch.save(saved, FOLDER / "zip.pt")
    torch.save(saved, FOLDER / "zip_protocol_4.pt", pickle_protocol=4)
    torch.save(saved, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(tower.state_dict(), FOLDER / "state_dict.pt")
    torch.jit.save(torch.jit.script(tower), FOLDER / "script.pt")
    torch.save(tower.conv, FOLDER / "whole_module.pt")
    np.savez(FOLDER / "expected.npz", **numbers(saved["model"]))
    np.savez(FOLDER / "expected_tower.npz", **numbers(tower.state_dict()))


if __name__ == "__main__":
    main()
