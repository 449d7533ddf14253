"""Clips from streams: the right frames, mixtures, curricula, exact resume, and batches with masks."""

import itertools
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from builders import CLIP_FEATURES, numbered_frames, numbered_video, numbers_of, write_numbered_shards
from datasets import Features, Image, Value
from torchdata.stateful_dataloader import StatefulDataLoader

from vjepa2_hf.data.clips import ClipStream, DataSource, MaskCollator
from vjepa2_hf.data.sampling import FrameSampler, FramesCurriculum
from vjepa2_hf.data.shards import ShardSource, write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.masking import FutureMask, RandomFrameMask
from vjepa2_hf.video_io import VideoReader


def raw(frames, generator):
    return frames.float()


@pytest.fixture(scope="module")
def video() -> bytes:
    return numbered_video()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """13 videos in 4 shards; the one named v05 cannot be decoded."""
    return write_numbered_shards(tmp_path_factory.mktemp("data") / "shards")


def names(clips) -> list[str]:
    return [clip["clip_name"].split("(")[1][:3] for clip in clips]


def key(clip) -> tuple:
    return clip["clip_name"], clip["seed"], tuple(clip["frame_indices"].tolist())


class TestClips:
    def test_clip_has_neighbouring_frames_without_a_rate(self, shards):
        for clip in ClipStream(shards, 5, transform=raw, epochs=1):
            first = clip["frame_indices"][0].item()
            assert numbers_of(clip["pixel_values_videos"]) == list(range(first, first + 5))

    def test_clip_at_a_rate_takes_every_third_frame(self, shards):
        starts = set()  # videos of 12 frames a second
        for clip in ClipStream(shards, 5, frame_sampler=FrameSampler(fps=4), transform=raw, epochs=3):
            first = clip["frame_indices"][0].item()
            assert numbers_of(clip["pixel_values_videos"]) == list(range(first, first + 13, 3))
            starts.add(first)
        assert len(starts) > 5 and max(starts) <= 29 - 12

    def test_clip_at_a_rate_that_does_not_divide(self, shards):
        clip = next(iter(ClipStream(shards, 4, frame_sampler=FrameSampler(fps=5), transform=raw)))
        first = clip["frame_indices"][0].item()
        assert (clip["frame_indices"] - first).tolist() == [0, 2, 4, 7]  # 12 / 5 = 2.4 frames a step

    def test_shorter_video_is_repeated_from_its_start(self, shards):  # 2.5 s hold 5 frames at 2 fps
        clip = next(iter(ClipStream(shards, 8, frame_sampler=FrameSampler(fps=2), transform=raw)))
        assert clip["frame_indices"].tolist() == [0, 6, 12, 18, 24, 0, 6, 12]

    def test_video_shorter_than_a_tubelet_is_skipped(self, tmp_path, video):
        rows = [
            {"video": {"bytes": encode_video(numbered_frames(1), 12), "path": None}, "path": "one"},
            {"video": {"bytes": video, "path": None}, "path": "v00"},
        ]
        write_shards(rows, tmp_path / "out", CLIP_FEATURES)
        stream = ClipStream(tmp_path / "out", 4, transform=raw, epochs=1)
        assert names(stream) == ["v00"]
        assert "fewer than a tubelet" in "".join(stream.sources[0].skipped.values())

    def test_bad_video_is_skipped_counted_and_named_once(self, shards, caplog):
        stream = ClipStream(shards, 4, transform=raw, epochs=2)
        with caplog.at_level(logging.WARNING):
            clips = list(stream)
        assert sorted(names(clips)) == sorted(2 * [f"v{i:02d}" for i in range(13) if i != 5])
        assert len(stream.sources[0].skipped) == 1
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

    def test_a_video_that_the_memory_cannot_hold_is_skipped(self, shards, monkeypatch):
        def frames(reader, indices, read=VideoReader.frames):
            if not failed:
                failed.append(reader)
                raise MemoryError
            return read(reader, indices)

        failed = []
        monkeypatch.setattr(VideoReader, "frames", frames)
        stream = ClipStream(shards, 2, 16, epochs=1)
        assert len(list(stream)) > 1
        assert "it does not fit into memory" in stream.sources[0].skipped.values()

    def test_corrupt_shard_is_skipped_and_named(self, shards, tmp_path, caplog):
        import shutil

        folder = shutil.copytree(shards, tmp_path / "copy")
        broken = sorted(folder.glob("*.parquet"))[1]
        broken.write_bytes(broken.read_bytes()[:1000])
        stream = ClipStream(folder, 4, transform=raw, epochs=1)
        assert len(list(stream)) == 13 - 1 - len(list(ShardSource(shards).read_all(rank=1, world_size=4))) + 1
        assert str(broken) in stream.sources[0].skipped
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
            ({"rank": 2, "world_size": 2}, "rank is 2"),
            ({"crop_size": None}, "neither crop_size nor transform"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 1.5}, "seed is 1.5; expected an integer"),
            ({"seed": "a"}, "seed is 'a'; expected an integer"),
            ({"seed": 2**70}, "seed is 1180591620717411303424"),
            ({"frames_per_clip": 1.5}, "frames_per_clip is 1.5"),
            ({"frames_per_clip": None}, "frames_per_clip is None"),
            ({"clips_per_video": 1.5}, "clips_per_video is 1.5"),
            ({"clips_per_video": None}, "clips_per_video is None"),
            ({"world_size": 2.0}, "world_size is 2.0"),
            ({"rank": True}, "rank is True"),
            ({"epochs": 0}, "epochs is 0"),
            ({"shuffle_buffer": -1}, "shuffle_buffer is -1"),
            ({"shuffle_bytes": 0}, "shuffle_bytes is 0"),
            ({"shuffle_buffer": float("nan")}, "shuffle_buffer is nan"),
            ({"max_skipped_fraction": float("nan")}, "max_skipped_fraction is nan"),
            ({"transform": 3}, "transform is 3; expected a function"),
            ({"frame_sampler": "uniform"}, "frame_sampler is 'uniform'; expected a function"),
        ],
    )
    def test_bad_settings_are_refused(self, shards, settings, message):
        with pytest.raises(ValueError, match=message):
            ClipStream(shards, **{"frames_per_clip": 4, "crop_size": 8, **settings})

    @pytest.mark.parametrize(
        "data", [None, 3, ["a", "b"], [{"path": "a"}], [DataSource(None)], [DataSource("a", "1")]]
    )
    def test_what_is_no_source_is_refused(self, data):
        with pytest.raises(ValueError, match="expected"):
            ClipStream(data, 4, crop_size=8)

    @pytest.mark.parametrize("state", [None, 3, {}, [1], {"batch": 0}])
    def test_what_is_no_state_is_refused(self, shards, state):
        with pytest.raises(ValueError, match="expected what its `state_dict`"):
            ClipStream(shards, 4, crop_size=8).load_state_dict(state)

    def test_a_video_that_does_not_fit_into_memory_is_skipped(self, shards, monkeypatch):
        def frames(reader, wanted):
            raise MemoryError

        stream = ClipStream(shards, 4, transform=raw)
        monkeypatch.setattr(VideoReader, "frames", frames)
        with pytest.raises(ValueError, match=r"No clip could be read.*it does not fit into memory"):
            next(iter(stream))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_samplers": None}, "mask_samplers is None"),
        ({"mask_samplers": []}, r"mask_samplers is \[\]"),
        ({"mask_samplers": [3]}, r"mask_samplers is \[3\]"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": 4.0}, "patch_size is 4.0"),
        ({"tubelet_size": "2"}, "tubelet_size is '2'"),
        ({"seed": -1}, "seed is -1"),
        ({"with_names": "no"}, "with_names is 'no'; expected True or False"),
    ],
)
def test_bad_settings_of_the_collator_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskCollator(**{"mask_samplers": [RandomFrameMask(0.5)], "patch_size": 4, **settings})


def test_a_collator_without_clips_says_so():
    with pytest.raises(ValueError, match="got no clips"):
        MaskCollator([RandomFrameMask(0.5)], 4)([])


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
            stream = ClipStream(shards, 4, frame_sampler=FrameSampler(fps=6), crop_size=8, clips_per_video=2, seed=3)
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
            assert torch.equal(batch["seed"], again["seed"])
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
        monkeypatch.setattr(VideoReader, "__init__", lambda self, *a: (opened.append(1), original(self, *a))[1])
        resumed = ClipStream(shards, 4, transform=raw)
        resumed.load_state_dict(stream.state_dict())
        next(iter(resumed))
        assert len(opened) <= 2  # the clip's own video, and perhaps the one that cannot be decoded


class TestCurriculum:
    STAGES = ((0, 4), (3, 6), (5, 8))
    EXPECTED = [4, 4, 4, 6, 6, 8, 8, 8]  # frames of steps 1 to 8

    def loader(self, shards, num_workers, accumulation=1, **settings):
        curriculum = FramesCurriculum(self.STAGES, batch_size=2, gradient_accumulation_steps=accumulation)
        settings = {"crop_size": 8, "clips_per_video": 3, **settings}  # a video's clips fall into two batches
        return StatefulDataLoader(
            ClipStream(shards, curriculum, **settings),
            batch_size=2,
            num_workers=num_workers,
            collate_fn=MaskCollator([RandomFrameMask(0.5)], patch_size=4, with_names=True),
        )

    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_every_step_has_the_frames_of_its_stage_whatever_the_workers(self, shards, num_workers, accumulation):
        loader = iter(self.loader(shards, num_workers, accumulation))
        frames = [next(loader)["pixel_values_videos"].shape[1] for _ in range(8 * accumulation)]
        assert frames == [frames for frames in self.EXPECTED for _ in range(accumulation)]

    def test_masks_follow_the_grid_of_the_batch(self, shards):
        for frames, batch in zip(self.EXPECTED, self.loader(shards, 0)):
            ids = torch.cat([*batch["context_mask"], *batch["target_mask"]], dim=1)
            assert ids.shape[1] == frames // 2 * 2 * 2 and ids.max() == ids.shape[1] - 1

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_resumed_at_any_batch_it_goes_on_as_if_never_stopped(self, shards, num_workers):
        whole = self.loader(shards, num_workers)
        batches, states, iterator = [], [], iter(whole)
        for _ in range(8):
            states.append(whole.state_dict())
            batches.append(next(iterator))
        for stop in (1, 2, 3, 5, 6):
            resumed = self.loader(shards, num_workers)
            resumed.load_state_dict(states[stop])
            for batch, again in zip(batches[stop:], resumed):
                assert batch["clip_names"] == again["clip_names"]
                assert torch.equal(batch["pixel_values_videos"], again["pixel_values_videos"])

    def test_by_epoch_a_batch_begun_in_an_epoch_keeps_its_frames(self, shards):
        curriculum = FramesCurriculum(((0, 2), (1, 4)), batch_size=5, by="epoch")
        stream = ClipStream(shards, curriculum, transform=raw, epochs=2)  # 12 clips an epoch
        expected = [len(clip["pixel_values_videos"]) for clip in stream]
        assert expected == [2] * 15 + [4] * 9
        for stop in (11, 12, 13, 16):
            stopped = ClipStream(shards, curriculum, transform=raw, epochs=2)
            clips = iter(stopped)
            for _ in range(stop):
                next(clips)
            resumed = ClipStream(shards, curriculum, transform=raw, epochs=2)
            resumed.load_state_dict(stopped.state_dict())
            assert [len(clip["pixel_values_videos"]) for clip in resumed] == expected[stop:]


@pytest.fixture(scope="module")
def data(shards, tmp_path_factory) -> list[DataSource]:
    """Videos and six images, 3 to 1."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        PIL.Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    return [DataSource(shards, 0.75), DataSource(str(folder), 0.25)]


class TestMixture:
    def test_each_source_has_its_share(self, data):
        clips = itertools.islice(ClipStream(data, 4, transform=raw), 600)
        images = sum(clip["clip_name"].endswith(".png") for clip in clips)
        assert abs(images / 600 - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5

    def test_shares_are_of_rows_with_several_clips_a_video_and_bad_rows(self, data):
        clips = itertools.islice(ClipStream(data, 4, transform=raw, clips_per_video=2), 1200)
        images = sum(clip["clip_name"].endswith(".png") for clip in clips)
        assert abs(images / 1200 - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5

    @pytest.mark.parametrize("suffix", ["", "/*.png", "/0.png"])
    def test_an_image_is_a_clip_that_stands_still(self, data, suffix):
        clip = next(iter(ClipStream(data[1].path + suffix, 4, crop_size=8)))
        assert clip["pixel_values_videos"].shape == (4, 3, 8, 8)
        assert torch.equal(clip["pixel_values_videos"][0], clip["pixel_values_videos"][3])
        assert clip["frame_indices"].tolist() == [0, 0, 0, 0]

    def test_parquet_with_a_column_of_images(self, data, tmp_path):
        pixels = Path(data[1].path, "3.png").read_bytes()
        rows = [{"image": {"bytes": pixels, "path": None}, "label": 7}]
        write_shards(rows, tmp_path / "out", Features({"image": Image(decode=False), "label": Value("int64")}))
        (clip,) = ClipStream(tmp_path / "out", 2, transform=raw, epochs=1)
        assert clip["pixel_values_videos"].shape == (2, 3, 12, 16) and clip["label"] == 7
        assert clip["pixel_values_videos"].unique().tolist() == [120]

    def test_videos_and_images_make_one_batch(self, data):
        loader = StatefulDataLoader(ClipStream(data, 4, crop_size=8), batch_size=16)
        batch = next(iter(loader))
        assert batch["pixel_values_videos"].shape == (16, 4, 3, 8, 8)
        assert {name.endswith(".png") for name in batch["clip_name"]} == {True, False}

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_resumed_at_any_batch_it_draws_the_same(self, data, num_workers):
        def loader():
            stream = ClipStream(data, 4, crop_size=8, clips_per_video=2, seed=1)
            return StatefulDataLoader(stream, batch_size=3, num_workers=num_workers)

        whole = loader()
        batches, states, iterator = [], [], iter(whole)
        for _ in range(12):
            states.append(whole.state_dict())
            batches.append(next(iterator))
        assert len({name for batch in batches for name in batch["clip_name"]}) > 8
        for stop in (1, 4, 7):
            resumed = loader()
            resumed.load_state_dict(states[stop])
            for batch, again in zip(batches[stop:], resumed):
                assert batch["clip_name"] == again["clip_name"]
                assert torch.equal(batch["pixel_values_videos"], again["pixel_values_videos"])

    @pytest.mark.parametrize("readers", [1, 5])
    @pytest.mark.parametrize("kind", ["files", "parquet"])
    def test_a_source_with_fewer_rows_than_readers_keeps_its_share_for_each(self, data, tmp_path, kind, readers):
        """Two images, weight a half: as many for every reader, and each of the two."""
        rows = [{"image": {"bytes": Path(data[1].path, f"{i}.png").read_bytes(), "path": f"{i}.png"}} for i in (2, 3)]
        if kind == "files":
            for row in rows:
                (tmp_path / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        else:
            write_shards(rows, tmp_path / "out", Features({"image": Image(decode=False)}), num_shards=1)
        mixed = [DataSource(str(tmp_path / ("out" if kind == "parquet" else ""))), DataSource(data[1].path)]
        for rank in range(readers):
            stream = ClipStream(mixed, 2, transform=raw, rank=rank, world_size=readers)
            clips = [clip for clip in itertools.islice(stream, 30) if clip["clip_name"].startswith(str(tmp_path))]
            assert 4 <= len(clips) <= 26  # 15, and 4 deviations
            assert {clip["pixel_values_videos"].unique().item() for clip in clips} == {80, 120}

    def test_readers_that_are_more_than_rows_resume_exactly(self, data):
        def stream():
            return ClipStream(data[1].path + "/[01].png", 2, transform=raw, rank=3, world_size=5, clips_per_video=2)

        whole = stream()
        clips = iter(whole)
        for _ in range(5):
            next(clips)
        resumed = stream()
        resumed.load_state_dict(whole.state_dict())
        assert [key(clip) for clip in itertools.islice(resumed, 8)] == [key(next(clips)) for _ in range(8)]

    def test_rows_that_readers_share_are_read_once_an_epoch(self, data):
        for epochs in (1, 2, 3):
            names = [
                clip["clip_name"]
                for rank in range(4)
                for clip in ClipStream(
                    data[1].path + "/[012].png", 2, transform=raw, rank=rank, world_size=4, epochs=epochs
                )
            ]
            assert len(names) == 3 * epochs and all(names.count(name) == epochs for name in names)

    def test_a_source_without_a_row_that_reads_is_refused_by_readers_that_share_it(self, tmp_path):
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"No clip could be read.*no image|No clip could be read.*2 skipped"):
            next(iter(ClipStream(tmp_path, 2, transform=raw, rank=1, world_size=5)))

    @pytest.mark.parametrize(
        ("sources", "message"),
        [
            ([], "no data source"),
            ([DataSource("x", 0.0)], "weight of 'x' is 0.0"),
            ([DataSource("x", float("inf"))], "weight of 'x' is inf"),
            ([DataSource("nowhere")], "no data at"),
        ],
    )
    def test_bad_sources_are_refused(self, sources, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ClipStream(sources, 4, crop_size=8)


class TestCollator:
    def test_masks_come_from_the_clips(self, shards):
        clips = list(ClipStream(shards, 4, crop_size=16, epochs=1))
        collate = MaskCollator([FutureMask(0.5), FutureMask(0.5)], patch_size=8, seed=1)
        batch, again = collate(clips[:3]), collate(clips[:3])
        assert sorted(batch) == ["context_mask", "pixel_values_videos", "target_mask"]
        assert batch["pixel_values_videos"].shape == (3, 4, 3, 16, 16)
        assert [mask.shape for mask in batch["context_mask"]] == [(3, 4), (3, 4)]
        for name in ("context_mask", "target_mask"):
            assert all(torch.equal(one, two) for one, two in zip(batch[name], again[name]))

    @pytest.mark.parametrize(("frames", "size"), [(1, 16), (4, 7)])
    def test_clips_smaller_than_a_token_name_the_settings(self, frames, size):
        clip = {"pixel_values_videos": torch.zeros(frames, 3, size, size), "seed": 5}
        with pytest.raises(ValueError, match=f"of {frames} frames of {size} x {size} .* frames_per_clip or crop_size"):
            MaskCollator([FutureMask(0.5)], patch_size=8)([clip])

    def test_seed_and_clips_change_the_masks(self):
        def sampler(batch_size, grid, generator):
            sampled = torch.randint(1000, (batch_size, 2), generator=generator)
            return sampled, sampled

        clip = {"pixel_values_videos": torch.zeros(2, 3, 8, 8), "seed": 5}
        sums = {
            MaskCollator([sampler], 8, seed=seed)([{**clip, "seed": clip_seed}])["context_mask"][0].sum().item()
            for seed, clip_seed in [(0, 5), (1, 5), (0, 6)]
        }
        assert len(sums) == 3
