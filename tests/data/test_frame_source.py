"""Chunks of frames: which frames they hold, whatever the source; what a source's hash depends on."""

import numpy as np
import pytest
import torch
from builders import noise_frames, noise_pixels

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.data.frame_source import FrameSource


def numbered(frames: int) -> torch.Tensor:
    return torch.arange(frames).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def numbers(chunks) -> list[tuple[list[int], int]]:
    return [(chunk[:, 0, 0, 0].int().tolist(), known) for chunk, known in chunks]


@pytest.mark.parametrize("form", [lambda frames: frames, iter, list])
def test_a_chunk_begins_with_the_end_of_the_one_before(form):
    source = FrameSource(form(numbered(9)), stride=1)
    assert numbers(source.chunks(4, overlap=2)) == [
        ([0, 1, 2, 3], 0), ([2, 3, 4, 5], 2), ([4, 5, 6, 7], 2), ([6, 7, 8], 2),
    ]  # fmt: skip


def test_stride_counts_kept_frames_alone():
    assert numbers(FrameSource(numbered(12), stride=3).chunks(2)) == [([0, 3], 0), ([6, 9], 0)]


def test_a_later_start_gives_the_same_chunks_and_shows_every_frame():
    seen = []
    whole = numbers(FrameSource(numbered(20)).chunks(6, overlap=4))
    for start in range(len(whole)):
        assert numbers(FrameSource(numbered(20)).chunks(6, 4, start)) == [
            (chunk, 4 if start else known) for chunk, known in whole[start:]
        ]
    later = list(FrameSource(iter(numbered(20))).chunks(6, 4, 3, watch=lambda frame: seen.append(int(frame[0, 0, 0]))))
    assert later and seen == list(range(20))
    assert list(FrameSource(numbered(20)).chunks(6, 4, start=len(whole))) == []


def test_a_row_of_datasets_is_its_video(video):
    processor = VJepa2VideoProcessor(size=16, crop_size=16)
    expected = torch.cat([chunk for chunk, _ in FrameSource(video, processor).chunks(8)])
    for row in ({"bytes": video.read_bytes(), "path": "a.mp4"}, {"bytes": None, "path": str(video)}):
        assert torch.equal(torch.cat([chunk for chunk, _ in FrameSource(row, processor).chunks(8)]), expected)


def test_hash_is_of_the_content(video, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    assert FrameSource(copy).fingerprint() == FrameSource(video).fingerprint()
    assert FrameSource(video.read_bytes()).fingerprint() == FrameSource(video).fingerprint()
    changed = noise_pixels(4).clone()
    assert FrameSource(changed).fingerprint() == FrameSource(noise_pixels(4)).fingerprint()
    changed[3, 2, 1, 0] += 1
    assert FrameSource(changed).fingerprint() != FrameSource(noise_pixels(4)).fingerprint()
    assert (
        FrameSource(noise_frames(3)).fingerprint() != FrameSource(noise_frames(3).transpose(0, 2, 1, 3)).fingerprint()
    )
    assert FrameSource(iter(noise_frames(3))).fingerprint() == "frames"


def test_a_processor_in_its_training_mode_crops_nothing_at_random():
    frames = noise_frames(4)
    train = VJepa2VideoProcessor(size=16, crop_size=16, do_random_resized_crop=True)
    plain = VJepa2VideoProcessor(size=16, crop_size=16)
    one, two = (next(FrameSource(frames, processor).chunks(4))[0] for processor in (train, plain))
    assert torch.equal(one, two) and np.isfinite(one.numpy()).all()
