"""Cross-Modal Adapter's official tensors: names and layout, theirs and ours.

Official: one tensor for all layers of a tower and both sites, index 2i the one after attention
and 2i + 1 the one after the MLP of layer i; weights are [2L, out, in]. Ours: one tensor per site,
kernels [L, in, out].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from uniadapter_jax.adapters.cross_modal import SITES
from uniadapter_jax.common.errors import UserError

PREFIX = "clip."


def _tower(official: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{official}_adapter_down_weight", f"{ours}.blocks.after_{{site}}.down_kernel"),
        (f"{official}_adapter_down_bias", f"{ours}.blocks.after_{{site}}.down_bias"),
        (f"{official}_adapter_up_unique_weight", f"{ours}.blocks.after_{{site}}.up_kernel"),
        (f"{official}_adapter_up_unique_bias", f"{ours}.blocks.after_{{site}}.up_bias"),
    ]


# Official name to our path; `{site}` is attn or mlp.
OFFICIAL: tuple[tuple[str, str], ...] = (
    *_tower("visual", "vision"),
    *_tower("text", "text"),
    ("vt_adapter_up_share_weight", "adapters.{site}_kernel"),
    ("vt_adapter_up_share_bias", "adapters.{site}_bias"),
)
NAMES = tuple(official for official, _ in OFFICIAL)


def is_known(ours: Iterable[str]) -> bool:
    """Whether all these paths have official names: those of BLIP's decoder have none."""
    return {*ours} <= {path.format(site=site) for _, path in OFFICIAL for site in SITES}


def to_official(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns {our path: array} into {official name: array}; also fits gradients.

    Tensors that the method lacks (with d_s = 0 the shared ones) are left out.
    """
    official = {}
    for name, pattern in OFFICIAL:
        paths = [pattern.format(site=site) for site in SITES]
        if paths[0] not in ours:
            continue
        both = np.stack([np.asarray(ours[path]) for path in paths], axis=1)  # [L, 2, ...]
        both = both.reshape(-1, *both.shape[2:])
        official[name] = both.swapaxes(1, 2) if name.endswith("weight") else both
    return official


def from_official(official: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(our path, array) of official tensors; empty ones (no unique part) are left out."""
    for name, pattern in OFFICIAL:
        if name not in official or not official[name].size:
            continue
        for i, site in enumerate(SITES):
            layers = official[name][i::2]
            yield pattern.format(site=site), layers.swapaxes(1, 2) if layers.ndim == 3 else layers


def options(official: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The method's options that the shapes tell: bottleneck and shared_dim."""
    down = official.get("visual_adapter_down_bias")
    share = official.get("vt_adapter_up_share_bias")
    if down is None or down.ndim != 2:
        problem = "missing" if down is None else f"of shape {down.shape}"
        raise UserError(f"{PREFIX}visual_adapter_down_bias is {problem}; it tells the bottleneck")
    shared_dim = share.shape[1] if share is not None and share.ndim == 2 else 0
    return {"bottleneck": down.shape[1], "shared_dim": shared_dim}


def misfits(
    official: Mapping[str, np.ndarray],
    *,
    layers: tuple[int, int],
    widths: tuple[int, int],
    bottleneck: int,
    shared_dim: int,
) -> list[str]:
    """The tensors that do not fit (vision, text) towers of these sizes, one line each."""
    expected = official_shapes(
        layers=layers, widths=widths, bottleneck=bottleneck, shared_dim=shared_dim
    )
    problems = []
    for name in NAMES:
        shape = official[name].shape if name in official else None
        wanted = expected.get(name)
        if shape is None and wanted is not None:
            problems.append(f"missing: {PREFIX}{name}")
        elif shape != wanted and not (wanted is None and shape is not None and 0 in shape):
            problems.append(f"shape of {PREFIX}{name}: {shape}, expected {wanted}")
    return problems


def official_shapes(
    *, layers: tuple[int, int], widths: tuple[int, int], bottleneck: int, shared_dim: int
) -> dict[str, tuple[int, ...]]:
    """Official shapes for (vision, text) towers; a tensor without channels is left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, count, width in zip(("visual", "text"), layers, widths, strict=True):
        unique = width - shared_dim
        shapes[f"{tower}_adapter_down_weight"] = (2 * count, bottleneck, width)
        shapes[f"{tower}_adapter_down_bias"] = (2 * count, bottleneck)
        if unique:
            shapes[f"{tower}_adapter_up_unique_weight"] = (2 * count, unique, bottleneck)
            shapes[f"{tower}_adapter_up_unique_bias"] = (2 * count, unique)
    if shared_dim:
        shapes["vt_adapter_up_share_weight"] = (2 * layers[1], shared_dim, bottleneck)
        shapes["vt_adapter_up_share_bias"] = (2 * layers[1], shared_dim)
    return shapes
