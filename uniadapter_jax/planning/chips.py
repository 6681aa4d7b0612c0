"""Published numbers of TPU chips, and the slices that they come in."""

from __future__ import annotations

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      peak: bfloat16 FLOP/s.
      hbm: bytes.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s between chips, all links of a chip together.
      slices: topologies, smallest first.
    """

    peak: float
    hbm: int
    hbm_bandwidth: float
    ici_bandwidth: float
    slices: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# The "System architecture" tables of Google Cloud's documentation, cloud.google.com/tpu/docs/NAME:
# peak compute per chip (bf16), HBM capacity and bandwidth, and interchip interconnect bandwidth,
# there in Gbit/s: 2400 (v4), 1600 (v5e), 4800 (v5p), 3584 (v6e). The compiler keeps a part of the
# HBM for itself, so it reports less as available (v5e: 15.75 GiB).
# Typed from memory, without those tables at hand: compare before relying on an estimate.
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1228e9, 300e9, _CUBES),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, _FLAT),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, _CUBES),
    "v6e": Chip(918e12, 32 * _GIB, 1640e9, 448e9, _FLAT),
}
