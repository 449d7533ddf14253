import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import plan
import pytest
import torch
from datasets import Features
from plan import PlanConfig, evaluate, find_data_policy, format_table, model_policy
from record_episodes import REPLAY_COLUMNS, EpisodeRecorder, episode_features, record_episodes

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.files import locked
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.environments.gym_tasks import GymTasksConfig
from vjepa2_hf.environments.success import SuccessLevel
from vjepa2_hf.metrics.planning_success.planning_success import summarize_success
from vjepa2_hf.planning import LatentDistance
from vjepa2_hf.planning.solvers import build_solver
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.rollout_costs import count_imagined_steps


CONFIGS = Path(plan.__file__).parent / "configs"
SOLVER = {"name": "cem", "horizon": 2, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A world model with random weights, as the training script saves one."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    actions = {"action_dim": 4, "actions_per_step": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    model = VJepa2WorldModel.from_encoder(encoder, frame_skip=2, **actions, **dynamics)
    folder = tmp_path_factory.mktemp("run") / "final"
    model.save_pretrained(folder)
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(folder)
    errors = {"error": 0.5, "copy_error": 1.0, "cosine": 0.75, "copy_cosine": 0.25}
    rows = [{"horizon": horizon, **errors} for horizon in (1, 2, 5, 10)]
    (folder.parent / "rollout_error.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def policy_dir(model_dir, tmp_path_factory):
    """A policy with random weights on that world model."""
    folder = tmp_path_factory.mktemp("policy")
    model = VJepa2WorldModel.from_pretrained(model_dir)
    GoalPolicy.from_world_model(model, str(model_dir), hidden_size=8).save_pretrained(folder)
    return folder


def test_evaluation_writes_table_episodes_and_videos(model_dir, tmp_path):
    config = PlanConfig(str(tmp_path), {"CEM": str(model_dir)}, episodes=3, solver=SOLVER, videos=2)
    rows = evaluate(config)
    assert [row["name"] for row in rows] == [
        "uniform random",
        "data policy",
        "CEM",
        "CEM on the true state and dynamics (oracle)",
    ]
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert all(row["low"] <= row["success"] <= row["high"] for row in rows)
    assert rows[2]["plan_milliseconds"] > 0 and rows[0]["plan_milliseconds"] is None
    table = format_table(rows)
    assert table.count("\n") == 1 + len(rows)
    assert "| error 1 / copy error | error 5 / copy error |" in table and "| 0.50 | 0.50 |" in table
    assert (
        "| imagined steps per plan |" in table and rows[2]["imagined_steps"] == 8
    )  # 4 candidates, 1 iteration, H = 2
    assert rows[2]["rollout_flops"] > 0 and rows[2]["rollout_milliseconds"] > 0 and rows[2]["parameters"] > 0
    by_episode = json.loads((tmp_path / "by_episode.json").read_text())
    assert list(by_episode) == [row["name"] for row in rows]
    assert len({tuple(one["distances"]) for one in by_episode.values()}) == 1  # the same tasks for all methods
    assert [summarize_success(**one)["success"] for one in by_episode.values()] == [row["success"] for row in rows]
    episodes = np.load(tmp_path / "episodes.npz")
    assert episodes["CEM"].shape == (3, 26, 4)
    videos = sorted((tmp_path / "videos" / "CEM").iterdir())
    assert len(videos) == 2
    with VideoReader(str(videos[0])) as reader:
        assert reader.frames([0]).shape == (1, 192, 384, 3)


def settled(config: PlanConfig) -> dict:
    """What a run leaves, but for times."""
    evaluate(config)
    output = Path(config.output_dir)
    rows = json.loads((output / "results.json").read_text())["rows"]
    rows = [{name: value for name, value in row.items() if "milliseconds" not in name} for row in rows]
    with np.load(output / "episodes.npz") as episodes:
        return {"rows": rows, "states": {name: episodes[name].tolist() for name in episodes.files}}


def test_a_killed_run_goes_on_with_its_finished_rows(model_dir, tmp_path, monkeypatch):
    settings = {"episodes": 2, "solver": SOLVER, "videos": 0, "baselines": ["uniform", "oracle"]}
    expected = settled(PlanConfig(str(tmp_path / "whole"), {"CEM": str(model_dir)}, **settings))
    config, measure_row, ran = (
        PlanConfig(str(tmp_path / "cut"), {"CEM": str(model_dir)}, **settings),
        plan.measure_row,
        [],
    )

    def killed_at(last):
        def run(config, name):
            ran.append(name)
            if name == last:
                raise KeyboardInterrupt
            return measure_row(config, name)

        monkeypatch.setattr(plan, "measure_row", run)

    killed_at("CEM")
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert ran == ["uniform random", "CEM"] and not (tmp_path / "cut" / "results.json").exists()
    killed_at(plan.BASELINES["oracle"])
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert ran[2:] == ["CEM", plan.BASELINES["oracle"]]
    with pytest.raises(KeyboardInterrupt):  # other tasks: nothing that is there may be taken
        evaluate(dataclasses.replace(config, first_task=7))
    assert ran[4:] == ["uniform random", "CEM", plan.BASELINES["oracle"]]
    killed_at(None)
    assert settled(config) == expected
    assert ran[7:] == [plan.BASELINES["oracle"]] and not (tmp_path / "cut" / "rows").exists()


def test_rows_of_other_weights_are_not_taken(model_dir, tmp_path, monkeypatch):
    folder, ran = tmp_path / "model", []
    shutil.copytree(model_dir, folder)
    config = PlanConfig(str(tmp_path / "out"), {"CEM": str(folder)}, baselines=[], episodes=1, solver=SOLVER, videos=0)
    weights = plan.check_models(config)["CEM"]
    row = plan.FinishedRow({}, {}, None, [])
    monkeypatch.setattr(plan, "measure_row", lambda config, name: ran.append(name) or row)
    (tmp_path / "out").mkdir()
    plan.kept_row(config, "CEM", weights)
    plan.kept_row(config, "CEM", plan.check_models(config)["CEM"])
    assert ran == ["CEM"]
    model = VJepa2WorldModel.from_pretrained(folder)
    torch.nn.init.ones_(next(model.predictor.parameters()))
    model.save_pretrained(folder)
    plan.kept_row(config, "CEM", plan.check_models(config)["CEM"])
    assert ran == ["CEM", "CEM"]


def test_models_of_several_seeds_are_one_row_that_is_compared_in_pairs(model_dir, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    model = VJepa2WorldModel.from_pretrained(model_dir)
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(other)
    settings = {"episodes": 4, "solver": SOLVER, "videos": 1, "baselines": ["data_policy"]}
    settings |= {"success_levels": {"near": SuccessLevel(12.0), "at": SuccessLevel(5.0)}}
    models = {"both": [str(model_dir), str(other)]}
    rows = evaluate(PlanConfig(str(tmp_path / "a"), models, compare_with="data_policy", **settings))
    alone = evaluate(PlanConfig(str(tmp_path / "b"), {"CEM": str(other)}, **settings))[1]
    both = rows[1]
    assert both["episodes"] == 4 and both["by_seed"][1] == alone["success"]
    assert both["levels"]["at"]["by_seed"][1] == alone["levels"]["at"]["success"]
    assert both["success"] == np.mean(both["by_seed"]) and both["low"] <= both["success"] <= both["high"]
    for found, base in ((both, rows[0]), (both["levels"]["at"], rows[0]["levels"]["at"])):
        change = found["minus"]
        assert change["row"] == "data policy" and change["low"] < change["difference"] < change["high"]
        assert change["difference"] == pytest.approx(found["success"] - base["success"])
    assert "minus" not in rows[0]
    table = format_table(rows)
    assert "| 2 × 4 |" in table and "| near minus data policy | at minus data policy |" in table
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [one["path"] for one in results["rows"][1]["models"]] == models["both"]
    by_episode = json.loads((tmp_path / "a" / "by_episode.json").read_text())
    assert by_episode["both, at"]["groups"] == [0] * 4 + [1] * 4
    assert summarize_success(**by_episode["both"])["by_group"] == both["by_seed"]
    states = np.load(tmp_path / "a" / "episodes.npz")
    np.testing.assert_array_equal(states["both, model 1"], np.load(tmp_path / "b" / "episodes.npz")["CEM"])
    assert len(list((tmp_path / "a" / "videos" / "both").iterdir())) == 1


def test_tasks_of_a_manifest_must_be_the_same(model_dir, tmp_path):
    settings = {"models": {}, "episodes": 3, "baselines": ["uniform"], "videos": 0}
    evaluate(PlanConfig(str(tmp_path / "a"), **settings))
    manifest = tmp_path / "a" / "manifest.json"
    evaluate(PlanConfig(str(tmp_path / "b"), manifest=str(manifest), **settings))
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    assert found[0]["manifest"] == found[1]["manifest"] and len(found[0]["manifest"]) == 64
    assert found[0]["versions"]["torch"] in torch.__version__ and found[0]["hardware"]["threads"] >= 1
    for changed, message in (
        ({"first_task": 5}, r"Task 0 \(seed 5\) has another start image and goal image than in"),
        ({"episodes": 2}, "has 3 tasks, but this run 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(PlanConfig(str(tmp_path / "c"), manifest=str(manifest), **{**settings, **changed}))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        evaluate(PlanConfig(str(tmp_path / "c"), manifest=str(tmp_path / "absent.json"), **settings))


def test_plans_do_not_depend_on_the_number_of_episodes_in_a_call(model_dir, tmp_path):
    """All problems of a call share their noise, so neither their number nor their order changes a plan."""
    solver = {**SOLVER, "num_candidates": 16, "num_iterations": 3, "num_elites": 4}
    settings = {"episodes": 4, "baselines": [], "solver": solver, "videos": 0}
    for parallel in (1, 4):
        evaluate(PlanConfig(str(tmp_path / str(parallel)), {"CEM": str(model_dir)}, parallel=parallel, **settings))
    one, four = (np.load(tmp_path / parallel / "episodes.npz")["CEM"] for parallel in "14")
    np.testing.assert_allclose(one, four, atol=1e-4)


def test_two_runs_in_one_folder_are_refused(model_dir, tmp_path):
    config = PlanConfig(str(tmp_path), {"CEM": str(model_dir)}, baselines=[], episodes=1, solver=SOLVER, videos=0)
    with locked(tmp_path), pytest.raises(OSError, match="Another process writes to .*; wait for it, or stop it"):
        evaluate(config)
    assert not (tmp_path / "results.json").exists()


def test_a_cost_that_a_model_was_saved_with_is_planned_with(model_dir, tmp_path):
    saved = VJepa2Planner.from_pretrained(model_dir, cost=LatentDistance("l1", summed=True))
    saved.save_pretrained(tmp_path)
    for settings, cost in (
        ({}, saved.cost),
        ({"distance": "cosine"}, LatentDistance("cosine")),
        ({"distance": "l2", "planner": {"cost": "l1"}}, LatentDistance("l1")),
    ):
        config = PlanConfig("out", {"CEM": str(tmp_path)}, **settings)
        assert model_policy(config, "CEM", None).planner.cost == cost


def test_the_published_solver_imagines_45000_steps_per_plan():
    config = load_config(PlanConfig, CONFIGS / "published" / "plan.yaml")
    assert config.gym.offsets == [25] and config.executed_actions == 25
    assert count_imagined_steps(build_solver(config.solver.pop("name"), **config.solver)) == 45_000
    demo = load_config(PlanConfig, CONFIGS / "demo" / "plan.yaml").solver
    assert count_imagined_steps(build_solver(demo.pop("name"), **demo)) == 1152


def test_a_row_without_a_folder_is_named():
    with pytest.raises(ValueError, match="The key 'models.CEM' must be str or list.str., got None"):
        load_config(PlanConfig, overrides=["output_dir=out", "models={CEM: null}"])


def test_unknown_baseline_names_the_nearest():
    with pytest.raises(ValueError, match="oracle"):
        PlanConfig("out", {}, baselines=["oracel"])


def test_missing_model_is_a_sentence(monkeypatch, capsys, tmp_path):
    arguments = ["plan.py", f"output_dir={tmp_path}", f"models={{CEM: {tmp_path / 'absent'}}}", "episodes=1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "baselines=[]"])
    with pytest.raises(SystemExit) as exit_:
        plan.main()
    assert exit_.value.code == 1
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"models": {"CEM": "/nowhere/absent"}}, "absent"),
        ({"models": {}, "policies": {"cloning": "absent"}}, "There is no policy in 'absent'"),
        ({"solver": {"nam": "cem"}}, "Unknown solver setting '.*nam'"),
    ],
)
def test_what_cannot_be_planned_with_shows_before_any_row_has_run(monkeypatch, model_dir, tmp_path, rows, message):
    monkeypatch.setattr(plan, "measure_row", lambda *args: pytest.fail("a row ran"))
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(PlanConfig(str(tmp_path), **{"models": {"CEM": str(model_dir)}, **rows}))


GYM = GymTasksConfig(
    env_kwargs={"terminate_on_success": False},
    max_steps=4,
    policy="drawn_to_block",
    state=["state"],
    distance_columns=[0, 1],
    success_distance=0.05,
    min_goal_distance=0.1,
    scores=["distance_px"],
)


def test_any_gymnasium_environment_is_planned_in_groups(model_dir, policy_dir, tmp_path):
    """One of ours through the general road, as if it were foreign."""
    rows = ["uniform", "data_policy"]
    settings = {"env": PUSHING, "gym": GYM, "baselines": rows, "solver": SOLVER, "episodes": 3, "parallel": 2}
    models, policies = {"CEM": str(model_dir)}, {"cloning": str(policy_dir)}
    rows = evaluate(PlanConfig(str(tmp_path), models, policies=policies, videos=3, **settings))
    assert [row["name"] for row in rows] == ["uniform random", "data policy", "cloning", "CEM"]
    assert all(row["episodes"] == 3 and row["scores"]["distance_px"]["max"] > 0 for row in rows)
    assert "| distance_px, largest | distance_px, last |" in format_table(rows)
    assert rows[2]["plan_milliseconds"] > 0
    assert len(list((tmp_path / "videos" / "cloning").iterdir())) == 3
    together = evaluate(PlanConfig(str(tmp_path / "all"), models, videos=0, **{**settings, "parallel": None}))
    np.testing.assert_allclose(
        np.load(tmp_path / "episodes.npz")["CEM"], np.load(tmp_path / "all" / "episodes.npz")["CEM"], atol=1e-5
    )
    assert not (tmp_path / "all" / "videos").exists()
    assert together[-1]["success"] == rows[-1]["success"]


def test_goals_of_recorded_episodes_have_a_row_for_each_offset(model_dir, tmp_path):
    features = Features(episode_features(["states", "proprio_states"]) | REPLAY_COLUMNS)
    recorder = EpisodeRecorder(PUSHING, "drawn_to_block", length=12)
    write_shards(record_episodes(recorder, 8), tmp_path / "data", features=features, num_shards=1)
    gym = dataclasses.replace(GYM, max_steps=None, min_goal_distance=0.0, goal="dataset", data=str(tmp_path / "data"))
    gym = dataclasses.replace(gym, goal_offset=[2, 8], validation_fraction=1.0, reset_option={"state": "states"})
    settings = {"env": PUSHING, "gym": gym, "baselines": ["uniform"], "solver": SOLVER, "episodes": 8, "videos": 0}
    rows = evaluate(PlanConfig(str(tmp_path / "out"), {"CEM": str(model_dir)}, parallel=3, **settings))
    names = [f"{name}, offset {offset}" for name in ("uniform random", "CEM") for offset in (2, 8)]
    assert [row["name"] for row in rows] == names
    assert all(row["episodes"] + row["solved_at_start"] == 8 for row in rows) and rows[0]["solved_at_start"] > 0
    assert [row["solved_at_start"] for row in rows[:2]] == [row["solved_at_start"] for row in rows[2:]]
    assert "| solved at start |" in format_table(rows)
    episodes = np.load(tmp_path / "out" / "episodes.npz")
    assert [episodes[name].shape[1] for name in names] == [5, 17, 5, 17]  # twice the offset
    assert len(episodes["seeds, offset 2"]) == rows[0]["episodes"]

    # the data policy is the one that the recording names
    config = PlanConfig("out", {}, **settings | {"gym": dataclasses.replace(gym, policy=None, goal_offset=2)})
    assert find_data_policy(config) == "drawn_to_block"
    unnamed = dataclasses.replace(plan.recorded_pairs(config)[0], replay={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "recorded_pairs", lambda _: [unnamed])
        with pytest.raises(ValueError, match="do not name the policy that recorded them: set gym.policy"):
            find_data_policy(config)


def test_levels_of_success_are_columns_of_one_run(model_dir, tmp_path):
    levels = {"block": {"distance": 5}, "whole": {"distance": 5, "columns": [[0, 1], [2, 3]]}}
    overrides = [f"output_dir={tmp_path}", "models={}", "episodes=6", "videos=0", "baselines=[data_policy]"]
    config = load_config(PlanConfig, overrides=[*overrides, f"success_levels={json.dumps(levels)}"])
    (row,) = evaluate(config)
    (plain,) = evaluate(dataclasses.replace(config, success_levels={}, output_dir=str(tmp_path / "plain")))
    assert row["levels"]["block"]["success"] == row["success"] == plain["success"]
    assert row["levels"]["whole"]["success"] <= row["success"] and row["last_distance"] > 0
    assert "levels" not in plain and "last_distance" not in plain
    assert "| method | block | whole | episodes | steps | last distance |" in format_table([row])
    by_episode = json.loads((tmp_path / "by_episode.json").read_text())
    assert list(by_episode) == ["data policy", "data policy, whole"]
    assert summarize_success(**by_episode["data policy, whole"]) == row["levels"]["whole"]


def test_budget_warm_start_and_proposals_reach_the_planner(model_dir, policy_dir, tmp_path):
    settings = {"baselines": [], "solver": SOLVER, "episodes": 2, "videos": 0}
    models = {"plain": str(model_dir), "proposed": str(model_dir)}
    proposals = {"proposed": str(policy_dir)}
    rows = evaluate(PlanConfig(str(tmp_path / "a"), models, proposals=proposals, budget_ms=1e6, **settings))
    assert [row["within_budget"] for row in rows] == [1.0, 1.0]
    assert "| up to " in format_table(rows)  # imagined steps: a budget may end the search early
    assert "calls within budget" in format_table(rows)
    evaluate(PlanConfig(str(tmp_path / "b"), {"plain": str(model_dir)}, warm_start=True, **settings))
    plain, proposed = (np.load(tmp_path / "a" / "episodes.npz")[name] for name in models)
    warm = np.load(tmp_path / "b" / "episodes.npz")["plain"]
    assert not np.array_equal(plain, proposed) and not np.array_equal(plain, warm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Pendulum-v1"}, "success criterion in `gym`"),
        ({"gym": GYM}, "no oracle"),
        ({"gym": GYM, "baselines": ["uniform"], "true_dynamics": True}, "no true_dynamics"),
        ({"gym": GYM, "baselines": ["uniform"], "env_kwargs": {"agent_radius": 3}}, "use gym.env_kwargs"),
        ({"proposals": {"CME": "x"}, "models": {"CEM": "y"}}, "did you mean 'CEM'"),
        ({"models": {"CEM": "y"}, "policies": {"CEM": "y"}}, "reserved or used twice"),
        ({"models": {"CEM": "y"}, "proposals": {"CEM": "x"}, "warm_start": True}, "leave out one of the two"),
        ({"parallel": 0}, "parallel must be at least 1"),
        ({"compare_with": "CEM"}, "Unknown row in compare_with 'CEM'"),
        ({"models": {"A": ["x", "y"], "B": ["x"] * 3}, "compare_with": "A"}, "they have 3 and 2 models"),
        ({"success_levels": {"steps": SuccessLevel(1.0)}}, "'steps' is a column of the table already"),
        ({"models": {"CEM": "y"}, "planner": {"distance": "l1"}}, "planner.distance is set"),
    ],
)
def test_settings_that_do_not_fit_are_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig("out", **{"models": {}, **settings})


def test_rows_compare_settings_on_one_model(model_dir, policy_dir, tmp_path):
    """A row is what a run with its settings as the common ones gives."""
    common = {"baselines": [], "episodes": 2, "videos": 0, "solver": SOLVER}
    other = {"solver": {**SOLVER, "num_candidates": 8}, "distance": "l1", "executed_actions": 1}
    rows = {"wide": {"model": "CEM", **other}, "proposed": {"model": "CEM"}}
    rows["true"] = {"model": "CEM", "true_dynamics": True}
    models, proposals = {"CEM": str(model_dir)}, {"proposed": str(policy_dir)}
    found = settled(PlanConfig(str(tmp_path / "one"), models, rows=rows, proposals=proposals, **common))
    assert [row["name"] for row in found["rows"]] == ["CEM", "wide", "proposed", "true"]
    alone = settled(PlanConfig(str(tmp_path / "two"), {"wide": str(model_dir)}, **{**common, **other}))
    assert found["states"]["wide"] == alone["states"]["wide"] and found["rows"][1] == alone["rows"][0]
    assert found["states"]["CEM"] != found["states"]["wide"] and found["states"]["CEM"] != found["states"]["proposed"]
    assert found["states"]["CEM"] != found["states"]["true"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "CME"}, "Unknown model in rows.R 'CME'; did you mean 'CEM'"),
        ({}, r"rows.R is \{\}; expected settings with the name of a model"),
        (None, "rows.R is None; expected settings"),
        ({"model": "CEM", "budget_ms": -1.0}, "budget_ms is -1.0"),
        ({"model": "CEM", "planner": {"subgoals": "x"}}, "planner.subgoals is set, but subgoals is a setting"),
        (
            {"model": "CEM", "solver": {"solver": "icem"}},
            "solver.solver is 'icem': give the solver's name as solver.name",
        ),
        ({"model": "CEM", "epsiodes": 3}, "Unknown setting of a row 'rows.R.epsiodes'"),
        ({"model": "CEM", "executed_actions": "2"}, "The key 'rows.R.executed_actions' must be int, got '2'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig("out", {"CEM": "x"}, rows={"R": row})


def test_the_distance_of_a_row_replaces_a_cost_that_all_rows_have():
    common = {"cost": "closest", "candidate_chunk_size": 8}
    rows = {"latent": {"model": "CEM", "distance": "l1"}, "chunks": {"model": "CEM", "planner": {"cost": "l2"}}}
    config = PlanConfig("out", {"CEM": "x"}, planner=common, rows=rows)
    assert (config.of_row("latent").distance, config.of_row("latent").planner) == ("l1", {"candidate_chunk_size": 8})
    assert config.of_row("chunks").planner == {"cost": "l2"} and config.of_row("CEM").planner == common


@pytest.mark.parametrize("wrong", [{"first_task": -1}, {"seed": -1}, {"models": {"CEM": []}}, {"models": {"..": "x"}}])
def test_settings_that_no_task_or_model_has_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 0, got -1|has an empty list|is reserved or used twice"):
        PlanConfig("out", **{"models": {"CEM": "x"}, **wrong})
