"""Episodes from shards: frames, actions and states that belong together, wrong ones named; the split by episode."""

import numpy as np
import pytest
import torch
from builders import numbered_frames, numbers_of
from datasets import Features, List, Value, Video, load_dataset

from vjepa2_hf.data import episodes
from vjepa2_hf.data.cameras import video_features, video_row
from vjepa2_hf.data.episodes import (
    EpisodeSource,
    EpisodeStream,
    episode_ids,
    held_out_of,
    read_episodes,
    split_episodes,
)
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import ReadLimits
from vjepa2_hf.video_processing_vjepa2 import VJepa2VideoProcessor


EPISODE_FEATURES = Features(
    {
        "video": Video(decode=False),
        "actions": List(List(Value("float32"))),
        "proprio_states": List(List(Value("float32"))),
        "fps": Value("float32"),
        "episode_id": Value("string"),
    }
)
REWARD_FEATURES = Features(EPISODE_FEATURES | {"rewards": List(Value("float32")), "task": Value("string")})


def episode(number: int, num_frames: int = 8, **changes) -> dict:
    return {
        "video": {"bytes": encode_video(numbered_frames(num_frames), 10), "path": None},
        "actions": np.arange((num_frames - 1) * 2, dtype=np.float32).reshape(-1, 2),
        "proprio_states": np.arange(num_frames, dtype=np.float32)[:, None],
        "fps": 10.0,
        "episode_id": f"episode-{number}",
        **changes,
    }


def write_two_cameras(folder, **changes):
    """Two episodes of the cameras "front" and "obs/wrist", the negative of the first one and larger; in the second
    one, `changes` of the columns."""
    rows = []
    for number in range(2):
        frames = numbered_frames(8)
        wrist = np.repeat(255 - frames, 2, axis=2)
        videos = {"front": frames, "obs/wrist": wrist}
        videos = {name: {"bytes": encode_video(values, 10), "path": None} for name, values in videos.items()}
        rows.append({**episode(number), **video_row(videos), **(changes if number else {})})
    write_shards(rows, folder, Features({**EPISODE_FEATURES, **video_features(rows[0])}), num_shards=1)
    return folder


class TestCameras:
    def test_a_list_gives_a_dict_and_a_name_gives_an_array(self, tmp_path):
        folder = write_two_cameras(tmp_path / "out")
        for one in read_episodes(folder, 3, camera=["front", "obs/wrist"]):
            assert list(one["frames"]) == ["front", "obs/wrist"] and len(one["actions"]) == 2
            assert numbers_of(one["frames"]["front"]) == numbers_of(255 - one["frames"]["obs/wrist"]) == [0, 3, 6]
        assert numbers_of(next(read_episodes(folder))["frames"]) == list(range(8))
        for name in ("obs/wrist", "wrist"):
            assert numbers_of(255 - next(read_episodes(folder, camera=name))["frames"]) == list(range(8))
        with pytest.raises(ValueError, match="camera='left', but episode episode-0 has the cameras front, obs/wrist"):
            next(read_episodes(folder, camera=["front", "left"]))

    def test_an_episode_without_a_camera_is_listed_and_skipped(self, tmp_path):
        folder, skipped = write_two_cameras(tmp_path / "out", **{"video_obs/wrist": None}), {}
        assert len(list(read_episodes(folder, camera=["front", "wrist"], skipped=skipped))) == 1
        assert skipped == {"episode-1": "it has no video of the camera 'obs/wrist'"}
        assert len(list(read_episodes(folder, camera="front"))) == 2

    def test_cameras_of_different_lengths_are_refused(self, tmp_path):
        short = {"bytes": encode_video(numbered_frames(7), 10), "path": None}
        folder, skipped = write_two_cameras(tmp_path / "out", **{"video_obs/wrist": short}), {}
        assert len(list(read_episodes(folder, camera=["front", "wrist"], skipped=skipped))) == 1
        assert skipped == {"episode-1": "its cameras have different numbers of frames (8 of front, 7 of wrist)"}

    def test_a_further_camera_stays_inside_of_the_data(self, tmp_path):
        (tmp_path / "secret.mp4").write_bytes(encode_video(numbered_frames(8), 10))
        outside = {"bytes": None, "path": str(tmp_path / "secret.mp4")}
        folder, skipped = write_two_cameras(tmp_path / "out", **{"video_obs/wrist": outside}), {}
        assert len(list(read_episodes(folder, camera=["front", "wrist"], skipped=skipped))) == 1
        assert "outside of" in str(skipped)

    def test_a_stream_stacks_the_views(self, tmp_path):
        source = EpisodeSource(str(write_two_cameras(tmp_path / "out")), camera=["front", "wrist"])
        stream = EpisodeStream(source, VJepa2VideoProcessor(size=16, crop_size=16))
        one, _ = stream
        assert one["frames"].shape == (8, 2, 3, 16, 16) and one["frames"].dtype == torch.uint8
        assert (one["frames"][:, 0].int() + one["frames"][:, 1].int() - 255).abs().max() < 12

    def test_the_folder_streams_with_datasets(self, tmp_path):
        rows = load_dataset(str(write_two_cameras(tmp_path / "out")), split="train", streaming=True)
        row = next(iter(rows))
        assert row["cameras"] == ["front", "obs/wrist"] and row["video_obs/wrist"]["bytes"]
        card = (tmp_path / "out/README.md").read_text()
        assert "`video` is the first one; the others are `video_obs/wrist`." in card

    def test_a_list_of_one_is_that_camera(self):
        assert EpisodeSource("a", camera=["front"]) == EpisodeSource("a", camera="front")
        with pytest.raises(ValueError, match="embodiment is -1"):
            EpisodeSource("a", embodiment=-1)


class TestEpisodes:
    def test_episode_comes_back(self, tmp_path):
        write_shards([episode(i) for i in range(5)], tmp_path / "out", EPISODE_FEATURES, num_shards=2)
        found = list(read_episodes(tmp_path / "out"))
        assert sorted(e["episode_id"] for e in found) == [f"episode-{i}" for i in range(5)]
        assert numbers_of(found[0]["frames"]) == list(range(8))
        assert found[0]["actions"].dtype == np.float32 and found[0]["actions"].shape == (7, 2)
        assert found[0]["proprio_states"][:, 0].tolist() == list(range(8))
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

    @pytest.mark.parametrize("done", [(), ("episode-1",)])
    def test_two_episodes_of_one_name_are_refused_also_where_a_cache_continues(self, tmp_path, done):
        write_shards([episode(1), episode(2), episode(1)], tmp_path / "out", EPISODE_FEATURES, num_shards=1)
        stream = EpisodeStream(EpisodeSource(str(tmp_path / "out")), VJepa2VideoProcessor(size=16, crop_size=16))
        stream.done = done
        with pytest.raises(ValueError, match="Two episodes are called 'episode-1'"):
            list(stream)

    def test_episode_of_one_frame_is_skipped_and_named(self, tmp_path, caplog):
        write_shards([episode(0), episode(1, num_frames=1, actions=[])], tmp_path / "out", EPISODE_FEATURES)
        assert [e["episode_id"] for e in read_episodes(tmp_path / "out")] == ["episode-0"]
        assert "skipped episode-1: 1 frames do not fill one step" in caplog.text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"actions": np.zeros((8, 2))}, "actions of shape (8, 2), but 7 rows for 8 frames"),
            ({"actions": np.full((7, 2), np.nan)}, "actions that are not finite"),
            ({"actions": [[1.0], [1.0, 2.0]]}, "actions whose rows differ in size"),
            ({"actions": None}, "it has no actions"),
            ({"actions": []}, "actions of shape (0,), but 7 rows"),
            ({"proprio_states": np.zeros((7, 1))}, "proprio_states of shape (7, 1)"),
            ({"rewards": np.zeros(8)}, "rewards of shape (8, 1)"),
            ({"rewards": [np.inf] * 7}, "rewards that are not finite"),
            ({"fps": np.nan}, "fps is nan, but a positive number"),
            ({"fps": 0.0}, "fps is 0.0, but a positive number"),
            ({"video": None}, "row 1: "),
            ({"video": {"bytes": None, "path": "nowhere.mp4"}}, "There is no video file"),
        ],
    )
    def test_bad_episode_is_skipped_with_the_reason_and_the_others_are_read(self, tmp_path, changes, message):
        features = REWARD_FEATURES if "rewards" in changes else EPISODE_FEATURES
        rows = [{"rewards": None, "task": None, **episode(i, **(changes if i == 1 else {}))} for i in range(3)]
        rows = [{name: row[name] for name in features} for row in rows]
        write_shards(rows, tmp_path / "out", features, num_shards=1)
        skipped = {}
        found = [e["episode_id"] for e in read_episodes(tmp_path / "out", skipped=skipped)]
        assert found == ["episode-0", "episode-2"]
        ((name, reason),) = skipped.items()
        assert name.endswith(("episode-1", "row 1")) and message in f"{name}: {reason}"

    def test_actions_of_another_size_are_refused_as_another_environment(self, tmp_path):
        rows = [episode(0), episode(1, actions=np.zeros((7, 3)))]
        write_shards(rows, tmp_path / "out", EPISODE_FEATURES, num_shards=1)
        with pytest.raises(ValueError, match=r"episode-1 has \(action, proprio, state\) sizes \(3, 1, None\)"):
            list(read_episodes(tmp_path / "out"))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"rewards": 1.0}, "rewards of shape ()"),
            ({"rewards": {"a": 1}}, "no numbers"),
            ({"fps": "fast"}, "'fast'"),
        ],
    )
    def test_column_of_another_kind_costs_its_episode(self, tmp_path, monkeypatch, changes, reason):
        rows = [("a", episode(0)), ("b", episode(1, **changes))]
        write_shards([episode(0)], tmp_path / "out", EPISODE_FEATURES)
        monkeypatch.setattr(episodes, "named_rows", lambda source: iter(rows))
        skipped = {}
        assert len(list(read_episodes(tmp_path / "out", skipped=skipped))) == 1 and reason in skipped["b"]

    def test_video_that_does_not_fit_into_memory_costs_its_episode(self, tmp_path, monkeypatch):
        write_shards([episode(0), episode(1)], tmp_path / "out", EPISODE_FEATURES, num_shards=1)
        frames = episodes.VideoReader.frames
        calls = iter([MemoryError("Unable to allocate 3 GiB"), None])

        def fail_first(self, indices):
            error = next(calls)
            if error is not None:
                raise error
            return frames(self, indices)

        monkeypatch.setattr(episodes.VideoReader, "frames", fail_first)
        skipped = {}
        assert len(list(read_episodes(tmp_path / "out", skipped=skipped))) == 1
        assert skipped == {"episode-0": "it does not fit into memory (Unable to allocate 3 GiB)"}

    def test_limits_reach_the_videos(self, tmp_path):
        write_shards([episode(0)], tmp_path / "out", EPISODE_FEATURES)
        with pytest.raises(ValueError, match="max_frame_pixels=255"):
            list(read_episodes(tmp_path / "out", limits=ReadLimits(max_frame_pixels=255)))

    def test_data_without_actions_is_refused_at_once(self, tmp_path):
        features = Features({k: v for k, v in EPISODE_FEATURES.items() if k != "actions"})
        write_shards([{k: v for k, v in episode(0).items() if k != "actions"}], tmp_path / "out", features)
        with pytest.raises(ValueError, match="has no actions, only .*record it with"):
            list(read_episodes(tmp_path / "out"))

    def test_frames_alone_need_no_actions_and_read_none(self, tmp_path):
        features = Features({k: v for k, v in EPISODE_FEATURES.items() if k == "video"})
        write_shards([{"video": episode(0)["video"]}], tmp_path / "plain", features)
        write_shards([episode(0)], tmp_path / "full", EPISODE_FEATURES)
        plain, full = (
            next(read_episodes(tmp_path / name, frame_skip=2, frames_only=True)) for name in ("plain", "full")
        )
        assert np.array_equal(plain["frames"], full["frames"])
        assert np.array_equal(full["frames"], next(read_episodes(tmp_path / "full", frame_skip=2))["frames"])
        for one in (plain, full):
            assert [one[name] for name in ("actions", "proprio_states", "states", "rewards")] == [None] * 4

    def test_proprio_states_are_optional(self, tmp_path):
        features = Features({k: v for k, v in EPISODE_FEATURES.items() if k != "proprio_states"})
        row = {k: v for k, v in episode(0).items() if k != "proprio_states"}
        write_shards([row], tmp_path / "out", features)
        assert next(read_episodes(tmp_path / "out"))["proprio_states"] is None

    def test_states_of_another_environment_are_refused(self, tmp_path):
        features = Features(EPISODE_FEATURES | {"states": EPISODE_FEATURES["actions"]})
        states = [np.zeros((8, 4)), None, np.zeros((8, 2))]  # an episode without is as good as the others
        write_shards([episode(i, states=one) for i, one in enumerate(states)], tmp_path / "out", features)
        found = read_episodes(tmp_path / "out")
        assert [next(found)["episode_id"] for _ in range(2)] == ["episode-0", "episode-1"]
        with pytest.raises(
            ValueError, match=r"episode-2 has .* sizes \(2, 1, 2\), but the ones before had \(2, 1, 4\)"
        ):
            next(found)

    def test_ids_come_without_decoding(self, tmp_path):
        rows = [episode(i, video={"bytes": b"x", "path": None}) for i in range(3)]
        write_shards(rows, tmp_path / "out", EPISODE_FEATURES, num_shards=2)
        assert sorted(episode_ids(tmp_path / "out")) == [f"episode-{i}" for i in range(3)]

    def test_rewards_and_task_come_along(self, tmp_path):
        row = episode(0, rewards=np.arange(7), task="push")
        write_shards([row], tmp_path / "out", REWARD_FEATURES)
        (whole,), (joined,) = read_episodes(tmp_path / "out"), read_episodes(tmp_path / "out", frame_skip=3)
        assert whole["rewards"].tolist() == list(range(7)) and whole["rewards"].dtype == np.float32
        assert joined["rewards"].tolist() == [0 + 1 + 2, 3 + 4 + 5]
        assert whole["task"] == "push"

    def test_unwanted_episodes_are_not_decoded(self, tmp_path, caplog):
        rows = [episode(0, video={"bytes": b"x", "path": None}), episode(1), episode(2)]
        write_shards(rows, tmp_path / "out", EPISODE_FEATURES, num_shards=1)
        found = read_episodes(tmp_path / "out", wanted=lambda name: name == "episode-2")
        assert [e["episode_id"] for e in found] == ["episode-2"]
        assert "episode-0" not in caplog.text
        assert list(read_episodes(tmp_path / "out", wanted=lambda name: False)) == []

    def test_episodes_without_id_keep_their_name_when_the_data_moves(self, tmp_path):
        features = Features({k: v for k, v in EPISODE_FEATURES.items() if k != "episode_id"})
        rows = [{k: v for k, v in episode(i).items() if k != "episode_id"} for i in range(3)]
        write_shards(rows, tmp_path / "here", features, num_shards=2)
        before = [e["episode_id"] for e in read_episodes(tmp_path / "here")]
        (tmp_path / "here").rename(tmp_path / "there")
        assert [e["episode_id"] for e in read_episodes(tmp_path / "there")] == before
        assert len(set(before)) == 3

    def test_camera_of_plain_shards_is_refused(self, tmp_path):
        write_shards([episode(0)], tmp_path / "out", EPISODE_FEATURES)
        with pytest.raises(ValueError, match="camera='front', but episode episode-0 has one camera without"):
            next(read_episodes(tmp_path / "out", camera="front"))

    @pytest.mark.parametrize("settings", [{"frame_skip": 0}, {"max_episodes": 0}, {"frame_skip": "2"}])
    def test_settings_below_one_are_refused(self, tmp_path, settings):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            next(read_episodes(tmp_path, **settings))

    def test_no_episode_is_refused(self, tmp_path):
        write_shards([episode(0, video={"bytes": b"x", "path": None})], tmp_path / "out", EPISODE_FEATURES)
        with pytest.raises(ValueError, match=r"No episode could be read.*episode-0"):
            list(read_episodes(tmp_path / "out"))


class TestSplit:
    def test_more_episodes_or_another_order_move_nobody(self):
        ids = [f"episode-{i}" for i in range(300)]
        sides = dict(zip(ids, split_episodes(ids, 0.2)))
        more = [f"new-{i}" for i in range(50)] + ids[::-1]
        assert {name: side for name, side in zip(more, split_episodes(more, 0.2)) if name in sides} == sides

    def test_share_held_out_is_the_fraction(self):
        ids = [f"{seed}-{i:06d}" for seed in range(4) for i in range(2500)]  # as record_episodes.py names them
        held_out = split_episodes(ids, 0.1)
        assert abs(sum(held_out) - 1000) < 150  # five deviations
        assert not any(split_episodes(ids, 0.0)) and all(split_episodes(ids, 1.0))

    def test_larger_fraction_holds_out_the_same_and_more(self):
        ids = [f"episode-{i}" for i in range(300)]
        small, large = split_episodes(ids, 0.1), split_episodes(ids, 0.3)
        assert all(b for a, b in zip(small, large) if a) and sum(large) > sum(small)

    def test_split_is_the_same_on_every_machine_and_in_every_process(self):
        ids = ["a", "b", "c", "d", "e", "f"]  # sha256 begins ca 3e 2e 18 3f 25
        assert split_episodes(ids, 0.2) == [False, False, True, True, False, True]

    @pytest.mark.parametrize("order", [1, -1])
    def test_neither_side_of_several_episodes_is_empty(self, order):
        ids = ["a", "b", "e", "f"][::order]  # ca 3e 3f 25: the smallest hash is that of f, the largest that of a
        assert [name for name, out in zip(ids, split_episodes(ids, 0.07)) if out] == ["f"]
        assert [name for name, out in zip(ids, split_episodes(ids, 0.95)) if not out] == ["a"]
        assert not any(split_episodes(ids, 0.0)) and all(split_episodes(ids, 1.0))

    def test_episode_that_filled_an_empty_side_goes_back_when_more_data_fills_it(self):
        ids = ["a", "b", "e", "f"]
        assert split_episodes([*ids, "d"], 0.07) == [False] * 4 + [True]  # 18: above the share, below f's

    def test_one_episode_falls_where_its_hash_says(self):
        assert split_episodes(["f"], 0.07) == [False] and split_episodes(["a"], 0.95) == [True]
        assert split_episodes(["f", "f"], 0.07) == [False, False]

    def test_ids_are_read_until_both_sides_have_one(self):
        ids = iter("abcdef")
        is_held_out = held_out_of(ids, 0.2)
        assert list(ids) == list("def") and is_held_out("c") and not is_held_out("b")
        untouched = iter("abcdef")
        assert held_out_of(untouched, 1.0)("a") and len(list(untouched)) == 6

    def test_fraction_that_is_no_share_is_refused(self):
        with pytest.raises(ValueError, match="validation_fraction is 20"):
            split_episodes(["a"], 20)
