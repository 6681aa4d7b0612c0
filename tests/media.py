"""Tiny media files and data sets in real layouts, made on the spot."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from uniadapter_jax.data.preparation.clips import PrepareSettings

Path = pathlib.Path


def settings(**changes: Any) -> PrepareSettings:
    """Small, lossless enough to recognise a frame by its brightness."""
    values = {
        "source": "manifest",
        "sampling": "fps",
        "fps": 1.0,
        "frames": 4,
        "short_side": 24,
        "quality": 95,
        "max_bad_share": 0.5,
    }
    return PrepareSettings(**{**values, **changes})


def write_video(
    path: Path | str,
    frames: int = 25,
    rate: int = 10,
    size: tuple[int, int] = (48, 32),
    codec: str = "libx264",
    container: str | None = None,
    mux: dict[str, str] | None = None,
    keyframes: int = 12,
    start: int = 0,
) -> None:
    """Frame i is grey 6 * (start + i) with a darker left edge; `number` reads i back."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, options=mux or {}) as file:
        stream = file.add_stream(codec, rate=rate, options={"g": str(keyframes), "crf": "12"})
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 6 * (start + i) % 256, np.uint8)
            pixels[:, : size[0] // 4] //= 2
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def write_frames(
    path: Path | str,
    stamps: Sequence[int],
    codec: str = "libx264",
    time_base: Fraction = Fraction(1, 1000),
    size: tuple[int, int] = (48, 32),
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    last: int = 0,
    sound: tuple[int, float] | None = None,
    aspect: Fraction | None = None,
) -> None:
    """Frame i, as `write_video` draws it, at stamps[i] units of `time_base`.

    Args:
      last: units that the last frame stays.
      sound: (first stamp in milliseconds, seconds) of silence beside it.
    """
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = stream.time_base = time_base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        noise = _silence(file, *sound) if sound else []
        for i, stamp in enumerate(stamps):
            pixels = np.full((size[1], size[0], 3), 6 * i % 256, np.uint8)
            pixels[:, : size[0] // 4] //= 2
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, time_base
            file.mux(_lasting(stream.encode(frame), stamps[-1] * time_base, last * time_base))
        file.mux(_lasting(stream.encode(), stamps[-1] * time_base, last * time_base))
        file.mux(noise)


def _lasting(packets: list[av.Packet], at: Fraction, seconds: Fraction) -> list[av.Packet]:
    """The packet at a time stays for so long, if above 0."""
    for packet in packets:
        if seconds and packet.pts * packet.time_base == at:
            packet.duration = round(seconds / packet.time_base)
    return packets


def _silence(file: Any, first: int, seconds: float) -> list[av.Packet]:
    """Packets of a sound stream."""
    kinds = {"flv": "adpcm_swf", "asf": "wmav2", "mpegts": "mp2", "mpeg": "mp2"}
    stream = file.add_stream(kinds.get(file.format.name, "aac"), rate=44100, layout="mono")
    stream.bit_rate = 64_000
    size = stream.codec_context.frame_size or 1024
    packets: list[av.Packet] = []
    for i in range(round(seconds * 44100 / size)):
        shape, form = (1, size), stream.format.name
        kind = np.int16 if form.startswith("s16") else np.float32
        frame = av.AudioFrame.from_ndarray(np.zeros(shape, kind), format=form, layout="mono")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        frame.pts = round(first * 44.1) + i * size
        packets += stream.encode(frame)
    return packets + stream.encode()


def number(image: Image.Image) -> int:
    """The index of a frame that `write_video` drew."""
    pixels = np.asarray(image.convert("RGB"), float)
    height, width = pixels.shape[:2]
    patch = pixels[height // 3 : height // 2, width // 2 : 3 * width // 4]
    return round(float(patch.mean()) / 6)


def write_picture(path: Path | str, grey: int = 128, size: tuple[int, int] = (40, 30)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def write_manifest(path: Path, records: Iterable[dict[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def picture_manifest(root: Path, count: int, captions: int = 2, **fields: Any) -> Path:
    """`count` pictures of different grey in root/media and the manifest that names them."""
    records = []
    for i in range(count):
        write_picture(root / "media" / f"p{i}.png", grey=3 * i % 256)
        texts = [f"caption {j} of picture {i}" for j in range(captions)]
        records.append({"id": f"p{i}", "path": f"media/p{i}.png", "captions": texts, **fields})
    return write_manifest(root / "manifest.jsonl", records)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def msrvtt(root: Path, train: Sequence[str], test: Sequence[str], captions: int = 3) -> None:
    """Annotations as CLIP4Clip packs them; no videos."""
    videos = [
        {"category": 1, "url": "", "video_id": v, "start time": 100.0, "end time": 110.0,
         "split": "test" if v in test else "train", "id": i}
        for i, v in enumerate([*train, *test])
    ]  # fmt: skip
    sentences = [
        {"caption": f"{v} caption {j}", "video_id": v, "sen_id": captions * i + j}
        for i, v in enumerate([*train, *test])
        for j in range(captions)
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    write_csv(root / "MSRVTT_train.9k.csv", ["video_id"], [[v] for v in train])
    header = ["key", "vid_key", "video_id", "sentence"]
    rows = [[f"ret{i}", f"msr{v[5:]}", v, f"{v}, the chosen one"] for i, v in enumerate(test)]
    write_csv(root / "MSRVTT_JSFUSION_test.csv", header, rows)
