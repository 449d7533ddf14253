"""Limits of reading, and sources that are refused."""

import io
import socket
import time

import numpy as np
import PIL.Image
import pytest
from builders import numbered_video

from vjepa2_hf.video_io import ReadLimits, VideoDecodeError, VideoReader, read_image, read_video


def image_bytes(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_frame_above_the_limit_is_refused_and_one_at_the_limit_is_read():
    video = numbered_video()
    with VideoReader(video) as reader:
        height, width = reader.frames([0]).shape[1:3]
    assert read_video(video, [0], limits=ReadLimits(max_frame_pixels=height * width)).shape[1:3] == (height, width)
    with pytest.raises(VideoDecodeError, match=f"is {width} x {height}, more pixels than max_frame_pixels="):
        read_video(video, [0], limits=ReadLimits(max_frame_pixels=height * width - 1))


def test_an_image_above_the_limit_is_refused_and_one_at_the_limit_is_read():
    assert read_image(image_bytes(8, 6), ReadLimits(max_frame_pixels=48)).shape == (8, 6, 3)
    with pytest.raises(VideoDecodeError, match="the image is 6 x 8, more pixels than max_frame_pixels=47"):
        read_image(image_bytes(8, 6), ReadLimits(max_frame_pixels=47))


def test_bytes_and_files_above_the_limit_are_refused(tmp_path):
    video = numbered_video()
    (tmp_path / "a.mp4").write_bytes(video)
    size = len(video)
    limits = ReadLimits(max_bytes=size - 1)
    for source in (video, memoryview(video), {"bytes": video, "path": "a.mp4"}, tmp_path / "a.mp4"):
        with pytest.raises(VideoDecodeError, match=f"has {size:,} bytes, more than max_bytes={size - 1:,}"):
            VideoReader(source, limits)
    assert len(read_video(tmp_path / "a.mp4", limits=ReadLimits(max_bytes=size))) == 30


def test_a_url_that_never_answers_is_refused_in_time():
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts no connection
        start = time.monotonic()
        with pytest.raises(VideoDecodeError, match="did not answer within 0.3 s"):
            read_video(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4", limits=ReadLimits(timeout=0.3))
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("url", ["nowhere://a.mp4", "http://127.0.0.1:1/a.mp4", "zip://a.mp4::/nowhere.zip"])
def test_a_url_that_cannot_be_read_is_one_sentence(url):
    with pytest.raises((VideoDecodeError, FileNotFoundError), match="cannot be read|There is no file"):
        read_video(url)


def test_a_file_behind_a_url_is_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(numbered_video())
    assert np.array_equal(read_video(f"file://{tmp_path}/a.mp4"), read_video(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_frame_pixels", 0), ("max_frame_pixels", 1e9), ("max_bytes", -1), ("max_bytes", True), ("max_bytes", "2"),
        ("timeout", 0), ("timeout", float("nan")), ("timeout", float("inf")), ("timeout", "60"),
        ("allow_urls", "no"), ("allow_outside", 1),
    ],
)  # fmt: skip
def test_a_wrong_limit_is_named(name, value):
    with pytest.raises(
        ValueError, match=r"limits is {'max_bytes': 9}; expected a ReadLimits, such as ReadLimits\(timeout=10"
    ):
        read_image(image_bytes(8, 6), {"max_bytes": 9})
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected"):
        ReadLimits(**{name: value})
