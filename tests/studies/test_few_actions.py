"""The study of few actions: who sees which data, and the table."""

import json

import few_actions
import pytest
from few_actions import ALONE, BLIND, COUNTS, FURTHER, INFERRED, PAIRS, ROWS, TRUE
from plan import PlanConfig
from study import slug

from vjepa2_hf.environments import PUSHING
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


def test_every_row_learns_from_what_it_says(commands, run_only, tmp_path):
    run_only(few_actions.STUDY, "--seeds", "1", "--paired_seeds", "1", "--steps", "32")
    recorded = [command for command in commands if command[0] == "record_episodes.py"]
    assert [command[command.index("--episodes") + 1] for command in recorded] == ["3000", "300"]
    training = [command for command in commands if command[0] == "train_world_model.py"]
    configs = [load_config(WorldModelTrainingConfig, command[2], command[3:]) for command in training]
    found = {one.output_dir.rpartition("/")[2]: one for one in configs}
    names = [(row, COUNTS[0], 32) for row in (TRUE, BLIND, FURTHER)]
    names += [(row, count, 32) for count in COUNTS for row in (INFERRED, ALONE)]
    names += [(INFERRED, COUNTS[0], 2), (INFERRED, COUNTS[0], 8)]
    assert found.keys() == {slug(few_actions.name_of(*name)) for name in names}
    folder = tmp_path / "runs"
    videos, episodes = str(folder / "videos"), str(folder / "episodes-0")
    for row, count, steps in names:
        one = found[slug(few_actions.name_of(row, count, steps))]
        labeled = str(folder / "seed-0" / f"videos_{count}")
        assert one.data == {INFERRED: labeled, TRUE: videos}.get(row, episodes)
        assert one.max_episodes == (None if row in (INFERRED, TRUE) else count)
        assert (one.state.data, one.state.use_actions) == ((videos, False) if row == BLIND else (None, True))
        assert (one.max_steps, one.state.symmetries) == (1000, PUSHING)
        assert one.state.max_steps == (600 if row == FURTHER else steps)
        start = str(folder / "seed-0" / slug(few_actions.name_of(BLIND, COUNTS[0], 32)) / "final")
        assert one.state.start_from == (start if row == FURTHER else None)
    inferring = [command for command in commands if command[0] == "infer_actions.py"]
    assert [one[one.index("--max_episodes") + 1] for one in inferring] == [str(count) for count in COUNTS]
    assert {(one[1], one[2]) for one in inferring} == {(episodes, videos)}
    plans = [load_config(PlanConfig, one[2], one[3:]) for one in commands if one[0] == "plan.py"]
    assert {one.first_task for one in plans} == {970_000} and len([one for one in plans if one.baselines]) == 1


def test_further_seeds_have_two_rows(commands, run_only, tmp_path):
    run_only(few_actions.STUDY, "--seeds", "0", "--paired_seeds", "2", "--steps", "32")
    training = [command for command in commands if command[0] == "train_world_model.py"]
    found = [load_config(WorldModelTrainingConfig, command[2], command[3:]).output_dir for command in training]
    rows = {
        str(tmp_path / "runs" / f"seed-{n}" / slug(few_actions.name_of(row, 60, 32)))
        for n in (0, 1)
        for row in ROWS[:2]
    }
    assert set(found) == rows


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(few_actions, "COUNTS", (4, 6))
    monkeypatch.setattr(few_actions, "FRACTIONS", (2,))
    page = run_study(
        few_actions.STUDY, "--seeds", "1", "--paired_seeds", "2", "--jobs", "1", "--steps", "2", "--further_steps", "1"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["success"]["4"]) == list(ROWS) and list(results["success"]["6"]) == [ALONE, INFERRED]
    assert list(results["curve"]) == ["1", "2"] and len(results["baselines"]) == 3
    assert [(one["row"], one["minus"]) for one in results["differences"]["4"]] == list(PAIRS)
    assert list(results["inferred"]) == ["4", "6"]
    seeds = {row: len(columns["success"]["by_seed"]) for row, columns in results["success"]["4"].items()}
    assert seeds == {row: 2 if row in (INFERRED, ALONE) else 1 for row in ROWS}
    assert len(results["curve"]["2"]["success"]["by_seed"]) == 1
    assert few_actions.format_tables(results) in page
