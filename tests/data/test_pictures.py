"""Picture files: sound ones are stored, all others have a reason; nothing is fatal or unbounded."""

import io
import json
import os
import pathlib
import socket
import stat
import struct
import subprocess
import sys
import zlib

import hostile_pictures as hostile
import media as made
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from uniadapter_jax.data.media import integrity
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.pictures import read_picture
from uniadapter_jax.data.preparation.clips import read_clip
from uniadapter_jax.data.sources.item import Item

MEGABYTES = 600
REASONS = {"unreadable", "truncated", "damaged", "too_large", "no_frames", "no_video"}
CHILD = """
import json, os, re, sys
import media as made
from uniadapter_jax.data.preparation.clips import read_clip
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.sources.item import Item
outcomes = {}
for name in sorted(os.listdir(sys.argv[1])):
    try:
        clip = read_clip(Item("a", name, "train"), sys.argv[1], made.settings(short_side=64))
        outcomes[name] = f"stored {len(clip.frames)}"
    except DecodeError as error:
        outcomes[name] = error.reason
    print(name, outcomes[name], file=sys.stderr, flush=True)
peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024
print(json.dumps([outcomes, peak]))
"""


def decode_all(folder, timeout=120):
    """({file name: reason or 'stored N'}, peak megabytes) of a process that reads them all."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def pixels(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    return np.asarray(read_picture(str(tmp_path / "a"))).astype(int)


def reason(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DecodeError) as caught:
        read_clip(Item("a", "a", "train"), str(tmp_path), made.settings())
    assert str(tmp_path) not in caught.value.detail
    return caught.value.reason


class TestExif:
    JPEG = hostile.encoded(hostile.noise(60, 40), "JPEG")
    TURN = (0x112, 3, 1, 6)

    @pytest.mark.parametrize(
        ("tags", "turned"),
        [
            ([TURN], True),
            ([(0x112, 3, 1, 99)], False),
            ([(0x112, 2, 4, 0x36363636)], False),  # a text
            ([(0x112, 7, 2**31 - 1, 8)], False),
            ([(0x112, 12, 1, 8)], False),
            ([TURN, (0x11A, 5, 1, 38)], True),  # a resolution of 1 / 0
            ([TURN, (0x8769, 4, 1, 8)], True),  # a directory within itself
            ([TURN, (0x9286, 7, 2**31 - 1, 38)], True),
            ([TURN, (0x8825, 2, 60000, 1)], True),
        ],
    )
    def test_odd_notes_cost_no_picture(self, tmp_path, tags, turned):
        shape = pixels(tmp_path, hostile.with_exif(self.JPEG, tags)).shape
        assert shape == ((60, 40, 3) if turned else (40, 60, 3))

    @pytest.mark.parametrize(
        "tags",
        [{}, {"t34665": 2**31}, {"t34665": 8}, {"t34853": 9, "t330": 3}, {"t40965": 1, "t700": 7}],
    )
    def test_odd_directories_of_a_tiff(self, tmp_path, tags):
        data = hostile.tiff(bytes(range(240)) * 10, 60, 40, 8, t274=6, **tags)
        assert pixels(tmp_path, data).shape == (60, 40, 3)

    @pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "AVIF"])
    def test_every_format_is_turned_once(self, tmp_path, kind):
        image = hostile.noise(6, 4).resize((60, 40), Image.Resampling.BICUBIC)
        for turn in range(1, 9):
            image.getexif()[0x112] = turn
            expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
            stored = pixels(tmp_path, hostile.encoded(image, kind, exif=image.getexif()))
            assert stored.shape == expected.shape
            assert np.abs(stored - expected).mean() < 6, turn


class TestSeveralPictures:
    def test_pages_of_a_tiff(self, tmp_path):
        """The first page, unless it says that it is a smaller version of another."""
        first, second = hostile.noise(60, 40), hostile.noise(30, 20)
        more = {"save_all": True, "append_images": [second]}
        assert pixels(tmp_path, hostile.encoded(first, "TIFF", **more)).shape == (40, 60, 3)
        small = hostile.encoded(second, "TIFF", tiffinfo={254: 1})
        assert reason(tmp_path, small) == "unreadable"
        second.encoderinfo = {"tiffinfo": {254: 1}}
        first.encoderinfo = {"tiffinfo": {254: 0}}
        more = {"save_all": True, "append_images": [first], "tiffinfo": {254: 1}}
        assert pixels(tmp_path, hostile.encoded(second, "TIFF", **more)).shape == (40, 60, 3)

    def test_tiled_heic(self, tmp_path):
        image = hostile.noise(18, 12).resize((192, 128), Image.Resampling.BICUBIC)
        data = hostile.tiled_heic(image, 64)
        stored = pixels(tmp_path, data)
        assert stored.shape == (128, 192, 3)
        assert np.abs(stored - np.asarray(image)).mean() < 6
        assert reason(tmp_path, data[:-200]) == "truncated"
        assert reason(tmp_path, data[:-2500] + bytes(700) + data[-1800:]) == "damaged"
        assert reason(tmp_path, data.replace(b"hvc1", b"none")) in ("damaged", "unreadable")

    def test_heic(self, tmp_path, monkeypatch):
        image = hostile.noise(24, 16).resize((120, 80), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        pillow_heif.from_pillow(image).save(buffer, quality=90)
        for name in ("a.heic", "a.jpg", "a"):
            (tmp_path / name).write_bytes(buffer.getvalue())
            stored = np.asarray(read_picture(str(tmp_path / name))).astype(int)
            assert np.abs(stored - np.asarray(image)).mean() < 6
        assert reason(tmp_path, buffer.getvalue()[:-300]) == "truncated"
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(DecodeError, match=r"uniadapter_jax\[heic\]"):
            read_picture(str(tmp_path / "a.heic"))


JPEG = hostile.encoded(hostile.noise(300, 200), "JPEG")
PROGRESSIVE = hostile.encoded(hostile.noise(64, 64), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
GIF = hostile.encoded(hostile.noise(90, 70).quantize(64), "GIF")
PICTURES = [hostile.noise(50, 40, seed=i).quantize(64) for i in range(3)]
FRAMES = {"save_all": True, "append_images": PICTURES[1:], "duration": 100}
GIFS, APNG = (hostile.encoded(PICTURES[0], kind, **FRAMES) for kind in ("GIF", "PNG"))
WEBP = hostile.encoded(hostile.noise(300, 200), "WEBP")
AVIF = hostile.encoded(hostile.noise(300, 200), "AVIF", speed=10)
PNG = hostile.encoded(hostile.noise(100, 80), "PNG")
IDAT = PNG.index(b"IDAT")
RLE = (
    b"BM" + struct.pack("<IHHI", 1122, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 100, 100, 1, 8, 1, 44, 0, 0, 256, 0)
    + bytes(1024) + b"\x64\x10\0\0" * 10 + b"\0\1"
)  # fmt: skip
ZEROS = zlib.compress(bytes(1 << 20), 9)

BROKEN = {
    "png: 10 of 100 rows": ("truncated", hostile.png(100, 100, 10)),
    "png: all but one row": ("truncated", hostile.png(100, 100, 99)),
    "png: no row": ("truncated", hostile.png(100, 100, 0)),
    "png: 10 rows, interlaced": ("truncated", hostile.png(100, 100, 10, interlace=1)),
    "png: 10 rows of 1 bit": ("truncated", hostile.png(101, 100, 10, 1, 0)),
    "png: cut": ("truncated", PNG[:-200]),
    "png: a bit of its pixels": ("damaged", PNG[: IDAT + 50] + b"\0" + PNG[IDAT + 51 :]),
    "png: checksum": ("damaged", PNG[:-14] + b"\0\0" + PNG[-12:]),
    "png: 60000 x 60000": ("too_large", hostile.png(60000, 60000, 9, 1, 0)),
    "png: 9000 x 9000": ("too_large", hostile.png(9000, 9000, 9, 1, 0)),
    "apng: cut": ("truncated", APNG[:-150]),
    "apng: short of a frame": ("truncated", APNG[: APNG.rindex(b"fcTL") - 4] + APNG[-12:]),
    "apng: half of a frame": ("truncated", hostile.apng_with_less(APNG)),
    "gif: cut": ("truncated", GIF[:-400]),
    "gif: cut in a later frame": ("truncated", GIFS[:-100]),
    "gif: half of its only frame": ("truncated", hostile.gif_with_less(GIF)),
    "gif: half of a later frame": ("truncated", hostile.gif_with_less(GIFS)),
    "gif: without its last byte": ("truncated", GIF[:-1]),
    "gif: junk where a block should begin": ("damaged", GIF[:-1] + b"junk"),
    "gif: cut in its palette": ("truncated", GIF[:40]),
    "jpeg: cut": ("truncated", JPEG[: len(JPEG) // 2]),
    "jpeg: cut and closed": ("damaged", JPEG[: len(JPEG) // 2] + b"\xff\xd9"),
    "jpeg: a hole": ("damaged", JPEG[:3000] + JPEG[4000:]),
    "jpeg: header only": ("truncated", JPEG[:300]),
    "jpeg: 65000 x 65000": ("too_large", hostile.with_size(JPEG, 65000, 65000)),
    "jpeg: larger than its data": ("damaged", hostile.with_size(JPEG, 640, 400)),
    "jpeg: progressive, 9000 x 9000": (
        "too_large",
        hostile.with_size(hostile.encoded(hostile.noise(64, 64), "JPEG", progressive=True,
                                          subsampling=0), 12000, 12000, b"\xff\xc2"),
    ),
    "jpeg: 5000 scans": ("damaged", PROGRESSIVE[:-2] + 5000 * LAST_SCAN + b"\xff\xd9"),
    "webp: cut": ("truncated", WEBP[:-500]),
    "avif: cut": ("truncated", AVIF[:-500]),
    "bmp: cut": ("truncated", hostile.encoded(hostile.noise(90, 70), "BMP")[:-500]),
    "bmp: 10 of 100 rows, run lengths": ("damaged", RLE),
    "tiff: cut": ("truncated", hostile.encoded(hostile.noise(90, 70), "TIFF")[:-500]),
    "tiff: half a strip": ("damaged", hostile.tiff(ZEROS, 2000, 2000, 8, compression=8)),
    "tiff: 200000 x 200000": ("too_large", hostile.tiff(ZEROS, 200000, 200000, 8, compression=8)),
    "tiff: a tile of 4 GB": (
        "too_large",
        hostile.tiff(ZEROS, 90, 90, 8, compression=8, t322=65536, t323=65536, t324=8,
                     t325=len(ZEROS)),
    ),
    "postscript": ("unreadable", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    "svg": ("unreadable", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
}  # fmt: skip

SOUND = {
    "png: 20000 x 1": (1, 20000, hostile.png(20000, 1, 1)),
    "png: 1 x 20000": (20000, 1, hostile.png(1, 20000, 20000)),
    "png: 70000 x 100": (24, 16800, hostile.png(70000, 100, 100)),
    "png: 400000 x 24": (24, 65500, hostile.png(400000, 24, 24)),
    "png: 100000 x 3": (3, 65500, hostile.png(100000, 3, 3)),
    "png: 3 x 100000": (65500, 3, hostile.png(3, 100000, 100000)),
    "png: without IEND": (24, 30, PNG[:-12]),
    "jpeg: something behind it": (24, 36, JPEG + b"junk" * 99),
    "jpeg: 8000 x 9000": (27, 24, hostile.encoded(Image.new("L", (8000, 9000), 9), "JPEG")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_have_a_reason(tmp_path, name):
    expected, data = BROKEN[name]
    assert reason(tmp_path, data) == expected


@pytest.mark.parametrize("name", SOUND)
def test_odd_but_sound_pictures_are_stored(tmp_path, name):
    height, width, data = SOUND[name]
    (tmp_path / "a").write_bytes(data)
    (frame,) = read_clip(Item("a", "a", "train"), str(tmp_path), made.settings()).frames
    with Image.open(io.BytesIO(frame)) as stored:
        assert stored.size == (width, height)


def test_memory_of_one_process_for_all_of_them(tmp_path):
    for i, (_, *_, data) in enumerate([*BROKEN.values(), *SOUND.values()]):
        (tmp_path / f"{i:02d}").write_bytes(data)
    outcomes, peak = decode_all(tmp_path)
    assert len(outcomes) == len(BROKEN) + len(SOUND)
    assert peak < MEGABYTES


AT_THE_BOUND = {
    "PNG": ("RGB", "RGBA", "L", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "RGBA", "I;16", "F", "CMYK"),
    "BMP": ("RGB", "L"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "colour"), [(kind, colour) for kind in AT_THE_BOUND for colour in AT_THE_BOUND[kind]]
)
def test_memory_at_the_bound(tmp_path, kind, colour):
    """The largest pictures that are decoded, turned where their format can say so."""
    side = 4500 if kind in ("WEBP", "AVIF") else 5900 if colour == "F" else 7200
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"speed": 10} if kind == "AVIF" else {"exif": exif} if kind != "BMP" else {}
    Image.new(colour, (side, side)).save(tmp_path / "a", kind, **options)
    outcomes, peak = decode_all(tmp_path)
    assert outcomes == {"a": "stored 1"}
    assert peak < MEGABYTES


def must_be_noticed(name, way, data):
    """What every decoder could tell, said by other code than ours."""
    sound = hostile.mutable()[name]
    if name.startswith("png"):  # every chunk has a checksum
        return way in ("flip", "zeros", "header") and data != sound
    return way == "cut" and name != "tiff-pages"  # of which the first page may be whole


@pytest.mark.parametrize(("count", "seed"), [(24, 0), pytest.param(320, 1, marks=pytest.mark.slow)])
def test_mutated_pictures(tmp_path, count, seed):
    cases = list(hostile.mutated(count, seed))
    for i, (_, _, data) in enumerate(cases):
        (tmp_path / f"{i:04d}").write_bytes(data)
    outcomes, peak = decode_all(tmp_path, 600)
    assert peak < MEGABYTES
    silent = []
    for (name, way, data), outcome in zip(cases, outcomes.values(), strict=True):
        stored = outcome.startswith("stored")
        assert stored or outcome in REASONS
        if stored and must_be_noticed(name, way, data):
            silent.append((name, way, len(data)))
    assert not silent


def test_sound_jpegs_pass_the_check(tmp_path):
    """Of every way in which Pillow writes them."""
    for size in ((1, 1), (7, 3), (64, 48), (129, 70)):
        for mode in ("RGB", "L", "CMYK"):
            image = hostile.noise(*size).convert(mode)
            for subsampling in (0, 1, 2) if mode == "RGB" else (0,):
                for options in (
                    *({"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}),
                    *({"quality": 100}, {"quality": 3}, {"restart_marker_rows": 1}),
                ):
                    data = hostile.encoded(image, "JPEG", subsampling=subsampling, **options)
                    jpeg = integrity.read_jpeg(data)
                    assert jpeg.end == len(data)
                    assert jpeg.samples >= size[0] * size[1]
                    integrity.check_jpeg(data, jpeg)


PROGRAMS = ("gs", "gswin32c", "gswin64c", "inkscape", "rsvg-convert", "convert", "ffmpeg", "curl")


def test_nothing_is_started_opened_or_asked(tmp_path, monkeypatch):
    """PostScript and the like under every suffix, with stand-ins for what could be started."""
    programs, marker = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    for name in PROGRAMS:
        script = programs / name
        script.write_text(f"#!/bin/sh\necho {name} >> {marker}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        here = address.encode()
        folder = tmp_path / "media"
        folder.mkdir()
        made.write_video(folder / "sound.mp4")
        contents = {
            "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(x) run\nshowpage\n",
            "dos": struct.pack("<IIIIIIIIH", 0xC6D3D0C5, 32, 60, 0, 0, 0, 0, 0, 0)[:32]
            + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "spaced": b" \n%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
            "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='%b'/></svg>" % here,
            "xml": b'<?xml version="1.0"?><!DOCTYPE x SYSTEM "%b"><x/>' % here,
            "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%b.ts\n" % here,
            "concat": b"ffconcat version 1.0\nfile sound.mp4\n",
            "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
            "dash": b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>%b</BaseURL></MPD>'
            % here,
            "address": here,
            "avs": b'AviSource("sound.mp4")\n',
        }
        for suffix in ("jpg", "png", "eps", "mp4", "avi", "gif", "m3u8", "tif", "webp", "svg"):
            for name, data in contents.items():
                (folder / f"{name}.{suffix}").write_bytes(data)
        names = [path.name for path in folder.iterdir() if path.name != "sound.mp4"]
        names += [
            address,
            f"{address}.mp4",
            "concat:sound.mp4",
            "fd:0",
            "pipe:0",
            "data:image/png;base64,AA",
        ]
        for name in names:
            with pytest.raises(DecodeError) as caught:
                read_clip(Item("a", name, "train"), str(folder), made.settings())
            assert caught.value.reason in ("unreadable", "missing"), name
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not marker.exists()


def test_pillow_is_never_left_to_choose():
    """Every `Image.open` of the package names the formats that it may try."""
    root = pathlib.Path(integrity.__file__).parents[1]
    for path in root.rglob("*.py"):
        for line in path.read_text().splitlines():
            if "Image.open(" in line:
                assert path.name == "pictures.py", path
                assert "formats=(" in line, line
