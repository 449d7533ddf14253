"""`examples/app/uploads.py`: what is taken, and that all else is one sentence without a path. Needs no gradio."""

import dataclasses
import io
import os
import re
import struct
import subprocess
import sys
import time
import wave
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import uploads
from builders import numbered_frames
from uploads import LIMITS, Clip, Refused, SessionFiles, read_content, read_upload

from vjepa2_hf.data.video_writing import encode_video


FRAMES = numbered_frames(24, 32, 48)
SMALL = dataclasses.replace(LIMITS, max_bytes=10**6, max_seconds=10.0, max_frame_pixels=64 * 64, max_frames=12)


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_video(FRAMES, fps=8)


def film(container: str, codec: str, pixels: str, frames: np.ndarray = FRAMES) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def image(kind: str, size: tuple[int, int] = (20, 10), **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 30, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def recording() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setparams((1, 2, 8000, 0, "NONE", None))
        output.writeframes(bytes(8000))
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        output.writestr("../../evil.mp4", "content")
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def patched(video: bytes, box: bytes, offset: int, value: int, size: int = 4) -> bytes:
    """An mp4 with another number at an offset from the name of a box."""
    at = video.index(box) + offset
    return video[:at] + value.to_bytes(size, "big") + video[at + size :]


def mkv_that_claims(seconds: float) -> bytes:
    video = film("matroska", "mjpeg", "yuvj420p")
    at = video.index(b"\x44\x89\x88") + 3  # Duration, a double in milliseconds
    return video[:at] + struct.pack(">d", 1000 * seconds) + video[at + 8 :]


NOT_A_VIDEO = "is not a video that can be read"
DAMAGED = "is damaged|not a video that can be read"
EVIL_VIDEOS = {  # name: (function of a good video that makes the file, what the sentence says)
    "text": (lambda video: b"this is no video\n" * 100, NOT_A_VIDEO),
    "script": (lambda video: b"<script>alert(1)</script>" * 20, NOT_A_VIDEO),
    "svg with a script": (
        lambda video: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        NOT_A_VIDEO,
    ),
    "zip that leads outside": (lambda video: archive(), NOT_A_VIDEO),
    "pickle": (lambda video: b"\x80\x04\x95\x20cposix\nsystem\n(S'touch /tmp/evil'\ntR.", NOT_A_VIDEO),
    "random bytes": (lambda video: np.random.default_rng(0).bytes(20_000), NOT_A_VIDEO),
    "zeros": (lambda video: bytes(20_000), NOT_A_VIDEO),
    "beginning of an mp4, then random": (lambda video: video[:64] + np.random.default_rng(0).bytes(9000), DAMAGED),
    "cut in the header": (lambda video: video[:40], NOT_A_VIDEO),
    "cut before its index": (lambda video: video[: video.index(b"moov")], DAMAGED),
    "cut in its frames": (lambda video: film("matroska", "mjpeg", "yuvj420p")[:300], DAMAGED),
    "playlist of local files": (
        lambda video: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        NOT_A_VIDEO,
    ),
    "concatenation of local files": (lambda video: b"ffconcat version 1.0\nfile '/etc/passwd'\n", NOT_A_VIDEO),
    "session description": (lambda video: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n", NOT_A_VIDEO),
    "png named as a video": (lambda video: image("PNG"), r"is an image \(PNG\)"),
    "jpeg named as a video": (lambda video: image("JPEG"), r"is an image \(JPEG\)"),
    "gif that does not move": (lambda video: image("GIF"), r"is an image \(GIF\)"),
    "sound in mp4": (lambda video: sound(), "has no video stream"),
    "sound in wav": (lambda video: recording(), NOT_A_VIDEO),
    "one frame": (lambda video: encode_video(FRAMES[:1], fps=8), "has one frame"),
    "header of ten hours": (lambda video: mkv_that_claims(36_000), "36,000 seconds long; at most 10 are allowed"),
    "two frames a minute apart": (lambda video: encode_video(FRAMES[:2], fps=1 / 60), "120 seconds long; at most 10"),
    "frames too large": (lambda video: encode_video(numbered_frames(2, 66, 66), fps=8), r"66 × 66 pixels large"),
    "header of large frames": (
        lambda video: film("matroska", "ffv1", "yuv420p").replace(b"\xb0\x81\x30", b"\xb0\x81\xff"),
        "255 × 32 pixels large",
    ),
    "header of 2 GB": (lambda video: patched(video, b"mdat", -4, 2**31), DAMAGED),
    "header of 2 billion frames": (lambda video: patched(video, b"stsz", 12, 2**31 - 1), DAMAGED),
    "damaged frames": (lambda video: video[: len(video) // 2] + bytes(len(video) - len(video) // 2), DAMAGED),
}


EVIL_IMAGES = {
    "video named as an image": (lambda video: video, "is not an image that can be read"),
    "script": (lambda video: b"<svg onload='alert(1)'/>", "is not an image that can be read"),
    "png of 60,000 pixels": (lambda video: png_that_claims(60_000, 60_000), "too large|is not an image"),
    "png too large": (lambda video: image("PNG", (200, 100)), "200 × 100 pixels large"),
    "cut png": (lambda video: image("PNG", (60, 60))[:-30], "is damaged"),
    "jpeg without its image": (lambda video: image("JPEG")[:200], "is damaged|is not an image"),
}


EVIL = {"video": EVIL_VIDEOS, "image": EVIL_IMAGES}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, uploads in EVIL.items() for name in uploads])
def test_a_bad_upload_is_one_sentence(video, kind, name):
    make, expected = EVIL[kind][name]
    with pytest.raises(Refused, match=expected) as caught:
        read_content(make(video), kind, SMALL)
    check_sentence(str(caught.value))


def check_sentence(text: str) -> None:
    """One sentence, without paths, names of Python's or FFmpeg's, or markup of the file."""
    assert text.endswith(".") and "\n" not in text and len(text) < 200
    assert not re.search(r"/\w+/|\\|<|Error|Errno|Traceback", text), text


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"), ("mov", "libx264", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p"),
        ("matroska", "mjpeg", "yuvj420p"), ("avi", "mpeg4", "yuv420p"), ("gif", "gif", "rgb8"),
    ],
)  # fmt: skip
def test_videos_are_read_at_most_ten_frames_a_second(container, codec, pixels):
    clip = read_content(film(container, codec, pixels), "video", SMALL)
    assert clip.frames.shape == (12, 32, 48, 3) and clip.fps == pytest.approx(8, rel=0.05)
    assert np.abs(clip.frames.mean((1, 2, 3)) - FRAMES[:12].mean((1, 2, 3))).max() < 6  # a gif dithers
    assert clip.seconds == pytest.approx(3, abs=0.2)


def test_a_fast_video_is_thinned_and_a_large_one_shrunk():
    limits = dataclasses.replace(LIMITS, max_kept_pixels=16 * 24)
    clip = read_content(encode_video(FRAMES, fps=20), "video", limits)
    assert clip.frames.shape == (12, 16, 24, 3) and clip.fps == 10
    assert np.abs(clip.frames.mean((1, 2, 3)) - FRAMES[::2].mean((1, 2, 3))).max() < 6  # a gif dithers


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_images_are_read_as_one_frame(kind):
    clip = read_content(image(kind), "image", SMALL)
    assert clip.frames.shape == (1, 10, 20, 3)
    assert np.abs(clip.frames[0, 5, 5].astype(int) - (200, 30, 30)).max() < 10


NAME = "<img src=x onerror=alert(1)>; rm -rf $(HOME) `id` ..mp4"


def test_a_file_is_read_in_a_process_of_its_own_whatever_its_name(video, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(video)
    clip = read_upload(path, "video")
    assert clip.frames.shape == FRAMES.shape and clip.frames.dtype == np.uint8
    path.write_bytes(b"<script>")
    with pytest.raises(Refused, match=NOT_A_VIDEO) as caught:
        read_upload(path, "video")
    check_sentence(str(caught.value))


def test_files_are_refused_by_their_size_unread(tmp_path):
    path = tmp_path / "large.mp4"
    path.touch()
    with pytest.raises(Refused, match="is empty"):
        read_upload(path, "video")
    os.truncate(path, 2**31)  # takes no disk
    begin = time.monotonic()
    with pytest.raises(Refused, match="has 2,048 MiB, more than the 50 MiB allowed"):
        read_upload(path, "video")
    assert time.monotonic() - begin < 0.2  # no process was started


@pytest.mark.parametrize("path", ["missing.mp4", "../../../etc", "\0", "."])
def test_a_path_that_is_no_file_is_one_sentence(path):
    with pytest.raises(Refused, match="no longer on the server") as caught:
        read_upload(path, "video")
    check_sentence(str(caught.value))


def test_reading_stops_in_time(video, tmp_path):
    path = tmp_path / "slow.mp4"
    path.write_bytes(video)
    begin = time.monotonic()
    with pytest.raises(Refused, match=r"takes more than the 0\.05 seconds allowed") as caught:
        read_upload(path, "video", dataclasses.replace(LIMITS, timeout=0.05))
    assert time.monotonic() - begin < 2
    check_sentence(str(caught.value))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_reader_that_runs_out_of_memory_harms_itself_alone(video, tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(video)
    with pytest.raises(Refused, match="within the limits of time and memory") as caught:
        read_upload(path, "video", dataclasses.replace(LIMITS, memory=2**26))
    check_sentence(str(caught.value))


def test_the_reading_process_knows_no_secrets(monkeypatch, video, tmp_path):
    path, seen = tmp_path / "video.mp4", {}
    path.write_bytes(video)
    monkeypatch.setenv("HF_TOKEN", "secret")

    def run(command, env, **options):
        seen.update(env)
        return subprocess.CompletedProcess(command, uploads.REFUSED, b"No.", b"")

    monkeypatch.setattr(uploads.subprocess, "run", run)
    with pytest.raises(Refused, match="No"):
        read_upload(path, "video")
    assert "PATH" in seen and "secret" not in seen.values()


# --- Sessions


@pytest.fixture
def files(monkeypatch):
    """Session files whose reader returns a clip of the file's size, without a process."""

    def read(path, kind, limits):
        content = Path(path).read_bytes()
        if b"evil" in content:
            raise Refused("No.")
        return Clip(np.full((1, 1, 1, 3), len(content), np.uint8), 1.0, 2.0)

    monkeypatch.setattr(uploads, "read_upload", read)
    found = SessionFiles()
    yield found
    found.close()


def write(path: Path, content: bytes) -> Path:
    """A file in a folder of its own, as gradio stores uploads."""
    path = path / path.name
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def test_each_session_has_its_own_clip(files, tmp_path):
    files.take("a", write(tmp_path / "1", b"one"), "video")
    files.take("b", write(tmp_path / "2", b"four"), "video")
    assert files.load("a", "video").frames.max() == 3
    assert files.load("b", "video").frames.max() == 4
    files.take("a", write(tmp_path / "3", b"seven77"), "video")
    assert files.load("a", "video").frames.max() == 7 and files.load("a", "video").seconds == 2
    with pytest.raises(Refused, match="no uploaded image"):
        files.load("a", "image")
    with pytest.raises(Refused, match="no uploaded video"):
        files.load("c", "video")


def test_files_are_gone_after_the_session(files, tmp_path):
    first, evil, other = (write(tmp_path / name, name.encode()) for name in ("first", "evil", "other"))
    files.take("a", first, "video")
    with pytest.raises(Refused):
        files.take("a", evil, "video")
    files.take("b", other, "image")
    files.forget("a")
    assert not files.folder("a").exists() and not first.parent.exists() and not evil.parent.exists()
    assert files.folder("b").exists() and other.exists()
    files.forget("a")  # closing twice is no error
    files.close()
    assert not other.exists() and not files.folder("b").parent.exists()


def test_a_file_that_two_sessions_uploaded_goes_with_the_last(files, tmp_path):
    path = write(tmp_path / "same", b"same")
    files.take("a", path, "video")
    files.take("b", path, "video")
    files.forget("a")
    assert path.exists()
    files.forget("b")
    assert not path.exists()


def test_an_unused_session_is_forgotten(files, tmp_path):
    files.take("old", write(tmp_path / "1", b"1"), "video")
    os.utime(files.folder("old"), (0, 0))
    files.take("new", write(tmp_path / "2", b"2"), "video")
    assert not files.folder("old").exists() and not (tmp_path / "1").exists()
    assert files.folder("new").exists()


def test_the_name_of_a_session_leads_nowhere_else(files):
    root = files.folder("a").parent
    for name in ("../../etc", "/etc", "", "a\0b", "\ud800"):
        assert files.folder(name).parent == root and files.folder(name).name.isalnum()


# --- What the page shows


def test_only_sentences_of_ours_reach_the_page(caplog):
    assert uploads.sentence_of(Refused("Ours.")) == "Ours."
    shown = uploads.sentence_of(FileNotFoundError("/home/user/secret.mp4"))
    check_sentence(shown)
    assert "secret" not in shown and "secret" in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("data: /home/user/runs/demo/episodes", "data: …/episodes"),
        ("data=~/runs/x and file:///data/y.mp4", "data=…/x and …/y.mp4"),
        ("('/data/a.mp4', \"C:\\Users\\me\\b.mp4\")", "('…/a.mp4', \"…\\b.mp4\")"),
        ("runs/demo/final and/or https://arxiv.org/abs/2506.09985", None),
        ("</details> 1/2 [docs](../docs/app.md)", None),
    ],
)
def test_paths_are_hidden_in_texts_of_others(text, shown):
    assert uploads.hide_paths(text) == (shown or text)
