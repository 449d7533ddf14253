"""Several processes form one group, or end in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import ROOT
from script_runs import TINY_PRETRAIN, clean_environment, commands, write_square_shards

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


MODULES = {"torchrun": ["torch.distributed.run"], "accelerate": ["accelerate.commands.accelerate_cli"], "python": []}


def run_documented(command: list[str], folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    """A command of docs/launching.md in a clean environment, with settings that make it tiny."""
    program = [sys.executable, *(part for module in MODULES[command[0]] for part in ("-m", module))]
    arguments = [str(ROOT / part) if part.startswith("examples/") else part for part in command[1:]]
    options = {"cwd": folder, "env": clean_environment(), "capture_output": True, "text": True, "check": False}
    return subprocess.run([*program, *arguments, *TINY_PRETRAIN, *overrides], **options, timeout=300)


@pytest.mark.slow
def test_the_documented_commands_train_in_one_group_and_go_on_with_one_process(tmp_path):
    write_square_shards(tmp_path / "runs" / "shards")
    two, one = (found for found in commands("launching.md") if found[0] in MODULES)
    constant = ["learning_rate.schedule=constant", "ema.schedule=constant", "augmentation=null"]
    done = run_documented(two, tmp_path, *constant, "max_steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 1
    progress = json.loads((tmp_path / "runs/mine/checkpoint-2/progress.json").read_text())
    assert progress == {"step": 2, "num_processes": 2, "digests": "digests.json", "global_batch_size": 4}
    done = run_documented(one, tmp_path, *constant, "max_steps=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written by 2 processes and continues with 1" in done.stderr and "stays 4 samples" in done.stderr
    progress = json.loads((tmp_path / "runs/mine/checkpoint-3/progress.json").read_text())
    assert progress == {"step": 3, "num_processes": 1, "digests": "digests.json", "global_batch_size": 4}


@pytest.mark.slow
def test_accelerate_launch_of_two_processes_on_cpus_ends_in_one_sentence(tmp_path):
    write_square_shards(tmp_path / "runs" / "shards")
    settings = ["examples/pretrain.py", "data=runs/shards", "output_dir=runs/mine"]
    launch = ["accelerate", "launch", "--quiet", "--cpu", "--num_processes"]
    refused = run_documented([*launch, "2", *settings], tmp_path)
    lines = refused.stderr.strip().splitlines()
    assert refused.returncode == 1 and lines[-1].startswith("error: `accelerate launch` starts a single process")
    assert "Traceback" not in refused.stderr and not (tmp_path / "runs" / "mine").exists()
    alone = run_documented([*launch, "1", *settings], tmp_path)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert json.loads((tmp_path / "runs/mine/checkpoint-6/progress.json").read_text())["num_processes"] == 1
