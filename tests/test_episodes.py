"""Episodes from shards: frames, actions and states that belong together, and wrong ones named."""

import numpy as np
import pytest
from datasets import Features, List, Value, Video
from numbered_videos import numbered_frames, numbers_of

from vjepa2_hf.episodes import read_episodes
from vjepa2_hf.shards import write_shards
from vjepa2_hf.video_io import encode_video


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
