"""The rows of the world model's table differ in what they say, run once, and show what was measured."""

import argparse
import json
import shutil

import ablate_world_model
import pytest
import torch
import yaml
from ablate_world_model import RECIPE, ROWS
from demo import Road
from safetensors.torch import save_file
from train_world_model import WorldModelTrainingConfig

from vjepa2_hf import VJepa2WorldModelConfig
from vjepa2_hf.training.run import changed_settings
from vjepa2_hf.training.settings import load_config


CONFIGS = ablate_world_model.CONFIGS
# What a row changes in the recipe of the dynamics
MLP = {"world_model.dynamics_type": "mlp", "world_model.predictor_hidden_size": 256}
PROJECTED = {"world_model.state_type": "projected", "world_model.state_dim": 64}
CHANGES = {
    "addition": {"world_model.action_fusion": "add"},
    "cross_attention": {"world_model.action_fusion": "cross_attention"},
    "wide": {"world_model.predictor_hidden_size": 128, "world_model.predictor_num_attention_heads": 8},
    "one_step": {"rollout_start": 1.0},
    "five_steps": {"world_model.rollout_steps": 5, "frames_per_window": 6},
    "history": {"world_model.context_frames": 3},
    "pooled": {"world_model.state_type": "pooled"},
    "merged": {"world_model.state_type": "merged", "world_model.state_dim": 96},
    "mlp_pca": {**MLP, **PROJECTED},
    "mlp_slow": {**MLP, **PROJECTED, "world_model.state_projection": "slow"},
    "linear_actions": {"world_model.action_encoder_num_layers": 1},
    "learning_encoder": {"world_model.freeze_encoder": False},
}
ENCODERS = {
    "random": "random",
    "pixels": "pixels",
    "online_target": "ablations/pretrain_online_target.yaml",
    "pixel_target": "ablations/pretrain_pixels.yaml",
}


class TestRows:
    def test_every_row_changes_the_dynamics_or_the_encoder_and_not_both(self):
        recipe = ROWS[RECIPE]
        assert set(ROWS) == {RECIPE, *CHANGES, *ENCODERS}
        assert {name: ROWS[name].encoder for name in ENCODERS} == ENCODERS
        assert all(ROWS[name].config == recipe.config for name in ENCODERS)
        assert all(ROWS[name].encoder == recipe.encoder for name in CHANGES)
        assert len({row.title for row in ROWS.values()}) == len(ROWS)

    def test_every_config_is_a_row(self):
        files = {f"ablations/{path.name}" for path in (CONFIGS / "ablations").glob("world_model_*.yaml")}
        assert files == {ROWS[name].config for name in CHANGES}

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_config_differs_from_the_recipe_by_what_its_row_says(self, name):
        recipe = load_config(WorldModelTrainingConfig, CONFIGS / ROWS[RECIPE].config)
        config = load_config(WorldModelTrainingConfig, CONFIGS / ROWS[name].config)
        assert {key: now for key, (_, now) in changed_settings(recipe, config).items()} == CHANGES[name]
        assert config.output_dir == f"runs/ablations/{name}"
        encoder = {"hidden_size": 96, "num_attention_heads": 4, "crop_size": 64}
        fields = {"encoder_config": encoder, "action_dim": 4, "actions_per_step": 2}
        assert VJepa2WorldModelConfig(**fields, **config.world_model).frame_skip == 2

    def test_seed_003_is_quoted_for_rows_there_are(self):
        assert {name for pair in ablate_world_model.SEED_003 for name in pair} <= set(ROWS)


@pytest.fixture
def options(tmp_path) -> list[str]:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- world_model:begin -->\nold\n<!-- world_model:end -->\nafter\n")
    given = {"--output": tmp_path / "runs", "--results": tmp_path / "r.json", "--document": document}
    return [str(part) for pair in given.items() for part in pair] + ["--seeds", "2", "--steps", "7", "--episodes", "4"]


def run_main(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["ablate_world_model.py", *arguments])
    ablate_world_model.main()


class TestRuns:
    @pytest.fixture
    def commands(self, monkeypatch) -> list[list[str]]:
        """Commands that would have run, in order; each leaves its result behind."""
        ran = []

        def run(self, title, *steps):
            for _, result, command in steps:
                if not result.exists():
                    ran.append([command[0].rsplit("/", 1)[-1], *command[1:]])
                    result.parent.mkdir(parents=True, exist_ok=True)
                    result.write_text("{}")

        monkeypatch.setattr(Road, "run", run)
        monkeypatch.setattr(ablate_world_model, "collect", lambda arguments: {"environments": {}})
        monkeypatch.setattr(ablate_world_model, "format_tables", lambda results: "")
        return ran

    def test_rows_run_one_after_the_other_with_all_their_seeds(self, monkeypatch, options, commands, tmp_path):
        run_main(monkeypatch, *options, "--lanes", "1")
        assert [command[0] for command in commands[:3]] == ["record_episodes.py", "pretrain.py", "pretrain.py"]
        trained = [command for command in commands if command[0] == "train_world_model.py"]
        default = [name for name in ROWS if name != "learning_encoder"]
        wanted = [(str(CONFIGS / ROWS[name].config), f"seed={seed}") for name in default for seed in (0, 1)]
        assert [(command[2], command[-3]) for command in trained] == wanted
        runs = tmp_path / "runs" / "pushing"
        shared = {"max_steps=7", f"cache_dir={runs / 'latents'}", f"data={runs / 'episodes'}"}
        assert all(shared < set(command) for command in trained)
        planned = [command for command in commands if command[0] == "plan.py"]
        tasks = [next(part for part in command if part.startswith("first_task")) for command in planned]
        assert tasks == ["first_task=100000", "first_task=101000"] * len(default)
        assert ["baselines=[]" in command for command in planned] == [False, False] + [True] * (len(planned) - 2)

    def test_a_row_gets_its_own_encoder_or_that_of_reproduce(self, monkeypatch, options, commands, tmp_path):
        rows = ["--rows", "addition", "online_target", "pixels"]
        run_main(monkeypatch, *options, "--lanes", "1", "--seeds", "1", *rows)
        folder = tmp_path / "runs" / "pushing" / "seed-0"
        pretrained = [command for command in commands if command[0] == "pretrain.py"]
        own = folder / "ablations-7-steps" / "online_target" / "pretrain"
        assert [command[3] for command in pretrained] == [f"output_dir={folder / 'pretrain'}", f"output_dir={own}"]
        configs = [CONFIGS / "demo/pretrain.yaml", CONFIGS / "ablations/pretrain_online_target.yaml"]
        assert [command[2] for command in pretrained] == [str(path) for path in configs]
        encoders = [command[3] for command in commands if command[0] == "train_world_model.py"]
        assert encoders == [f"encoder={folder / 'pretrain' / 'final'}", f"encoder={own / 'final'}", "encoder=pixels"]

    def test_a_stopped_command_runs_only_what_is_missing(self, monkeypatch, options, commands, tmp_path):
        run_main(monkeypatch, *options, "--rows", "recipe", "wide")
        (tmp_path / "runs/pushing/seed-1/ablations-7-steps/wide/plan-4/results.json").unlink()
        commands.clear()
        run_main(monkeypatch, *options, "--rows", "recipe", "wide")
        assert [command[0] for command in commands] == ["plan.py"]
        assert "seed=1" in commands[0]

    def test_rows_of_one_seed_keep_their_own_logs(self, tmp_path):
        arguments = argparse.Namespace(output=tmp_path, steps=7, episodes=4)
        chain = ablate_world_model.Chain(arguments, "pushing", 0)
        assert chain.road(chain.row_folder("wide")).timings_path != chain.road(chain.row_folder("merged")).timings_path


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
    def test_it_holds_what_the_runs_measured(self, monkeypatch, options, tmp_path):
        for seed, (recipe, addition) in enumerate([(0.5, 0.75), (1.0, 0.75)]):
            folder = tmp_path / f"runs/pushing/seed-{seed}/ablations-7-steps"
            finish(folder / "recipe", recipe, {"data policy": 0.25})
            finish(folder / "addition", addition, {}, error=1.0)
        run_main(monkeypatch, *options, "--collect")
        text = (tmp_path / "page.md").read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        # 130 steps of 8 windows: 100 at 8 and 30 at 4 a second are 160 seconds
        measured = "| 1,200 | 2.7 | 0.25 | 0.25 | 0.25 | 0.75 (0.25) | 0.75 (0.00–1.00) | 0.50, 1.00 | 20 |"
        assert f"| {ROWS[RECIPE].title} {measured}" in text
        assert "| addition instead of concatenation | 1,200 | 2.7 | 0.50 | 0.50 | 0.50 |" in text
        assert "| data policy |  |  |  |  |  |  | 0.25 (0.25–0.25) | 0.25, 0.25 |  |" in text
        assert "| the recipe | -0.03 | +0.00 | -1.00 to +1.00 | +0.25, -0.25 |" in text
        results = json.loads((tmp_path / "r.json").read_text())
        assert [row["name"] for row in results["environments"]["pushing"]["rows"]] == ["recipe", "addition"]

    def test_differences_are_paired_by_seed(self):
        rows = [
            {"name": "one_step", "seeds": [0, 1, 2], "success": {"by_seed": [0.2, 0.4, 0.6]}},
            {"name": "five_steps", "seeds": [1, 2], "success": {"by_seed": [0.5, 0.7]}},
        ]
        (found,) = ablate_world_model.differences(rows)
        assert (found["row"], found["minus"], found["seed_003"]) == ("five_steps", "one_step", 0.04)
        assert found["by_seed"] == pytest.approx([0.1, 0.1])
        # what both rows share with a seed is no uncertainty of their difference
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.1, 0.1, 0.1))

    def test_an_interval_is_that_of_the_differences(self):
        by_seed = {"recipe": [0.5, 0.5, 0.5], "wide": [0.4, 0.5, 0.6]}
        rows = [{"name": name, "seeds": [0, 1, 2], "success": {"by_seed": values}} for name, values in by_seed.items()]
        (found,) = ablate_world_model.differences(rows)
        half = 4.30265 * 0.1 / 3**0.5  # Student's t with two degrees of freedom, deviation 0.1
        assert (found["low"], found["high"]) == pytest.approx((-half, half))

    def test_seeds_of_an_earlier_table_stay_beside_new_ones(self, monkeypatch, options, tmp_path):
        first = tmp_path / "runs/pushing/seed-0/ablations-7-steps/recipe"
        finish(first, 0.5, {"data policy": 0.25})
        finish(tmp_path / "runs/pushing/seed-1/ablations-7-steps/recipe", 0.75, {"data policy": 0.25})
        finish(tmp_path / "runs/pushing/seed-0/ablations-7-steps/wide", 0.25, {})
        run_main(monkeypatch, *options, "--collect")
        shutil.rmtree(tmp_path / "runs")
        finish(tmp_path / "runs/pushing/seed-1/ablations-7-steps/recipe", 1.0, {"data policy": 0.5}, error=2.0)
        run_main(monkeypatch, *options, "--collect")
        recipe, wide = json.loads((tmp_path / "r.json").read_text())["environments"]["pushing"]["rows"]
        assert (recipe["seeds"], recipe["success"]["by_seed"]) == ([0, 1], [0.5, 1.0])  # measured again: the new one
        assert recipe["error_over_copy"]["1"]["by_seed"] == [0.25, 1.0]
        assert recipe["baselines"]["data policy"]["by_seed"] == [0.25, 0.5]
        assert recipe["plan_milliseconds"] == pytest.approx(20.0)
        assert (wide["seeds"], wide["success"]["by_seed"]) == ([0], [0.25])

    def test_runs_of_another_length_are_not_taken_for_these(self, monkeypatch, options, tmp_path):
        finish(tmp_path / "runs/pushing/seed-0/ablations-8-steps/recipe", 0.5, {})
        with pytest.raises(SystemExit, match="no row of 7 steps is finished"):
            run_main(monkeypatch, *options, "--collect")
        assert "old" in (tmp_path / "page.md").read_text()
