"""HDF5 and npz episodes become shards, every frame with its action; invalid ones are listed."""

import io
import sys
from pathlib import Path

import import_episodes
import numpy as np
import PIL.Image
import pytest
from builders import numbered_frames, numbers_of

from vjepa2_hf.data import importers
from vjepa2_hf.data.episodes import EpisodeSource, read_episodes
from vjepa2_hf.data.shards import ShardSource
from vjepa2_hf.training.cached_windows import as_shards
from vjepa2_hf.video_io import VideoReader


h5py = pytest.importorskip("h5py")


def arrays(number: int, num_frames: int = 6, num_actions: int | None = None) -> dict[str, np.ndarray]:
    """Actions (10 number + t, -t) and states (number, t, 0) beside frames that tell t."""
    t = np.arange(num_frames if num_actions is None else num_actions, dtype=np.float64)
    states = np.stack([np.full(num_frames, number), np.arange(num_frames), np.zeros(num_frames)], axis=1)
    return {
        "frames": numbered_frames(num_frames),
        "actions": np.stack([10 * number + t, -t], axis=1),
        "states": states,
        "rewards": 100 + t,
    }


def write_robomimic(path: Path, demos: list[int]) -> None:
    """Several episodes a file; two cameras."""
    with h5py.File(path, "w") as file:
        for number in demos:
            values, group = arrays(number, 5 + number), file.create_group(f"data/demo_{number}")
            group["obs/agentview_image"] = values["frames"]
            group["obs/robot0_eye_in_hand_image"] = 255 - values["frames"]
            group["obs/robot0_eef_pos"] = values["states"]
            group["obs/robot0_gripper_qpos"] = values["states"][:, :1]
            group["actions"], group["rewards"] = values["actions"], values["rewards"]
            group["states"] = np.zeros((len(values["frames"]), 40))  # the simulator's


def jpeg(frame: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    PIL.Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write_act(path: Path, number: int, compressed: bool) -> None:
    """One episode a file; compressed pictures filled up with zeros to the longest."""
    values = arrays(number)
    with h5py.File(path, "w") as file:
        pictures = values["frames"]
        if compressed:
            encoded = [jpeg(frame) for frame in pictures]
            pictures = np.zeros((len(encoded), max(map(len, encoded)) + 7), np.uint8)
            for row, data in zip(pictures, encoded):
                row[: len(data)] = data
            file["compress_len"] = np.array([[len(data) for data in encoded]])
        file["observations/images/top"] = pictures
        file["observations/qpos"], file["action"] = values["states"], values["actions"]


def write_npz(path: Path, number: int, num_actions: int | None = None, **changes) -> None:
    values = arrays(number, num_actions=num_actions)
    values = {"image": values["frames"], "action": values["actions"], "proprio": values["states"]} | changes
    np.savez_compressed(path, **{name: value for name, value in values.items() if value is not None})


def run(source: Path, out: Path, *options: str) -> dict[str, dict]:
    import_episodes.main([str(source), str(out), "--fps", "10", *options])
    return {episode["episode_id"]: episode for episode in read_episodes(out)}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    return folder


class TestLayouts:
    def test_robomimic_file_gives_an_episode_a_demo(self, source, tmp_path):
        write_robomimic(source / "low.hdf5", [1, 2, 10])
        found = run(
            source, tmp_path / "out", "--frames_key", "obs/agentview_image",
            "--states_key", "obs/robot0_eef_pos", "obs/robot0_gripper_qpos",
        )  # fmt: skip
        assert set(found) == {f"low.hdf5/data/demo_{number}" for number in (1, 2, 10)}
        for number in (1, 2, 10):
            episode, t = found[f"low.hdf5/data/demo_{number}"], np.arange(5 + number)
            assert numbers_of(episode["frames"]) == t.tolist()
            assert episode["actions"].tolist() == [[10 * number + i, -i] for i in t[:-1]]
            assert episode["proprio_states"].tolist() == [[number, i, 0, number] for i in t]
            assert episode["rewards"].tolist() == [100 + i for i in t[:-1]]
            assert episode["fps"] == 10

    def test_several_cameras_give_a_video_each(self, source, tmp_path):
        write_robomimic(source / "low.hdf5", [1, 2])
        with h5py.File(source / "low.hdf5", "a") as file:
            del file["data/demo_2/obs/robot0_eye_in_hand_image"]
        keys = ["obs/agentview_image", "obs/robot0_eye_in_hand_image"]
        options = ["--fps", "10", "--frames_key", *keys]
        import_episodes.main([str(source), str(tmp_path / "out"), *options])
        (episode,) = read_episodes(tmp_path / "out", camera=["agentview_image", "robot0_eye_in_hand_image"])
        front, hand = episode["frames"].values()
        assert numbers_of(front) == numbers_of(255 - hand) == list(range(6)) and len(episode["actions"]) == 5
        assert (
            "low.hdf5/data/demo_2\tit has no data/demo_2/obs/robot0_eye" in (tmp_path / "out/skipped.txt").read_text()
        )

        described = EpisodeSource(str(source), camera=keys, fps=10)
        shards = as_shards(described, tmp_path / "cache")
        assert shards.camera == keys and len(list(read_episodes(shards.path, camera=shards.camera))) == 1

    def test_several_cameras_are_named_and_none_is_taken_by_chance(self, source, tmp_path, capfd):
        write_robomimic(source / "low.hdf5", [1])
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        told = capfd.readouterr().err
        assert "obs/agentview_image, obs/robot0_eye_in_hand_image; name one with --frames_key" in told

    @pytest.mark.parametrize("compressed", [False, True])
    def test_act_files_are_episodes(self, source, tmp_path, compressed):
        for number in (2, 3):
            write_act(source / "more" / f"episode_{number}.h5", number, compressed)
        found = run(source, tmp_path / "out")
        assert set(found) == {"more/episode_2.h5", "more/episode_3.h5"}
        episode = found["more/episode_3.h5"]
        assert numbers_of(episode["frames"]) == list(range(6))
        assert episode["actions"][:, 0].tolist() == [30, 31, 32, 33, 34]
        assert episode["proprio_states"][:, 1].tolist() == list(range(6))
        assert episode["rewards"] is None

    @pytest.mark.parametrize(
        ("options", "first"), [([], 20), (["--spare_action", "last"], 20), (["--spare_action", "first"], 21)]
    )
    def test_spare_action_is_the_one_that_was_named(self, source, tmp_path, options, first):
        write_npz(source / "a.npz", 2)
        episode = run(source, tmp_path / "out", *options)["a.npz"]
        assert episode["actions"][:, 0].tolist() == list(range(first, first + 5))

    def test_one_action_less_than_frames_is_taken_whole(self, source, tmp_path):
        write_npz(source / "a.npz", 2, num_actions=5)
        assert run(source / "a.npz", tmp_path / "out")["a.npz"]["actions"][:, 0].tolist() == [20, 21, 22, 23, 24]

    def test_channels_first_and_flat_actions_are_understood(self, source, tmp_path):
        frames = np.concatenate([numbered_frames(6, 16, 24), np.zeros((6, 16, 24, 3), np.uint8)], axis=1)
        write_npz(source / "a.npz", 2, image=frames.transpose(0, 3, 1, 2), action=np.arange(6))
        episode = run(source, tmp_path / "out")["a.npz"]
        assert episode["frames"].shape == (6, 32, 24, 3)
        assert numbers_of(episode["frames"][:, :16]) == list(range(6)) and episode["frames"][:, 17:].max() < 3
        assert episode["actions"].tolist() == [[0], [1], [2], [3], [4]]

    def test_named_keys_are_taken_in_place_of_the_usual_ones(self, source, tmp_path):
        other = {"act/raw": np.full((6, 1), 7), "cam/b": numbered_frames(6)[::-1], "joints": np.ones((6, 4))}
        write_npz(source / "a.npz", 2, **other)
        options = ["--actions_key", "act/raw", "--frames_key", "cam/b", "--states_key", "joints"]
        episode = run(source, tmp_path / "out", *options)["a.npz"]
        assert numbers_of(episode["frames"]) == [5, 4, 3, 2, 1, 0]
        assert episode["actions"].tolist() == [[7]] * 5 and episode["proprio_states"].shape == (6, 4)

    def test_higher_pictures_are_made_smaller_and_lower_ones_kept(self, source, tmp_path):
        write_npz(source / "a.npz", 1, image=numbered_frames(6, 64, 96))
        write_npz(source / "b.npz", 1, image=numbered_frames(6, 16, 16))
        found = run(source, tmp_path / "out", "--height", "32")
        assert found["a.npz"]["frames"].shape == (6, 32, 48, 3) and found["b.npz"]["frames"].shape == (6, 16, 16, 3)
        assert numbers_of(found["a.npz"]["frames"]) == list(range(6))


def write_concatenated(path: Path, lengths: list[int], **more) -> None:
    """Episodes one after another: frame and action of row t are t, the state is (t, 0)."""
    t = np.arange(sum(lengths), dtype=np.float32)
    values = {"observations": numbered_frames(len(t)), "actions": t[:, None], "proprio": np.stack([t, 0 * t], axis=1)}
    values = values | {"rewards": 100 + t} | more
    if path.suffix == ".npz":
        np.savez(path, **values)
        return
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value


def summary(found: dict[str, dict]) -> list[tuple]:
    """Of each episode: its name, the numbers of its frames, its actions, states and rewards."""
    return [
        (name, numbers_of(e["frames"]), *(e[key].reshape(len(e[key]), -1)[:, 0].tolist() for key in SUMMARIZED))
        for name, e in sorted(found.items())
    ]


SUMMARIZED = ("actions", "proprio_states", "rewards")
LENGTHS = [4, 3, 5]
ENDS = np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1])


class TestBoundaries:
    @pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
    @pytest.mark.parametrize(
        ("marks", "options", "spare"),
        [
            ({"terminals": ENDS}, [], 0),
            ({"is_first": np.roll(ENDS, 1)}, ["--spare_action", "first"], 1),
            ({"ep_len": np.array(LENGTHS), "ep_offset": np.array([0, 4, 7])}, [], 0),
        ],
    )
    def test_each_episode_loses_its_own_spare_action(self, source, tmp_path, suffix, marks, options, spare):
        write_concatenated(source / f"a{suffix}", LENGTHS, **marks)
        expected = [
            (f"a{suffix}/episode_{e:06d}", list(range(a, b)), [t + spare for t in range(a, b - 1)],
             list(range(a, b)), [100 + t + spare for t in range(a, b - 1)])
            for e, (a, b) in enumerate([(0, 4), (4, 7), (7, 12)])
        ]  # fmt: skip
        assert summary(run(source, tmp_path / "out", *options)) == expected

    def test_an_array_that_may_mark_ends_is_named(self, source, tmp_path, caplog):
        write_concatenated(source / "a.npz", LENGTHS, traj_over=ENDS, traj_pose=np.zeros((12, 3)))
        assert len(run(source, tmp_path / "out")) == 1
        assert caplog.text.count("may mark where episodes end") == 1 and "--ends_key traj_over" in caplog.text
        assert len(run(source, tmp_path / "again", "--ends_key", "traj_over")) == 3

    def test_actions_without_spare_ones_belong_to_their_episodes(self, source, tmp_path):
        steps = np.float32([0, 1, 2, 4, 5, 7, 8, 9, 10])
        write_concatenated(source / "a.npz", LENGTHS, ep_len=LENGTHS, actions=steps, rewards=steps)
        found = run(source, tmp_path / "out").values()
        assert [e["actions"][:, 0].tolist() for e in found] == [[0, 1, 2], [4, 5], [7, 8, 9, 10]]

    @pytest.mark.parametrize(
        ("marks", "message"),
        [
            ({"terminals": ENDS, "ep_len": np.array([6, 6])}, "its ep_len and terminals disagree about where"),
            ({"dones": 0 * ENDS + 1}, "its dones end an episode in several rows in a row"),
            ({"terminals": np.array([{}] * 12)}, "its terminals is unreadable"),
        ],
    )
    def test_layouts_that_are_ambiguous_are_refused(self, source, tmp_path, capfd, marks, message):
        write_concatenated(source / "a.npz", LENGTHS, **marks)
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert message in capfd.readouterr().err

    @pytest.mark.parametrize("layout", ["ep_len", "ep_len alone", "ep_idx", "episode_idx, terminated"])
    @pytest.mark.parametrize("inside", [None, 5])
    def test_files_of_stable_worldmodel(self, source, tmp_path, layout, inside):
        """NaN in the spare action of each episode is dropped with it; elsewhere it costs the episode."""
        starts, numbers = np.cumsum(LENGTHS) - LENGTHS, np.repeat(range(3), LENGTHS)
        steps, ended = np.arange(12) - np.repeat(starts, LENGTHS), ENDS.astype(bool) & (numbers < 2)
        marks = {
            "ep_len": {"ep_len": np.int32(LENGTHS), "ep_offset": starts, "terminated": ended, "step_idx": steps},
            "ep_len alone": {"ep_len": np.int32(LENGTHS), "ep_offset": starts},
            "ep_idx": {"ep_idx": np.int32(numbers)},
            "episode_idx, terminated": {"episode_idx": numbers, "step_idx": steps, "terminated": ended},
        }[layout]
        actions = np.stack([np.arange(12.0), -np.arange(12.0)], axis=1)
        actions[ENDS > 0] = np.nan
        if inside is not None:
            actions[inside] = np.nan
        with h5py.File(source / "a.h5", "w") as file:
            file.create_dataset("pixels", data=numbered_frames(12), chunks=(1, 16, 16, 3))
            file["action"], file["proprio"], file["variation"] = actions, np.arange(12.0), ["red"] * 12
            file["reward"] = np.where(ENDS > 0, np.nan, 100 + np.arange(12.0))
            for name, values in marks.items():
                file[name] = values
        expected = [
            (f"a.h5/episode_{e:06d}", list(range(a, b)), list(range(a, b - 1)), list(range(a, b)),
             [100 + t for t in range(a, b - 1)])
            for e, (a, b) in enumerate([(0, 4), (4, 7), (7, 12)]) if inside is None or not a <= inside < b
        ]  # fmt: skip
        assert summary(run(source, tmp_path / "out")) == expected
        skipped = (tmp_path / "out" / "skipped.txt").read_text()
        assert ("action has values that are not finite" in skipped) == (inside is not None)

    def test_rows_of_several_episodes_without_a_known_mark_are_not_merged_in_silence(self, source, tmp_path, caplog):
        write_concatenated(source / "a.npz", LENGTHS, ep_number=np.repeat(range(3), LENGTHS))
        run(source, tmp_path / "out")
        assert "ep_number may mark where episodes end" in caplog.text

    def test_a_named_array_or_none_resolves_it(self, source, tmp_path):
        write_concatenated(source / "a.npz", LENGTHS, terminals=ENDS, ep_len=np.array([6, 6]))
        by_name = run(source, tmp_path / "named", "--ends_key", "terminals").values()
        assert sorted(len(e["frames"]) for e in by_name) == [3, 4, 5]
        assert len(run(source, tmp_path / "none", "--ends_key", "none")["a.npz"]["frames"]) == 12

    def test_broken_episode_does_not_cost_the_others(self, source, tmp_path):
        actions = np.arange(12, dtype=np.float32)
        actions[5] = np.nan
        write_concatenated(source / "a.npz", [4, 3, 1, 4], ep_len=[4, 3, 1, 4], actions=actions)
        assert set(run(source, tmp_path / "out")) == {"a.npz/episode_000000", "a.npz/episode_000003"}
        listed = (tmp_path / "out" / "skipped.txt").read_text()
        assert "a.npz/episode_000001\tactions has values that are not finite" in listed
        assert "a.npz/episode_000002\tit has 1 frames" in listed

    def test_nested_actions_are_no_demonstrations_of_their_own(self, source, tmp_path):
        write_robomimic(source / "low.hdf5", [1, 2])
        with h5py.File(source / "low.hdf5", "a") as file:
            for demo in ("demo_1", "demo_2"):
                file[f"data/{demo}/obs/actions"] = file[f"data/{demo}/actions"][()] + 1000
                file[f"data/{demo}/dones"] = np.arange(5 + int(demo[-1])) > 3  # success lasts
        found = run(source, tmp_path / "out", "--frames_key", "obs/agentview_image")
        assert {name: episode["actions"][0, 0] for name, episode in found.items()} == {
            "low.hdf5/data/demo_1": 10,
            "low.hdf5/data/demo_2": 20,
        }

    def test_two_arrays_of_actions_are_named(self, source, tmp_path, capfd):
        write_npz(source / "a.npz", 1, actions=np.zeros((6, 2)))
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert "it has both actions and action; name one with --actions_key" in capfd.readouterr().err

    def test_first_actions_of_zero_are_pointed_out(self, source, tmp_path, caplog):
        actions = np.arange(12) * (1 - np.roll(ENDS, 1))
        write_concatenated(source / "a.npz", LENGTHS, is_first=np.roll(ENDS, 1), actions=actions)
        run(source, tmp_path / "out")
        assert "check whether --spare_action first is right" in caplog.text


class TestBrokenData:
    def test_objects_that_nobody_needs_do_not_cost_a_file(self, source, tmp_path):
        write_npz(source / "a.npz", 1, infos=np.array([{}] * 6))
        assert set(run(source, tmp_path / "out")) == {"a.npz"}

    def test_external_bytes_are_not_read(self, source, tmp_path, capfd):
        (tmp_path / "secret").write_bytes(bytes(6 * 16 * 16 * 3))
        with h5py.File(source / "a.hdf5", "w") as file:
            file["actions"] = np.zeros((6, 2))
            file.create_dataset("image", (6, 16, 16, 3), np.uint8, external=str(tmp_path / "secret"))
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert "no array of images" in capfd.readouterr().err

    def test_datasets_of_other_files_are_not_read(self, source, tmp_path, capfd):
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file["image"] = numbered_frames(6)
        with h5py.File(source / "a.hdf5", "w", libver="latest") as file:
            file["actions"] = np.zeros((6, 2))
            layout = h5py.VirtualLayout((6, 16, 16, 3), np.uint8)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "image", (6, 16, 16, 3), np.uint8)
            file.create_virtual_dataset("image", layout)
            file["link"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "image")
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert "no array of images" in capfd.readouterr().err

    def test_image_of_another_size_costs_its_episode(self, source, tmp_path):
        for number in (1, 2):
            write_act(source / f"episode_{number}.hdf5", number, compressed=True)
        with h5py.File(source / "episode_1.hdf5", "a") as file:
            small = jpeg(np.zeros((8, 8, 3), np.uint8))
            file["observations/images/top"][3, : len(small)] = small
        assert set(run(source, tmp_path / "out")) == {"episode_2.hdf5"}
        assert "row 3 of its images is 8 x 8 pixels" in (tmp_path / "out" / "skipped.txt").read_text()

    def test_what_does_not_read_or_fit_is_listed_and_the_rest_imported(self, source, tmp_path, caplog):
        write_npz(source / "good.npz", 1)
        whole = (source / "good.npz").read_bytes()
        (source / "x_cut.npz").write_bytes(whole[: len(whole) // 2])
        (source / "x_text.hdf5").write_text("no HDF5")
        write_npz(source / "x_action.npz", 1, action=None)
        write_npz(source / "x_float.npz", 1, image=np.zeros((6, 8, 8, 3), np.float32))
        write_npz(source / "x_long.npz", 1, num_actions=8)
        write_npz(source / "x_complex.npz", 1, action=np.full((6, 2), 1j))
        write_npz(source / "x_nan.npz", 1, action=np.full((6, 2), np.nan))
        write_npz(source / "x_one.npz", 1, image=numbered_frames(1))
        write_npz(source / "x_size.npz", 1, action=np.zeros((6, 3)))
        write_npz(source / "x_states.npz", 1, proprio=np.zeros((4, 3)))
        write_npz(source / "x_stateless.npz", 1, proprio=None)
        write_robomimic(source / "y.hdf5", [1])
        found = run(source, tmp_path / "out")
        assert set(found) == {"good.npz"}
        lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
        listed = dict(line.split("\t") for line in lines)
        assert len(lines) == len(listed) == 12
        assert "action is an array of complex128, but numbers are needed" in listed["x_complex.npz"]
        assert "it has no actions or action, only image, proprio" in listed["x_action.npz"]
        assert "no array of images" in listed["x_float.npz"]
        assert "action has 8 rows for 6 frames" in listed["x_long.npz"]
        assert "action has values that are not finite" in listed["x_nan.npz"]
        assert "it has 1 frames" in listed["x_one.npz"]
        assert "actions of 3, proprio_states of 3, but the ones before had actions of 2" in listed["x_size.npz"]
        assert "states have 4 rows for 6 frames" in listed["x_states.npz"]
        assert "it has actions of 2, but the ones before" in listed["x_stateless.npz"]
        assert "several arrays of images" in listed["y.hdf5/data/demo_1"]
        assert "x_cut.npz" in listed and "x_text.hdf5" in listed
        assert "skipped x_nan.npz" in caplog.text

    def test_broken_demo_does_not_cost_the_others_of_its_file(self, source, tmp_path):
        write_robomimic(source / "low.hdf5", [1, 2])
        with h5py.File(source / "low.hdf5", "a") as file:
            del file["data/demo_1/obs/agentview_image"]
            file["data/demo_1/obs/agentview_image"] = np.zeros((3, 4))
        found = run(source, tmp_path / "out", "--frames_key", "obs/agentview_image")
        assert set(found) == {"low.hdf5/data/demo_2"}
        assert "frames are float64 (3, 4)" in (tmp_path / "out" / "skipped.txt").read_text()

    def test_picture_that_does_not_decode_costs_its_episode(self, source, tmp_path):
        for number in (1, 2):
            write_act(source / f"episode_{number}.hdf5", number, compressed=True)
        with h5py.File(source / "episode_1.hdf5", "a") as file:
            file["observations/images/top"][3, 4:] = 0
        assert set(run(source, tmp_path / "out")) == {"episode_2.hdf5"}
        assert "episode_1.hdf5\t" in (tmp_path / "out" / "skipped.txt").read_text()

    def test_failure_half_way_leaves_nothing(self, source, tmp_path, monkeypatch):
        for number in range(3):
            write_npz(source / f"{number}.npz", number)
        encode = importers.encode_video

        def fail_at_the_second(frames, *rest, **settings):
            if (tmp_path / "seen").exists():
                raise KeyboardInterrupt
            (tmp_path / "seen").touch()
            return encode(frames, *rest, **settings)

        monkeypatch.setattr(importers, "encode_video", fail_at_the_second)
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["seen", "source"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{tmp}/missing", "{tmp}/out", "--fps", "10"], "There is nothing at"),
            (["{tmp}/source/more", "{tmp}/out", "--fps", "10"], "There is no episode file in"),
            (["{tmp}/source", "{tmp}/source", "--fps", "10"], "exists and is not empty"),
            (["{tmp}/source", "{tmp}/out", "--fps", "0"], "fps is 0.0"),
            (["{tmp}/source", "{tmp}/out", "--fps", "inf"], "fps is inf"),
            (["{tmp}/source", "{tmp}/out", "--fps", "nan"], "fps is nan"),
            (["{tmp}/source", "{tmp}/out", "--fps", "10", "--ends_key", "x"], "it has no x (--ends_key), only"),
            (["{tmp}/source", "{tmp}/out", "--fps", "10", "--num_shards", "0"], "num_shards is 0"),
            (["{tmp}/source", "{tmp}/out", "--fps", "10", "--frames_key", "x"], "it has no x (--frames_key), only"),
            (["{tmp}/source", "{tmp}/out"], "--fps"),
        ],
    )
    def test_a_wrong_call_ends_in_one_sentence(self, source, tmp_path, capfd, arguments, message):
        write_npz(source / "a.npz", 1)
        with pytest.raises(SystemExit):
            import_episodes.main([argument.format(tmp=tmp_path) for argument in arguments])
        told = capfd.readouterr().err
        assert message in told and "Traceback" not in told
        assert not (tmp_path / "out").exists() and (source / "a.npz").exists()

    def test_missing_h5py_is_told_with_the_extra_that_brings_it(self, source, tmp_path, monkeypatch, capfd):
        write_act(source / "a.hdf5", 1, compressed=False)
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(SystemExit):
            run(source, tmp_path / "out")
        assert 'need h5py, which is not installed: pip install "vjepa2-hf[hdf5]"' in capfd.readouterr().err
        assert not (tmp_path / "out").exists()


def test_stored_video_has_short_groups_of_pictures(source, tmp_path):
    write_npz(source / "a.npz", 1, num_actions=29, image=numbered_frames(30), proprio=np.zeros((30, 1)))
    run(source, tmp_path / "out")
    ((*_, row),) = ShardSource(tmp_path / "out").read_all()
    with VideoReader(row["video"]) as reader:
        assert len(reader) == 30 and reader._is_key.sum() >= 3
