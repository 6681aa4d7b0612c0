"""Which medium a file is: its bytes decide, and what is never opened is refused by name."""

import io
import os

import media as made
import pytest
from PIL import Image

from uniadapter_jax.data.media import kinds as media
from uniadapter_jax.data.media.kinds import DecodeError, identify


def encoded(kind, frames=1, **options):
    pictures = [Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, kind, **more, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a", "a.jpg", "a.jfif", "a.mp4", "a.PNG", "a.txt"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded("JPEG"), media.JPEG),
        (encoded("JPEG") + b"trailing", media.JPEG),
        (encoded("MPO", 2), media.JPEG),
        (encoded("JPEG") * 3, media.MJPEG),
        (encoded("PNG"), media.PNG),
        (encoded("PNG", 3), media.APNG),
        (encoded("WEBP"), media.WEBP),
        (encoded("BMP"), media.BMP),
        (encoded("TIFF"), media.TIFF),
        (encoded("AVIF"), media.AVIF),
        (encoded("GIF"), media.GIF),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(50), media.HEIC),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(50), media.AVIF),
        (b"\0\0\0\x1cftypmp42\0\0\0\0mp41isommif1" + bytes(50), media.VIDEO),
        (b"YUV4MPEG2 W16 H16\nFRAME\n" + b"z" * 5000, media.VIDEO),
        (bytes(range(256)), media.VIDEO),  # FFmpeg will say
    ],
)
def test_the_content_decides(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert identify(str(tmp_path / name)) == expected


def test_a_video_is_one(tmp_path):
    made.write_video(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "a.jpg")
    assert identify(str(tmp_path / "a.jpg")) == media.VIDEO


REFUSED = {
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x04%!PS\n",
                   b"\xc5\xd0\xd3\xc6" + bytes(40)],
    "PDF": [b"%PDF-1.4\n"],
    "SVG": [b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>'],
    "playlist": [b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n"],
    "text": [b"ffconcat version 1.0\nfile a.mp4\n", b"http://localhost/a.mp4", b"<html></html>",
             "é".encode("utf-16")],
    "JPEG 2000": [encoded("JPEG2000")],
    "Photoshop": [b"8BPS\0\1" + bytes(40)],
    "JPEG XL": [b"\xff\x0a" + bytes(40)],
    "an animated WebP": [encoded("WEBP", 3)],
    "an AVIF sequence": [encoded("AVIF", 3)],
    "raw photograph": [b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(40)],
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4"])
@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(tmp_path, name, what):
    for data in REFUSED[what]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DecodeError) as caught:
            identify(str(tmp_path / name))
        assert caught.value.reason == "unreadable"
        assert what in caught.value.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "GIF", "TIFF", "WEBP", "BMP"])
def test_any_beginning_of_a_file_has_an_answer(tmp_path, kind):
    data = encoded(kind)
    for size in range(1, min(len(data), 400)):
        (tmp_path / "a").write_bytes(data[:size])
        try:
            identify(str(tmp_path / "a"))
        except DecodeError as error:
            assert error.reason == "unreadable"


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    cases = {"pipe": "missing", "empty": "empty", "folder": "missing", "none": "missing"}
    for name, reason in cases.items():
        with pytest.raises(DecodeError) as caught:
            identify(str(tmp_path / name))
        assert caught.value.reason == reason
