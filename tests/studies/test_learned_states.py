"""The study of learned states: same tasks in both appearances, every row measured, and the figure of what is read."""

import json

import learned_states
import numpy as np
import pytest
import read_states
from learned_states import FEW, L2, LEARNED, OTHER, SAME, STRICT, TRUE, WHITENED
from plan import PlanConfig

from vjepa2_hf.environments import PUSHING, TWO_ROOMS
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


def test_both_appearances_have_the_same_tasks_and_settings(commands, run_only):
    run_only(learned_states.STUDY, "--seeds", "2", "--tasks", "7", "--steps", "11", "--room_steps", "5")
    scripts = [command[0] for command in commands]
    pushing, rooms = ["train_world_model.py", "plan.py", "plan.py"], ["train_world_model.py", "train_distance_head.py"]
    assert scripts[:2] == ["record_episodes.py"] * 2
    assert scripts[2:] == [*pushing, "studies/read_states.py", *pushing, *[*rooms, "plan.py", "plan.py"] * 2]
    training = [command for command in commands if command[0] == "train_world_model.py"]
    found = [load_config(WorldModelTrainingConfig, command[2], command[3:]) for command in training]
    assert [one.state.max_steps for one in found] == [11, 11, 5, 5] and [one.seed for one in found] == [0, 1, 0, 1]
    assert [one.state.symmetries for one in found] == [PUSHING, PUSHING, TWO_ROOMS, TWO_ROOMS]
    plans = [load_config(PlanConfig, one[2], one[3:]) for one in commands if one[0] == "plan.py"]
    for same, other in zip(plans[::2], plans[1::2], strict=True):
        assert (same.env_kwargs, other.env_kwargs) == ({}, {"goal_appearance": "other"})
        for name in ("env", "first_task", "episodes", "models", "solver", "distance", "varied_appearance", "seed"):
            assert getattr(same, name) == getattr(other, name)
        assert same.varied_appearance and same.distance == "whitened" and not other.baselines
    assert [one.first_task for one in plans[::2]] == [950_000, 951_000] * 2
    assert list(plans[0].rows) == [L2, FEW, TRUE] and list(plans[1].rows) == [L2]
    assert list(plans[-1].rows) == list(plans[-2].rows) == [L2, LEARNED] and "distance" in plans[-1].models[WHITENED]
    few, true = (plans[0].of_row(name) for name in (FEW, TRUE))
    assert few.solver == true.solver == {**plans[0].solver, "num_candidates": 32, "num_elites": 3}
    assert (few.true_dynamics, true.true_dynamics) == (False, True)


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path, monkeypatch):
    solver = {"name": "cem", "horizon": 2, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}
    monkeypatch.setattr(learned_states, "few_candidates", lambda config: solver)
    sizes = ["--steps", "2", "--room_steps", "2", "--tasks", "3", "--room_tasks", "3"]
    page = run_study(learned_states.STUDY, "--seeds", "1", "--jobs", "1", *sizes)
    results = json.loads((tmp_path / "results.json").read_text())
    pushing, rooms = (results["environments"][name] for name in ("pushing", "two_rooms"))
    columns = [SAME, f"{SAME}, {STRICT}", OTHER, f"{OTHER}, {STRICT}"]
    assert list(pushing["success"][WHITENED]) == list(pushing["success"][L2]) == columns
    assert list(pushing["success"][TRUE]) == list(pushing["success"]["data policy"]) == columns[:2]
    assert list(rooms["success"][LEARNED]) == [SAME, OTHER]
    assert [one["row"] for one in pushing["row_differences"][SAME]] == [WHITENED, TRUE]
    assert [one["row"] for one in pushing["appearance_differences"][L2]] == [OTHER, f"{OTHER}, {STRICT}"]
    assert list(rooms["core_minutes"]) == ["recording, once", *learned_states.PIECES.values()]
    assert pushing["manifests"][SAME] != pushing["manifests"][OTHER]
    names = {f"results-{name}seed-0.json" for name in ("pushing-", "pushing-other-", "two_rooms-", "two_rooms-other-")}
    assert {path.name for path in (tmp_path / "manifests").iterdir()} == names
    assert set(results["read_out"]["r_squared"]) == {"pusher", "block"}
    assert learned_states.format_tables(results) in page and "(states.png)" in page
    assert (tmp_path / "states.png").read_bytes()[1:4] == b"PNG"


def test_differences_stand_in_the_columns_that_they_compare():
    def row(*values: float) -> dict:
        titles = [SAME, f"{SAME}, {STRICT}", OTHER, f"{OTHER}, {STRICT}"]
        return {title: learned_states.study.over_seeds([value]) for title, value in zip(titles, values)}

    rows = {"data policy": row(0.3, 0.1), WHITENED: row(0.7, 0.4, 0.6, 0.2), L2: row(0.5, 0.3, 0.4, 0.1)}
    by_column = {title: {name: one[title] for name, one in rows.items() if title in one} for title in rows[L2]}
    paired = learned_states.study.paired
    found = {
        "tasks": 9,
        "success": rows,
        "plan_milliseconds": {WHITENED: 4.26},
        "row_differences": {title: paired(rows, title, learned_states.PAIRS) for title in by_column},
        "appearance_differences": {name: paired(by_column, name, learned_states.APPEARANCES) for name in rows},
        "core_minutes": {"recording, once": [1.0], "state and dynamics": [22.04, 23.0]},
    }
    text = learned_states.format_tables({"environments": {"pushing": found}, "read_out": None})
    assert "| whitened distance | 0.70 | 0.40 | 0.60 | 0.20 | 4.3 |" in text
    assert "| data policy | 0.30 | 0.10 |  |  |  |" in text
    assert "| whitened distance − l2 distance | +0.20 (one seed) | +0.10 (one seed) | +0.20 (one seed) |" in text
    name = f"{WHITENED}: other appearance − same appearance"
    assert f"| {name} |  |  | -0.10 (one seed) | -0.20 (one seed) |" in text
    assert "| 1.0 | 22.0, 23.0 |" in text and "states.png" not in text


def test_positions_are_read_in_appearances_that_the_fit_has_not_seen(monkeypatch):
    """States that are the positions are read exactly; random ones are not read."""
    states = {}

    def encode(model, processor, tasks, given, episode):
        states.setdefault(tasks.seeds[episode], given)
        noise = np.random.default_rng(len(states)).standard_normal(given.shape)
        return read_states.torch.from_numpy((given * 2 + 1 if model == "exact" else noise).astype(np.float32))

    monkeypatch.setattr(read_states, "encode", encode)
    found, figure = read_states.measure("exact", None, PUSHING, episodes=20)
    assert found["r_squared"] == pytest.approx({"pusher": 1.0, "block": 1.0}, abs=1e-3) and found["held_out"] == 5
    assert set(states) == {*range(600_000, 600_020), *range(650_000, 650_005)}  # an appearance per seed
    assert len(figure.axes) == 2 * read_states.APPEARANCES
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["pusher, true", "pusher, read out: R² 1.00"] and len(labels) == 4
    assert max(read_states.measure("noise", None, PUSHING, episodes=20)[0]["r_squared"].values()) < 0.2
