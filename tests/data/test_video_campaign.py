"""Videos made by hand and at random: none crashes, hangs or takes too much, none lies silently.

A mutated file may give other pixels than the original without a word only where its codec has no
means to notice (VP9, Motion JPEG, GIF), and docs/data.md says which those are.
"""

import io
import itertools
import multiprocessing
import resource
from fractions import Fraction

import av
import media
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation import clips
from uniadapter_jax.data.sources.item import Item

REASONS = {
    *("missing", "empty", "unreadable", "truncated", "damaged", "too_large", "no_video"),
    "no_frames",
}
LIMIT_MB = 600
SECONDS = 60

# name, codec, container, does it notice damage
KINDS = [
    ("a.mp4", "libx264", None, True),
    ("b.mkv", "libx264", None, True),
    ("c.ts", "libx264", "mpegts", True),
    ("d.flv", "libx264", None, True),
    ("e.avi", "mpeg4", None, True),
    ("f.mpg", "mpeg2video", None, True),
    ("g.wmv", "wmv2", "asf", True),
    ("h.webm", "libvpx-vp9", None, False),
    ("i.mov", "mjpeg", None, False),
    ("j.mkv", "ffv1", None, True),
    ("k.nut", "mpeg4", None, True),
    ("l.3gp", "mpeg4", None, True),
    ("m.gif", "gif", None, False),
    ("n.apng", "apng", None, True),
    ("o.mkv", "msmpeg4", None, True),
    ("p.avi", "huffyuv", None, False),
]
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24", "huffyuv": "yuv422p"}
HANDMADE = [
    {"stamps": [0]},
    {"stamps": [0, 10_000, 20_000]},
    {"stamps": [0, 100, 250, 1200, 1300, 2950]},
    {"stamps": [50_000 + 100 * i for i in range(20)]},
    {"stamps": [100 * i for i in range(20)], "sound": (0, 4.0)},
    {"stamps": [700 + 100 * i for i in range(20)], "sound": (0, 2.0)},
    {"stamps": [0, 500, 10**7]},
    {"stamps": [40 * i for i in range(12)], "aspect": Fraction(16, 11)},
    {"stamps": [0, 40, 80], "size": (16, 1200)},
    {"stamps": [0, 40, 80], "size": (4000, 2400)},
]


def write(path, codec, container, **changes):
    values = {"stamps": [100 * i for i in range(24)], "pix_fmt": PIXELS.get(codec, "yuv420p")}
    constant = {"f.mpg": Fraction(1, 25), "e.avi": Fraction(1, 10), "p.avi": Fraction(1, 10)}
    if base := constant.get(path.name):
        values |= {"time_base": base, "stamps": range(24)}
    options = {"b": "600k", "g": "8"} if codec not in ("gif", "apng", "huffyuv", "ffv1") else {}
    if codec == "ffv1":
        options = {"level": "3", "slicecrc": "1"}
    media.write_frames(path, codec=codec, container=container, options=options, **values | changes)


def mutate(data, rng):
    """A copy with bytes flipped, overwritten, cut out, doubled, or without its end."""
    data, size = bytearray(data), len(data)
    kind = rng.integers(6)
    at = int(rng.integers(size))
    length = int(min(rng.integers(1, 200), size - at))
    if kind == 0:
        for place in rng.integers(0, size, rng.integers(1, 20)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        del data[at:]
    else:  # lengths and times of a head
        at = int(rng.integers(min(size, 400)))
        data[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
    return bytes(data)


def _read(pipe, path, sampling, fps):
    """In a child, so that a crash, a hang and a peak are its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = media.settings(sampling=sampling, fps=fps, short_side=32)
    try:
        clip = clips.read_clip(Item("x", str(path), "train"), "/", settings)
        result = clip.frames, clip.pts
    except DecodeError as error:
        result = error.reason
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((result, (peak - before) // 1024))
    pipe.close()


def read(path, sampling="fps", fps=5.0):
    """(reason or (frames, seconds), MB)."""
    context = multiprocessing.get_context("forkserver")  # JAX's threads forbid fork
    context.set_forkserver_preload(
        ["av", "pytest", "PIL.Image", "uniadapter_jax.data.preparation.clips"]
    )
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read, args=(theirs, path, sampling, fps))
    child.start()
    theirs.close()
    try:
        assert ours.poll(SECONDS), f"{path}: hangs"
        try:
            result, megabytes = ours.recv()
        except EOFError:
            child.join()
            raise AssertionError(f"{path}: the process died, {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
    assert megabytes < LIMIT_MB, f"{path}: {megabytes} MB"
    assert not isinstance(result, str) or result in REASONS, result
    return result


def pixels(frames):
    return [np.asarray(Image.open(io.BytesIO(frame)), int) for frame in frames]


def differs(result, sound):
    """Whether a clip holds a frame that the sound file does not have."""
    known = pixels(sound[0])
    for frame in pixels(result[0]):
        if not any(k.shape == frame.shape and abs(k - frame).max() < 40 for k in known):
            return True
    return False


def run_mutants(root, count, seed):
    """{outcome: count}, and the names of those that lie."""
    rng = np.random.default_rng(seed)
    tally, silent = {}, []
    originals = {}
    for i, (name, codec, container, notices) in zip(
        range(count), itertools.cycle(KINDS), strict=False
    ):
        if name not in originals:
            write(root / name, codec, container)
            sound = read(root / name)
            assert not isinstance(sound, str), (name, sound)
            originals[name] = (root / name).read_bytes(), sound
        data, sound = originals[name]
        path = root / f"{i:03d}-{name}"
        path.write_bytes(mutate(data, rng))
        result = read(path)
        if isinstance(result, str):
            tally[result] = tally.get(result, 0) + 1
        elif not differs(result, sound):
            tally["used"] = tally.get("used", 0) + 1
        else:
            tally["other pixels"] = tally.get("other pixels", 0) + 1
            if notices:
                silent.append(path.name)
    return tally, silent


def run_handmade(root, kinds, cases):
    count = 0
    for (name, codec, container, _), (i, case) in itertools.product(kinds, enumerate(cases)):
        path = root / f"hand{i}-{name}"
        try:
            write(path, codec, container, **case)
        except (av.error.FFmpegError, OverflowError, ValueError):
            continue  # not everything can be written to everything
        count += 1
        for sampling in ("fps", "uniform", "middle"):
            result = read(path, sampling, 1.0)
            assert not isinstance(result, str), (path.name, case, result)
            assert result[0], path.name
    return count


def test_some_mutants(tmp_path):
    tally, silent = run_mutants(tmp_path, len(KINDS), seed=0)
    assert sum(tally.values()) == len(KINDS)
    assert not silent


@pytest.mark.slow
def test_mutants(tmp_path):
    tally, silent = run_mutants(tmp_path, 20 * len(KINDS), seed=1)
    print(tally, silent)
    assert len(silent) <= 0.02 * 20 * len(KINDS), silent  # what slips through a codec's checks


def test_some_by_hand(tmp_path):
    assert run_handmade(tmp_path, KINDS[:1], HANDMADE[:5]) == 5


@pytest.mark.slow
def test_by_hand(tmp_path):
    count = run_handmade(tmp_path, [*KINDS[:4], KINDS[7], KINDS[9]], HANDMADE)
    print(count)
    assert count >= 40
