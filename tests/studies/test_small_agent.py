"""The study of a small agent: each world model is trained, measured and used in the environment of its disc."""

import json

import small_agent


def test_a_world_model_is_measured_and_planned_with(tiny_runs, run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(small_agent, "WORLD_MODELS", ((2.5, 16),))
    page = run_study(small_agent.STUDY, "--jobs", "1")
    assert tiny_runs == ["record_episodes", "pretrain", "train_world_model", "evaluate_world_model", "plan"]
    results = json.loads((tmp_path / "results.json").read_text())
    planned = [f"2.5 px, patches of 16, {cost}" for cost in (small_agent.LATENT, small_agent.LEARNED)]
    assert set(planned) < set(results["success"]) and len(results["success"]) == 5
    assert len(results["distances"]["2.5 px, patches of 16"]) == 4 and small_agent.format_tables(results) in page


def test_large_and_small_disc_have_their_own_episodes_and_tasks(commands, run_only):
    run_only(small_agent.STUDY)
    kwargs = [part for command in commands for part in command if "agent_radius" in part]
    assert kwargs[:2] == ['{"agent_radius":2.5}', '{"agent_radius":6.0}']
    planned = [command for command in commands if command[0] == "plan.py"]
    assert ['env_kwargs={"agent_radius": 6.0}' in one for one in planned] == [True, False, False]
    assert ["baselines=[]" in one for one in planned] == [False, False, True]


def test_far_pairs_begin_at_a_quarter_of_the_longest_path():
    bins = [{"from": a, "to": b, "rank_correlation_beyond": a / 100} for a, b in ((0, 5), (5, 10), (10, 40))]
    curve = {"rank_correlation": 0.5, "bins": bins}
    columns = small_agent.distance_columns([{"distances": {"groups": {"path": {"latent": curve, "learned": curve}}}}])
    assert columns["learned, all pairs"] == [0.5] and columns["learned, far pairs"] == [0.1]
