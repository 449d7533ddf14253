"""Rows of the world model's table change one thing, run once, and show what was measured."""

import json
import shutil

import ablate_world_model
import pytest
import torch
import yaml
from ablate_world_model import DYNAMICS, RECIPE, ROWS, STUDY
from pretrain import PretrainConfig
from safetensors.torch import save_file
from study import CONFIGS, ablation, differences, key_values

from vjepa2_hf import VJepa2WorldModelConfig
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


ENCODERS = [*ablate_world_model.PRETRAINED, *ablate_world_model.NOT_PRETRAINED]
CHANGED_DYNAMICS = [name for name in ROWS if name not in (RECIPE, *ENCODERS)]
PAIRS = list(ablate_world_model.TWO_PHASE)
SIZE = ["--steps", "7", "--episodes", "4"]


class TestRows:
    def test_every_row_changes_the_dynamics_or_the_encoder_and_not_both(self):
        assert set(ENCODERS) < set(ROWS) and len(set(ROWS.values())) == len(ROWS)
        rows = yaml.safe_load((CONFIGS / "ablations.yaml").read_text())[DYNAMICS]
        assert set(rows) == {*CHANGED_DYNAMICS, "random", "pixels"}

    @pytest.mark.parametrize("name", CHANGED_DYNAMICS)
    def test_a_row_s_world_model_can_be_built(self, name):
        overrides = key_values(ablation(DYNAMICS, name))
        config = load_config(WorldModelTrainingConfig, CONFIGS / DYNAMICS, overrides)
        encoder = {"hidden_size": 96, "num_attention_heads": 4, "crop_size": 64}
        fields = {"encoder_config": encoder, "action_dim": 4, "actions_per_step": 2}
        assert VJepa2WorldModelConfig(**fields, **config.world_model).frame_skip == 2

    def test_the_two_phase_recipe_is_quoted_for_rows_there_are(self):
        assert {name for pair in ablate_world_model.TWO_PHASE for name in pair} <= set(ROWS)


class TestRuns:
    def test_rows_run_one_after_the_other_with_all_their_seeds(self, run_only, commands, tmp_path):
        run_only(STUDY, *SIZE, "--seeds", "2")
        assert [command[0] for command in commands[:3]] == ["record_episodes.py", "pretrain.py", "pretrain.py"]
        trained = [command for command in commands if command[0] == "train_world_model.py"]
        default = [name for name in ROWS if name != "learning_encoder"]
        runs = tmp_path / "runs" / "pushing"
        wanted = [(name, seed) for name in default for seed in (0, 1)]
        for (name, seed), command in zip(wanted, trained, strict=True):
            assert command[2] == str(CONFIGS / DYNAMICS)
            config = load_config(WorldModelTrainingConfig, command[2], command[3:])
            assert config.output_dir == str(runs / f"seed-{seed}/ablations-7-steps/{name}/world_model")
            assert (config.seed, config.max_steps, config.num_threads) == (seed, 7, 1)
            assert (config.data, config.cache_dir) == (str(runs / "episodes"), str(runs / "latents"))
        planned = [command for command in commands if command[0] == "plan.py"]
        tasks = [next(part for part in command if part.startswith("first_task")) for command in planned]
        assert tasks == ["first_task=100000", "first_task=101000"] * len(default)
        assert ["baselines=[]" in command for command in planned] == [False, False] + [True] * (len(planned) - 2)

    def test_a_row_gets_its_own_encoder_or_that_of_reproduce(self, run_only, commands, tmp_path):
        run_only(STUDY, *SIZE, "--seeds", "1", "--rows", "addition", "online_target", "pixels")
        folder = tmp_path / "runs" / "pushing" / "seed-0"
        pretrained = [command for command in commands if command[0] == "pretrain.py"]
        configs = [load_config(PretrainConfig, command[2], command[3:]) for command in pretrained]
        own = folder / "ablations-7-steps" / "online_target" / "pretrain"
        assert [config.output_dir for config in configs] == [str(folder / "pretrain"), str(own)]
        assert [config.target_type for config in configs] == ["ema", "online"]
        trained = [command for command in commands if command[0] == "train_world_model.py"]
        configs = [load_config(WorldModelTrainingConfig, command[2], command[3:]) for command in trained]
        encoders = [config.encoder for config in configs]
        assert encoders == [str(folder / "pretrain" / "final"), str(own / "final"), "pixels"]

    def test_a_stopped_command_runs_only_what_is_missing(self, run_only, commands, tmp_path):
        given = [*SIZE, "--seeds", "2", "--rows", "recipe", "wide"]
        run_only(STUDY, *given)
        (tmp_path / "runs/pushing/seed-1/ablations-7-steps/wide/plan-4/results.json").unlink()
        commands.clear()
        run_only(STUDY, *given)
        assert [command[0] for command in commands] == ["plan.py"]
        assert "seed=1" in commands[0]


def finish(folder, success: float, baselines: dict[str, float], error: float = 0.5) -> None:
    """What a row's training and planning leave behind, in numbers."""
    model, planned = folder / "world_model", folder / "plan-4"
    (model / "final").mkdir(parents=True)
    planned.mkdir()
    methods = {**baselines, "world model": success}
    rows = [{"name": name, "success": value, "plan_milliseconds": 20.0} for name, value in methods.items()]
    (planned / "results.json").write_text(json.dumps({"rows": rows}))
    errors = [
        {"horizon": k, "error": error * k, "copy_error": 2.0 * k, "cosine": 0.75, "copy_cosine": 0.25}
        for k in (1, 2, 5, 10)
    ]
    (model / "rollout_error.json").write_text(json.dumps(errors))
    (model / "config.yaml").write_text(yaml.safe_dump({"batch_size": 8}))
    lines = [{"step": 100, "windows_per_second": 8.0}, {"step": 130, "windows_per_second": 4.0}]
    (model / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = {"predictor.proj.weight": torch.zeros(40, 30), "encoder.proj.weight": torch.zeros(9)}
    save_file(weights, model / "final" / "model.safetensors")


class TestTable:
    def test_it_holds_what_the_runs_measured(self, run_study, tmp_path):
        for seed, (recipe, addition) in enumerate([(0.5, 0.75), (1.0, 0.75)]):
            folder = tmp_path / f"runs/pushing/seed-{seed}/ablations-7-steps"
            finish(folder / "recipe", recipe, {"data policy": 0.25})
            finish(folder / "addition", addition, {}, error=1.0)
        text = run_study(STUDY, *SIZE, "--collect")
        # 130 steps of 8 windows: 100 at 8 and 30 at 4 a second are 160 seconds
        measured = "| 1,200 | 2.7 | 0.25 | 0.25 | 0.25 | 0.75 (0.25) | 0.75 (0.00–1.00) | 0.50, 1.00 | 20 |"
        assert f"| {ROWS[RECIPE]} {measured}" in text
        assert "| addition instead of concatenation | 1,200 | 2.7 | 0.50 | 0.50 | 0.50 |" in text
        assert "| data policy |  |  |  |  |  |  | 0.25 (0.25–0.25) | 0.25, 0.25 |  |" in text
        assert "| the recipe | -0.03 | +0.00 | -1.00 to +1.00 | +0.25, -0.25 |" in text
        results = json.loads((tmp_path / "results.json").read_text())
        assert [row["name"] for row in results["environments"]["pushing"]["rows"]] == ["recipe", "addition"]

    def test_differences_are_paired_by_seed(self):
        rows = [
            {"name": "one_step", "seeds": [0, 1, 2], "success": {"by_seed": [0.2, 0.4, 0.6]}},
            {"name": "five_steps", "seeds": [1, 2], "success": {"by_seed": [0.5, 0.7]}},
        ]
        (found,) = differences(rows, PAIRS)
        assert (found["row"], found["minus"]) == ("five_steps", "one_step")
        assert found["by_seed"] == pytest.approx([0.1, 0.1])
        # what both rows share with a seed is no uncertainty of their difference
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.1, 0.1, 0.1))

    def test_an_interval_is_that_of_the_differences(self):
        by_seed = {"recipe": [0.5, 0.5, 0.5], "wide": [0.4, 0.5, 0.6]}
        rows = [{"name": name, "seeds": [0, 1, 2], "success": {"by_seed": values}} for name, values in by_seed.items()]
        (found,) = differences(rows, PAIRS)
        half = 4.30265 * 0.1 / 3**0.5  # Student's t with two degrees of freedom, deviation 0.1
        assert (found["low"], found["high"]) == pytest.approx((-half, half))

    def test_seeds_of_an_earlier_table_stay_beside_new_ones(self, run_study, tmp_path):
        first = tmp_path / "runs/pushing/seed-0/ablations-7-steps/recipe"
        finish(first, 0.5, {"data policy": 0.25})
        finish(tmp_path / "runs/pushing/seed-1/ablations-7-steps/recipe", 0.75, {"data policy": 0.25})
        finish(tmp_path / "runs/pushing/seed-0/ablations-7-steps/wide", 0.25, {})
        run_study(STUDY, *SIZE, "--collect")
        shutil.rmtree(tmp_path / "runs")
        finish(tmp_path / "runs/pushing/seed-1/ablations-7-steps/recipe", 1.0, {"data policy": 0.5}, error=2.0)
        run_study(STUDY, *SIZE, "--collect")
        recipe, wide = json.loads((tmp_path / "results.json").read_text())["environments"]["pushing"]["rows"]
        assert (recipe["seeds"], recipe["success"]["by_seed"]) == ([0, 1], [0.5, 1.0])  # measured again: the new one
        assert recipe["error_over_copy"]["1"]["by_seed"] == [0.25, 1.0]
        assert recipe["baselines"]["data policy"]["by_seed"] == [0.25, 0.5]
        assert recipe["plan_milliseconds"] == pytest.approx(20.0)
        assert (wide["seeds"], wide["success"]["by_seed"]) == ([0], [0.25])

    def test_runs_of_another_length_are_not_taken_for_these(self, run_study, tmp_path):
        finish(tmp_path / "runs/pushing/seed-0/ablations-8-steps/recipe", 0.5, {})
        with pytest.raises(SystemExit, match="no run is finished in .*nothing to publish"):
            run_study(STUDY, *SIZE, "--collect")
        assert "old" in (tmp_path / "page.md").read_text()
