"""Useful FLOPs of a run's programs, from the shapes that they are given."""

from __future__ import annotations

from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.backbones.two_towers import TwoTowersConfig
from uniadapter_jax.planning import blip_flops as blip
from uniadapter_jax.planning.abstract import TRAIN, AbstractRun
from uniadapter_jax.planning.flops import forward_flops, step_flops
from uniadapter_jax.tasks.matching.programs import RERANK
from uniadapter_jax.tasks.programs import FRAMES, STATES, TEXT
from uniadapter_jax.tasks.registry import get_task


def useful_flops(run: AbstractRun, program: str) -> int:
    """FLOPs by the formula of one of `run.programs`, of the whole slice."""
    if not isinstance(run.model_config, BLIPConfig):
        return _of_two_towers(run, run.model_config, program)
    if program == TRAIN:
        return blip.step_flops(run.model_config, run.partition, _training(run, run.model_config))
    passes = _evaluation(run, run.model_config, program)
    return blip.forward_flops(run.model_config, run.partition, passes)


def _of_two_towers(run: AbstractRun, towers: TwoTowersConfig, program: str) -> int:
    data = run.config.data
    if program == TRAIN:
        clips = run.config.train.batch_size
        return step_flops(towers, run.partition, clips=clips, frames=data.frames, words=data.words)
    tower = "text" if program == TEXT else "vision"
    rows = next(iter(run.evaluation[program].given()["batch"].values())).shape[0]
    return forward_flops(
        towers, run.partition, clips=rows, frames=data.frames, words=data.words, towers=(tower,)
    )


def _training(run: AbstractRun, config: BLIPConfig) -> list[blip.Pass]:
    data, task, size = run.config.data, run.config.task, run.config.train.batch_size
    if "question" in get_task(task.name).samples.batch_shapes(run.config):
        return blip.answering_passes(
            config,
            clips=size,
            frames=data.frames,
            words=data.words,
            answers=data.answers,
            answer_words=data.answer_words,
            frame_weights=task.frame_weights,
        )
    return blip.matching_passes(
        config,
        pairs=size,
        frames=data.frames,
        words=data.words,
        momentum=bool(task.momentum),
        frame_weights=task.frame_weights,
    )


def _evaluation(run: AbstractRun, config: BLIPConfig, program: str) -> list[blip.Pass]:
    given, task = run.evaluation[program].given(), run.config.task
    batch = given["batch"]
    if program == TEXT:
        return blip.text_passes(*batch["text"].shape)
    if program == RERANK:
        groups, texts, words = batch["ids"].shape
        seen = given["states"].clips.states.shape[1]
        return blip.scoring_passes(groups * texts, words, media=groups * seen, seen=seen)
    if program in (FRAMES, STATES):
        clips, frames = batch["frame_mask"].shape
        single = blip.Pass("vision_proj", clips * frames)
        if program == FRAMES:
            return [*blip.clip_passes(config, clips, frames), single]
        weighed = task.get("rerank_k") and task.frame_weights and frames > 1
        return [blip.states_pass(config, clips, frames), *([single] if weighed else [])]
    return _answering(run, config, program)


def _answering(run: AbstractRun, config: BLIPConfig, program: str) -> list[blip.Pass]:
    given, task = run.evaluation[program].given(), run.config.task
    clips, together, words = given["batch"]["questions"].shape
    passes = blip.question_passes(
        config,
        clips=clips,
        together=together,
        frames=run.config.data.frames,
        words=words,
        frame_weights=task.frame_weights,
    )
    questions = clips * together
    if "answers" not in given:
        length = run.config.data.answer_words
        return passes + blip.search_passes(
            questions=questions, words=words, beams=task.beams, answer_words=length
        )
    count, length = given["answers"].shape
    return passes + blip.ranking_passes(
        questions=questions, words=words, ranked=min(task.rank_k, count), answer_words=length
    )
