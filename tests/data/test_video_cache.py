"""The cache of decoded videos: the same clips with and without it, in a bounded memory."""

import io
import itertools
import logging

import av
import numpy as np
import pytest
import torch
from builders import CLIP_FEATURES, numbered_frames, numbers_of, write_numbered_shards
from torchdata.stateful_dataloader import StatefulDataLoader

from vjepa2_hf.data.clips import ClipStream, DataSource
from vjepa2_hf.data.sampling import FrameSampler
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_cache import CachedVideo, VideoCache
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoDecodeError, VideoReader


BYTES = 30 * (3 * 16 * 16 + 64)  # of a video of `write_numbered_shards`
PLENTY = 2**24


def noise_video(num_frames: int = 30) -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 32, 32, 3), np.uint8)
    return encode_video(frames, fps=12)


def damage_last_frame(video: bytes) -> bytes:
    with av.open(io.BytesIO(video)) as container:
        last = max((packet for packet in container.demux(video=0) if packet.size), key=lambda packet: packet.pts)
    middle = last.pos + last.size // 2
    return video[:middle] + b"\xff" * 64 + video[middle + 64 :]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """13 videos in 4 shards; v05 cannot be decoded."""
    return write_numbered_shards(tmp_path_factory.mktemp("data") / "shards")


def same(one: dict, other: dict) -> bool:
    names = ("clip_name", "skipped")
    tensors = ("pixel_values_videos", "frame_indices", "seed")
    return all(one[name] == other[name] for name in names) and all(
        torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in tensors
    )


class TestClips:
    def loader(self, shards: str, num_workers: int, video_cache_bytes: int) -> StatefulDataLoader:
        sampler = FrameSampler(fps=[4, 6], speed=(0.8, 1.2), frame_jitter=0.2, motion_weight=0.5)
        stream = ClipStream(
            shards,
            4,
            crop_size=8,
            frame_sampler=sampler,
            clips_per_video=2,
            seed=3,
            video_cache_bytes=video_cache_bytes,
        )
        return StatefulDataLoader(stream, batch_size=3, num_workers=num_workers)

    @pytest.mark.parametrize("video_cache_bytes", [3 * BYTES, PLENTY], ids=["tight", "plenty"])
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_they_are_the_same_as_without_a_cache(self, shards, num_workers, video_cache_bytes):
        """Also of a run that resumes in the middle of a video, with the cache or without."""
        plain = self.loader(shards, num_workers, 0)
        expected = list(itertools.islice(plain, 26))  # three epochs
        cached = self.loader(shards, num_workers, video_cache_bytes)
        batches, state = [], None
        for number, batch in enumerate(itertools.islice(cached, 26)):
            batches.append(batch)
            state = cached.state_dict() if number == 12 else state
        assert all(map(same, expected, batches))
        for size in (0, video_cache_bytes):
            resumed = self.loader(shards, num_workers, size)
            resumed.load_state_dict(state)
            assert all(map(same, expected[13:], itertools.islice(resumed, 13)))

    def test_later_epochs_open_no_video(self, shards, monkeypatch):
        stream = ClipStream(shards, 4, crop_size=8, epochs=3, video_cache_bytes=PLENTY)
        opened, original = [], VideoReader.__init__
        monkeypatch.setattr(VideoReader, "__init__", lambda self, *a: (opened.append(a), original(self, *a))[1])
        assert len(list(stream)) == 3 * 12
        assert len(opened) == 12 + 3  # the unreadable one is tried in every epoch

    def test_rows_of_several_sources_are_told_apart(self, tmp_path):
        for name, first in (("a", 0), ("b", 30)):
            video = encode_video(numbered_frames(60)[first : first + 30], fps=12)
            write_shards([{"video": {"bytes": video, "path": None}, "path": name}], tmp_path / name, CLIP_FEATURES)
        data = [DataSource(str(tmp_path / "a")), DataSource(str(tmp_path / "b"))]
        stream = ClipStream(data, 2, transform=lambda frames, generator: frames, video_cache_bytes=PLENTY)
        for clip in itertools.islice(stream, 20):
            first = 30 * clip["clip_name"].endswith("(b)")
            assert numbers_of(clip["pixel_values_videos"]) == (clip["frame_indices"] + first).tolist()


class TestCache:
    def opened(self, cache: VideoCache, place: int, source: bytes) -> VideoReader:
        with cache.open(place, source) as reader:
            reader.frames([0])
        return reader

    def test_it_holds_at_most_its_bytes_and_drops_the_least_recently_used(self, caplog):
        video = encode_video(numbered_frames(30), fps=12)
        cache = VideoCache(3 * BYTES + BYTES // 2)
        with caplog.at_level(logging.WARNING):
            first, second, third = (self.opened(cache, place, video) for place in range(3))
            assert not caplog.records
            assert self.opened(cache, 0, video) is first
            fourth = self.opened(cache, 3, video)
            self.opened(cache, 4, video)
        assert cache.nbytes == 3 * BYTES and len(cache) == 3
        assert self.opened(cache, 0, video) is first and self.opened(cache, 3, video) is fourth
        assert self.opened(cache, 2, video) is not third and self.opened(cache, 1, video) is not second
        assert [record.getMessage() for record in caplog.records if "full with 3 videos" in record.getMessage()]
        assert len(caplog.records) == 1

    def test_its_bytes_are_those_of_the_frames(self):
        cache = VideoCache(PLENTY)
        reader = self.opened(cache, 0, noise_video(20))
        assert cache.nbytes == reader.nbytes == reader._decoded.nbytes + 20 * 64

    def test_a_kept_video_reads_like_a_reader(self):
        video, cache = noise_video(), VideoCache(PLENTY)
        self.opened(cache, 0, video)
        with cache.open(0, b"not read") as kept, VideoReader(video) as reader:
            assert np.array_equal(kept.frames([7, 3, 3, 29]), reader.frames([7, 3, 3, 29]))
            assert np.array_equal(kept.frames(), reader.frames())
            assert np.array_equal(kept.times, reader.times) and np.array_equal(kept.motion(), reader.motion())
            assert np.array_equal(kept.indices_at([0.5, 1.1]), reader.indices_at([0.5, 1.1]))
            assert (len(kept), kept.fps, kept.duration) == (len(reader), reader.fps, reader.duration)
            with pytest.raises(ValueError, match="Frames 30 to 30 were requested"):
                kept.frames([30])
            kept.frames()[:] = 0
            assert np.array_equal(kept.frames(), reader.frames())

    def test_a_video_larger_than_the_cache_is_not_decoded_as_a_whole(self, monkeypatch):
        asked, original = [], VideoReader.frames
        monkeypatch.setattr(
            VideoReader, "frames", lambda self, which: (asked.append(len(which)), original(self, which))[1]
        )
        video, cache = noise_video(), VideoCache(30 * 3 * 32 * 32)
        with cache.open(0, video) as reader:
            assert reader.frames([3, 4]).shape == (2, 32, 32, 3)
        assert asked == [2] and not len(cache)


class TestDamage:
    def test_frames_before_it_are_read_and_nothing_is_kept(self):
        video, cache = noise_video(), VideoCache(PLENTY)
        damaged = damage_last_frame(video)
        with pytest.raises(VideoDecodeError) as plain:
            VideoReader(damaged).frames([29])
        for _ in range(2):
            with cache.open(0, damaged) as reader, VideoReader(video) as whole:
                assert np.array_equal(reader.frames([2, 5]), whole.frames([2, 5]))
            with cache.open(0, damaged) as reader, pytest.raises(VideoDecodeError) as cached:
                reader.frames([29])
            assert str(cached.value) == str(plain.value)
        assert cache.nbytes == len(cache) == 0

    def test_a_table_that_decoding_corrects_is_not_kept(self, monkeypatch):
        monkeypatch.setattr(VideoReader, "_seek_and_decode", lambda self, wanted: None)
        video, cache = noise_video(), VideoCache(PLENTY)
        with cache.open(0, video) as reader, VideoReader(video) as plain:
            assert isinstance(reader, CachedVideo) and np.array_equal(reader.frames([4, 9]), plain.frames([4, 9]))
        assert cache.nbytes == len(cache) == 0

    def test_a_video_that_the_memory_holds_in_part_is_read_in_part(self, monkeypatch):
        def frames(reader, indices, read=VideoReader.frames):
            if len(indices) == 30:
                raise MemoryError
            return read(reader, indices)

        monkeypatch.setattr(VideoReader, "frames", frames)
        cache = VideoCache(PLENTY)
        with cache.open(0, noise_video()) as reader:
            assert reader.frames([1, 2]).shape == (2, 32, 32, 3)
        assert cache.nbytes == len(cache) == 0


@pytest.mark.parametrize("size", [-1, 1.5, None, True])
def test_a_bad_size_is_refused(shards, size):
    with pytest.raises(ValueError, match="video_cache_bytes is"):
        ClipStream(shards, 4, crop_size=8, video_cache_bytes=size)


def test_a_cache_may_be_larger_than_two_gigabytes(shards):
    assert ClipStream(shards, 4, crop_size=8, video_cache_bytes=64 * 2**30).video_cache_bytes == 64 * 2**30
