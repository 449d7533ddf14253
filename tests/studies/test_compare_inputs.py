"""The study of inputs: equal core time, one cache of frames, trials before the row that they decide."""

import json
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import compare_inputs
import numpy as np
import pytest
import study
import torch


LENGTHS = dict(zip(compare_inputs.ROWS, (0.2, 0.1, 0.4, 0.8, 0.4, 0.25), strict=True))  # core seconds of a step
SUCCESS = dict(zip(compare_inputs.ROWS, (0.6, 0.4, 0.3, 0.35, 0.2, 0.5), strict=True))


def settings_of(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(one.split("=", 1) for one in arguments if "=" in one)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def runs(monkeypatch) -> list[tuple[Path, str, str, dict[str, str]]]:
    """Folder, name, script and settings of the runs, which leave what the study reads of them."""
    found, failing = [], [compare_inputs.ALONG]

    def run(self, name: str, result: Path, script: str, *arguments: str) -> Path:
        settings = settings_of(arguments)
        found.append((self.path, name, script, settings))
        result.parent.mkdir(parents=True, exist_ok=True)
        if script == "plan.py":
            (row,) = json.loads(settings["models"])
            is_trial, seed = self.path.name.startswith("trial"), int(settings["seed"])
            success = 0.1 * ("1_0" in self.path.name) if is_trial else SUCCESS[row] + seed / 100
            rows = [{"name": row, "success": success}]
            rows += [{"name": one, "success": 0.3} for one in json.loads(settings["baselines"])]
            result.write_text(json.dumps({"rows": rows}))
            (result.parent / "manifest.json").write_text("{}")
        else:
            result.write_text("{}")
            (self.path / study.slug(name) / "state").mkdir(parents=True, exist_ok=True)
            frames = {} if name == compare_inputs.LEWM else {"found_frames": 0.01 if name in failing else 0.5}
            (self.path / study.slug(name) / "state" / "metrics.jsonl").write_text(f"{{}}\n{json.dumps(frames)}\n")
        used = 100.0 + LENGTHS.get(name.rpartition(" ")[0], 0) * int(settings.get("state.max_steps", 0))
        with self._lock:
            study.write_json(self.path / "core_times.json", self.core_times | {name: used})
        return result

    monkeypatch.setattr(study.RunFolder, "run", run)
    monkeypatch.setattr(compare_inputs, "measure_read_out", lambda model, data: {"pusher": 0.9, "block": 0.5})
    return found


def test_every_row_has_the_same_time_and_tasks_of_its_seed(runs, run_study, tmp_path):
    page = run_study(compare_inputs.STUDY, "--jobs", "1", "--seeds", "2", "--seconds", "40")
    results = json.loads((tmp_path / "results.json").read_text())
    for name, row in results["rows"].items():
        assert row["steps"] == pytest.approx(40 / LENGTHS[name], abs=1)
    trained = [one for one in runs if one[2] == "train_world_model.py" and one[0].name.startswith("seed")]
    assert len(trained) == 12 and len({one[3]["cache_dir"] for one in trained}) == 1
    assert {one[3]["max_steps"] for one in trained} == {"1200"}
    tasks = {(one[0].name, one[3]["first_task"]) for one in runs if one[2] == "plan.py"}
    first = compare_inputs.FIRST_TASK
    assert {("seed-0", str(first)), ("seed-1", str(first + 1000))} < tasks and len(tasks) == 5  # three trials
    assert results["baselines"]["oracle"]["by_seed"] == [0.3, 0.3]
    manifests = sorted(path.name for path in (tmp_path / "manifests").iterdir())
    assert manifests == ["results-seed-0.json", "results-seed-1.json"]
    assert compare_inputs.format_tables(results) in page
    assert f'at its end than chance (1 of 16) would: "{compare_inputs.ALONG}" 2.' in page
    assert results["rows"][compare_inputs.LEWM]["found_frames"] == [None, None]


def test_differences_are_paired_and_the_best_weight_is_used(runs, run_study, tmp_path):
    run_study(compare_inputs.STUDY, "--jobs", "1", "--seeds", "2")
    results = json.loads((tmp_path / "results.json").read_text())
    pairs = [(one["row"], one["minus"]) for one in results["differences"]]
    pretrained, along, random = compare_inputs.PRETRAINED, compare_inputs.ALONG, compare_inputs.RANDOM
    assert pairs[-2:] == [(pretrained, random), (along, pretrained)] and len(pairs) == 7
    assert all(pair[1] == compare_inputs.PIXELS for pair in pairs[:-2]) and (along, compare_inputs.PIXELS) in pairs
    differences = [-0.2, -0.3, -0.25, -0.4, -0.1, 0.1, 0.05]
    assert [one["mean"] for one in results["differences"]] == pytest.approx(differences)
    assert results["sigreg_weight"] == 1.0 and len(results["trials"]) == 3
    used = [one[3] for one in runs if one[0].name.startswith("seed") and one[1] == compare_inputs.LEWM]
    assert [one["state.sigreg_weight"] for one in used] == ["1.0", "1.0"]
    assert "the best of 3 trials" in compare_inputs.format_tables(results)


def test_a_row_that_lacks_seeds_is_compared_over_those_it_has(runs, run_study, tmp_path):
    row = compare_inputs.LEWM
    run_study(compare_inputs.STUDY, "--jobs", "1", "--seeds", "3")
    (last,) = [one[0] for one in runs if one[1] == row and one[0].name == "seed-2"]
    compare_inputs.read_out_of(last, row).unlink()
    page = run_study(compare_inputs.STUDY, "--collect", "--seeds", "3")
    found = json.loads((tmp_path / "results.json").read_text())
    counts = {name: len(one["success"]["by_seed"]) for name, one in found["rows"].items()}
    assert counts == {name: 2 if name == row else 3 for name in compare_inputs.ROWS}
    (difference,) = [one for one in found["differences"] if one["row"] == row]
    assert len(difference["by_seed"]) == 2 and found["seeds"] == 3
    assert f"3 training seeds (2 of {row})" in page


def test_a_row_can_be_measured_again_with_the_steps_and_the_tasks_of_the_others(runs, run_study, tmp_path, capsys):
    row, other = compare_inputs.LEWM, tmp_path / "again"
    run_study(compare_inputs.STUDY, "--jobs", "1", "--seeds", "1", "--seconds", "40")
    before = json.loads((tmp_path / "results.json").read_text())
    runs.clear()
    more = ["--jobs", "1", "--seconds", "40", "--rows", row, "--output", str(other)]
    page = run_study(compare_inputs.STUDY, "--seeds", "3", *more)
    assert [one[1] for one in runs] == ["record episodes", "record read_out", *[row, f"plan {row}"] * 3]
    settings = {(one[0].name, one[1]): one[3] for one in runs}
    for seed in range(3):
        trained, planned = (settings[f"seed-{seed}", name] for name in (row, f"plan {row}"))
        assert int(trained["state.max_steps"]) == before["rows"][row]["steps"]
        assert float(trained["state.sigreg_weight"]) == before["sigreg_weight"]
        manifest = tmp_path / "manifests" / f"results-seed-{seed}.json"
        assert planned.get("manifest") == (str(manifest) if seed == 0 else None)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["rows"]) == list(compare_inputs.ROWS) and found["trials"] == before["trials"]
    assert found["rows"][row]["success"]["by_seed"] == pytest.approx([0.5, 0.51, 0.52])
    assert {k: v for k, v in found["rows"].items() if k != row} == {
        k: v for k, v in before["rows"].items() if k != row
    }
    assert "3 training seeds (1 of " in page
    with pytest.raises(SystemExit):
        run_study(compare_inputs.STUDY, *more, "--seconds", "50", "--output", str(tmp_path / "third"))
    assert "'seconds': 40" in (error := capsys.readouterr().err) and "'seconds': 50" in error and "same set" in error
    with pytest.raises(SystemExit):  # two of three seeds: the results stay
        run_study(compare_inputs.STUDY, *more, "--seeds", "2", "--output", str(tmp_path / "fourth"))
    assert json.loads((tmp_path / "results.json").read_text()) == found
    with pytest.raises(SystemExit):
        run_study(compare_inputs.STUDY, "--seconds", "40", "--rows", compare_inputs.ALONG)
    assert "give both" in capsys.readouterr().err


def test_only_the_pretrained_rows_read_the_pretrained_encoder(runs, run_only):
    run_only(compare_inputs.STUDY, "--seeds", "1")
    trained = {one[1]: one[3] for one in runs if one[2] == "train_world_model.py" and one[0].name == "seed-0"}
    encoders = {name: settings.get("encoder", "of the config") for name, settings in trained.items()}
    assert encoders.pop(compare_inputs.PRETRAINED).endswith("pretrain/final")
    assert encoders.pop(compare_inputs.ALONG).endswith("pretrain/final")
    assert encoders.pop(compare_inputs.RANDOM) == "random" and set(encoders.values()) == {"of the config"}


def test_only_one_row_learns_its_encoder_along_which_is_measured_too(runs, run_only):
    run_only(compare_inputs.STUDY, "--seeds", "1")
    along = {one[1]: one[3] for one in runs if one[3].get("state.train_encoder") == "true"}
    row = compare_inputs.ALONG
    assert set(along) == {row, *(f"{row} {steps}" for steps in compare_inputs.SPEED_STEPS)}
    assert {settings["encoder"] for name, settings in along.items() if name != row} == {"random"}


def test_rows_side_by_side_share_one_pretraining_of_each_seed(runs, run_only, monkeypatch):
    recorded = study.RunFolder.run

    def slowly(self, name: str, *arguments: str) -> Path:
        if name == "pretrain":
            time.sleep(0.2)
        return recorded(self, name, *arguments)

    monkeypatch.setattr(study.RunFolder, "run", slowly)
    run_only(compare_inputs.STUDY, "--seeds", "3", "--jobs", "40")
    assert sorted(one[0].name for one in runs if one[1] == "pretrain") == ["seed-0", "seed-1", "seed-2"]


def test_a_failed_trial_ends_the_runs_that_wait_for_it():
    future = Future()
    with pytest.raises(ValueError, match="no trial"):
        compare_inputs.finishing(future, lambda: (_ for _ in ()).throw(ValueError("no trial")))()
    with pytest.raises(ValueError, match="no trial"):
        future.result(timeout=1)


def test_a_step_that_takes_no_time_is_refused(tmp_path):
    options = compare_inputs.STUDY.parse(["--output", str(tmp_path)])
    names = [f"{row} {steps}" for row in compare_inputs.ROWS for steps in compare_inputs.SPEED_STEPS]
    (tmp_path / "speed").mkdir()
    study.write_json(tmp_path / "speed" / "core_times.json", dict.fromkeys(names, 8.0))
    with pytest.raises(ValueError, match=r"10 and 60 steps of .* remove .*speed"):
        compare_inputs.step_seconds(options)


def test_the_read_out_finds_what_a_state_holds_and_nothing_else(monkeypatch):
    """A state that is a linear map of the pusher's position, and blind to the block."""
    rng, network = np.random.default_rng(0), np.random.default_rng(1).normal(size=(2, 6))
    states = [rng.uniform(0, 64, size=(20, 4)).astype(np.float32) for _ in range(40)]
    model = SimpleNamespace(config=SimpleNamespace(frame_skip=2))
    loaded = SimpleNamespace(from_pretrained=lambda folder: SimpleNamespace(eval=lambda: model))
    monkeypatch.setattr(compare_inputs, "VJepa2WorldModel", loaded)
    monkeypatch.setattr(compare_inputs, "VJepa2VideoProcessor", loaded)
    episodes = [{"frames": one, "states": one} for one in states]
    monkeypatch.setattr(compare_inputs, "read_episodes", lambda data, skip: iter(episodes))

    def encode(model, processor, frames):
        return torch.from_numpy(frames[:, None, :2] @ network)

    monkeypatch.setattr(compare_inputs, "encode_frames", encode)
    found = compare_inputs.measure_read_out(Path("model"), Path("data"))
    assert found["pusher"] > 0.99 and 0 <= found["block"] < 0.05


@pytest.mark.slow
def test_the_study_runs(tiny_runs, run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_inputs, "TRIAL_WEIGHTS", (0.1,))
    monkeypatch.setattr(compare_inputs, "SPEED_STEPS", (1, 2))
    monkeypatch.setattr(compare_inputs, "step_seconds", lambda options: dict.fromkeys(compare_inputs.ROWS, 1.0))
    page = run_study(compare_inputs.STUDY, "--seeds", "1", "--jobs", "1", "--seconds", "2")
    assert sorted(set(tiny_runs)) == ["plan", "pretrain", "record_episodes", "train_world_model"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == list(compare_inputs.ROWS)
    assert compare_inputs.format_tables(results) in page
