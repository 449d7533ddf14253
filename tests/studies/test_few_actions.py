"""The study of few actions: who sees which data, and the table."""

import json

import few_actions
import pytest
from few_actions import ALONE, BOTH, COUNTS, LABELED, VIDEOS
from plan import PlanConfig
from study import slug
from train_world_model import WorldModelTrainingConfig

from vjepa2_hf.environments import PUSHING
from vjepa2_hf.training.settings import load_config


def test_dynamics_see_few_episodes_and_networks_what_the_row_says(commands, run_only, tmp_path):
    run_only(few_actions.STUDY, "--seeds", "1", "--steps", "32")
    recorded = [command for command in commands if command[0] == "record_episodes.py"]
    assert [command[command.index("--episodes") + 1] for command in recorded] == ["3000", "300"]
    training = [command for command in commands if command[0] == "train_world_model.py"]
    found = {
        command[3].rpartition("/")[2]: load_config(WorldModelTrainingConfig, command[2], command[3:])
        for command in training
    }
    assert len(found) == 12 and {one.max_steps for one in found.values()} == {1000}
    videos, episodes = (str(tmp_path / "runs" / name) for name in ("videos", "episodes-0"))
    assert {one.data for one in found.values()} == {episodes}
    for name, one in found.items():
        row, count, steps = name.rsplit("_", 2)
        assert one.max_episodes == int(count)
        start = str(tmp_path / "runs" / "seed-0" / "videos_60_32" / "state" / "final")
        if row in (VIDEOS, slug(LABELED)):
            assert one.state.use_actions == (row != VIDEOS) or one.state_of
            assert (one.state.data, one.state_of) == ((videos, None) if count == "60" else (None, start))
            assert count != "60" or one.state.max_steps == int(steps)
        else:
            assert one.state.data is None and one.state.use_actions and one.state.symmetries == PUSHING
            assert (one.state.start_from, one.state.max_steps) == ((None, 32) if row == slug(ALONE) else (start, 600))
    assert {name for name in found if name.startswith("videos_60")} == {"videos_60_2", "videos_60_8", "videos_60_32"}
    plans = [load_config(PlanConfig, one[2], one[3:]) for one in commands if one[0] == "plan.py"]
    assert {one.first_task for one in plans} == {970_000} and len([one for one in plans if one.baselines]) == 1


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(few_actions, "COUNTS", (4, 6))
    monkeypatch.setattr(few_actions, "FRACTIONS", (2,))
    page = run_study(few_actions.STUDY, "--seeds", "1", "--jobs", "1", "--steps", "2", "--further_steps", "1")
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["success"]["4"]) == [ALONE, VIDEOS, BOTH, LABELED]
    assert list(results["success"]["6"]) == [ALONE, VIDEOS, BOTH] and list(results["curve"]) == ["1", "2"]
    assert [one["row"] for one in results["differences"]["6"]] == [VIDEOS, BOTH, BOTH]
    assert len(results["baselines"]) == 3 and "data policy" in results["baselines"]
    assert few_actions.format_tables(results) in page and COUNTS == (60, 140, 300)
