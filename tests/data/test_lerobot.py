"""LeRobot datasets, written by LeRobot (see make_lerobot_fixture.py): frame, state and action of the same sample.

What frame t of episode e shows is 20 + 16 t + 4 e, its state is (e, t), its action (100 e + t, -t).
"""

import json
import shutil
from pathlib import Path

import av
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vjepa2_hf.data.episodes import episode_ids, read_episodes
from vjepa2_hf.data.feature_cache import data_fingerprint
from vjepa2_hf.data.lerobot import LeRobotDataset, find_info, open_lerobot


FIXTURES = Path(__file__).parents[1] / "fixtures"
VIDEOS, IMAGES = FIXTURES / "lerobot_v3", FIXTURES / "lerobot_v3_images"
LENGTHS = [7, 5, 11, 6]


def shown(frames: np.ndarray, channel: int = 1) -> np.ndarray:
    """The mean of a channel of each frame."""
    return frames[..., channel].mean((1, 2))


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(VIDEOS, tmp_path / "copy"))


class TestAlignment:
    @pytest.mark.parametrize(("camera", "width"), [("observation.images.front", 64), ("wrist", 80)])
    def test_frames_states_and_actions_are_of_the_same_sample(self, camera, width):
        episodes = list(read_episodes(VIDEOS, camera=camera))
        assert [len(episode["frames"]) for episode in episodes] == LENGTHS
        for e, episode in enumerate(episodes):
            t = np.arange(LENGTHS[e])
            assert episode["frames"].shape[1:] == (64, width, 3) and episode["frames"].dtype == np.uint8
            # AV1 keeps a value within 3; a frame's neighbours in the file are 16 away or more
            assert np.abs(shown(episode["frames"]) - (20 + 16 * t + 4 * e)).max() < 4
            assert episode["proprio_states"].tolist() == [[e, i] for i in t]
            assert episode["actions"].tolist() == [[100 * e + i, -i] for i in t[:-1]]  # the last one is dropped
            assert episode["rewards"].tolist() == [10 * e + i for i in t[:-1]]
            assert episode["actions"].dtype == episode["proprio_states"].dtype == np.float32
            assert episode["episode_id"] == f"episode_{e:06d}" and episode["fps"] == 30
            assert episode["task"] == ("push the block" if e % 2 else "pull the block")

    def test_ids_come_without_reading_frames(self, monkeypatch):
        monkeypatch.setattr(LeRobotDataset, "_frames", lambda *_: pytest.fail("frames were read"))
        assert list(episode_ids(VIDEOS, camera="front")) == [f"episode_{e:06d}" for e in range(len(LENGTHS))]

    def test_the_fixture_is_av1_with_several_episodes_in_a_file(self):
        files = sorted(VIDEOS.glob("videos/observation.images.front/*/*.mp4"))
        counts = []
        for file in files:
            with av.open(str(file)) as container:
                assert container.streams.video[0].codec_context.name in ("libdav1d", "av1", "libaom-av1")
                counts.append(sum(1 for _ in container.decode(video=0)))
        assert counts == [sum(LENGTHS[:3]), LENGTHS[3]]

    def test_frame_skip_keeps_the_alignment(self):
        episode = list(read_episodes(VIDEOS, camera="front", frame_skip=3))[2]  # 10 steps: three of 3, one dropped
        assert np.abs(shown(episode["frames"]) - (28 + 16 * np.array([0, 3, 6, 9]))).max() < 2.5
        assert episode["proprio_states"][:, 1].tolist() == [0, 3, 6, 9]
        assert episode["actions"][1].tolist() == [203, -3, 204, -4, 205, -5]
        assert episode["rewards"].tolist() == [20 + 21 + 22, 23 + 24 + 25, 26 + 27 + 28]
        assert episode["fps"] == 10

    def test_pictures_in_the_parquet_files_are_read_too(self):
        episodes = list(read_episodes(IMAGES))
        assert [len(episode["frames"]) for episode in episodes] == LENGTHS[:2]
        for e, episode in enumerate(episodes):
            assert shown(episode["frames"]).tolist() == [20 + 16 * t + 4 * e for t in range(LENGTHS[e])]
            assert episode["proprio_states"] is None and episode["rewards"] is None

    def test_unwanted_episodes_are_not_read(self, copy):
        (copy / "data/chunk-000/file-000.parquet").unlink()  # episodes 0, 1 and 2
        asked = []
        found = read_episodes(copy, camera="front", wanted=lambda name: asked.append(name) or name == "episode_000003")
        assert [episode["episode_id"] for episode in found] == ["episode_000003"]
        assert asked == [f"episode_{e:06d}" for e in range(4)]


class TestCameras:
    def test_several_cameras_are_named_when_none_is_chosen(self):
        with pytest.raises(ValueError, match="observation.images.front, observation.images.wrist.; name one of them"):
            next(read_episodes(VIDEOS))

    def test_unknown_camera_is_refused_with_the_known_ones(self):
        with pytest.raises(ValueError, match="camera='left' selects none of .*observation.images.front, observation"):
            LeRobotDataset(VIDEOS, "left")

    def test_only_camera_needs_no_name(self):
        assert LeRobotDataset(IMAGES).camera == "observation.image"

    def test_dataset_without_camera_is_refused(self, copy):
        change_info(copy, lambda info: [info["features"].pop(f"observation.images.{c}") for c in ("front", "wrist")])
        with pytest.raises(ValueError, match="selects none of the cameras .* .there is none."):
            LeRobotDataset(copy)


def change_info(folder: Path, change) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    change(info)
    (folder / "meta/info.json").write_text(json.dumps(info))


def rewrite(file: Path, change) -> None:
    """Applies a change to the columns, a dict of lists, of a parquet file."""
    table = pq.read_table(file)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), file)


class TestBrokenData:
    def test_video_that_does_not_decode_costs_its_episodes_alone(self, copy, caplog):
        (copy / "videos/observation.images.front/chunk-000/file-000.mp4").write_bytes(b"no video")
        found = [episode["episode_id"] for episode in read_episodes(copy, camera="front")]
        assert found == ["episode_000003"]
        assert "skipped episode_000000" in caplog.text and "skipped episode_000002" in caplog.text

    @pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PAR1")])
    def test_data_file_that_does_not_read_costs_its_episodes_alone(self, copy, caplog, damage):
        damage(copy / "data/chunk-000/file-000.parquet")
        found = [episode["episode_id"] for episode in read_episodes(copy, camera="front")]
        assert found == ["episode_000003"]
        assert "skipped episode_000001" in caplog.text

    def test_times_without_a_frame_are_not_filled_with_the_nearest(self, copy, caplog):
        def shift(columns):
            columns["videos/observation.images.front/from_timestamp"] = [0.5]  # its 6 frames end at 0.2 s

        rewrite(copy / "meta/episodes/chunk-000/file-001.parquet", shift)
        found = [episode["episode_id"] for episode in read_episodes(copy, camera="front")]
        assert found == ["episode_000000", "episode_000001", "episode_000002"]
        assert "episode_000003" in caplog.text and "lacks frames at some times" in caplog.text

    def test_two_samples_never_share_a_frame(self, copy, caplog):
        def crowd(columns):
            columns["timestamp"] = [t / 2 for t in columns["timestamp"]]

        rewrite(copy / "data/chunk-000/file-001.parquet", crowd)
        assert len(list(read_episodes(copy, camera="front"))) == 3
        assert "episode_000003" in caplog.text

    def test_missing_samples_are_noticed(self, copy, caplog):
        def cut(columns):
            for name in columns:
                columns[name] = columns[name][:-1]

        rewrite(copy / "data/chunk-000/file-001.parquet", cut)
        assert len(list(read_episodes(copy, camera="front"))) == 3
        assert "holds 5 of its 6 frames" in caplog.text

    def test_action_that_is_not_finite_is_refused_with_the_episodes_name(self, copy):
        def spoil(columns):
            columns["action"][1] = [float("nan"), 0.0]

        rewrite(copy / "data/chunk-000/file-001.parquet", spoil)
        with pytest.raises(ValueError, match="episode_000003 has actions that are not finite"):
            list(read_episodes(copy, camera="front"))

    def test_missing_list_of_episodes_is_an_error_and_not_a_shorter_dataset(self, copy):
        (copy / "meta/episodes/chunk-000/file-001.parquet").unlink()
        with pytest.raises(ValueError, match="1 of the 4 episodes of meta/info.json are missing"):
            list(read_episodes(copy, camera="front"))

    def test_older_version_is_refused_with_the_way_to_convert_it(self, copy):
        change_info(copy, lambda info: info.update(codebase_version="v2.1"))
        with pytest.raises(ValueError, match="version v2.1, but v3 is expected; convert it with"):
            list(read_episodes(copy))

    def test_other_info_json_is_refused(self, copy):
        (copy / "meta/info.json").write_text("[]")
        with pytest.raises(ValueError, match="does not describe a LeRobot dataset"):
            list(read_episodes(copy))

    def test_dataset_without_actions_is_refused(self, copy):
        change_info(copy, lambda info: info["features"].pop("action"))
        with pytest.raises(ValueError, match="has no feature 'action', only"):
            list(read_episodes(copy, camera="front"))


COMMIT = "0123456789" * 4


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[str]:
    """The fixture as the dataset "someone/blocks" in a Hub cache, without network; the files asked for."""
    repository = tmp_path / "hub" / "datasets--someone--blocks"
    shutil.copytree(VIDEOS, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked, download = [], huggingface_hub.hf_hub_download

    def recorded(repo_id, filename, **kwargs):
        asked.append((filename, kwargs.get("revision")))
        return download(repo_id, filename, **kwargs)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", recorded)
    return asked


class TestHub:
    def test_dataset_of_the_hub_is_read_file_by_file_from_one_commit(self, hub):
        episodes = list(read_episodes("someone/blocks", camera="front", max_episodes=3))
        assert [len(episode["frames"]) for episode in episodes] == LENGTHS[:3]
        assert LeRobotDataset("someone/blocks", "front").revision == COMMIT
        files = [name for name, revision in hub if revision == COMMIT]
        assert files == [
            "meta/episodes/chunk-000/file-000.parquet",
            "data/chunk-000/file-000.parquet",
            "videos/observation.images.front/chunk-000/file-000.mp4",
        ]  # and not the second files, nor the other camera's
        assert {name for name, revision in hub if revision is None} == {"meta/info.json"}
        assert COMMIT in find_info("someone/blocks")

    def test_fingerprint_of_a_dataset_of_the_hub_is_that_of_its_commit(self, hub, tmp_path):
        first = data_fingerprint("someone/blocks")
        assert data_fingerprint("someone/blocks") == first
        repository, other = tmp_path / "hub" / "datasets--someone--blocks", COMMIT[::-1]
        (repository / "snapshots" / COMMIT).rename(repository / "snapshots" / other)
        (repository / "refs" / "main").write_text(other)
        assert data_fingerprint("someone/blocks") != first

    def test_dataset_of_the_hub_that_is_not_there_is_told_in_one_sentence(self, hub):
        assert open_lerobot("someone/else") is None
        with pytest.raises(FileNotFoundError, match="There is no data at 'someone/else'"):
            next(read_episodes("someone/else"))


def test_folder_of_something_else_is_no_lerobot_dataset(tmp_path):
    assert open_lerobot(tmp_path) is None
    assert open_lerobot(f"{tmp_path.name}/not/there") is None
