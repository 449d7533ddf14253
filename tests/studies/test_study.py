"""Runs happen once and name their log; tables have each seed once; pages change only between their markers."""

import json
import time
from pathlib import Path

import ablate_planning
import ablate_pretraining
import ablate_world_model
import compare_future
import compare_probes
import measure_fine_tuning
import measure_optional_parts
import pytest
import reproduce
import study
from pretrain import PretrainConfig

from vjepa2_hf.training.run import changed_settings
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """A script that copies its first argument to a file, and fails without a second one."""
    path = tmp_path / "script.py"
    path.write_text("import sys, pathlib\nprint(sys.argv[1])\npathlib.Path(sys.argv[2]).write_text(sys.argv[1])\n")
    monkeypatch.setattr(study, "EXAMPLES", tmp_path)
    return path


class TestRuns:
    def test_a_run_happens_once_and_leaves_its_log_and_time(self, script, tmp_path):
        runs = study.RunFolder(tmp_path / "runs")
        for text in ("first", "again"):
            assert runs.run("a run", tmp_path / "result", "script.py", text, str(tmp_path / "result")).exists()
        assert (tmp_path / "result").read_text() == "first"
        assert (tmp_path / "runs/logs/a_run.log").read_text() == "first\n"
        assert list(runs.timings) == list(runs.core_times) == ["a run"] and runs.core_times["a run"] > 0

    def test_a_run_that_fails_ends_the_study_and_names_its_log(self, script, tmp_path):
        with pytest.raises(SystemExit, match="broken failed; see .*broken.log"):
            study.RunFolder(tmp_path).run("broken", tmp_path / "never", "script.py", "only one")
        assert "IndexError" in (tmp_path / "logs" / "broken.log").read_text()

    def test_settings_become_arguments(self, commands, tmp_path):
        runs = study.RunFolder(tmp_path)
        settings = {"data": tmp_path, "seed": 1, "masks": [{"type": "future"}], "normalize_targets": "none"}
        path = runs.configured("some row", "pretrain.py", "demo/pretrain.yaml#layer_targets", settings)
        assert path == tmp_path / "some_row" / "final"
        (command,) = commands
        config = load_config(PretrainConfig, command[2], command[3:])
        assert (config.data, config.seed, config.masks, config.num_threads) == (
            str(tmp_path),
            1,
            [{"type": "future"}],
            1,
        )
        assert config.normalize_targets == "none"  # a run's own settings come last

    def test_runs_side_by_side_end_at_the_first_error(self):
        ran = []

        def fail():
            time.sleep(0.05)
            raise ValueError("broken")

        runs = [lambda: ran.append(1), fail, *[lambda: time.sleep(0.1) or ran.append(2)] * 20]
        with pytest.raises(ValueError, match="broken"):
            study.run_side_by_side(runs, jobs=2)
        assert 1 in ran and len(ran) < 20


PRETRAINING, DYNAMICS = "demo/pretrain.yaml", "demo/world_model.yaml"
MLP = {
    "world_model.dynamics_type": "mlp",
    "world_model.predictor_hidden_size": 256,
    "world_model.state_type": "projected",
    "world_model.state_dim": 64,
}
ENCODER = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "crop_size": 64}
ENCODER |= {"initializer_range": 0.1, "depth_scaled_init": False}
ENCODER = {f"encoder_config.{key}": value for key, value in ENCODER.items()}
CHANGES = {
    PRETRAINING: {
        "online_target": {"target_type": "online"},
        "pixels": {"target_type": "pixels", "normalize_targets": "layer"},
        "high_mask_ratio": {
            "masks": [
                {
                    "type": "multi_block",
                    "num_blocks": [4, 8],
                    "spatial_scale": [0.15, 0.7],
                    "temporal_scale": [0.4, 1.0],
                    "mask_ratio": [0.75, 0.9],
                }
            ]
        },
        "wide_predictor": {"predictor.hidden_size": 96},
        "layer_targets": {"normalize_targets": "layer"},
        "variance": {"variance_weight": 1.0, "variance_margin": 0.5, "covariance_weight": 0.04},
        "no_locality": {"predictor.query_key_bias": 0.0},
    },
    DYNAMICS: {
        "addition": {"world_model.action_fusion": "add"},
        "cross_attention": {"world_model.action_fusion": "cross_attention"},
        "wide": {"world_model.predictor_hidden_size": 128, "world_model.predictor_num_attention_heads": 8},
        "one_step": {"rollout_start": 1.0},
        "five_steps": {"world_model.rollout_steps": 5, "frames_per_window": 6},
        "history": {"world_model.context_frames": 3},
        "pooled": {"world_model.state_type": "pooled"},
        "merged": {"world_model.state_type": "merged", "world_model.state_dim": 96},
        "mlp_pca": MLP,
        "mlp_slow": {**MLP, "world_model.state_projection": "slow"},
        "linear_actions": {"world_model.action_encoder_num_layers": 1},
        "learning_encoder": {"world_model.freeze_encoder": False},
        "random": {"encoder": "random", **ENCODER},
        "pixels": {"encoder": "pixels", **ENCODER},
    },
}


@pytest.mark.parametrize(("config", "row"), [(config, row) for config in CHANGES for row in CHANGES[config]])
def test_an_ablation_differs_from_the_demo_by_its_one_thing(config, row):
    kind = PretrainConfig if config == PRETRAINING else WorldModelTrainingConfig
    recipe = load_config(kind, study.CONFIGS / config)
    overrides = study.key_values(study.ablation(config, row))
    changed = load_config(kind, study.CONFIGS / config, overrides)
    found = {key: now for key, (_, now) in changed_settings(recipe, changed).items()}
    assert found == CHANGES[config][row]


def test_every_ablation_is_listed_here_and_used():
    for config, rows in CHANGES.items():
        table = study.yaml.safe_load((study.CONFIGS / "ablations.yaml").read_text())
        assert set(table[config]) == set(rows)
    used = [*ablate_pretraining.EVERYWHERE.values(), *ablate_pretraining.ABLATIONS.values()]
    assert {one.partition("#")[2] for one in used} - {""} == set(CHANGES[PRETRAINING])


class TestSeeds:
    def rows(self, *by_seed: dict[int, float]) -> list[dict]:
        return [
            {"name": name, "seeds": list(values), "success": {"by_seed": list(values.values())}}
            for name, values in zip("ab", by_seed, strict=True)
        ]

    def test_differences_are_of_the_seeds_that_both_have(self):
        rows = self.rows({0: 0.5, 1: 0.75, 3: 0.5}, {0: 0.25, 1: 0.75, 2: 1.0})
        (difference,) = study.differences(rows, [("a", "b"), ("a", "absent")])
        assert difference["by_seed"] == [0.25, 0.0] and difference["mean"] == 0.125
        assert difference["low"] < 0 < difference["high"]
        assert study.differences(self.rows({0: 0.5}, {1: 0.5}), [("a", "b")]) == []
        (one_seed,) = study.differences(self.rows({0: 0.5}, {0: 0.25}), [("a", "b")])
        assert study.interval_cell(one_seed) == "one seed"
        assert study.interval_cell(difference) == "-1.00 to +1.00"

    def test_one_seed_is_counted_without_a_plural(self):
        assert [study.counted(number, "seed") for number in (1, 3)] == ["1 seed", "3 seeds"]

    def test_equal_differences_have_no_interval(self):
        (difference,) = study.differences(self.rows({0: 1.0, 1: 0.94}, {0: 0.96, 1: 0.90}), [("a", "b")])
        assert len(set(difference["by_seed"])) > 1, "rounding alone separates them"
        assert study.interval_cell(difference) == "–"

    def test_an_earlier_table_counts_only_with_the_same_settings(self, tmp_path):
        path = tmp_path / "results.json"
        row = {"name": "recipe", "seeds": [0]}
        path.write_text(json.dumps({"episodes": 4, "environments": {"pushing": {"rows": [row]}}}))
        assert study.known_rows(path, {"episodes": 4}) == {("pushing", "recipe"): row}
        assert study.known_rows(path, {"episodes": 5}) == {}
        assert study.known_rows(tmp_path / "absent.json", {"episodes": 4}) == {}

    def test_joined_rows_have_each_seed_once(self):
        def row(seeds, values, milliseconds):
            success = study.over_seeds(values)
            return {"name": "a", "title": "A", "seeds": seeds, "success": success, "ms": milliseconds}

        both = study.joined(row([0, 1], [0.5, 0.25], 10.0), row([1, 2], [0.75, 1.0], 40.0))
        assert (both["seeds"], both["success"]["by_seed"]) == ([0, 1, 2], [0.5, 0.75, 1.0])
        assert both["ms"] == pytest.approx(30.0)  # one seed of the old, two of the new
        assert study.joined(None, row([0], [0.5], 1.0))["seeds"] == [0]


MODULES = (ablate_pretraining, compare_future, compare_probes, measure_fine_tuning, measure_optional_parts, reproduce)
STUDIES = [module.STUDY for module in (*MODULES, ablate_planning, ablate_world_model)]


class TestCommand:
    def test_runs_of_a_folder_have_the_settings_that_began_it(self, tmp_path):
        command = compare_future.STUDY
        (tmp_path / "seed-0").mkdir()  # runs of a folder without settings
        given = command.parse(["--output", str(tmp_path), "--steps", "600"])
        assert command.settings_of(given)["steps"] == 600
        command.claim(given)
        command.claim(given)
        other = command.parse(["--output", str(tmp_path), "--steps", "20"])
        with pytest.raises(ValueError, match=r"holds runs with other steps \(600, now 20\); choose another folder"):
            command.claim(other)
        assert command.settings_of(other)["steps"] == 600

    @pytest.mark.parametrize("command", STUDIES, ids=lambda command: command.name)
    def test_a_page_with_figures_is_not_replaced_by_one_without(self, command, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("figures")
        options = ["--collect", "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "r.json")]
        with pytest.raises(SystemExit, match="no run is finished in .*nothing to publish"):
            command.main([*options, "--documents", str(page)])
        assert page.read_text() == "figures" and not (tmp_path / "r.json").exists()

    @pytest.mark.parametrize("command", STUDIES, ids=lambda command: command.name)
    def test_without_runs_the_tables_of_the_results_are_written_again(self, command, tmp_path):
        results = study.ROOT / "results" / f"{command.name}.json"
        pages = []
        for document in command.documents:
            pages.append(tmp_path / Path(document).name)
            pages[-1].write_text((study.ROOT / document).read_text(encoding="utf-8"), encoding="utf-8")
        copy = tmp_path / "results.json"
        copy.write_text(results.read_text(encoding="utf-8"), encoding="utf-8")
        options = ["--collect", "--output", str(tmp_path / "runs"), "--results", str(copy)]
        command.main([*options, "--documents", *map(str, pages)])
        assert json.loads(copy.read_text()) == json.loads(results.read_text())
        for page, document in zip(pages, command.documents, strict=True):
            assert page.read_text(encoding="utf-8") == (study.ROOT / document).read_text(encoding="utf-8")
