"""Encoding and transcoding of videos."""

import numpy as np
import pytest
from builders import numbered_frames, numbers_of

from vjepa2_hf import video_io
from vjepa2_hf.data.video_writing import encode_video, transcode_video
from vjepa2_hf.video_io import VideoReader, read_video


def test_encoded_video_has_the_same_colors():
    y, x = np.mgrid[:32, :32]
    disc = np.where((np.hypot(x - 12, y - 20) < 6)[..., None], [200, 40, 40], [230, 225, 215]).astype(np.uint8)
    decoded = read_video(encode_video(np.stack([disc] * 3), fps=10))
    assert decoded.shape == (3, 32, 32, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - disc).mean() < 1.5


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), 10, "no frame to encode"),
        (np.zeros((2, 8, 8, 3), np.float32), 10, "uint8 frames"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps is 0"),
    ],
)
def test_encoder_refuses(frames, fps, message):
    with pytest.raises(ValueError, match=message):
        encode_video(frames, fps)


def test_transcoding_keeps_aspect_times_and_makes_sizes_even():
    source = encode_video(numbered_frames(20, 30, 45), fps=7.5)
    mp4, num_frames, fps = transcode_video(source, height=16)
    with VideoReader(mp4) as reader:
        frames = reader.frames()
        assert np.allclose(reader.times, np.arange(20) / 7.5, atol=1e-3)
    assert (num_frames, frames.shape) == (20, (20, 16, 24, 3)) and fps == pytest.approx(7.5)
    assert numbers_of(frames) == list(range(20))


def test_the_old_import_path_works():
    assert (video_io.encode_video, video_io.transcode_video) == (encode_video, transcode_video)
    with pytest.raises(ImportError, match="encode_vdeo"):
        from vjepa2_hf.video_io import encode_vdeo  # noqa: F401
