"""The Slurm script continues a run over signals, on a machine without Slurm: `srun` and `scontrol` are stand-ins."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pretrain
import pytest
from builders import EXAMPLES
from script_runs import TINY_PRETRAIN, clean_environment, metrics, write_square_shards


SCRIPT = EXAMPLES / "cluster" / "train.slurm"
STAND_INS = {
    # Slurm's signals reach the processes of a step, and neither srun nor the script of the job
    "srun": 'shift; setsid "$@" & echo $! > "$STAND_INS/step"; wait $!',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$STAND_INS/requeued"; fi',
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job's first process; `torchrun` is a program of bash, or the installed one."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def start(torchrun: str, *arguments: str) -> subprocess.Popen:
        for name, program in {**STAND_INS, "torchrun": torchrun}.items():
            (folder / name).write_text(f"#!/bin/bash\n{program}\n")
            (folder / name).chmod(0o755)
        environment = clean_environment() | {
            "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", "PROCESSES_PER_NODE": "2",
            "PORT": "0", "STAND_INS": str(folder), "OUT": str(tmp_path / "run"),
        }  # fmt: skip
        environment["PATH"] = f"{folder}:{environment['PATH']}"
        command = ["bash", str(SCRIPT), str(tmp_path / "run"), pretrain.__file__, *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    start.requeued = folder / "requeued"
    start.step = folder / "step"
    start.run = tmp_path / "run"
    return start


def end(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def test_a_stopped_run_is_queued_again_until_it_is_complete(job):
    end(job('kill -USR1 $PPID $$ && sleep 0.1 && mkdir -p "$OUT/checkpoint-5"'))  # which both outlive
    assert job.requeued.read_text() == "requeue 7\n"
    # final/ of an earlier end, in a run that goes on to another last step
    final = 'mkdir -p "$OUT/final" && echo "{\\"step\\": 5}" > "$OUT/final/training_step.json"'
    end(job(f'{final} && mkdir -p "$OUT/checkpoint-50" "$OUT/checkpoint-9" "$OUT/checkpoint-60.tmp"'))
    assert job.requeued.read_text() == "requeue 7\n" * 2
    assert "complete" in end(job(final.replace("5}", "50}")))
    assert job.requeued.read_text() == "requeue 7\n" * 2


def test_an_error_is_not_repeated_for_ever(job):
    process = job("exit 3")
    process.communicate(timeout=60)
    assert process.returncode == 3 and not job.requeued.exists()


def test_the_script_gets_the_arguments_and_resumes(job):
    output = end(job('mkdir -p "$OUT/final"; printf "<%s>" "$@"', "data=a b", "max_steps=3"))
    assert "<--nproc_per_node><2><--rdzv-id><7>" in output
    assert output.split("pretrain.py>")[1].startswith(f"<data=a b><max_steps=3><output_dir={job.run}><resume=latest>")


@pytest.mark.slow
def test_a_signal_to_all_processes_saves_once_and_the_next_job_completes_the_run(job, tmp_path):
    shards = write_square_shards(tmp_path / "shards")
    settings = [f"data={shards}", *TINY_PRETRAIN, "max_steps=400", "save_every=1000"]
    settings += ["learning_rate.schedule=constant", "ema.schedule=constant"]
    torchrun = f'exec {sys.executable} -m torch.distributed.run "$@"'
    process = job(torchrun, *settings)
    deadline = time.monotonic() + 200
    while not (job.run / "metrics.jsonl").is_file() or not metrics(job.run):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(int(job.step.read_text()), signal.SIGUSR1)
    output = end(process)
    (checkpoint,) = job.run.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert output.count("Stopped by") == 1 and f"Stopped by SIGUSR1 after step {step}: {checkpoint} is saved" in output
    assert {path.name for path in checkpoint.glob("rank_state_*")} == {"rank_state_0.pt", "rank_state_1.pt"}
    assert job.requeued.read_text() == "requeue 7\n"

    output = end(job(torchrun, *settings, f"max_steps={step + 2}"))
    assert Path(job.run, "final").is_dir() and "complete" in output
