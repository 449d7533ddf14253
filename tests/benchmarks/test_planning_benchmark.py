"""benchmarks/planning.py on models with random weights, on a few tasks."""

import json
import subprocess
from pathlib import Path

import pytest

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.training.settings import parse_arguments


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def planning(monkeypatch):
    """The benchmark as a module; it finds its neighbors as it does when run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planning

    small = {"solver": {"name": "cem", "horizon": 2, "num_candidates": 6, "num_iterations": 2}}
    learned = small | {"planner": {"cost": "closest"}}
    variants = {
        planning.DEFAULT: planning.Variant("the default", small),
        "stopping": planning.Variant("stopping", {"solver": {**small["solver"], "stop_std": 10.0}}),
        "proposals": planning.Variant("proposals", learned, proposal="cloning/final"),
        "cloning": planning.Variant("cloning", policy="cloning/final"),
        "pooled": planning.Variant("pooled", learned, model="world_model_pooled/final"),
        "actor": planning.Variant("actor", policy="actor/final"),
    }
    monkeypatch.setattr(planning, "VARIANTS", variants)
    return planning


@pytest.fixture
def runs(tmp_path):
    """A folder as `make demo` leaves it, with cloning and a second world model, but without an actor."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    actions = {"action_dim": 4, "actions_per_step": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    for name, state in (("world_model", {}), ("world_model_pooled", {"state_type": "pooled"})):
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
        settings = {"frame_skip": 2, "distance_head": True, **actions, **dynamics, **state}
        model = VJepa2WorldModel.from_encoder(encoder, **settings)
        model.save_pretrained(tmp_path / name / "final")
        VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / name / "final")
        if not state:
            policy = GoalPolicy.from_world_model(model, "nowhere", hidden_size=8)
            policy.save_pretrained(tmp_path / "cloning" / "final")
    return tmp_path


def test_all_variants_plan_the_same_tasks_and_the_tables_are_published(planning, runs, tmp_path, capsys):
    page, output = tmp_path / "page.md", tmp_path / "planning.json"
    page.write_text("before\n<!-- planning_time:begin -->\nold\n<!-- planning_time:end -->\nafter\n")
    arguments = ["--environments", "pushing", "--pushing", str(runs), "--choice_tasks", "2", "--tasks", "2"]
    arguments += ["--variants", *planning.VARIANTS, "--output", str(output), "--publish", "--pages", str(page)]
    results = planning.main(arguments)
    assert json.loads(output.read_text()) == results
    section = results["environments"]["pushing"]
    rows = section["choice"]["rows"]
    assert list(rows) == [name for name in planning.VARIANTS if name != "actor"]
    assert section["left_out"] == {"actor": ["actor/final"]}
    assert rows["default"]["cpu_ratio"] == 1 and "minus" not in rows["default"]
    for row in rows.values():
        assert row["episodes"] == 2 and row["plans"] > 0 and row["cpu_milliseconds"] > 0
    assert all(rows[name]["minus"]["row"] == "default" for name in rows if name != "default")
    assert rows["cloning"]["cpu_milliseconds"] < rows["default"]["cpu_milliseconds"]
    assert section["chosen"] in ("default", "stopping") and section["report"]["first_task"] == 970_000
    assert {"default", section["chosen"]} <= section["report"]["rows"].keys()

    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    assert "**Pushing**, 2 tasks from 970000" in written and "were not trained: actor." in written
    planning.main(["--table", "--output", str(output)])
    assert "| proposals |" in capsys.readouterr().out


def test_a_variant_matches_within_two_points_and_the_cheapest_is_chosen(planning):
    def row(milliseconds, matches, success=0.5):
        return {"cpu_milliseconds": milliseconds, "matches": matches, "success": success}

    rows = {"default": row(9, True), "stopping": row(5, True), "proposals": row(3, True), "cloning": row(1, False, 0)}
    assert planning.choose(rows) == ("stopping", ["default", "stopping", "proposals"])  # proposals need a policy
    rows |= {"icem": row(8, True, 0.7), "actor": row(7, True, 0.7)}  # the highest success, and the cheaper of both
    assert planning.choose(rows) == ("stopping", ["default", "stopping", "proposals", "actor"])
    rows = {"default": row(9, True), "stopping": row(5, False), "cloning": row(1, False)}
    assert planning.choose(rows) == ("default", ["default"])


def test_errors_come_before_anything_is_measured(planning, runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no world model in .*train one with `make demo`"):
        planning.main(["--environments", "pushing", "--pushing", str(tmp_path / "none")])
    config = runs / "world_model" / "final" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"distance_head": False}))
    with pytest.raises(ValueError, match="has no distance head, which most variants need"):
        planning.main(["--environments", "pushing", "--pushing", str(runs), "--output", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit):
        planning.parse_arguments(["--tasks", "0"])


def test_the_settings_of_every_variant_are_those_of_plan_py(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planning

    from vjepa2_hf.planning import build_cost, build_solver

    monkeypatch.setattr(planning, "find_model", lambda runs: runs / planning.MODELS[0])
    for environment in planning.CONFIGS:
        config = planning.build_config(environment, Path("runs"), planning.VARIANTS)
        assert config.of_row(planning.DEFAULT).solver["num_candidates"] == 128
        assert config.of_row(planning.DEFAULT).distance == "l2" and not config.of_row(planning.DEFAULT).planner
        for name in config.rows:
            solver = dict(config.of_row(name).solver)
            build_solver(solver.pop("name"), **solver)
            build_cost(config.of_row(name).planner.get("cost", "l2"))
        assert config.of_row("proposals").proposals == {"proposals": "runs/cloning/final"}
        assert config.of_row("merged").models == {"merged": "runs/world_model_merged/final"}


class TestTraining:
    """The commands of `--train`."""

    @pytest.fixture
    def models(self, monkeypatch):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        import planning_models

        return planning_models

    @pytest.mark.parametrize("environment", ["pushing", "two_rooms"])
    def test_every_variant_has_what_it_needs_and_every_setting_is_known(self, models, environment, tmp_path):
        import planning
        import pretrain
        import train_actor
        import train_cloning
        import train_world_model

        folders = [folder for variant in planning.VARIANTS.values() for folder in variant.folders]
        commands = models.list_commands(environment, tmp_path, folders, None)
        assert [one.script for one in commands[:2]] == ["record_episodes.py", "pretrain.py"]
        made = [one.result for one in commands]
        assert len(made) == len(set(made)) and {tmp_path / folder for folder in folders} <= set(made)
        configs = {
            "pretrain.py": pretrain.PretrainConfig,
            "train_world_model.py": train_world_model.WorldModelTrainingConfig,
            "train_cloning.py": train_cloning.CloningConfig,
            "train_actor.py": train_actor.ActorConfig,
        }
        for number, command in enumerate(commands[1:], 1):
            config = parse_arguments(configs[command.script], "", command.arguments)
            assert Path(config.output_dir) / "final" == command.result and config.data == str(tmp_path / "episodes")
            for name in ("encoder", "world_model", "start"):  # what it reads is made before it
                read = getattr(config, name, None)
                assert not isinstance(read, str) or Path(read) in made[:number]
        settings = {one.result.parent.name: one.arguments for one in commands}
        assert "world_model.state_type=merged" in settings["world_model_merged"]
        assert "policy.steps_left=10" in settings["cloning_steps"]
        assert str(commands[0]).startswith("python examples/record_episodes.py --env vjepa2_hf/")

    def test_what_exists_is_not_trained_again(self, models, tmp_path):
        seed = tmp_path / "seed-0"  # as studies/reproduce.py leaves them
        for folder in (tmp_path / "episodes", seed / "distance_pretrained" / "final", seed / "cloning" / "final"):
            folder.mkdir(parents=True)
        model = seed / "distance_pretrained" / "final"
        commands = models.list_commands("pushing", seed, ["cloning/final", "distilled/final", "actor/final"], model)
        assert [one.result.parent.name for one in commands] == ["distilled", "actor"]
        for command in commands:
            assert {f"data={tmp_path / 'episodes'}", f"world_model={model}"} <= set(command.arguments)

    def test_each_command_runs_and_a_failure_ends_the_training(self, planning, models, runs, monkeypatch, capsys):
        called = []

        def run(arguments):
            called.append(Path(arguments[1]).name)
            return subprocess.CompletedProcess(arguments, returncode=called[-1] == "train_actor.py")

        monkeypatch.setattr(models.subprocess, "run", run)
        given = ["--environments", "pushing", "--pushing", str(runs), "--train"]
        planning.main([*given, "--variants", "cloning", "stopping"])
        assert called == []  # there is everything
        with pytest.raises(SystemExit, match="train_actor.py failed"):
            planning.main([*given, "--variants", "actor"])
        assert called == ["record_episodes.py", "train_actor.py"]
        assert "python examples/train_actor.py --config" in capsys.readouterr().out
