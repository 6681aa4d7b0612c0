"""Useful FLOPs: what the products of a step cost by the formula, whatever a compiler makes of it.

A product of [a, b] by [b, c] counts 2abc. Nothing else counts: norms, activations, the loss and
whatever is computed twice (remat) are the price, not the use.
"""

from __future__ import annotations

from uniadapter_jax.adapters.partition import Partition, flat_names
from uniadapter_jax.backbones.two_towers import TwoTowersConfig
from uniadapter_jax.common.types import PyTree

TOWERS = ("vision", "text")


def kernel_flops(
    config: TwoTowersConfig,
    parameters: PyTree,
    *,
    clips: int,
    frames: int,
    words: int,
    towers: tuple[str, ...] = TOWERS,
) -> int:
    """FLOPs of these parameters' products in one forward pass, of clips with one text each.

    A kernel "... i o" costs 2 i o for every row that it multiplies: every token of its tower,
    every patch (`patch_embedding`), or every picture or text (its head). Kernels that the
    towers share cost in both.

    Args:
      parameters: nested dicts of arrays or shapes.
    """
    total = 0
    for tower, (items, tokens, _) in _rows(config, clips, frames, words).items():
        if tower not in towers:
            continue
        for name, leaf in flat_names(parameters).items():
            *path, last = name.split(".")
            if not last.endswith("kernel"):
                continue
            if path[0] == tower:
                total += 2 * items * _tokens_of(config, path, tokens) * leaf.size
            elif path[0] == "adapters":  # one slot for each layer, or for several
                layers = getattr(config, tower).layers
                total += 2 * items * tokens * layers * (leaf.size // leaf.shape[0])
    return total


def forward_flops(
    config: TwoTowersConfig,
    part: Partition,
    *,
    clips: int,
    frames: int,
    words: int,
    towers: tuple[str, ...] = TOWERS,
) -> int:
    """FLOPs of the products of one forward pass; a product of [a, b] by [b, c] counts 2abc.

    Per token and layer of width d, hidden width e, s tokens: 8 d^2 (q, k, v, out) + 4 d e (MLP)
    + 4 s d (attention) + 2 i o for each kernel [i, o] of the method; and once per picture or text
    the patches and the projection.
    """
    total = sum(
        kernel_flops(config, tree, clips=clips, frames=frames, words=words, towers=towers)
        for tree in (part.trainable, part.frozen)
    )
    return total + _attention(config, clips, frames, words, towers)


def step_flops(
    config: TwoTowersConfig, part: Partition, *, clips: int, frames: int, words: int
) -> int:
    """FLOPs of one training step: forward, the gradient of activations, that of trained kernels.

    The gradient of activations costs what the forward pass does, for attention's products, both of
    whose factors are activations, twice that, and nothing at the patches, whose pixels need none.
    Frozen kernels need none either.
    """
    trained = kernel_flops(config, part.trainable, clips=clips, frames=frames, words=words)
    forward = forward_flops(config, part, clips=clips, frames=frames, words=words)
    patch = 3 * config.patch_size**2 * config.vision.width
    pixels = 2 * clips * frames * config.patches * patch
    attention = _attention(config, clips, frames, words, TOWERS)
    return 2 * forward + attention - pixels + trained


def _attention(
    config: TwoTowersConfig, clips: int, frames: int, words: int, towers: tuple[str, ...]
) -> int:
    """Queries by keys and weights by values, forward; a head that attends has one query."""
    total = 0
    for tower, (items, tokens, width) in _rows(config, clips, frames, words).items():
        if tower in towers:
            queries = tokens * getattr(config, tower).layers
            queries += tower == "vision" and bool(config.pooling_reads)
            total += 4 * items * queries * tokens * width
    return total


def _rows(
    config: TwoTowersConfig, clips: int, frames: int, words: int
) -> dict[str, tuple[int, int, int]]:
    """{tower: (pictures or texts, tokens of each, width)}."""
    return {
        "vision": (clips * frames, config.tokens("vision", words), config.vision.width),
        "text": (clips, config.tokens("text", words), config.text.width),
    }


def _tokens_of(config: TwoTowersConfig, path: list[str], tokens: int) -> int:
    """Of so many tokens, those that the kernel at a path multiplies."""
    if "patch_embedding" in path:
        return config.patches
    whole = "blocks" in path or ".".join(path[1:3]) in config.pooling_reads
    return tokens if whole else 1
