"""A generated world for the demo: pictures to pre-train a tiny CLIP, and clips to adapt it to.

Both show coloured shapes, and the caption names every shape that is seen. They differ the way a
pre-training set differs from a user's own footage:

    pictures   one to four filled shapes on a plain bright ground, plain words ("red circle")
    clips      three segments with one shape each, dim tinted light, clutter and sensor noise, and
               words that are rare in the pictures' captions ("crimson disc")

A single segment does not identify a clip: a shape occurs in many clips, the set of three in one.
The order of the shapes does not matter: captions list them in random order. No set of a test clip
occurs in training. The same arguments give the same pixels on any machine with the same Pillow and
numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIDE = 64
SEGMENTS = 3  # segments of a clip, of one second each
FRAMES_PER_SECOND = 2

# word: (rare word, colour)
COLOURS = {
    "red": ("crimson", (225, 45, 40)),
    "orange": ("amber", (245, 145, 30)),
    "yellow": ("golden", (240, 225, 50)),
    "green": ("emerald", (50, 175, 70)),
    "blue": ("azure", (45, 95, 225)),
    "purple": ("violet", (150, 60, 190)),
}


def _polygon(corners: int, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(math.sin(angle), -math.cos(angle)) for angle in angles]


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    corners = _polygon(2 * points)
    return [(x * r, y * r) for (x, y), r in zip(corners, itertools.cycle((1.0, inner)))]


_ARM = 0.36
# word: (rare word, outline in the square [-1, 1])
SHAPES: dict[str, tuple[str, list[tuple[float, float]]]] = {
    "circle": ("disc", _polygon(40)),
    "square": ("box", [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": ("wedge", _polygon(3)),
    "star": ("spark", _star(5, 0.42)),
    "diamond": ("gem", [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)]),
    "bar": ("plank", [(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)]),
    "arrow": (
        "dart",
        [(0, -1), (0.9, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-0.9, 0)],
    ),
    "cross": (
        "plus",
        [
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ],
    ),
}
THINGS = tuple(itertools.product(COLOURS, SHAPES))  # 48 (colour, shape)


@dataclasses.dataclass(frozen=True)
class Look:
    """The style in which shapes are drawn and captioned."""

    ground: tuple[int, int]  # range of the background's grey level
    light: tuple[float, float, float]  # factor on each colour channel
    contrast: float  # 1 keeps the picture, 0 makes it grey
    noise: float  # standard deviation of the sensor's noise, of 255
    clutter: int  # stray lines behind the things
    radius: tuple[float, float]  # of a thing, in pixels
    rare_words: float  # chance that a word of a caption is the rare one


PICTURES = Look((200, 245), (1.0, 1.0, 1.0), 1.0, 3.0, 0, (10.0, 15.0), 0.1)
CLIPS = Look((60, 140), (0.75, 0.85, 1.1), 0.6, 16.0, 12, (13.0, 20.0), 1.0)


def draw(
    things: Sequence[tuple[str, str]],
    centres: Sequence[tuple[float, float]],
    radii: Sequence[float],
    look: Look,
    rng: np.random.Generator,
) -> np.ndarray:
    """One picture, uint8 [side side 3]: `things` (colour, shape) at `centres` (x, y) in pixels."""
    scale = 2  # drawn twice as large, then averaged: smooth edges
    grey = int(rng.integers(*look.ground))
    image = Image.new("RGB", (PICTURE_SIDE * scale,) * 2, (grey, grey, grey))
    canvas = ImageDraw.Draw(image)
    for _ in range(look.clutter):
        ends = [float(v) for v in rng.uniform(0, PICTURE_SIDE * scale, 4)]
        canvas.line(ends, tuple(int(v) for v in rng.integers(0, 200, 3)), int(rng.integers(2, 6)))
    for (colour, shape), (x, y), radius in zip(things, centres, radii, strict=True):
        turn = rng.uniform(-0.15, 0.15)
        cos, sin = math.cos(turn) * radius * scale, math.sin(turn) * radius * scale
        corners = [
            (x * scale + cos * u - sin * v, y * scale + sin * u + cos * v)
            for u, v in SHAPES[shape][1]
        ]
        canvas.polygon(corners, COLOURS[colour][1])
    pixels = np.asarray(image.reduce(scale), np.float32) * np.array(look.light, np.float32)
    pixels = 128.0 + look.contrast * (pixels - 128.0)
    pixels += rng.normal(0.0, look.noise, pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def caption(things: Sequence[tuple[str, str]], look: Look, rng: np.random.Generator) -> str:
    """ "a crimson disc, an emerald spark and ...": the things in random order."""
    phrases = []
    for index in rng.permutation(len(things)):
        colour, shape = things[index]
        if rng.random() < look.rare_words:
            colour = COLOURS[colour][0]
        if rng.random() < look.rare_words:
            shape = SHAPES[shape][0]
        phrases.append(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}")
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def picture(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A picture of one to four things in the quarters of the frame, and its caption."""
    count = int(rng.choice(4, p=(0.2, 0.25, 0.25, 0.3))) + 1
    things = [THINGS[i] for i in rng.choice(len(THINGS), count, replace=False)]
    quarters = rng.choice(4, count, replace=False)
    half = PICTURE_SIDE / 2
    jitter = rng.uniform(-3.0, 3.0, (count, 2))
    if count == 1:
        centres = [tuple(half + 5.0 * jitter[0])]
    else:
        centres = [
            (half * (q % 2 + 0.5) + dx, half * (q // 2 + 0.5) + dy)
            for q, (dx, dy) in zip(quarters, jitter, strict=True)
        ]
    low, high = PICTURES.radius
    radii = (rng.uniform(low, high, count) * (1.3 if count == 1 else 1.0)).tolist()
    return draw(things, centres, radii, PICTURES, rng), caption(things, PICTURES, rng)


def clip(things: Sequence[tuple[str, str]], rng: np.random.Generator) -> np.ndarray:
    """A clip, uint8 [frames side side 3]: one thing after the other, each drifting a little."""
    frames = []
    for thing in things:
        radius = rng.uniform(*CLIPS.radius)
        centre = rng.uniform(radius, PICTURE_SIDE - radius, 2)
        drift = rng.uniform(-3.0, 3.0, 2)
        for _ in range(FRAMES_PER_SECOND):
            frames.append(draw([thing], [tuple(centre)], [radius], CLIPS, rng))
            centre = centre + drift
    return np.stack(frames)


def thing_sets(count: int, rng: np.random.Generator) -> list[tuple[tuple[str, str], ...]]:
    """`count` different sets of `SEGMENTS` things, each in a random order of showing."""
    seen: dict[frozenset[int], tuple[int, ...]] = {}
    while len(seen) < count:
        order = tuple(int(i) for i in rng.choice(len(THINGS), SEGMENTS, replace=False))
        seen.setdefault(frozenset(order), order)
    return [tuple(THINGS[i] for i in order) for order in seen.values()]


def _encode(path: str, frames: np.ndarray) -> None:
    """Writes H.264 in mp4; the same frames give the same bytes.

    That takes one thread, and zerolatency: with x264's lookahead about one clip in twenty had
    other bytes now and then.
    """
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": "18",
            "preset": "veryfast",
            "tune": "zerolatency",
            "threads": "1",
        }
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_pictures(directory: str, train: int, test: int, seed: int = 0) -> Iterator[int]:
    """Writes `pictures/*.png` and `manifest.jsonl`; yields the number of pictures done."""
    os.makedirs(os.path.join(directory, "pictures"), exist_ok=True)
    lines = []
    for index in range(train + test):
        pixels, words = picture(np.random.default_rng((seed, 0, index)))
        path = f"pictures/{index:06d}.png"
        Image.fromarray(pixels).save(os.path.join(directory, path), compress_level=1)
        split = "train" if index < train else "test"
        lines.append({"id": f"{index:06d}", "path": path, "split": split, "captions": [words]})
        yield index + 1
    _write_manifest(directory, lines)


def write_clips(directory: str, train: int, test: int, seed: int = 0) -> Iterator[int]:
    """Writes `clips/*.mp4` and `manifest.jsonl`; yields the number of clips done.

    A training clip has two captions, a test clip one. No two clips show the same set of things.
    """
    os.makedirs(os.path.join(directory, "clips"), exist_ok=True)
    lines = []
    for index, things in enumerate(thing_sets(train + test, np.random.default_rng((seed, 1)))):
        split = "train" if index < train else "test"
        rng = np.random.default_rng((seed, 2, index))
        path = f"clips/{index:04d}.mp4"
        _encode(os.path.join(directory, path), clip(things, rng))
        captions = [caption(things, CLIPS, rng) for _ in range(2 if split == "train" else 1)]
        lines.append({"id": f"{index:04d}", "path": path, "split": split, "captions": captions})
        yield index + 1
    _write_manifest(directory, lines)


def _write_manifest(directory: str, lines: Sequence[dict[str, Any]]) -> None:
    with open(os.path.join(directory, "manifest.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
