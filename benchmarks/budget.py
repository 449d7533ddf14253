"""Planning with a time budget: how often `budget_ms` is kept, and its cost in success.

    python benchmarks/budget.py                # after `make demo`; 100 episodes three times, some minutes
    python benchmarks/budget.py --model runs/my_world_model/final --budget_ms 20 --episodes 20

Runs `examples/plan.py` with the demo's settings, one episode at a time on one thread, with the budget, with the budget
and half of the candidates (more iterations fit), and without a budget, on the same tasks, and writes the section
`budget` of `results.json`: the fraction of planning calls (reading and encoding both images, all iterations)
that took no longer than the budget, their median and 95th percentile, and success.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

from bench import align, describe_machine, restart_with_fixed_allocator, write_json


ROOT = Path(__file__).resolve().parents[1]
PLAN = ROOT / "examples" / "plan.py"
CONFIG = ROOT / "examples" / "configs" / "demo" / "plan.yaml"
ROW = "world model"
FIRST_TASK = 820_000  # no choice was made on these tasks
FEWER = ["solver.num_candidates=64", "solver.num_elites=6"]
COLUMNS = ("success", "low", "high", "episodes", "call_milliseconds", "within_budget")


def measure(model: Path, episodes: int, settings: list[str]) -> dict[str, Any]:
    """The row of one evaluation; `call_milliseconds` has the median and 95th percentile of a call."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PLAN), "--config", str(CONFIG), f"output_dir={folder}", "baselines=[]"]
        command += [f"models={json.dumps({ROW: str(model)})}", f"episodes={episodes}", f"first_task={FIRST_TASK}"]
        command += ["parallel=1", "videos=0", "num_threads=1", "device=cpu", *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (row,) = json.loads((Path(folder) / "results.json").read_text())["rows"]
    return {name: row[name] for name in COLUMNS if name in row}


def format_report(section: dict[str, Any]) -> str:
    """The table as text."""
    rows = [["planning calls", "within budget", "ms: median", "95 %", "success", "95 % interval", "episodes"]]
    for name, row in section["rows"].items():
        within = f"{row['within_budget']:.3f}" if "within_budget" in row else ""
        median, late = row["call_milliseconds"]["median"], row["call_milliseconds"]["95 %"]
        interval = f"{row['low']:.2f}–{row['high']:.2f}"
        rows.append(
            [name, within, f"{median:.1f}", f"{late:.1f}", f"{row['success']:.2f}", interval, str(row["episodes"])]
        )
    machine = section["machine"]
    return "\n".join([f"{machine['processor']}, 1 thread, load {machine['load_average']:.1f}", "", *align(rows)])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table and writes it into the JSON; returns what it wrote."""
    arguments = parse_arguments(arguments)
    if not (arguments.model / "config.json").exists():
        sys.exit(f"error: there is no world model in {arguments.model}: run `make demo`, or name one with --model.")
    section: dict[str, Any] = {"machine": describe_machine(), "budget_ms": arguments.budget_ms, "rows": {}}
    budget = f"budget_ms={arguments.budget_ms:g}"
    rows = {budget: [budget], f"{budget}, 64 candidates": [budget, *FEWER], "without a budget": []}
    for name, settings in rows.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        section["rows"][name] = measure(arguments.model.resolve(), arguments.episodes, settings)
    print(format_report(section))
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    write_json({**results, "budget": section}, arguments.output)
    print(f"written to {arguments.output}")
    return section


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "demo" / "world_model" / "final")
    parser.add_argument("--budget_ms", type=float, default=50.0, help="of a planning call")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"), help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    main()
