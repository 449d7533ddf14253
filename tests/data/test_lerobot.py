"""LeRobot datasets, written by LeRobot (see make_lerobot_fixture.py): frame, state and action of the same sample.

What frame t of episode e shows is 20 + 16 t + 4 e, its state is (e, t), its action (100 e + t, -t).
"""

import io
import json
import shutil
from pathlib import Path

import av
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vjepa2_hf.data.episodes import episode_ids, read_episodes
from vjepa2_hf.data.feature_cache import data_fingerprint
from vjepa2_hf.data.lerobot import LeRobotDataset, find_info, open_lerobot


FIXTURES = Path(__file__).parents[1] / "fixtures"
VIDEOS, IMAGES = FIXTURES / "lerobot_v3", FIXTURES / "lerobot_v3_images"
CAMERAS, WRIST = FIXTURES / "lerobot_v3_cameras", "observation.images.wrist"
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


class TestSeveralCameras:
    """lerobot_v3_cameras: the wrist camera is larger, has 10 frames per second, not 30, and episode 1 lacks it."""

    def test_each_row_has_the_nearest_frame_of_each_camera(self):
        episodes = list(read_episodes(CAMERAS, camera=["front", "wrist"]))
        assert [episode["episode_id"] for episode in episodes] == [f"episode_{e:06d}" for e in (0, 2, 3)]
        for e, episode in zip((0, 2, 3), episodes):
            front, wrist = episode["frames"]["front"], episode["frames"]["wrist"]
            assert front.shape[1:] == (64, 64, 3) and wrist.shape[1:] == (64, 80, 3)
            t = np.arange(LENGTHS[e])
            nearest = np.minimum(np.round(t / 3) * 3, 3 * ((LENGTHS[e] - 1) // 3))  # never of the next episode
            assert np.abs(shown(front) - (20 + 16 * t + 4 * e)).max() < 4
            assert np.abs(shown(wrist) - (20 + 16 * nearest + 4 * e)).max() < 4
            assert episode["proprio_states"].tolist() == [[e, i] for i in t]

    def test_the_slow_camera_alone_and_a_skip(self):
        (episode,) = read_episodes(CAMERAS, 3, camera="wrist", wanted=lambda name: name == "episode_000002")
        assert np.abs(shown(episode["frames"]) - (28 + 16 * np.array([0, 3, 6, 9]))).max() < 4

    def test_an_episode_without_a_camera_is_listed_and_skipped(self):
        skipped = {}
        list(read_episodes(CAMERAS, camera=["front", "wrist"], skipped=skipped))
        assert skipped == {"episode_000001": "it has no video of the camera 'observation.images.wrist'"}
        assert len(list(read_episodes(CAMERAS, camera="front"))) == 4

    def test_cameras_that_lack_frames_are_skipped(self, tmp_path):
        root = Path(shutil.copytree(CAMERAS, tmp_path / "copy"))
        change_info(root, lambda info: info["features"][WRIST]["info"].pop("video.fps"))  # 30, as the rows
        skipped = {}
        with pytest.raises(ValueError, match="lacks frames at some times"):
            list(read_episodes(root, camera=["front", "wrist"], skipped=skipped))
        assert len(skipped) == 4

    def test_a_camera_is_named_once(self):
        with pytest.raises(ValueError, match="observation.images.wrist twice, the second time as 'wrist'|once"):
            LeRobotDataset(CAMERAS, ["observation.images.wrist", "wrist"])
        with pytest.raises(ValueError, match=r"camera is \['wrist', 'wrist'\]; expected each name once"):
            next(read_episodes(CAMERAS, camera=["wrist", "wrist"]))
        with pytest.raises(ValueError, match=r"camera is \[\]; expected a name, a list of names, or None"):
            next(read_episodes(CAMERAS, camera=[]))


class TestColumns:
    def test_actions_in_the_plural_are_understood(self, copy):
        change_info(copy, lambda info: info["features"].update(actions=info["features"].pop("action")))
        for file in copy.glob("data/*/*.parquet"):
            rewrite(file, lambda columns: columns.update(actions=columns.pop("action")))
        assert next(read_episodes(copy, camera="front"))["actions"].tolist() == [[i, -i] for i in range(6)]

    def test_parts_of_an_action_are_joined_in_the_order_of_the_features(self, copy):
        def split(info):
            whole = info["features"].pop("action")
            text = {"dtype": "string", "shape": [1]}
            info["features"].update({"action.gripper": whole, "action.arm": whole, "action.note": text})

        def split_rows(columns):
            whole = columns.pop("action")
            columns["action.gripper"] = [row[1] for row in whole]
            columns["action.arm"] = [[row[0], 7.0] for row in whole]

        change_info(copy, split)
        for file in copy.glob("data/*/*.parquet"):
            rewrite(file, split_rows)
        assert next(read_episodes(copy, camera="front"))["actions"].tolist() == [[-i, i, 7] for i in range(6)]

    def test_named_columns_replace_the_usual_ones(self):
        columns = {"actions": ["observation.state", "action"], "proprio_states": ["frame_index"]}
        episode = list(read_episodes(VIDEOS, camera="front", columns=columns))[1]
        assert episode["actions"].tolist() == [[1, i, 100 + i, -i] for i in range(4)]
        assert episode["proprio_states"].tolist() == [[i] for i in range(5)]
        with pytest.raises(ValueError, match="no feature 'state' of numbers for proprio_states; its"):
            LeRobotDataset(VIDEOS, "front", {"proprio_states": ["state"]})
        with pytest.raises(ValueError, match="no feature 'observation.images.front' of numbers for actions"):
            LeRobotDataset(VIDEOS, "front", {"actions": ["observation.images.front"]})


class TestCameras:
    def test_several_cameras_are_named_when_none_is_chosen(self):
        with pytest.raises(ValueError, match="observation.images.front, observation.images.wrist.; name one of them"):
            next(read_episodes(VIDEOS))

    def test_unknown_camera_is_refused_with_the_known_ones(self):
        with pytest.raises(ValueError, match="camera='left' selects none of .*observation.images.front, observation"):
            LeRobotDataset(VIDEOS, "left")

    def test_only_camera_needs_no_name(self):
        assert LeRobotDataset(IMAGES).chosen == {"": "observation.image"}

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

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("action", [float("nan"), 0.0], "actions that are not finite"),
            ("action", None, "its action has rows without a value"),
            ("action", [0.0], "actions whose rows differ in size"),
            ("timestamp", None, "its timestamps are not finite numbers"),
        ],
    )
    def test_bad_row_costs_its_episode_alone(self, copy, column, value, reason):
        def spoil(columns):
            columns[column][1] = value

        rewrite(copy / "data/chunk-000/file-001.parquet", spoil)
        skipped = {}
        assert len(list(read_episodes(copy, camera="front", skipped=skipped))) == 3
        assert list(skipped) == ["episode_000003"] and reason in skipped["episode_000003"]

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("data/chunk_index", None, "its data/chunk_index is None"),
            ("data/file_index", 99, "there is no file "),
            ("length", None, "its length is None"),
            ("videos/observation.images.front/file_index", None, "file_index is None"),
            ("videos/observation.images.front/from_timestamp", float("nan"), "its timestamps are not finite"),
        ],
    )
    def test_bad_entry_of_an_episode_costs_it_alone(self, copy, column, value, reason):
        rewrite(copy / "meta/episodes/chunk-000/file-001.parquet", lambda columns: columns.update({column: [value]}))
        skipped = {}
        assert len(list(read_episodes(copy, camera="front", skipped=skipped))) == 3
        assert reason in skipped["episode_000003"]

    def test_missing_column_of_a_data_file_costs_its_episodes_alone(self, copy):
        rewrite(copy / "data/chunk-000/file-001.parquet", lambda columns: columns.pop("action"))
        skipped = {}
        assert len(list(read_episodes(copy, camera="front", skipped=skipped))) == 3
        assert skipped == {"episode_000003": "data/chunk-000/file-001.parquet has no column action"}

    def test_one_task_as_text_is_not_spelled(self, copy):
        rewrite(copy / "meta/episodes/chunk-000/file-001.parquet", lambda columns: columns.update(tasks=["lift it"]))
        assert [e["task"] for e in read_episodes(copy, camera="front")][3] == "lift it"

    def test_image_of_another_size_costs_its_episode(self, tmp_path):
        folder = Path(shutil.copytree(IMAGES, tmp_path / "images"))
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (5, 7)).save(buffer, "PNG")

        def resize(columns):
            columns["observation.image"][1]["bytes"] = buffer.getvalue()

        rewrite(folder / "data/chunk-000/file-000.parquet", resize)
        skipped = {}
        assert [e["episode_id"] for e in read_episodes(folder, skipped=skipped)] == ["episode_000001"]
        assert "its images have several sizes: (7, 5, 3), " in skipped["episode_000000"]

    @pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "http://169.254.169.254/x.png"])
    def test_images_outside_of_the_dataset_are_not_read(self, tmp_path, path):
        folder = Path(shutil.copytree(IMAGES, tmp_path / "images"))
        PIL.Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")

        def point(columns):
            columns["observation.image"] = [{"bytes": None, "path": path} for _ in columns["observation.image"]]

        rewrite(folder / "data/chunk-000/file-000.parquet", point)
        with pytest.raises(ValueError, match=f"the image '.*{path[-8:]}' lies outside of"):
            list(read_episodes(folder))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"video_path": None}, "video_path of meta/info.json of .* is None; expected a relative path"),
            ({"video_path": "videos/{episode_chunk:03d}/{video_key}.mp4"}, "which says where the files of 'obs"),
            ({"video_path": "{video_key.__class__}.mp4"}, "video_path of .*expected a relative path"),
            ({"data_path": "/etc/{chunk_index}/{file_index}"}, "leads to '/etc/0/0', which is outside of"),
            ({"data_path": "data/../../{chunk_index}{file_index}"}, "which is outside of"),
            ({"data_path": "data/{chunk_index:01000000000d}"}, "data_path of .*expected a relative path"),
            ({"data_path": 7}, "data_path of .* is 7"),
            ({"fps": 0}, "fps of meta/info.json of .* is 0, but a positive number"),
            ({"fps": float("nan")}, "fps of meta/info.json of .* is nan"),
            ({"fps": "30"}, "fps of meta/info.json of .* is '30'"),
            ({"total_episodes": "4"}, "total_episodes of .* is '4'; expected a whole number"),
            ({"total_episodes": 0}, "total_episodes of .* is 0"),
            ({"total_episodes": True}, "total_episodes of .* is True"),
            ({"chunks_size": 0}, "chunks_size of .* is 0"),
            ({"features": []}, r"features of .* are \[\]; expected a dtype"),
            ({"features": {"action": "float32"}}, "features of .*expected a dtype"),
        ],
    )
    def test_info_that_does_not_fit_is_one_sentence(self, copy, changes, message):
        change_info(copy, lambda info: info.update(changes))
        with pytest.raises(ValueError, match=message):
            list(read_episodes(copy, camera="front"))

    def test_camera_whose_name_leaves_the_dataset_is_refused(self, copy):
        change_info(copy, lambda info: info["features"].update({"../../x": {"dtype": "video", "shape": [1]}}))
        with pytest.raises(ValueError, match="leads to 'videos/../../x/chunk-000/file-000.mp4', which is outside"):
            list(read_episodes(copy, camera="../../x"))

    def test_info_nested_without_end_is_refused(self, copy):
        (copy / "meta/info.json").write_text("[" * 100_000)
        with pytest.raises(ValueError, match="does not describe a LeRobot dataset"):
            list(read_episodes(copy))

    def test_episodes_that_do_not_say_where_the_camera_lies_are_refused(self, copy):
        def drop(columns):
            for name in [name for name in columns if name.startswith("videos/observation.images.front")]:
                del columns[name]

        rewrite(copy / "meta/episodes/chunk-000/file-000.parquet", drop)
        with pytest.raises(ValueError, match="has no videos/observation.images.front/chunk_index.*the camera 'observ"):
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
