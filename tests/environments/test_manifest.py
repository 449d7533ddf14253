"""Manifests of tasks, and descriptions of what an evaluation ran on."""

import json
import re

import numpy as np
import pyarrow.parquet
import pytest

from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.manifest import (
    checksum,
    describe_folder,
    describe_tasks,
    describe_training,
    find_hardware,
    find_versions,
    settle_manifest,
)
from vjepa2_hf.environments.tasks import Tasks


def manifest(seeds, **settings) -> dict:
    tasks = {"": describe_tasks([Tasks(PUSHING, seeds[:1]), Tasks(PUSHING, seeds[1:])])}
    return {"settings": {"env": PUSHING, **settings}, "tasks": tasks, "versions": {"gymnasium": "1.0", "torch": "2"}}


def test_tasks_are_described_by_their_images():
    tasks = Tasks(PUSHING, [3, 4])
    found = describe_tasks([tasks])
    assert [task["seed"] for task in found] == [3, 4] and not found[0]["solved_at_start"]
    np.testing.assert_allclose(found[1]["start"], tasks.states[1])
    assert found[1]["goal_sha256"] == checksum(tasks.goal_images[1]) != found[0]["goal_sha256"]
    assert checksum(np.zeros((2, 3), np.uint8)) != checksum(np.zeros((3, 2), np.uint8))


def test_a_changed_environment_is_refused_with_its_task_and_version(tmp_path):
    path = tmp_path / "manifest.json"
    known = manifest(range(3))
    first = settle_manifest(path, known, None)
    text = path.read_text()
    assert settle_manifest(path, known, str(path)) == first and path.read_text() == text
    changed = json.loads(text)
    changed["tasks"][""][2]["goal_sha256"] = "0" * 64
    changed["versions"]["gymnasium"] = "1.1"
    expected = f"Task 2 (seed 2) has another goal image than in {str(path)!r}"
    for where, given in ((path, None), (tmp_path / "other.json", str(path))):
        with pytest.raises(ValueError, match=f"{re.escape(expected)}.*gymnasium 1.0, now 1.1"):
            settle_manifest(where, changed, given)
    assert path.read_text() == text


def test_other_settings_write_another_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    first = settle_manifest(path, manifest(range(3), episodes=3), None)
    second = settle_manifest(path, manifest(range(4), episodes=4), None)
    assert first != second and len(json.loads(path.read_text())["tasks"][""]) == 4


def test_the_manifest_is_that_of_its_hash_after_other_levels_of_success(tmp_path):
    """With the same images, but one task that its start now solves."""
    path = tmp_path / "manifest.json"
    known = manifest(range(3))
    first = settle_manifest(path, known, None)
    known["tasks"][""][1]["solved_at_start"] = True
    assert settle_manifest(path, known, None) != first and json.loads(path.read_text())["tasks"] == known["tasks"]


@pytest.mark.parametrize("text", ["{}", '{"settings": {}, "versions": {}, "tasks": {"": [1]}}'])
def test_a_damaged_manifest_is_a_sentence(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is no manifest of examples/plan.py"):
        settle_manifest(tmp_path / "new.json", manifest(range(2)), str(tmp_path / "manifest.json"))


def test_versions_and_hardware_are_told():
    versions = find_versions(PUSHING)
    assert {"python", "gymnasium", "torch", "vjepa2-hf"} <= versions.keys()
    assert find_versions("absent/Env-v0").keys() == versions.keys()
    assert find_hardware("cpu")["processor"] and find_hardware("cpu")["cores"] >= 1


def test_training_data_are_described_from_the_run(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    (data / "a.bin").write_bytes(b"x" * 2**21)
    (run / "config.yaml").write_text(f"data: {data}\nseed: 3\nmax_steps: 7\n")
    found = describe_training(str(run / "final"))
    assert found["seed"] == 3 and "max_steps" not in found and found["sources"][0]["path"] == str(data)
    assert describe_training(str(run / "final")) == found
    (data / "a.bin").write_bytes(b"x" * (2**21 - 1) + b"y")
    assert describe_folder(str(data))["digest"] != found["sources"][0]["digest"]
    assert describe_training(str(tmp_path / "absent" / "final")) == {"sources": []}


@pytest.mark.parametrize("content", [b"PAR1 cut", [], ["{"]])
def test_damaged_and_empty_shards_of_training_do_not_end_an_evaluation(tmp_path, content, caplog):
    path = tmp_path / "a.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"recording": pyarrow.array(content, pyarrow.string())}), path)
    found = describe_folder(str(tmp_path))
    assert found["digest"] and "recording" not in found
    assert ("holds a damaged shard" in caplog.text) == bool(content)
