"""The study of two cameras: models of both views and of each, which plan on the same tasks."""

import json

import two_views


def test_every_model_sees_its_cameras_and_plans(tiny_runs, run_study, tmp_path):
    page = run_study(two_views.STUDY, "--seeds", "1", "--jobs", "1")
    assert tiny_runs == ["record_episodes", "pretrain", *["train_world_model"] * 3, "plan"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {*two_views.VIEWS, two_views.REDUCED} < set(results["success"]) and len(results["success"]) == 6
    differences = results["differences"]["block and pusher"]
    assert [one["minus"] for one in differences] == [*two_views.SINGLE, two_views.REDUCED]
    assert two_views.format_tables(results) in page
    folder = tmp_path / "runs" / "seed-0"
    views = {
        name: json.loads((folder / two_views.study.slug(name) / "final" / "config.json").read_text())["view_names"]
        for name in two_views.VIEWS
    }
    assert views == two_views.VIEWS
