"""Several processes form one group, or end in one sentence."""

import json
import subprocess
import sys

import pretrain
import pytest
import torch
from script_runs import TINY_PRETRAIN, clean_environment, write_square_shards

from vjepa2_hf.training.processes import build_accelerator, build_state, check_group, check_launcher


# What `accelerate launch --cpu --num_processes 2` and plain `accelerate launch` set
ALONE = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
ONE_OF_TWO = {**ALONE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("build", [build_accelerator, build_state])
def test_one_process_of_several_that_were_asked_for_is_refused_with_the_command_that_works(monkeypatch, build):
    for name, value in ONE_OF_TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["examples/pretrain.py", "data=x"])
    with pytest.raises(ValueError, match="use `torchrun --nproc_per_node N examples/pretrain.py"):
        build()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ALONE,
        {**ONE_OF_TWO, "LOCAL_RANK": "0", "WORLD_SIZE": "1"},  # torchrun of one process
        {**ONE_OF_TWO, "WORLD_SIZE": "2"},
        {**ONE_OF_TWO, "OMPI_COMM_WORLD_SIZE": "2"},
        {"MASTER_PORT": "29500"},  # of another program
    ],
)
def test_other_launchers_are_left_alone(environment):
    check_launcher(environment)


def test_a_group_that_did_not_form_is_refused():
    check_group(1, CPU, {})
    check_group(2, CPU, {"WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but this process is in a group of 1 on device 'mps'"):
        check_group(1, torch.device("mps"), {"WORLD_SIZE": "2"})


@pytest.mark.slow
def test_accelerate_launch_of_two_processes_on_cpus_ends_in_one_sentence(tmp_path):
    shards = write_square_shards(tmp_path / "shards")
    program = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    settings = [pretrain.__file__, f"data={shards}", f"output_dir={tmp_path / 'run'}", *TINY_PRETRAIN]
    options = {"env": clean_environment(), "capture_output": True, "text": True, "check": False, "timeout": 300}
    refused = subprocess.run([*program, "--num_processes", "2", "--cpu", *settings], **options)
    lines = refused.stderr.strip().splitlines()
    assert refused.returncode == 1 and lines[-1].startswith("error: `accelerate launch` starts a single process")
    assert "Traceback" not in refused.stderr and not (tmp_path / "run").exists()
    alone = subprocess.run([*program, "--num_processes", "1", "--cpu", *settings], **options)
    assert alone.returncode == 0, alone.stderr[-3000:]
    progress = json.loads((tmp_path / "run/checkpoint-6/progress.json").read_text())
    assert progress["num_processes"] == 1
