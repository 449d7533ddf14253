# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Runs the complete pipeline at small scale: record, pretrain, train world models, plan, report.

    python examples/demo.py [--output runs/demo] [--config-dir examples/configs/demo]

It runs the scripts that a user would run, with the settings of `configs/demo`, on the CPU and without the Hub; the two
world models train in parallel. Python's forkserver imports PyTorch and transformers once for all scripts, because
each import takes seconds. A stopped demo continues from its last checkpoint; a finished one is only reported again.
The result is `OUTPUT/report.html`, with an animation of the planner in `OUTPUT/demo.gif`.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from functools import partial
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parent
RANDOM_ENCODER = (
    "encoder_config={hidden_size: 96, num_hidden_layers: 4, num_attention_heads: 4, crop_size: 64, "
    "initializer_range: 0.1, depth_scaled_init: false}"  # the encoder of configs/demo/pretrain.yaml at step 0
)
SHORTER = ["max_steps=2400", "save_every=800"]  # the config has more steps
DISTANCE_HEAD = "world_model.distance_head=true"  # 7 seconds more
# The closest approach by latent and learned distance; 32 candidates until elites agree, as successful as 128 × 3 for a
# quarter of the time. Chosen on other tasks: docs/planning.md
SEARCH = ["distance=null", "planner={cost: closest}"]
SEARCH += ["solver={name: cem, horizon: 3, num_candidates: 32, num_iterations: 6, stop_std: 0.25}"]
PRELOADED = ["datasets", "evaluate", "vjepa2_hf.environments", "vjepa2_hf.training.run"]  # what scripts import
# Reuses freed memory: otherwise page faults take half of the time of small models
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}

Command = tuple[str, Path, list[str]]  # name of its log, result, script and arguments


def run(output: Path, threads: int, title: str, *commands: Command) -> None:
    """Runs commands in parallel, except those whose result exists; the first one prints to the screen.

    A failure ends the demo. `threads` are of torch, in all commands together; `timings.json` has the seconds by title.
    """
    missing = [(name, command) for name, result, command in commands if not result.exists()]
    print(f"\n== {title}" + ("" if missing else ": done already"), flush=True)
    if not missing:
        return
    logs, timings_path, started = output / "logs", output / "timings.json", time.perf_counter()
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.update(ALLOCATOR, OMP_NUM_THREADS="1")  # read when the forkserver starts; torch has threads of its own
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else None)  # not on Windows
    context.set_forkserver_preload(PRELOADED)
    processes = {}
    try:
        for number, (name, command) in enumerate(missing):
            log = logs / f"{name}.log" if number else None
            processes[name] = context.Process(target=run_script, args=(command, max(1, threads // len(missing)), log))
            processes[name].start()
        for process in processes.values():
            process.join()
    except BaseException:  # Ctrl-C, or a signal to this process alone
        for process in processes.values():
            process.terminate()
        raise
    for number, (name, process) in enumerate(processes.items()):
        if process.exitcode:
            where = logs / f"{name}.log" if number else "above"
            raise SystemExit(f"{name} failed (exit code {process.exitcode}); see {where}.")
    timings = json.loads(timings_path.read_text(encoding="utf-8")) if timings_path.exists() else {}
    timings[title] = round(time.perf_counter() - started, 1)
    timings_path.write_text(json.dumps(timings, indent=1), encoding="utf-8")
    print(f"   {timings[title]:.0f} s", flush=True)


def run_script(command: list[str], threads: int, log: Path | None) -> None:
    """Runs a script in this process, as `python SCRIPT ARGUMENTS` would; output goes to the log if one is given."""
    if log is not None:
        with open(log, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), sys.stdout.fileno())
            os.dup2(stream.fileno(), sys.stderr.fileno())
    import torch

    torch.set_num_threads(threads)
    multiprocessing.set_start_method(None, force=True)  # its own processes start as without the forkserver
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def demo(output: Path, configs: Path, threads: int) -> None:
    """All steps of the demo, from the environment to the report."""
    episodes, encoder = output / "episodes", output / "pretrain" / "final"
    models = {
        "CEM, random encoder": str(output / "world_model_random" / "final"),
        "CEM, pretrained encoder": str(output / "world_model" / "final"),
    }

    def script(file: str, name: str, result: Path, *arguments: str) -> Command:
        return name, result, [str(EXAMPLES / file), *arguments]

    def training(file: str, config: str, name: str, *settings: str) -> Command:
        arguments = ["--config", str(configs / config), f"output_dir={output / name}", f"data={episodes}"]
        return script(file, name, output / name / "final", *arguments, "resume=latest", *settings)

    step = partial(run, output, threads)
    record = ["--env", "vjepa2_hf/Pushing-v0", "--policy", "drawn_to_block", "--episodes", "560", "--num_proc", "2"]
    recording = script("record_episodes.py", "record", episodes, *record, "--output", str(episodes))
    step("recording episodes of the pushing environment", recording)
    pretraining = training("pretrain.py", "pretrain.yaml", "pretrain", "save_every=300")
    step("pretraining the encoder by masked latent prediction", pretraining)
    world_model = ("train_world_model.py", "world_model.yaml")
    step(
        "training world models on the pretrained encoder and on a random one",
        training(*world_model, "world_model", f"encoder={encoder}", *SHORTER, DISTANCE_HEAD),
        training(*world_model, "world_model_random", "encoder=random", RANDOM_ENCODER, *SHORTER, DISTANCE_HEAD),
    )
    plan = ["--config", str(configs / "plan.yaml"), f"output_dir={output / 'plan'}", f"models={json.dumps(models)}"]
    planning = script("plan.py", "plan", output / "plan" / "results.json", *plan, *SEARCH, "videos=8")
    step("planning 100 episodes per method", planning)
    # the report is always written again
    step("report", script("report.py", "report", output / "no-such-file", str(output)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--config-dir", type=Path, default=EXAMPLES / "configs" / "demo")
    parser.add_argument("--threads", type=int, default=2, help="torch threads, in all processes together")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the running scripts, too
    try:
        demo(arguments.output, arguments.config_dir, arguments.threads)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; the same command continues.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
