"""The table of pretraining holds what the probes measured; the whole command runs at tiny size."""

import json

import ablate_pretraining
from ablate_pretraining import STUDY
from study import RunFolder


def test_it_holds_what_the_probes_measured(run_study, tmp_path, monkeypatch):
    score = {"between_clips": 0.25, "average": {"content": 0.5, "motion": 0.75}, "tokens": {"content": 1, "motion": 0}}
    for seed, content in enumerate((0.4, 0.6)):
        folder = tmp_path / "runs" / "moving_digits" / f"seed-{seed}"
        folder.mkdir(parents=True)
        row = {**score, "average": {"content": content, "motion": 0.75}}
        (folder / "pretrained.json").write_text(json.dumps(row))
        (folder / "timings.json").write_text(json.dumps({"pretrained": 90 + 30 * seed, "pixels as target": 600}))
    monkeypatch.setattr(ablate_pretraining, "DATASETS", ("moving_digits",))
    text = run_study(STUDY, "--collect")
    assert "| pretrained | 0.50 (0.00–1.00) | 0.75 (0.75–0.75) |" in text and "| 0.25 |" in text
    assert "1.5 to 2.0 minutes" in text
    assert json.loads((tmp_path / "results.json").read_text())["datasets"]["moving_digits"][0]["runs"] == 2


def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path, monkeypatch):
    rows = dict(list(ablate_pretraining.ABLATIONS.items())[1:2])
    monkeypatch.setattr(ablate_pretraining, "ABLATIONS", rows)
    monkeypatch.setattr(ablate_pretraining, "DATASETS", ("moving_digits", "pushing"))
    text = run_study(STUDY, *["--seeds", "1", "--jobs", "1", "--steps", "2"])
    found = json.loads((tmp_path / "results.json").read_text())
    names = {dataset: [row["name"] for row in rows] for dataset, rows in found["datasets"].items()}
    everywhere = ["raw pixels", "random encoder", "pretrained", "with variance and covariance terms"]
    assert names == {"moving_digits": [*everywhere, "pixels as target"], "pushing": everywhere}
    assert found["steps"] == 2 and found["minutes"] and "| pixels as target | " in text
    timings = RunFolder(tmp_path / "runs" / "pushing" / "seed-0").timings
    assert set(timings) >= {"pretrained", "probe pretrained", "probe random encoder"}
    assert tiny_runs.count("pretrain") == 5 and tiny_runs.count("linear_probes") == 9
