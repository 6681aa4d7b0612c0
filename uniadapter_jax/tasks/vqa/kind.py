"""VQA and VideoQA by name: options, samples, evaluation and programs."""

from __future__ import annotations

from uniadapter_jax.common.ranges import BELOW_ONE, at_least
from uniadapter_jax.tasks.base import Kind
from uniadapter_jax.tasks.vqa.evaluator import VqaEvaluator
from uniadapter_jax.tasks.vqa.programs import vqa_programs
from uniadapter_jax.tasks.vqa.samples import QuestionSamples
from uniadapter_jax.tasks.vqa.task import Vqa, make

KIND = Kind(
    name="vqa",
    families=Vqa.families,
    tag="visual-question-answering",
    make=make,
    options={
        "smoothing": 0.1,  # of the training loss' targets
        "inference": "rank",  # best of a list, or generate: any text
        "answers": "",  # the list, as JSON; "": the distinct answers of the training split
        "rank_k": 128,  # answers with the likeliest first word, which are ranked; at most all
        "rank_smoothing": 0.1,  # of their losses, as released; 0: by log-likelihood
        "beams": 3,  # of generate
        "generate_mask": "padding",  # the decoder sees the question alone; released: its padding
        "frame_weights": False,  # frame-aware attention, for clips of several frames
        "metric": "vqa",  # VQAv2's accuracy of 10 annotators; exact: one answer, equal strings
        "top_answers": 5,  # that are written down for each question, with scores
    },
    ranges={
        "smoothing": BELOW_ONE,
        "rank_k": at_least(1),
        "rank_smoothing": BELOW_ONE,
        "beams": at_least(1),
        "top_answers": at_least(1),
    },
    choices={
        "inference": ("rank", "generate"),
        "generate_mask": ("padding", "released"),
        "metric": ("vqa", "exact"),
    },
    protocol=(
        *("inference", "answers", "rank_k", "rank_smoothing", "beams", "generate_mask"),
        *("frame_weights", "metric"),
    ),
    evaluation=(
        *("inference", "answers", "rank_k", "rank_smoothing", "beams", "generate_mask", "metric"),
        "top_answers",
    ),
    kept=("frame_weights", "rank_smoothing", "beams", "generate_mask"),
    groups={"accuracy": ("overall",)},
    selection_metric="accuracy/overall",
    shown="answer_accuracy",
    samples=QuestionSamples(),
    evaluator=VqaEvaluator,
    programs=vqa_programs,
)
