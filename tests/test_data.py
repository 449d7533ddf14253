"""Clips and episodes from shards: the right frames, every video once, exact resume, and bad data named."""

import io
import logging
import sys
import types

import av
import numpy as np
import pytest
import torch
from datasets import Features, List, Value, Video, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from vjepa2_hf import data as data_module
from vjepa2_hf import video_io
from vjepa2_hf.data import ClipStream, MaskCollator, open_stream, read_episodes, write_shards
from vjepa2_hf.masking import FutureMask
from vjepa2_hf.video_io import VideoDecodeError, VideoReader, encode_video, read_video, transcode_video


CLIP_FEATURES = Features({"video": Video(decode=False), "path": Value("string")})


def numbered_frames(num_frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Grey frames whose value tells their number: 4 per frame."""
    return (
        np.full((num_frames, height, width, 3), 4, np.uint8)
        * np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    )


def numbers_of(frames) -> list[int]:
    """The frame numbers back from the decoded grey values (T, H, W, C)."""
    return np.rint(np.asarray(frames, np.float32).mean((1, 2, 3)) / 4).astype(int).tolist()


def raw(frames, generator):
    return frames.float()


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_video(numbered_frames(30), fps=12)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, video) -> str:
    """13 videos in 4 shards; the one named v05 does not decode."""
    rows = (
        {"video": {"bytes": b"no video" if i == 5 else video, "path": None}, "path": f"v{i:02d}"} for i in range(13)
    )
    folder = tmp_path_factory.mktemp("data") / "shards"
    assert write_shards(rows, folder, CLIP_FEATURES, num_shards=4) == 13
    return str(folder)


def names(clips) -> list[str]:
    return [clip["clip_name"].split("(")[1][:3] for clip in clips]


def key(clip) -> tuple:
    return clip["clip_name"], clip["draw"], tuple(clip["frame_indices"].tolist())


class TestVideo:
    def test_encoded_video_has_the_same_colours(self):
        y, x = np.mgrid[:32, :32]
        disc = np.where((np.hypot(x - 12, y - 20) < 6)[..., None], [200, 40, 40], [230, 225, 215]).astype(np.uint8)
        decoded = read_video(encode_video(np.stack([disc] * 3), fps=10))
        assert decoded.shape == (3, 32, 32, 3) and decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - disc).mean() < 1.5

    @settings(max_examples=30, deadline=None)
    @given(indices=st.lists(st.integers(0, 29), min_size=1, max_size=8))
    def test_any_frames_in_any_order_are_the_frames_of_the_whole_video(self, video, indices):
        assert numbers_of(read_video(video, indices)) == indices

    def test_times_take_the_frame_shown_then(self, video):
        assert numbers_of(read_video(video, times=[0, 0.24, 0.25, 1.0, 99])) == [0, 2, 3, 12, 29]

    def test_reader_knows_rate_and_length(self, video):
        with VideoReader(video) as reader:
            assert len(reader) == 30
            assert reader.fps == pytest.approx(12)
            assert reader.duration == pytest.approx(2.5)

    def test_container_without_presentation_times(self):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="avi") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for frame in numbered_frames(20, 32, 32):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        assert numbers_of(read_video(buffer.getvalue(), [19, 0, 7])) == [19, 0, 7]

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            (b"no video", VideoDecodeError, "does not decode as a video"),
            (b"", VideoDecodeError, "does not decode as a video"),
            ("/nowhere/a.mp4", FileNotFoundError, "no video file at '/nowhere/a.mp4'"),
            (7, ValueError, "bytes, a path or a URL, not as int"),
        ],
    )
    def test_what_is_no_video_is_refused(self, source, error, message):
        with pytest.raises(error, match=message):
            read_video(source)

    def test_truncated_video_does_not_decode_in_silence(self):
        noise = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8)
        video = bytearray(encode_video(noise, fps=10))
        video[len(video) // 4 : len(video) // 4 + 4000] = bytes(4000)
        with pytest.raises(ValueError, match="does not decode"), VideoReader(bytes(video[:-2000])) as reader:
            reader.frames()

    def test_frames_beyond_the_end_are_refused(self, video):
        with pytest.raises(ValueError, match="frames 0 to 29"):
            read_video(video, [30])

    @pytest.mark.parametrize(
        ("frames", "fps", "message"),
        [
            (np.zeros((0, 8, 8, 3), np.uint8), 10, "no frame to encode"),
            (np.zeros((2, 8, 8, 3), np.float32), 10, "uint8 frames"),
            (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps is 0"),
        ],
    )
    def test_encoder_refuses(self, frames, fps, message):
        with pytest.raises(ValueError, match=message):
            encode_video(frames, fps)

    def test_transcoding_keeps_aspect_times_and_makes_sizes_even(self):
        source = encode_video(numbered_frames(20, 30, 45), fps=7.5)
        mp4, num_frames, fps = transcode_video(source, height=16)
        with VideoReader(mp4) as reader:
            frames = reader.frames()
            assert np.allclose(reader.times, np.arange(20) / 7.5, atol=1e-3)
        assert (num_frames, frames.shape) == (20, (20, 16, 24, 3)) and fps == pytest.approx(7.5)
        assert numbers_of(frames) == list(range(20))

    def test_torchcodec_is_used_where_it_imports(self, video, monkeypatch):
        class Decoder:
            def __init__(self, source, dimension_order, num_ffmpeg_threads):
                assert source == video and dimension_order == "NHWC"

            def __len__(self):
                return 30

            def get_frames_at(self, indices):
                return types.SimpleNamespace(data=torch.tensor(indices, dtype=torch.uint8)[:, None, None, None])

        package = types.ModuleType("torchcodec")
        package.decoders = types.ModuleType("torchcodec.decoders")
        package.decoders.VideoDecoder = Decoder
        monkeypatch.setitem(sys.modules, "torchcodec", package)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", package.decoders)
        video_io.torchcodec_decoder.cache_clear()
        try:
            assert read_video(video, [4, 2, 4]).flatten().tolist() == [4, 2, 4]
        finally:
            video_io.torchcodec_decoder.cache_clear()

    def test_torchcodec_that_does_not_import_leaves_pyav(self, video, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
        video_io.torchcodec_decoder.cache_clear()
        assert video_io.torchcodec_decoder() is None
        assert numbers_of(read_video(video, [3])) == [3]
        video_io.torchcodec_decoder.cache_clear()


class TestShards:
    def test_load_dataset_finds_a_video_column_and_every_row(self, shards):
        dataset = load_dataset("parquet", data_files=f"{shards}/*.parquet", split="train", streaming=True)
        assert isinstance(dataset.features["video"], Video)
        assert sorted(row["path"] for row in dataset) == [f"v{i:02d}" for i in range(13)]

    def test_a_failed_writing_leaves_nothing(self, tmp_path, video):
        def rows():
            yield {"video": {"bytes": video, "path": None}, "path": "a"}
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            write_shards(rows(), tmp_path / "out", CLIP_FEATURES)
        assert list(tmp_path.iterdir()) == []

    def test_what_exists_is_not_overwritten(self, shards):
        with pytest.raises(FileExistsError, match="not empty"):
            write_shards([], shards, CLIP_FEATURES)

    def test_a_file_of_the_videos_name_does_not_replace_its_bytes(self, tmp_path, video, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.mp4").write_bytes(b"another")
        write_shards([{"video": {"bytes": video, "path": "a.mp4"}, "path": "a"}], "out", CLIP_FEATURES)
        assert [row["video"]["bytes"] for *_, row in open_stream("out")] == [video]

    @pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
    def test_readers_are_disjoint_and_complete(self, shards, world_size):
        read = [row["path"] for rank in range(world_size) for *_, row in open_stream(shards, rank, world_size)]
        assert sorted(read) == [f"v{i:02d}" for i in range(13)]

    def test_order_changes_with_the_epoch_only(self, shards):
        orders = [[row["path"] for *_, row in open_stream(shards, epoch=epoch)] for epoch in (0, 0, 1, 2)]
        assert orders[0] == orders[1]
        assert len({tuple(order) for order in orders}) > 1

    @pytest.mark.parametrize("data", ["/nowhere/at/all", "/nowhere/*.parquet"])
    def test_missing_data_is_one_sentence(self, data):
        with pytest.raises(FileNotFoundError, match="There is no data at"):
            ClipStream(data, 4, crop_size=8)

    def test_missing_data_beside_a_folder_is_not_asked_of_the_hub(self, tmp_path, monkeypatch):
        (tmp_path / "runs").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            data_module, "load_dataset_builder", lambda name: pytest.fail(f"{name} was asked of the Hub")
        )
        with pytest.raises(FileNotFoundError, match="at 'runs/shards': no such folder or file"):
            ClipStream("runs/shards", 4, crop_size=8)

    def test_folder_without_data_is_one_sentence(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no parquet file, .tar shard or video"):
            ClipStream(tmp_path, 4, crop_size=8)


class TestClips:
    def test_clip_has_neighbouring_frames_without_a_rate(self, shards):
        for clip in ClipStream(shards, 5, transform=raw, epochs=1):
            first = clip["frame_indices"][0].item()
            assert numbers_of(clip["pixel_values_videos"]) == list(range(first, first + 5))

    def test_clip_at_a_rate_takes_every_third_frame(self, shards):
        starts = set()
        for clip in ClipStream(shards, 5, fps=4, transform=raw, epochs=3):  # of 12 frames per second
            first = clip["frame_indices"][0].item()
            assert numbers_of(clip["pixel_values_videos"]) == list(range(first, first + 13, 3))
            starts.add(first)
        assert len(starts) > 5 and max(starts) <= 29 - 12

    def test_clip_at_a_rate_that_does_not_divide(self, shards):
        clip = next(iter(ClipStream(shards, 4, fps=5, transform=raw)))
        first = clip["frame_indices"][0].item()
        assert (clip["frame_indices"] - first).tolist() == [0, 2, 4, 7]  # 12 / 5 = 2.4 frames a step

    def test_shorter_video_is_repeated_from_its_start(self, shards):
        clip = next(iter(ClipStream(shards, 8, fps=2, transform=raw)))  # 2.5 s hold 5 frames at 2 fps
        assert clip["frame_indices"].tolist() == [0, 6, 12, 18, 24, 0, 6, 12]

    def test_video_shorter_than_a_tubelet_is_skipped(self, tmp_path, video):
        rows = [
            {"video": {"bytes": encode_video(numbered_frames(1), 12), "path": None}, "path": "one"},
            {"video": {"bytes": video, "path": None}, "path": "v00"},
        ]
        write_shards(rows, tmp_path / "out", CLIP_FEATURES)
        stream = ClipStream(tmp_path / "out", 4, transform=raw, epochs=1)
        assert names(stream) == ["v00"]
        assert "fewer than a tubelet" in "".join(stream.source.skipped.values())

    def test_bad_video_is_skipped_counted_and_named_once(self, shards, caplog):
        stream = ClipStream(shards, 4, transform=raw, epochs=2)
        with caplog.at_level(logging.WARNING):
            clips = list(stream)
        assert sorted(names(clips)) == sorted(2 * [f"v{i:02d}" for i in range(13) if i != 5])
        assert len(stream.source.skipped) == 1
        messages = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
        assert len(messages) == 1 and "v05" in messages[0]

    def test_several_clips_of_a_video_differ(self, shards):
        clips = list(ClipStream(shards, 4, transform=raw, clips_per_video=3, epochs=1))
        assert len(clips) == 36 and len({key(clip) for clip in clips}) == 36
        assert len({clip["clip_name"] for clip in clips[:3]}) == 1

    def test_transform_gets_the_clips_own_randomness(self, shards):
        def draw(frames, generator):
            return torch.rand(1, generator=generator)

        first, again = (list(ClipStream(shards, 4, transform=draw, epochs=1)) for _ in range(2))
        values = [clip["pixel_values_videos"].item() for clip in first]
        assert values == [clip["pixel_values_videos"].item() for clip in again]
        assert len(set(values)) == 12

    def test_corrupt_shard_is_skipped_and_named(self, shards, tmp_path, caplog):
        import shutil

        folder = shutil.copytree(shards, tmp_path / "copy")
        broken = sorted(folder.iterdir())[1]
        broken.write_bytes(broken.read_bytes()[:1000])
        stream = ClipStream(folder, 4, transform=raw, epochs=1)
        assert len(list(stream)) == 13 - 1 - len(list(open_stream(shards, seed=None, rank=1, world_size=4))) + 1
        assert str(broken) in stream.source.skipped
        assert str(broken) in caplog.text

    def test_data_without_a_clip_is_refused_instead_of_spinning(self, tmp_path):
        write_shards([{"video": {"bytes": b"x", "path": None}, "path": "bad"}], tmp_path / "out", CLIP_FEATURES)
        with pytest.raises(ValueError, match=r"No clip could be read.*bad"):
            next(iter(ClipStream(tmp_path / "out", 4, transform=raw)))

    def test_folder_of_video_files(self, tmp_path, video):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "one.mp4").write_bytes(video)
        (tmp_path / "two.mp4").write_bytes(video)
        clips = list(ClipStream(tmp_path, 4, crop_size=8, epochs=1))
        assert {clip["clip_name"] for clip in clips} == {str(tmp_path / "a" / "one.mp4"), str(tmp_path / "two.mp4")}
        assert clips[0]["pixel_values_videos"].shape == (4, 3, 8, 8)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"frames_per_clip": 0}, "frames_per_clip is 0"),
            ({"fps": -1}, "fps is -1"),
            ({"rank": 2, "world_size": 2}, "rank is 2"),
            ({"crop_size": None}, "neither crop_size nor transform"),
            ({"seed": -1}, "seed is -1"),
        ],
    )
    def test_bad_settings_are_refused(self, shards, settings, message):
        with pytest.raises(ValueError, match=message):
            ClipStream(shards, **{"frames_per_clip": 4, "crop_size": 8, **settings})


class TestResume:
    @pytest.mark.parametrize("world_size", [1, 5])  # 5 readers share 4 shards by rows
    def test_state_resumes_at_every_clip(self, shards, world_size):
        def stream():
            return ClipStream(shards, 4, transform=raw, clips_per_video=2, epochs=2, world_size=world_size)

        expected = [key(clip) for clip in stream()]
        for stop in range(0, len(expected), 5):
            whole = stream()
            iterator = iter(whole)
            for _ in range(stop):
                next(iterator)
            resumed = stream()
            resumed.load_state_dict(whole.state_dict())
            assert [key(clip) for clip in resumed] == expected[stop:]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_stateful_dataloader_resumes_exactly(self, shards, num_workers):
        def loader():
            stream = ClipStream(shards, 4, fps=6, crop_size=8, clips_per_video=2, seed=3)
            return StatefulDataLoader(stream, batch_size=3, num_workers=num_workers, drop_last=True)

        whole = loader()
        iterator = iter(whole)
        for _ in range(5):
            next(iterator)
        state = whole.state_dict()
        expected = [next(iterator) for _ in range(12)]  # into the next epoch
        resumed = loader()
        resumed.load_state_dict(state)
        for batch, again in zip(expected, resumed):
            assert batch["clip_name"] == again["clip_name"]
            assert torch.equal(batch["draw"], again["draw"])
            assert torch.equal(batch["pixel_values_videos"], again["pixel_values_videos"])

    def test_workers_and_ranks_together_read_every_video_once(self, shards):
        read = []
        for rank in range(2):
            stream = ClipStream(shards, 4, crop_size=8, rank=rank, world_size=2, epochs=1)
            for batch in StatefulDataLoader(stream, batch_size=None, num_workers=2):
                read.append(batch["clip_name"])
        assert len(read) == 12 and len(set(read)) == 12

    def test_resuming_decodes_nothing_on_the_way(self, shards, monkeypatch):
        stream = ClipStream(shards, 4, transform=raw)
        iterator = iter(stream)
        for _ in range(11):
            next(iterator)
        opened = []
        original = VideoReader.__init__
        monkeypatch.setattr(VideoReader, "__init__", lambda self, s: (opened.append(1), original(self, s))[1])
        resumed = ClipStream(shards, 4, transform=raw)
        resumed.load_state_dict(stream.state_dict())
        next(iter(resumed))
        assert len(opened) <= 2  # the clip's own video, and perhaps the one that does not decode


class TestCollator:
    def test_masks_come_from_the_clips(self, shards):
        clips = list(ClipStream(shards, 4, crop_size=16, epochs=1))
        collate = MaskCollator([FutureMask(0.5), FutureMask(0.5)], grid=(2, 2, 2), seed=1)
        batch, again = collate(clips[:3]), collate(clips[:3])
        assert sorted(batch) == ["context_mask", "pixel_values_videos", "target_mask"]
        assert batch["pixel_values_videos"].shape == (3, 4, 3, 16, 16)
        assert [mask.shape for mask in batch["context_mask"]] == [(3, 4), (3, 4)]
        for name in ("context_mask", "target_mask"):
            assert all(torch.equal(one, two) for one, two in zip(batch[name], again[name]))

    def test_seed_and_clips_change_the_draw(self):
        def sampler(batch_size, grid, generator):
            drawn = torch.randint(1000, (batch_size, 2), generator=generator)
            return drawn, drawn

        clip = {"pixel_values_videos": torch.zeros(1), "draw": 5}
        drawn = {
            MaskCollator([sampler], (1, 1, 1), seed)([{**clip, "draw": draw}])["context_mask"][0].sum().item()
            for seed, draw in [(0, 5), (1, 5), (0, 6)]
        }
        assert len(drawn) == 3


EPISODE_FEATURES = Features(
    {
        "video": Video(decode=False),
        "actions": List(List(Value("float32"))),
        "proprio_states": List(List(Value("float32"))),
        "fps": Value("float32"),
        "episode_id": Value("string"),
    }
)


def episode(number: int, num_frames: int = 8, **changes) -> dict:
    return {
        "video": {"bytes": encode_video(numbered_frames(num_frames), 10), "path": None},
        "actions": np.arange((num_frames - 1) * 2, dtype=np.float32).reshape(-1, 2),
        "proprio_states": np.arange(num_frames, dtype=np.float32)[:, None],
        "fps": 10.0,
        "episode_id": f"episode-{number}",
        **changes,
    }


class TestEpisodes:
    def test_episode_comes_back(self, tmp_path):
        write_shards([episode(i) for i in range(5)], tmp_path / "out", EPISODE_FEATURES, num_shards=2)
        episodes = list(read_episodes(tmp_path / "out"))
        assert sorted(e["episode_id"] for e in episodes) == [f"episode-{i}" for i in range(5)]
        assert numbers_of(episodes[0]["frames"]) == list(range(8))
        assert episodes[0]["actions"].dtype == np.float32 and episodes[0]["actions"].shape == (7, 2)
        assert episodes[0]["proprio_states"][:, 0].tolist() == list(range(8))
        assert len(list(read_episodes(tmp_path / "out", max_episodes=3))) == 3

    def test_frame_skip_joins_the_actions_in_between(self, tmp_path):
        write_shards([episode(0)], tmp_path / "out", EPISODE_FEATURES)
        (found,) = read_episodes(tmp_path / "out", frame_skip=3)  # 7 actions: two steps, one action dropped
        assert numbers_of(found["frames"]) == [0, 3, 6]
        assert found["actions"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
        assert found["proprio_states"][:, 0].tolist() == [0, 3, 6]
        assert found["fps"] == pytest.approx(10 / 3)

    def test_episode_that_does_not_decode_is_skipped_and_named(self, tmp_path, caplog):
        rows = [episode(0), episode(1, video={"bytes": b"x", "path": None})]
        write_shards(rows, tmp_path / "out", EPISODE_FEATURES)
        assert [e["episode_id"] for e in read_episodes(tmp_path / "out")] == ["episode-0"]
        assert "episode-1" in caplog.text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"actions": np.zeros((8, 2))}, r"episode-1 has actions of shape \(8, 2\), but 7 rows for 8 frames"),
            ({"actions": np.zeros((7, 3))}, r"episode-1 has \(action, proprio\) sizes \(3, 1\)"),
            ({"actions": np.full((7, 2), np.nan)}, "episode-1 has actions that are not finite"),
            ({"actions": [[1.0], [1.0, 2.0]]}, "episode-1 has actions whose rows differ in size"),
            ({"actions": None}, "episode-1 has no actions"),
            ({"proprio_states": np.zeros((7, 1))}, "episode-1 has proprio_states of shape"),
        ],
    )
    def test_wrong_actions_are_refused_with_the_episodes_name(self, tmp_path, changes, message):
        write_shards([episode(0), episode(1, **changes)], tmp_path / "out", EPISODE_FEATURES, num_shards=1)
        with pytest.raises(ValueError, match=message):
            list(read_episodes(tmp_path / "out"))

    def test_proprio_states_are_optional(self, tmp_path):
        features = Features({k: v for k, v in EPISODE_FEATURES.items() if k != "proprio_states"})
        row = {k: v for k, v in episode(0).items() if k != "proprio_states"}
        write_shards([row], tmp_path / "out", features)
        assert next(read_episodes(tmp_path / "out"))["proprio_states"] is None

    def test_no_episode_is_refused(self, tmp_path):
        write_shards([episode(0, video={"bytes": b"x", "path": None})], tmp_path / "out", EPISODE_FEATURES)
        with pytest.raises(ValueError, match=r"No episode could be read.*episode-0"):
            list(read_episodes(tmp_path / "out"))
