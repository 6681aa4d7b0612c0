"""A folder of tiny media, and a model of mean colours to index it with, which compiles nothing."""

from __future__ import annotations

import os
import pathlib
import sys
from types import SimpleNamespace
from typing import Any

import media
import numpy as np
import small_child

from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.inference import clip_files
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.clip_options import ClipOptions
from uniadapter_jax.inference.search import writing
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.runs.workdir import LOCK

SIDE, WIDTH = 8, 6


class Colours:
    """Stands in for a model: a frame's features are its mean colours; a text's are its letters."""

    method, fingerprint, matches, answers = "zero_shot", "colours", True, True

    def __init__(self, keeps_frames: bool = False, frames: int = 3, **task: Any):
        stored = PrepareSettings("manifest", "fps", 2.0, 4, 16, 95, 0.0)
        self.clips = ClipOptions(stored, frames, "evenly")
        self.config = SimpleNamespace(image_size=SIDE, embed=WIDTH)
        self.tokenizer = SimpleNamespace(
            fingerprint="letters", lengths=lambda texts: [len(text.split()) for text in texts]
        )
        self.partition = SimpleNamespace(trainable={})
        self.task = {"words": 5, "resize": "crop", **task}
        self.keeps_frames = keeps_frames

    def pixels_of(self, clips: Any) -> Any:
        most = self.clips.frames if max(len(clip.frames) for clip in clips) > 1 else 1
        return clip_files.pixels_of(clips, most, SIDE, "crop")

    def media_features(self, pixels: np.ndarray, mask: np.ndarray) -> Any:
        halves = pixels.astype(np.float32).reshape(*mask.shape, 2, -1, 3).mean(axis=3)
        return halves.reshape(*mask.shape, WIDTH) / 255, mask

    def clip_rows(self, features: np.ndarray, mask: np.ndarray) -> Any:
        pairs = zip(features, mask, strict=True)
        if self.keeps_frames:
            return [clip[there] for clip, there in pairs]
        return [clip[there].mean(0, keepdims=True) for clip, there in pairs]

    def encode_text(self, texts: Any) -> np.ndarray:
        return np.array([[text.count(c) for c in "rgbxyz"] for text in texts], np.float32)

    def query_rows(self, features: np.ndarray) -> np.ndarray:
        return features

    def similarity(self, text: np.ndarray, frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, np.einsum("nc,mfc->nmf", text, frames), -np.inf).max(axis=2)

    def match(self, pixels: np.ndarray, texts: Any, mask: np.ndarray) -> np.ndarray:
        """The darker the better."""
        dark = -pixels[mask].astype(np.float32).mean()
        return np.array([[[0, dark]]], np.float32)

    def answer(self, pixels: np.ndarray, questions: Any, mask: np.ndarray) -> Any:
        return [[(f"{questions[0]} {int(mask.sum())}", 0.0)]]


def make_folder(folder: pathlib.Path, pictures: int = 8) -> None:
    """Pictures of different grey, two videos of 2.5 and 4 s, and a file that is neither."""
    for i in range(pictures):
        media.write_picture(folder / f"p{i:02d}.png", grey=9 * i + 5)
    media.write_video(folder / "deep" / "short.mp4", frames=25, start=3)
    media.write_video(folder / "long.mp4", frames=40)
    (folder / "broken.mp4").write_bytes(b"no video")


def make_many(folder: pathlib.Path, count: int) -> None:
    """Short films of different content, most of which show the same as another."""
    films = []
    for i in range(20):
        media.write_video(folder / "film.mp4", frames=6 + i % 3, start=2 * i)
        films.append((folder / "film.mp4").read_bytes())
    (folder / "film.mp4").unlink()
    for i in range(count):
        box = b"\0\0\0\x10free" + i.to_bytes(8, "big")  # which players skip
        (folder / f"{i:05d}.mp4").write_bytes(films[i % len(films)] + box)


def index_it(folder: str, output: str, die: int = 0, part: int = 4, **options: Any) -> None:
    """Builds by parts of `part` clips; SIGKILL may take it before its `die`-th change."""
    writing.CLIPS = part
    if die:
        sys.addaudithook(small_child.die_at(output, die))
    windows = Windows(1.0, 0.5) if options.pop("windows", False) else None
    build(folder, output, Colours(**options), windows=windows, threads=2)


def content(index: pathlib.Path) -> dict[str, bytes]:
    """All files of an index but the lock."""
    return {
        os.path.relpath(path, index): path.read_bytes()
        for path in sorted(index.rglob("*"))
        if path.is_file() and path.name != LOCK
    }
