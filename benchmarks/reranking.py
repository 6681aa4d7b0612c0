"""How fast the second stage is against the scheme of the papers' code; prints JSON lines.

    python benchmarks/reranking.py            BLIP-base, 384 pixels, UniAdapter r=512, float32
    python benchmarks/reranking.py --quick    a tiny BLIP, to see that it runs

Speed: 8 images x 64 candidate texts of 35 tokens, image states given. The released scheme repeats
an image's states for each text of a call (16 or 64) and projects keys and values per pair. All are
compiled by the same process and take turns, image by image; medians over images, wall and CPU time.
Stage 2 here encodes images again instead of keeping them: what that costs stands beside it.
Memory: whole re-rankings of two galleries, each in a fresh process.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import turns
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition, partition
from uniadapter_jax.adapters.registry import AdapterParam, get_method
from uniadapter_jax.adapters.uniadapter_blip import attach
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import MATCHING, BLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common import children, signals
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.matching import reranking_plan as plan
from uniadapter_jax.tasks.matching.pair_scores import PairScorer, Texts
from uniadapter_jax.tasks.matching.reranking import Reranker

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
GALLERIES = (4, 16)


def build(args: argparse.Namespace) -> tuple[BLIPConfig, Partition, Any]:
    """BLIP with UniAdapter on one device: (config, partition, mesh)."""
    tiny = TINY if args.quick else {}
    source = {
        "architectures": [MATCHING],
        "vision_config": {"image_size": 32 if args.quick else 384, "layer_norm_eps": 1e-6, **tiny},
        "text_config": {"num_attention_heads": 8 if args.quick else 12, **tiny},
    }
    if args.quick:
        source["vision_config"]["num_attention_heads"] = 4
    config = BLIPConfig.from_huggingface(source)
    model = BLIP(config, rng=generator(0, "backbone"))
    options = {**get_method("uniadapter").options, "bottleneck": 512}
    attach(model, ConfigDict(options), generator(0, "adapters"))
    part = partition(model, AdapterParam)
    mesh = meshes.one_device()
    part.trainable = meshes.put_replicated(part.trainable, mesh)
    part.frozen = meshes.put_replicated(part.frozen, mesh)
    return config, part, mesh


def random_texts(count: int, words: int) -> Texts:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (count, words)).astype(np.int32)
    return Texts(ids, np.ones(ids.shape, bool), np.zeros((count, 256), np.float32))


def pictures(count: int, size: int) -> dict[str, np.ndarray]:
    shape = (count, 1, size, size, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return {"frames": frames, "frame_mask": np.ones((count, 1), bool)}


def clock(scheme: Callable[[int], np.ndarray], image: int) -> tuple[np.ndarray, float, float]:
    """(result, wall seconds, CPU seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = scheme(image)
    return result, time.perf_counter() - wall, time.process_time() - cpu


class Released:
    """`size` pairs a call: an image's states repeated, keys and values made for each pair."""

    def __init__(self, part: Partition, size: int):
        self.part, self.size = part, size
        self.program = jax.jit(self._logits)

    def _logits(self, trainable: Any, states: jax.Array, ids: jax.Array) -> jax.Array:
        model = self.part.merge(trainable[0], trainable[1])
        grouped = model.fusion_ids(ids)[:, None]
        fused = model.fuse(grouped, jnp.ones(grouped.shape, bool), Memory(states))
        return model.match_logits(fused[:, 0, 0])[:, 1]

    def arguments(self, states: jax.Array, ids: np.ndarray) -> tuple[Any, ...]:
        repeated = jnp.repeat(states, len(ids), axis=0)
        return (self.part.trainable, self.part.frozen), repeated, jnp.asarray(ids)

    def score(self, states: jax.Array, ids: np.ndarray) -> np.ndarray:
        """Logits of one image "1 t d" with texts "p l"."""
        starts = range(0, len(ids), self.size)
        calls = [self.arguments(states, ids[start : start + self.size]) for start in starts]
        return np.concatenate([np.asarray(self.program(*call)) for call in calls])


def speed(args: argparse.Namespace) -> None:
    config, part, mesh = build(args)
    scorer = PairScorer(part, mesh, frame_weights=False)
    texts = random_texts(args.images * args.texts, args.words)
    lengths = plan.used_lengths(texts.mask)
    both = np.ones(len(lengths), bool)
    number = np.arange(len(lengths), dtype=np.int32)
    pairs = plan.Pairs(number, number // args.texts, both, both)

    hosts = [pictures(args.images, config.image_size)]
    hosts = [{name: x[i : i + 1] for name, x in hosts[0].items()} for i in range(args.images)]
    media = [scorer.encode(part.trainable, host, 1) for host in hosts]
    shape = scorer.shape(pairs, texts, media[0], args.rows)

    def ours(i: int) -> np.ndarray:
        calls = (
            call._replace(place=np.zeros_like(call.place))
            for call in plan.calls(pairs, lengths, shape, i, i + 1, args.words)
        )
        logits = np.zeros(args.texts, np.float32)
        for place, found in scorer.score(part.trainable, texts, media[i], calls):
            logits[place - i * args.texts] = found
        return logits

    released = {size: Released(part, size) for size in (16, 64)}

    def theirs(size: int, i: int) -> np.ndarray:
        own = texts.ids[i * args.texts : (i + 1) * args.texts]
        return released[size].score(media[i].clips.states, own)

    def encode(i: int) -> np.ndarray:
        jax.block_until_ready(scorer.encode(part.trainable, hosts[i], 1))
        return np.zeros(0)

    schemes: dict[str, Callable[[int], np.ndarray]] = {
        "encoding again": encode,
        "ours": ours,
        "released, 16 a call": lambda i: theirs(16, i),
        "released, 64 a call": lambda i: theirs(64, i),
    }
    for scheme in schemes.values():
        scheme(0)
    wall: dict[str, list[float]] = {name: [] for name in schemes}
    cpu: dict[str, list[float]] = {name: [] for name in schemes}
    difference = 0.0
    for turn in range(args.images * args.repeats):
        found = {}
        for name, scheme in schemes.items():
            found[name], seconds, worked = clock(scheme, turn % args.images)
            wall[name].append(seconds)
            cpu[name].append(worked)
        logits = np.stack([x for x in found.values() if len(x)])
        difference = max(difference, float(np.ptp(logits, axis=0).max()))
        print(f"{turn + 1} of {args.images * args.repeats} images", file=sys.stderr, flush=True)

    middle = {name: statistics.median(times) for name, times in wall.items()}
    worked = {name: statistics.median(times) for name, times in cpu.items()}
    alone = ["ours", "encoding again"]
    both_wall, both_cpu = (sum(times[name] for name in alone) for times in (middle, worked))
    temporaries = _temporaries(scorer, released, part, texts, media[0], args, shape)
    for name in schemes:
        line: dict[str, Any] = {
            "measure": "speed",
            "scheme": name,
            "images x texts x tokens": [args.images, args.texts, args.words],
            "seconds_per_image": round(middle[name], 3),
            "cpu_seconds_per_image": round(worked[name], 3),
        }
        if name in temporaries:
            line["pairs_per_second"] = round(args.texts / middle[name], 2)
            line["temporaries_mb"] = round(temporaries[name] / 1e6, 1)
        if name not in alone:
            line |= {
                "ours_times_as_fast": round(middle[name] / middle["ours"], 2),
                "by_cpu_time": round(worked[name] / worked["ours"], 2),
                "with_encoding_again": round(middle[name] / both_wall, 2),
                "with_encoding_again_by_cpu_time": round(worked[name] / both_cpu, 2),
            }
        print(json.dumps(line), flush=True)
    print(json.dumps({"measure": "speed", "largest_difference": difference}), flush=True)


def _temporaries(
    scorer: PairScorer,
    released: dict[int, Released],
    part: Partition,
    texts: Texts,
    media: Any,
    args: argparse.Namespace,
    shape: plan.Shape,
) -> dict[str, int]:
    """Peak bytes of what a call of each scheme holds beside its arguments and result."""
    rows = shape.groups * shape.texts
    group = {
        "place": np.zeros(shape.groups, np.int32),
        "ids": texts.ids[:rows].reshape(*shape, -1),
        "mask": texts.mask[:rows].reshape(*shape, -1),
    }
    weights = part.trainable, part.frozen
    lowered = {"ours": scorer.score_program.lower(*weights, media, group)}
    for size, scheme in released.items():
        arguments = scheme.arguments(media.clips.states, texts.ids[: min(size, args.texts)])
        lowered[f"released, {size} a call"] = scheme.program.lower(*arguments)
    return {
        name: program.compile().memory_analysis().temp_size_in_bytes
        for name, program in lowered.items()
    }


def memory(args: argparse.Namespace) -> None:
    """Call in a fresh process: a peak never falls."""
    config, part, mesh = build(args)
    images, batch = args.gallery, 2
    texts = random_texts(8, args.words)
    similarity = np.random.default_rng(2).random((8, images)).astype(np.float32)
    frames = pictures(images, config.image_size)
    held = []

    def clips(items: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(items), batch):
            held.append(sum(x.nbytes for x in jax.live_arrays()))
            yield {name: x[items[start : start + batch]] for name, x in frames.items()}

    options = SimpleNamespace(
        rerank_k=4, rerank_rows=args.rows, rerank_beta=1.0, frame_weights=False
    )
    Reranker(part, mesh, options).rerank(part.trainable, texts, clips, similarity, batch=batch)
    line = {
        "measure": "memory",
        "gallery": images,
        "arrays_on_device_mb": round(max(held) / 1e6, 1),
        "peak_resident_mb": round(turns.peak_bytes() / 1e6, 1),
        "of_which_pictures_mb": round(frames["frames"].nbytes / 1e6, 1),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--texts", type=int, default=64, help="candidates of an image")
    parser.add_argument("--words", type=int, default=35, help="tokens of a text")
    parser.add_argument("--rows", type=int, default=64, help="pairs of a call (ours)")
    parser.add_argument("--repeats", type=int, default=1, help="turns of all images")
    parser.add_argument("--quick", action="store_true", help="a tiny BLIP, 2 images")
    parser.add_argument("--only", choices=("speed", "memory"), help="one measurement, here")
    parser.add_argument("--gallery", type=int, default=GALLERIES[0], help="images of --only memory")
    args = parser.parse_args()
    if args.quick:
        args.images, args.texts, args.words = 2, 16, 6
    if args.only:
        (speed if args.only == "speed" else memory)(args)
        return
    again = [sys.executable, __file__, *sys.argv[1:]]
    children.run([*again, "--only", "speed"]).check_returncode()
    for gallery in GALLERIES:
        command = [*again, "--only", "memory", "--gallery", str(gallery)]
        children.run(command).check_returncode()


if __name__ == "__main__":
    signals.run(main)
