"""Three speed ratios in one run: encoder forward, pretraining step, CEM plan, each with the arithmetic lower bound.

    python benchmarks/bench.py                 # under 5 minutes on 2 cores
    python benchmarks/bench.py --full          # every size, longer, and the memory of all tasks
    python benchmarks/bench.py --tiny          # seconds; shows that everything runs, the numbers mean nothing

Restarts itself with one thread and an allocator that keeps its memory (otherwise page faults alone make a call take
half as long again). Checks that both sides of a comparison give the same result, then times them in turn. README.md
beside this file describes the comparisons and the lower bound.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


# Read by glibc and by the math libraries when a process starts, so they must be set before Python
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_MMAP_THRESHOLD_": str(2**34),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


ROUNDS: dict[str, dict[str, Any]] = {
    "tiny": {"max_rounds": 2, "seconds": 0.0},
    "default": {"seconds": 12.0, "min_rounds": 2},
    "full": {"seconds": 40.0, "min_rounds": 2},
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--full", dest="mode", action="store_const", const="full", help="every size, and the memory of all"
    )
    sizes.add_argument("--tiny", dest="mode", action="store_const", const="tiny", help="as small as it goes")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"), help="JSON file")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="comparisons whose name begins with one of these")
    parser.add_argument("--seconds", type=float, help="for each comparison (default 12, --full 40; 2 rounds at least)")
    parser.set_defaults(mode="default")
    return parser.parse_args(arguments)


def restart_with_fixed_allocator() -> None:
    """Becomes the same command under `ENVIRONMENT`, unless it is that already."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the comparisons, prints the table, writes the JSON; returns what it wrote."""
    arguments = parse_arguments(arguments)
    # after the restart, so that the slow imports happen once
    import torch
    from comparisons import COMPARISONS
    from measure import compare
    from memory import DEFAULT_TASKS, TASKS

    torch.set_num_threads(1)
    chosen = [each for each in COMPARISONS[arguments.mode] if _is_chosen(each.name, arguments.only)]
    if not chosen:
        sys.exit(f"error: no comparison begins with {' or '.join(arguments.only)}; see benchmarks/README.md.")
    rounds = ROUNDS[arguments.mode] | ({"seconds": arguments.seconds} if arguments.seconds else {})
    results = {"machine": describe_machine(), "mode": arguments.mode, "comparisons": []}
    for comparison in chosen:
        print(f"{comparison.name}: {comparison.size} ...", file=sys.stderr, flush=True)
        results["comparisons"].append(compare(comparison, **rounds))
    tasks = {"tiny": [], "default": DEFAULT_TASKS, "full": list(TASKS)}[arguments.mode]
    results["peak_memory"] = [measure_memory(name) for name in tasks if _is_chosen(name, arguments.only)]
    print(format_report(results))
    if arguments.output.exists():
        previous = json.loads(arguments.output.read_text())
        results |= {
            name: previous[name] for name in ("masks", "budget", "distance_cost") if name in previous
        }  # of other commands
    write_json(results, arguments.output)
    print(f"\nwritten to {arguments.output}")
    return results


def _is_chosen(name: str, only: list[str] | None) -> bool:
    return not only or any(name.startswith(beginning) for beginning in only)


def describe_machine() -> dict[str, Any]:
    """The machine and the versions behind the seconds; ratios are less specific to them."""
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allocator_fixed": all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()),
    }


def measure_memory(name: str) -> dict[str, Any]:
    """Peak memory above that of the imports, for both sides of a task, each in a process of its own and with the usual
    allocator; the ratio is ours over the other's."""
    print(f"peak memory: {name} ...", file=sys.stderr, flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, Path(__file__).with_name("memory.py"), name]
    result: dict[str, Any] = {"name": name}

    def peak(side: str) -> dict[str, float]:
        done = subprocess.run([*command, side], env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)

    with ThreadPoolExecutor() as pool:  # nothing is timed, so the two may run side by side
        result["ours"], result["baseline"] = pool.map(peak, ("ours", "baseline"))
    result["ratio"] = result["ours"]["peak_mb"] / result["baseline"]["peak_mb"]
    return result


def format_report(results: dict[str, Any]) -> str:
    """The tables as text."""
    machine = results["machine"]
    lines = [
        f"{machine['processor']} ({machine['instructions']}), 1 thread, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, load {machine['load_average']:.1f}",
        "Process CPU time. Ratio: the other way's over ours, of paired rounds, median (minimum to maximum). Floor:",
        "time of the matrix products at the sgemm rate measured beside them, over the time taken; 1.00 is best.",
        "Seconds and minor page faults: ours / the other's, medians. Difference: largest of the agreement checks.",
        "",
    ]
    header = ["comparison", "size", "against", "ratio", "floor: ours", "other", "seconds", "faults", "difference"]
    rows = [header] + [_row(each) for each in results["comparisons"]]
    lines += align(rows)
    for each in results["comparisons"]:
        rate = each["sgemm_gflops"]
        lines.append(
            f"{each['name']}, {each['size']}: {each['operations'] / 1e9:.1f} GFLOP needed, sgemm "
            f"{rate['median']:.0f} GFLOP/s ({rate['minimum']:.0f} to {rate['maximum']:.0f}), {each['rounds']} rounds. "
            f"{each['note']}"
        )
    for each in results["comparisons"]:
        if "profile" in each:
            lines += ["", f"Where the CPU time of {each['name']}, {each['size']}, goes (fraction: of sgemm's rate):"]
            lines += align([["operator", "calls", "share", "fraction"], *map(_operator_row, each["profile"])])
    if results["peak_memory"]:
        lines += ["", "Peak memory above that of the imports (weights included): ours / the other's, ratio"]
        sides = [(each, each["ours"]["peak_mb"], each["baseline"]["peak_mb"]) for each in results["peak_memory"]]
        lines += align([[each["name"], f"{a:.0f} / {b:.0f} MB", f"{each['ratio']:.2f}"] for each, a, b in sides])
    return "\n".join(lines)


def _operator_row(row: dict[str, Any]) -> list[str]:
    fraction = f"{row['fraction_of_sgemm']:.2f}" if "fraction_of_sgemm" in row else ""
    return [row["operator"], str(row["calls"]), f"{100 * row['share']:.1f} %", fraction]


def _row(result: dict[str, Any]) -> list[str]:
    ratio, floor, seconds = result["ratio"], result["fraction_of_floor"], result["seconds"]
    faults = result["minor_page_faults"]
    return [
        result["name"],
        result["size"],
        result["baseline"],
        f"{ratio['median']:.2f} ({ratio['minimum']:.2f} to {ratio['maximum']:.2f})",
        f"{floor['ours']['median']:.2f}",
        f"{floor['baseline']['median']:.2f}",
        f"{seconds['ours']['median']:.3f} / {seconds['baseline']['median']:.3f}",
        f"{faults['ours']['median']:.0f} / {faults['baseline']['median']:.0f}",
        f"{max(check['difference'] for check in result['checks']):.0e}",
    ]


def align(rows: list[list[str]]) -> list[str]:
    """Lines of a table with columns of equal width, and an empty one."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, ""]


def parse_table_options(
    parser: argparse.ArgumentParser, script: str, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Adds the options of a benchmark whose tables belong to docs/costs.md, and parses all. `output` is where results
    go, or where they are with `table`: the JSON file beside the script; with `tiny` only a given one."""
    beside, page = Path(script).with_suffix(".json"), Path(script).resolve().parents[1] / "docs" / "costs.md"
    parser.add_argument("--tiny", action="store_true", help="as small as it goes; the numbers mean nothing")
    parser.add_argument("--output", type=Path, help=f"JSON file: {beside.name} beside this file, none with --tiny")
    parser.add_argument("--table", action="store_true", help="take the results of --output, and measure nothing")
    parser.add_argument(
        "--publish", nargs="?", type=Path, const=page, metavar="PAGE", help="write the tables: docs/costs.md"
    )
    options = parser.parse_args(arguments)
    if options.output is None and (options.table or not options.tiny):
        options.output = beside
    return options


def measure_tables(
    options: argparse.Namespace,
    name: str,
    measure: Callable[[], dict[str, Any]],
    format_tables: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """Measures on one thread and writes the JSON, or reads it with `table`; prints and publishes the tables between
    the markers `name`; returns the results."""
    from vjepa2_hf.visualization.tables import publish_tables

    if options.table:
        results = json.loads(options.output.read_text(encoding="utf-8"))
    else:
        import torch

        torch.set_num_threads(1)
        results = measure()
        if options.output:
            write_json(results, options.output)
    publish_tables(results, format_tables(results), None, [options.publish] if options.publish else [], name)
    return results


def run_with_errors(function: Callable[[], Any]) -> None:
    """Calls a `main`; an error of the user ends in one sentence."""
    from vjepa2_hf.training.settings import exit_on_user_error

    exit_on_user_error(function)()


def write_json(results: dict[str, Any], path: Path) -> None:
    """Writes atomically, so that an interrupted run keeps the old results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(aside, path)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    try:
        main()
    except ValueError as error:  # also when the sides disagree
        sys.exit(f"error: {error}")
