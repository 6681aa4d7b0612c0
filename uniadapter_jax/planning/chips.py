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
      ici_bandwidth: bytes/s that a chip sends to others, all its links together.
      slices: topologies, smallest first.
    """

    peak: float
    hbm: int
    hbm_bandwidth: float
    ici_bandwidth: float
    slices: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# The "System architecture" tables of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, as read in
# November 2026. They give the interchip bandwidth of both directions together (GB/s: v5e 400,
# v5p 1200, v6e 800), of which a device sends half; v4's (2400 Gbit/s one way) is no longer there.
# The compiler keeps a part of the HBM for itself, so it reports less (v5e: 15.75 GiB).
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 300e9, _CUBES),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, _FLAT),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, _CUBES),
    "v6e": Chip(918e12, 32 * _GIB, 1600e9, 400e9, _FLAT),
}
