"""Writes tests/golden/positions.npz: position tables and what torch's bicubic resizing makes.

python tests/golden/make_positions.py        # needs torch; the file here: 2.13
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional

SIDES = ((7, 5), (4, 9), (14, 24), (1, 3))


def main() -> None:
    torch.manual_seed(0)
    arrays = {}
    for old, new in SIDES:
        table = torch.randn(1 + old * old, 3)
        grid = table[1:].reshape(1, old, old, 3).permute(0, 3, 1, 2)
        resized = functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
        rows = resized.permute(0, 2, 3, 1).reshape(-1, 3)
        arrays[f"{old}to{new}.table"] = table.numpy()
        arrays[f"{old}to{new}.resized"] = torch.cat([table[:1], rows]).numpy()
    np.savez(pathlib.Path(__file__).parent / "positions.npz", **arrays)


if __name__ == "__main__":
    main()
