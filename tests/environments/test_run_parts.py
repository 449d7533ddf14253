"""What is found beside a model, also in folders that were moved, and what options replace."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from vjepa2_hf.environments.run_parts import find_parts, read_recording


RECORDING = {"env": "vjepa2_hf/TwoRooms-v0", "env_kwargs": {"agent_radius": 3}, "policy": "wander"}


@pytest.fixture
def runs(tmp_path) -> Path:
    """The folders of a demo that was trained as `old/demo` and then moved."""
    runs = tmp_path / "moved"
    configs = {
        "world_model": {"data": "old/demo/episodes", "encoder": "old/demo/pretrain/final"},
        "world_model_random": {"data": "old/demo/episodes", "encoder": "random"},
        "decoder": {"world_model": "old/demo/world_model/final"},
        "cloning": {"world_model": "old/demo/other/final"},
        "pretrain": {"data": "old/demo/episodes"},
    }
    for name, config in configs.items():
        (runs / name / "final").mkdir(parents=True)
        (runs / name / "config.yaml").write_text(yaml.safe_dump(config))
    (runs / "episodes").mkdir()
    table = pyarrow.table({"recording": [json.dumps(RECORDING)]})
    pyarrow.parquet.write_table(table, runs / "episodes" / "data-00000-of-00001.parquet")
    return runs


def test_the_parts_of_a_moved_run_are_found(runs):
    parts = find_parts(str(runs / "world_model" / "final"))
    assert parts.video_model == str(runs / "pretrain" / "final") and parts.episodes == str(runs / "episodes")
    assert parts.random_model == str(runs / "world_model_random" / "final")
    assert parts.decoder == str(runs / "decoder" / "final")
    assert parts.cloning is None  # trained on another model
    assert (parts.env, parts.env_kwargs) == (RECORDING["env"], RECORDING["env_kwargs"])
    assert (parts.run, parts.name) == (runs / "world_model", "world_model")


def test_options_replace_what_is_found_and_a_baseline_is_not_its_own(runs):
    model = str(runs / "world_model_random" / "final")
    parts = find_parts(model, env="vjepa2_hf/Pushing-v0", cloning="mine", decoder=None)
    assert parts.random_model is None and parts.decoder is None and parts.cloning == "mine"
    assert parts.env == "vjepa2_hf/Pushing-v0" and parts.env_kwargs == {}


def test_nothing_is_known_beside_a_hub_id_or_a_lone_folder(tmp_path):
    parts = find_parts("somebody/model")
    assert (parts.env, parts.episodes, parts.video_model, parts.run) == (None, None, None, None)
    assert parts.name == "somebody/model"
    assert find_parts(str(tmp_path)).name == tmp_path.name


def test_episodes_without_a_recording_name_no_environment(tmp_path):
    assert read_recording(str(tmp_path)) == {}
    pyarrow.parquet.write_table(pyarrow.table({"actions": [[1.0]]}), tmp_path / "a.parquet")
    assert read_recording(str(tmp_path)) == {}
