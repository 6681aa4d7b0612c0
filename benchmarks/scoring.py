"""How fast and how frugal blockwise q-score scoring is; prints one JSON line per measurement.

    python benchmarks/scoring.py            speed against the materialised form, then memory
    python benchmarks/scoring.py --quick    small sizes, to see that it runs
    python benchmarks/scoring.py --reference CHECKOUT     # of LeapLabTHU/Cross-Modal-Adapter; torch

Speed: 1,000 texts x 1,000 clips x 12 frames x 512, against the form that writes every pooled vector
(texts x clips x width) in the same process with the same threads; median of 5 after 1.
Memory: 10,000 x 2,000 in a fresh process; growth of the peak resident set beyond the inputs.
Evaluation: from such features to R@K of both directions, beside the authors' loop over pairs of
batches of 16 (their default), which runs in a process of its own and takes turns with ours.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import turns

from uniadapter_jax.common import children, signals
from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, retrieval_ranks, summarize
from uniadapter_jax.tasks.retrieval.scoring import score

TEMPERATURE = 5.0
# What a process of the reference is started with, by this file itself.
_REFERENCE = "--be-the-reference"


def features(n: int, m: int, f: int, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random features with the spread of CLIP's: texts and frames of length about 10."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((n, c), np.float32) * np.float32(10 / c**0.5)
    frames = rng.standard_normal((m, f, c), np.float32) * np.float32(10 / c**0.5)
    mask = np.arange(f) < rng.integers(1, f + 1, size=(m, 1))
    return text, frames, mask


@jax.jit
def materialised(text: jax.Array, frames: jax.Array, mask: jax.Array) -> jax.Array:
    """q_score as the paper writes it: softmax over frames, a pooled vector per pair, a cosine."""
    dots = jnp.einsum("nc,mfc->nmf", text, frames) / TEMPERATURE
    weights = jax.nn.softmax(jnp.where(mask, dots, -jnp.inf), axis=-1)
    pooled = jnp.einsum("nmf,mfc->nmc", weights, frames)
    unit = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    return jnp.einsum("nc,nmc->nm", text / jnp.linalg.norm(text, axis=-1, keepdims=True), unit)


def median_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(n: int, m: int, f: int, c: int) -> dict[str, Any]:
    text, frames, mask = features(n, m, f, c)
    options: dict[str, Any] = {"similarity": "q_score", "temperature": TEMPERATURE}
    ours = score(text, frames, mask, **options)
    difference = float(np.max(np.abs(ours - np.asarray(materialised(text, frames, mask)))))
    plain = median_seconds(lambda: np.asarray(materialised(text, frames, mask)))
    blocks = median_seconds(lambda: score(text, frames, mask, **options))
    return {
        "measure": "speed",
        "texts x clips x frames x width": [n, m, f, c],
        "materialised_s": round(plain, 3),
        "blockwise_s": round(blocks, 3),
        "times_as_fast": round(plain / blocks, 1),
        "largest_difference": difference,
    }


def memory(n: int, m: int, f: int, c: int) -> dict[str, Any]:
    """Call in a fresh process: a peak never falls."""
    text, frames, mask = features(n, m, f, c)
    jax.devices()
    before = turns.peak_bytes()
    scores = score(text, frames, mask, similarity="q_score", temperature=TEMPERATURE)
    growth = turns.peak_bytes() - before
    return {
        "measure": "memory",
        "texts x clips x frames x width": [n, m, f, c],
        "growth_mb": round(growth / 1e6, 1),
        "of_which_result_mb": round(scores.nbytes / 1e6, 1),
    }


def evaluation(n: int, m: int, f: int, c: int, rounds: int = 5) -> dict[str, Any]:
    """Features of as many texts as clips to metrics, ours and theirs in turns."""
    text, frames, mask = features(n, m, f, c)
    reference = turns.Other([sys.executable, __file__, *sys.argv[1:], _REFERENCE])

    def ours() -> None:
        sims = score(text, frames, mask, similarity="q_score", temperature=TEMPERATURE)
        ranks = retrieval_ranks(sims, np.arange(n))
        for way in DIRECTIONS:
            summarize(ranks[way])

    pairs = [(turns.timed(ours), reference.turn()) for _ in range(rounds + 1)][1:]
    reference.end()
    spent, theirs = zip(*pairs, strict=True)
    return {
        "measure": "evaluation",
        "texts x clips x frames x width": [n, m, f, c],
        **turns.summary("step", spent),
        "peak_rss_gb": turns.peak_bytes() / 1e9,
        **turns.against(spent, theirs, reference),
    }


def be_the_reference(checkout: str, n: int, m: int, f: int, c: int) -> None:
    """Evaluates as the authors' `eval_epoch` does, when it is this process's turn."""
    import torch

    golden = pathlib.Path(__file__).parents[1] / "tests/golden"
    sys.path[:0] = [checkout, str(golden)]
    import make_cma
    from metrics import compute_metrics

    model = make_cma.random_model(make_cma.TINY, bottleneck=4, shared=0)  # its towers do not run
    model.task_config.q_score = True
    text, frames, mask = map(torch.from_numpy, features(n, m, f, c))
    texts = text[:, None].split(16)
    clips = list(zip(frames.split(16), mask.float().split(16), strict=True))

    def evaluate() -> None:
        with torch.no_grad():
            rows = [
                [model._loose_similarity(own, x, None, valid).numpy() for x, valid in clips]
                for own in texts
            ]
        sims = np.concatenate([np.concatenate(row, axis=-1) for row in rows])
        compute_metrics(sims), compute_metrics(sims.T)

    turns.answer(evaluate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", choices=("speed", "memory"), help="one measurement, here")
    parser.add_argument("--reference", metavar="CHECKOUT")
    parser.add_argument(_REFERENCE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measures = {"speed": (1000, 1000, 12, 512), "memory": (10_000, 2_000, 12, 512)}
    square = (1000, 1000, 12, 512)
    if arguments.quick:
        measures = {"speed": (50, 40, 12, 64), "memory": (200, 100, 12, 64)}
        square = (48, 48, 12, 64)
    if arguments.be_the_reference:
        be_the_reference(arguments.reference, *square)
        return
    if arguments.reference:
        print(json.dumps(evaluation(*square)))
        return
    if arguments.only:
        measure = speed if arguments.only == "speed" else memory
        print(json.dumps(measure(*measures[arguments.only])), flush=True)
        return
    for name in measures:
        command = [sys.executable, __file__, "--only", name]
        children.run(command + ["--quick"] * arguments.quick).check_returncode()


if __name__ == "__main__":
    signals.run(main)
