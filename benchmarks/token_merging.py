"""Frames a second of a CLIP's vision tower with merged tokens, taken in turn with the plain one.

    python benchmarks/token_merging.py [--backbone vit-b-16] [--frames 16] [--merge 12] [--rounds 3]

A time is the median of the processor time of all threads (user), so that other work on the machine
counts little.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import os
import statistics

import jax
import numpy as np

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common import signals
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.planning.sizes import backbone_config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="vit-b-16", help="its config.json or known name")
    parser.add_argument("--frames", type=int, default=16, help="encoded in one call")
    parser.add_argument("--merge", type=int, default=12, help="tokens that every layer merges")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not")
    args = parser.parse_args()
    config, _ = backbone_config(base_config(), args.backbone)
    assert isinstance(config, CLIPConfig)
    side = config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (args.frames, side, side, 3), np.uint8)
    part = partition(CLIP(config, rng=generator(0, "backbone")), None)
    merged = partition(CLIP(config, rng=None, merge=args.merge), None)

    def encode(graph) -> object:  # type: ignore[no-untyped-def]
        run = jax.jit(lambda frozen, x: graph.merge({}, frozen).encode_images(x))
        return run.lower(part.frozen, pixels).compile()

    calls = {"plain": encode(part), "merged": encode(merged)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(args.rounds + 1):
        for name, call in calls.items():
            before = os.times().user
            jax.block_until_ready(call(part.frozen, pixels))  # type: ignore[operator]
            if number:
                seconds[name].append(os.times().user - before)
    rates = {name: args.frames / statistics.median(took) for name, took in seconds.items()}
    print(json.dumps({**rates, "times": rates["merged"] / rates["plain"]}))


if __name__ == "__main__":
    signals.run(main)
