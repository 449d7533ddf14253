"""Rows of the planning table differ in what they say, run once on the trained models, and show what was measured."""

import json
import shutil

import pytest
import study
from ablate_planning import RECIPE, ROWS, STUDY
from plan import PlanConfig

from vjepa2_hf.planning import SOLVERS, build_solver
from vjepa2_hf.training.run import changed_settings
from vjepa2_hf.training.settings import load_config


OVERRIDES = ["output_dir=out", "models={m: x}"]


def config_of(name: str) -> PlanConfig:
    settings = study.key_values(ROWS[name][1])
    return load_config(PlanConfig, study.CONFIGS / "demo" / "plan.yaml", OVERRIDES + settings)


class TestRows:
    def test_the_recipe_is_what_its_title_says(self):
        solver = config_of(RECIPE).solver
        assert (solver["num_candidates"], solver["num_iterations"], solver["horizon"]) == (128, 3, 3)
        assert not ROWS[RECIPE][1] and len({title for title, _ in ROWS.values()}) == len(ROWS)

    @pytest.mark.parametrize("name", [name for name in ROWS if name != RECIPE])
    def test_a_row_changes_what_its_name_says_and_its_solver_can_be_built(self, name):
        changed = {key: now for key, (_, now) in changed_settings(config_of(RECIPE), config_of(name)).items()}
        kind, _, value = name.partition("_")
        field = {"candidates": "num_candidates", "horizon": "horizon", "iterations": "num_iterations"}.get(kind)
        if field:
            assert changed.pop(f"solver.{field}") == int(value)
            assert set(changed) <= {"solver.num_elites"}
        assert changed or field
        solver = dict(config_of(name).solver)
        built = build_solver(solver.pop("name"), **solver)
        assert built.horizon == (int(value) if kind == "horizon" else 3)
        if field == "num_candidates":
            assert 0.05 < built.num_elites / built.num_candidates < 0.15

    def test_every_solver_for_such_actions_is_a_row(self):
        named = {config_of(name).solver["name"] for name in ROWS}
        assert named == set(SOLVERS) - {"categorical_cem"}


@pytest.fixture
def runs(tmp_path):
    """The folder that `reproduce.py` leaves, with two seeds' world models."""
    for seed in (0, 1):
        (tmp_path / f"runs/pushing/seed-{seed}/world_model_pretrained/final").mkdir(parents=True)
    return tmp_path / "runs"


def finish(runs, seed: int, row: str, success: float, baselines: dict[str, float] | None = None) -> None:
    """What planning leaves behind, in numbers."""
    folder = runs / f"pushing/seed-{seed}/planning-world_model_pretrained-final-4/{row}"
    folder.mkdir(parents=True)
    parts = [{"success": success}, {"success": success / 2}, {"success": 0.0}]
    methods = {**(baselines or {}), "world model": success}
    rows = [
        {"name": name, "success": value, "plan_milliseconds": 20.0, "by_distance": parts}
        for name, value in methods.items()
    ]
    (folder / "results.json").write_text(json.dumps({"rows": rows}))


class TestRuns:
    def test_rows_plan_with_the_models_of_all_seeds_on_tasks_of_their_own(self, run_only, commands, runs):
        run_only(STUDY, "--rows", RECIPE, "horizon_5")
        assert len(commands) == 4
        first = load_config(PlanConfig, commands[0][2], commands[0][3:])
        assert first.models == {"world model": str(runs / "pushing/seed-0/world_model_pretrained/final")}
        configs = [load_config(PlanConfig, command[2], command[3:]) for command in commands]
        assert [config.first_task for config in configs] == [200_000, 201_000] * 2
        assert [config.solver["horizon"] for config in configs] == [3, 3, 5, 5]
        assert [bool(config.baselines) for config in configs] == [True, True, False, False]
        run_only(STUDY, "--rows", RECIPE, "horizon_5")
        assert len(commands) == 4  # nothing is run twice

    def test_every_row_gives_settings_that_plan_takes(self, run_only, commands, runs):
        run_only(STUDY)
        assert len(commands) == 2 * len(ROWS)
        for command in commands:
            load_config(PlanConfig, command[2], command[3:])

    def test_other_models_are_taken_by_name(self, run_only, commands, runs):
        model = runs / "pushing/seed-1/ablations-7-steps/recipe/world_model/final"
        model.mkdir(parents=True)
        run_only(STUDY, "--rows", RECIPE, "--model", str(model.relative_to(runs / "pushing/seed-1")))
        (command,) = commands
        assert load_config(PlanConfig, command[2], command[3:]).models == {"world model": str(model)}

    def test_without_models_it_says_how_to_train_them(self, run_only):
        with pytest.raises(SystemExit, match="reproduce.py"):
            run_only(STUDY)


class TestTable:
    def test_it_holds_what_the_runs_measured(self, run_study, runs, tmp_path):
        for seed, (recipe, horizon) in enumerate([(0.5, 0.75), (1.0, 0.75)]):
            finish(runs, seed, RECIPE, recipe, {"data policy": 0.25})
            finish(runs, seed, "horizon_5", horizon)
        text = run_study(STUDY, "--episodes", "4", "--collect")
        assert "| 0.75 (0.00–1.00) | 0.50, 1.00 |  |  | 0.75, 0.38, 0.00 | 20 |" in text
        assert "| 0.75 (0.75–0.75) | 0.75, 0.75 | +0.00 | -1.00 to +1.00 | 0.75, 0.38, 0.00 | 20 |" in text
        assert "| data policy | 0.25 (0.25–0.25) | 0.25, 0.25 |  |  |  |  |" in text
        results = json.loads((tmp_path / "results.json").read_text())
        assert [row["name"] for row in results["environments"]["pushing"]["rows"]] == [RECIPE, "horizon_5"]

    def test_seeds_of_an_earlier_table_stay_beside_new_ones(self, run_study, runs, tmp_path):
        finish(runs, 0, RECIPE, 0.5, {"data policy": 0.25})
        run_study(STUDY, "--episodes", "4", "--collect")
        shutil.rmtree(runs)
        finish(runs, 1, RECIPE, 1.0, {"data policy": 0.5})
        run_study(STUDY, "--episodes", "4", "--collect")
        (row,) = json.loads((tmp_path / "results.json").read_text())["environments"]["pushing"]["rows"]
        assert (row["seeds"], row["success"]["by_seed"]) == ([0, 1], [0.5, 1.0])
        assert row["by_distance"]["1"]["by_seed"] == [0.25, 0.5]

    def test_runs_with_other_tasks_are_not_taken_for_these(self, run_study, runs):
        finish(runs, 0, RECIPE, 0.5)
        with pytest.raises(SystemExit, match="nothing to publish"):
            run_study(STUDY, "--collect", "--episodes", "5")
