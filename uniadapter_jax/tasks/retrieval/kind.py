"""Retrieval by name: its options, samples, evaluation and programs."""

from __future__ import annotations

from uniadapter_jax.common.ranges import POSITIVE
from uniadapter_jax.tasks.base import Kind
from uniadapter_jax.tasks.captions import CaptionSamples
from uniadapter_jax.tasks.programs import encoding_programs
from uniadapter_jax.tasks.retrieval.all_queries import NAMES
from uniadapter_jax.tasks.retrieval.evaluator import RetrievalEvaluator
from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, SUMMARY, TIES, V2T_RULES
from uniadapter_jax.tasks.retrieval.task import LOSSES, Retrieval, make

KIND = Kind(
    name="retrieval",
    families=Retrieval.families,
    tag="text-video-retrieval",
    make=make,
    options={
        "similarity": "q_score",
        "temperature": 5.0,  # of q_score's softmax over frames
        "duplicates": "negative",  # a clip twice in a batch
        "loss": "dense",  # ring: memory that does not grow with the global batch; sigmoid: SigLIP's
        "v2t": "best_caption",  # several captions
        "ties": "optimistic",
    },
    ranges={"temperature": POSITIVE},
    choices={
        "similarity": ("q_score", "mean_pool", "mean_pool_unit"),
        "duplicates": ("negative", "positive", "avoid"),
        "loss": tuple(LOSSES),
        "v2t": V2T_RULES,
        "ties": TIES,
    },
    protocol=("similarity", "v2t", "ties"),
    evaluation=("v2t", "ties"),
    kept=("similarity", "temperature"),
    groups=dict.fromkeys(DIRECTIONS, SUMMARY),
    selection_metric="Rsum",
    shown="t2v_accuracy",
    samples=CaptionSamples(),
    evaluator=RetrievalEvaluator,
    programs=encoding_programs,
    also=NAMES,
    several_captions=True,
    enters_prefix=True,
    whole_losses={"ring": "dense", "sigmoid_ring": "sigmoid"},
)
