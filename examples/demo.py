"""The whole road on a small scale: record, learn to see, learn to predict, plan, report.

    python examples/demo.py [--output runs/demo] [--config-dir examples/configs/demo]

Runs the scripts a user would run, with the settings of `configs/demo`, on the CPU and without the Hub; the two world
models train side by side. A demo that was stopped goes on where it was; a finished one is only reported again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parent
RANDOM_ENCODER = (
    "encoder_config={hidden_size: 96, num_hidden_layers: 4, num_attention_heads: 4, crop_size: 64, "
    "initializer_range: 0.1, depth_scaled_init: false}"  # as pretraining begins
)
# The demo is short: fewer steps than the configs say, which `reproduce.py` takes whole
SHORTER = "max_steps=2400"
# Without this half of the time of small models goes into page faults (allocated memory is given back at once)
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


class Road:
    """Runs scripts one after the other or side by side, keeps their logs and times, and skips what is done.

    Args:
        output: the run's folder.
        threads: of torch, in all processes together.
        quiet: all output goes to the logs, none to the screen.
    """

    def __init__(self, output: Path, threads: int, quiet: bool = False):
        self.output, self.threads, self.quiet = output, threads, quiet
        self.timings_path = output / "timings.json"
        self.timings = json.loads(self.timings_path.read_text()) if self.timings_path.exists() else {}
        (output / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, title: str, *steps: tuple[str, Path, list[str]]) -> None:
        """Runs the steps (name, what it leaves behind, command) that have not left it yet, at the same time."""
        todo = [(name, command) for name, result, command in steps if not result.exists()]
        self.say(f"\n== {title}" + ("" if todo else ": done already"))
        if not todo:
            return
        started = time.perf_counter()
        threads = str(max(1, self.threads // len(todo)))
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": threads}
        processes = []
        for i, (name, command) in enumerate(todo):
            log = self.output / "logs" / f"{name}.log"
            with open(log, "w", encoding="utf-8") if i or self.quiet else nullcontext() as stream:
                command = [sys.executable, *command]
                processes.append((name, subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)))
        failed = [name for name, process in processes if process.wait()]
        if failed:
            raise SystemExit(f"{failed[0]} failed; see above or {self.output / 'logs' / (failed[0] + '.log')}.")
        self.timings[title] = round(time.perf_counter() - started, 1)
        self.timings_path.write_text(json.dumps(self.timings, indent=1), encoding="utf-8")
        self.say(f"   {self.timings[title]:.0f} s")

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def script(name: str, *arguments: str) -> list[str]:
    return [str(EXAMPLES / name), *arguments]


def demo(output: Path, configs: Path, threads: int) -> None:
    """Every step of the demo, from the environment to the report."""
    road = Road(output, threads)
    episodes = output / "episodes"
    record = "--env vjepa2_hf/Pushing-v0 --policy drawn_to_block --episodes 560 --num_proc 2 --output"
    road.run(
        "recording episodes of the pushing environment",
        ("record", episodes, script("record_episodes.py", *record.split(), str(episodes))),
    )

    def training(file: str, config: str, name: str, *settings: str) -> tuple[str, Path, list[str]]:
        common = ["--config", str(configs / config), f"output_dir={output / name}", f"data={episodes}"]
        return name, output / name / "final", script(file, *common, "resume=latest", *settings)

    road.run(
        "learning to see: masked latent prediction",
        training("pretrain.py", "pretrain.yaml", "pretrain"),
    )
    world_model = ("train_world_model.py", "world_model.yaml")
    road.run(
        "learning to predict: world models on the pretrained encoder and on a random one",
        training(*world_model, "world_model", f"encoder={output / 'pretrain' / 'final'}", SHORTER),
        training(*world_model, "world_model_random", "encoder=random", RANDOM_ENCODER, SHORTER),
    )
    models = {
        "CEM, random encoder": str(output / "world_model_random" / "final"),
        "CEM, pretrained encoder": str(output / "world_model" / "final"),
    }
    plan = ["--config", str(configs / "plan.yaml"), f"output_dir={output / 'plan'}", f"models={json.dumps(models)}"]
    plan.append("videos=20")
    road.run("planning: 100 episodes a method", ("plan", output / "plan" / "results.json", script("plan.py", *plan)))
    road.run("report", ("report", output / "report.html.never", script("report.py", str(output))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--config-dir", type=Path, default=EXAMPLES / "configs" / "demo")
    parser.add_argument("--threads", type=int, default=2, help="of torch, in all processes together")
    arguments = parser.parse_args()
    demo(arguments.output, arguments.config_dir, arguments.threads)


if __name__ == "__main__":
    main()
