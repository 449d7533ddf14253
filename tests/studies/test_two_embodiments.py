"""The study of two robots: one model of both, one of each, and one that gets the second afterwards."""

import json

import two_embodiments

from vjepa2_hf import VJepa2WorldModel


def test_every_model_plans_for_its_robots(tiny_runs, run_study, tmp_path):
    page = run_study(two_embodiments.STUDY, "--seeds", "1", "--jobs", "1")
    scripts = ["record_episodes", "make_arm_dataset", "make_arm_dataset", "pretrain"]
    assert tiny_runs == [*scripts, *["train_world_model"] * 4, *["plan"] * 3, *["plan_arm"] * 2]
    results = json.loads((tmp_path / "results.json").read_text())
    pusher, arm = two_embodiments.COLUMNS.values()
    models = [two_embodiments.ALONE, two_embodiments.BOTH, two_embodiments.ADDED]
    assert list(results["success"]) == models and list(results["success"][models[-1]]) == [pusher]
    assert [one["row"] for one in results["differences"][pusher]] == models[1:]
    assert two_embodiments.format_tables(results) in page
    runs = tmp_path / "runs" / "seed-0"
    both, added = (VJepa2WorldModel.from_pretrained(runs / name / "final") for name in ("both", "added"))
    assert (both.config.embodiment_action_dims, added.config.embodiment_action_dims) == ([2, 7], [7, 2])
