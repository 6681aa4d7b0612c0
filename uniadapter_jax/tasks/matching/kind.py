"""Matching (ITC + ITM) by name: its options, samples, evaluation and programs."""

from __future__ import annotations

from uniadapter_jax.common.ranges import BELOW_ONE, SHARE, Range, at_least
from uniadapter_jax.tasks.base import Kind
from uniadapter_jax.tasks.captions import CaptionSamples
from uniadapter_jax.tasks.matching.evaluator import MatchingEvaluator
from uniadapter_jax.tasks.matching.programs import matching_programs
from uniadapter_jax.tasks.matching.task import Matching, make
from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, SUMMARY, TIES, V2T_RULES

KIND = Kind(
    name="matching",
    families=Matching.families,
    tag="text-video-retrieval",
    make=make,
    options={
        "momentum": 0.995,  # of the averaged trainables; 0: no momentum
        "queue": 57_600,  # pairs whose momentum features are kept as candidates; 0: none
        "queue_sharding": "replicated",
        "loss": "dense",  # ring is refused
        "alpha": 0.4,  # weight of momentum's targets after the first epoch
        # For training from scratch, which learns nothing from hard ones at first: uniform.
        "negatives": "hard",
        "frame_weights": False,  # frame-aware attention, for clips of several frames
        "rerank_k": 128,  # best candidates of the first stage that are matched; 0: none
        "rerank_rows": 256,  # pairs that a device matches at once: bounds the memory
        "rerank_beta": 0.0,  # score = matching logit + beta * cosine; BLIP itself has 1
        "v2t": "best_caption",
        "ties": "optimistic",
    },
    ranges={
        "momentum": BELOW_ONE,
        "queue": at_least(0),
        "alpha": SHARE,
        "rerank_k": at_least(0),
        "rerank_rows": at_least(1),
        "rerank_beta": Range(),
    },
    choices={
        "queue_sharding": ("replicated", "sharded"),
        "loss": ("dense", "ring"),
        "negatives": ("hard", "uniform"),
        "v2t": V2T_RULES,
        "ties": TIES,
    },
    protocol=("rerank_k", "rerank_beta", "frame_weights", "v2t", "ties"),
    evaluation=("rerank_k", "rerank_rows", "rerank_beta", "v2t", "ties"),
    kept=("frame_weights",),
    groups=dict.fromkeys(DIRECTIONS, SUMMARY),
    selection_metric="Rsum",
    shown="itm_accuracy",
    samples=CaptionSamples(),
    evaluator=MatchingEvaluator,
    programs=matching_programs,
)
