"""How CPU time and peak memory grow with frames, resolution, candidates, horizon, observations, shards and processes.

    python benchmarks/growth.py                       # minutes on 2 cores; writes benchmarks/growth.json
    python benchmarks/growth.py --publish             # writes table and figure into docs/costs.md, too
    python benchmarks/growth.py --table --publish     # from the JSON, and measures nothing
    python benchmarks/growth.py --tiny                # under a minute; shows that everything runs

For each setting a power law, cost ~ value^exponent, is fitted by least squares to the logarithms of all values: one
fit per round, and the rounds give the interval. What the values should cost is fitted in the same way, which gives the
expected exponent. It comes from the operations of `vjepa2_hf.training.flops` and of `comparisons.py`, attention
included, and from the bytes of `vjepa2_hf.training.memory`; for shards it is linear for the first row and constant for
the rest. An exponent is marked where its whole interval lies above. The values of a setting are timed in turn in one
process, on one thread (CPU time); the peak memory of each is measured in a process of its own. Needs Linux.
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench import describe_machine, restart_with_fixed_allocator, write_json


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "costs.md"
RESULTS = Path(__file__).with_name("growth.json")
FIGURE = "growth.png"  # beside the page
MARGIN = 0.05  # of an exponent; 11 % of the cost for 8 times the value
PAGE_BYTES = 4096  # the least that resident memory can show
PROCESSES = "processes, pretraining step"
# Rounds of time, of memory, and of launches of processes; steps of a process
ROUNDS = {
    "default": {"time": 6, "memory": 3, "launches": 4, "steps": 5},
    "tiny": {"time": 2, "memory": 1, "launches": 1, "steps": 1},
}


# ---------------------------------------------------------------------------------------------- fits


def fit(values: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent of costs ~ values^exponent, by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def summarize(values: Sequence[int], by_round: list[list[float]], expected: Sequence[float]) -> dict[str, Any]:
    """Medians over rounds, the exponent (mean over rounds, 95 % interval), and that of the expected costs."""
    from vjepa2_hf.metrics.planning_success.planning_success import t_interval

    exponents = [fit(values, costs) for costs in by_round]
    mean, (low, high), limit = statistics.mean(exponents), t_interval(exponents), fit(values, expected)
    return {
        "median": [statistics.median(costs) for costs in zip(*by_round, strict=True)],
        "by_round": by_round,
        "expected": [cost / expected[0] for cost in expected],
        "exponent": {"mean": mean, "low": low, "high": high},
        "expected_exponent": limit,
        "grows_faster": (mean if low is None else low) > limit + MARGIN,
    }


# ---------------------------------------------------------------------------------------------- measuring


def measure_time(axis: Any, scratch: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of the values, in turn; the memory that they should need, and attention's fraction of operations."""
    from measure import timed

    works = [axis.build(value, scratch) for value in axis.values]
    for work in works:  # the allocator takes what it needs
        work.run()
    seconds = [[0.0] * len(works) for _ in range(rounds)]
    for number, found in enumerate(seconds):
        for index in range(len(works)) if number % 2 == 0 else reversed(range(len(works))):
            found[index] = timed(works[index].run)[0] / works[index].count
    attention = [work.attention for work in works if work.attention is not None]
    found = {"time": summarize(axis.values, seconds, [work.time for work in works]), "attention": attention}
    return {**found, "expected_memory": [work.memory for work in works]}


def measure_peak(tiny: bool, name: str, value: int, scratch: Path) -> int:
    """Peak bytes that a value adds to the memory of models and inputs, in this process."""
    import torch
    from growth_cases import build_axes
    from memory import peak_bytes, reset_peak
    from shard_memory import resident

    torch.set_num_threads(1)
    (axis,) = (axis for axis in build_axes(tiny) if axis.name == name)
    work = axis.build(value, scratch)
    hold = work.hold or work.run
    if work.repeats:
        hold()
    reset_peak()
    before = resident()
    hold()
    return max(peak_bytes() - before, PAGE_BYTES)


def measure_peaks(tiny: bool, names: list[str]) -> dict[str, list[list[int]]]:
    """Peak bytes by setting, round and value. Each value is measured in a fork of this process, which has imported
    everything and has computed nothing."""
    from growth_cases import build_axes

    found: dict[str, list[list[int]]] = {}
    gc.freeze()  # or collections in the forks would copy the memory of all imported objects
    context, rounds = multiprocessing.get_context("fork"), ROUNDS["tiny" if tiny else "default"]["memory"]
    with tempfile.TemporaryDirectory() as scratch:
        for axis in (axis for axis in build_axes(tiny) if axis.name in names and axis.has_memory):
            print(f"{axis.name}: memory ...", file=sys.stderr, flush=True)
            found[axis.name] = [[] for _ in range(rounds)]
            for of_round in found[axis.name]:
                for value in axis.values:
                    with ProcessPoolExecutor(1, context) as pool:
                        of_round.append(pool.submit(measure_peak, tiny, axis.name, value, Path(scratch)).result())
    return found


def measure_peaks_apart(tiny: bool, names: list[str]) -> dict[str, list[list[int]]]:
    """`measure_peaks` in a new process, whose allocator returns memory at once."""
    from growth_cases import RETURNING

    command = [sys.executable, __file__, "--peaks", json.dumps(names), *(["--tiny"] if tiny else [])]
    environment = {**os.environ, **RETURNING}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure_processes(tiny: bool) -> dict[str, Any]:
    """A pretraining step in groups of 1 and 2 processes. Expected for 2: the time of 2 that exchange no gradients."""
    from growth_processes import CLIPS, launch

    rounds, values = ROUNDS["tiny" if tiny else "default"], (1, 2)
    times = [[launch(count, rounds["steps"], tiny) for count in values] for _ in range(rounds["launches"])]
    exchanging = [[one["exchanging"] for one in of_round] for of_round in times]
    apart = [statistics.median(of_round[index]["apart"] for of_round in times) for index in range(len(values))]
    peaks = [[launch(count, 0, tiny)["bytes"] for count in values]]
    return {
        "setting": "processes",
        "task": "pretraining step",
        "fixed": f"{CLIPS} clips in each; of one clip, and of one process",
        "values": values,
        "time": summarize(values, exchanging, apart),
        "memory": summarize(values, peaks, [1] * len(values)),
        "attention": [],
    }


def measure(tiny: bool, only: list[str] | None) -> dict[str, Any]:
    """All settings, or those whose name begins with one of `only`."""
    import torch
    from growth_cases import build_axes

    def is_chosen(name: str) -> bool:
        return not only or any(name.startswith(beginning) for beginning in only)

    torch.set_num_threads(1)
    axes, rounds = [axis for axis in build_axes(tiny) if is_chosen(axis.name)], ROUNDS["tiny" if tiny else "default"]
    if not axes and not is_chosen(PROCESSES):
        sys.exit(f"error: no setting begins with {' or '.join(only)}; see --help.")
    started = time.monotonic()
    results: dict[str, Any] = {"machine": describe_machine(), "rounds": rounds, "margin": MARGIN, "rows": []}
    gc.collect()
    gc.freeze()  # each time is measured after a collection, which is fast without all imported objects
    peaks = measure_peaks_apart(tiny, [axis.name for axis in axes]) if axes else {}
    with tempfile.TemporaryDirectory() as scratch:
        for axis in axes:
            print(f"{axis.name}: time ...", file=sys.stderr, flush=True)
            found, memory = measure_time(axis, Path(scratch), rounds["time"]), None
            expected = found.pop("expected_memory")
            if axis.has_memory:
                memory = summarize(axis.values, peaks[axis.name], expected)
            described = {"setting": axis.setting, "task": axis.task, "fixed": axis.fixed, "values": axis.values}
            results["rows"].append({**described, **found, "memory": memory})
    if is_chosen(PROCESSES):
        print(f"{PROCESSES} ...", file=sys.stderr, flush=True)
        results["rows"].append(measure_processes(tiny))
    gc.unfreeze()
    return {**results, "minutes": (time.monotonic() - started) / 60}


# ---------------------------------------------------------------------------------------------- report


def format_report(results: dict[str, Any]) -> str:
    """The table as Markdown, and what grows faster than expected."""
    from vjepa2_hf.visualization.tables import format_table

    machine, rounds = results["machine"], results["rounds"]
    titles = ["setting", "of", "with", "values", "CPU time, ms", "exponent", "expected"]
    titles += ["memory, MB", "exponent", "expected"]
    rows, faster = [], []
    for row in results["rows"]:
        cells = [row["setting"], row["task"], row["fixed"], ends(row["values"], "{:,}")]
        cells += [*format_cost(row["time"], 1e3), *format_cost(row["memory"], 1e-6)]
        if row["attention"]:
            cells[6] += f" (attention {ends([100 * each for each in row['attention']], '{:.0f}')} %)"
        rows.append(cells)
        for kind in ("time", "memory"):
            if row[kind] and row[kind]["grows_faster"]:
                faster.append(f"{kind} of {row['task']} with {row['setting']}")
    return "\n".join(
        [
            f"{machine['processor']}, one thread, torch {machine['torch']}. Medians at the smallest and largest "
            f"value; exponents with 95 % intervals over {rounds['time']} rounds of time and {rounds['memory']} of "
            f"memory ({rounds['launches']} and 1 for processes). Attention: its fraction of the expected operations.",
            "",
            *format_table(titles, rows),
            "",
            f"Above what is expected by more than {results['margin']}: {'; '.join(faster) or 'none'}.",
        ]
    )


def ends(values: Sequence[float], form: str) -> str:
    return " – ".join(form.format(value) for value in (values[0], values[-1]))


def format_cost(cost: dict[str, Any] | None, scale: float) -> list[str]:
    """Cells: costs at the ends, exponent with its interval and a mark, expected exponent."""
    if cost is None:
        return ["–"] * 3
    exponent = cost["exponent"]
    text = f"{exponent['mean']:.2f}"
    if exponent["low"] is not None:
        text += f" ({exponent['low']:.2f} to {exponent['high']:.2f})"
    text = f"**{text}, more**" if cost["grows_faster"] else text
    return [ends([scale * value for value in cost["median"]], "{:.3g}"), text, f"{cost['expected_exponent']:.2f}"]


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each setting: medians over those of the smallest value, and what was expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from vjepa2_hf.data.files import write_aside
    from vjepa2_hf.visualization.curves import STYLE

    with pyplot.rc_context(STYLE):
        lines = -(-len(results["rows"]) // 5)
        figure, panels = pyplot.subplots(lines, 5, figsize=(13, 2.8 * lines), layout="constrained", squeeze=False)
        for panel in panels.flat[len(results["rows"]) :]:
            panel.set_visible(False)
        for panel, row in zip(panels.flat, results["rows"], strict=False):
            for color, kind, label in (("#2563eb", "time", "CPU time"), ("#d97706", "memory", "peak memory")):
                if row[kind]:
                    medians = np.array(row[kind]["median"])
                    panel.plot(row["values"], row[kind]["expected"], "--", color=color, alpha=0.6, label="expected")
                    panel.plot(row["values"], medians / medians[0], "o-", color=color, markersize=4, label=label)
            panel.set(xscale="log", yscale="log", title=row["task"], xlabel=row["setting"])
            panel.set_xticks(row["values"], [str(value) for value in row["values"]])
            panel.minorticks_off()
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, 0.8), max(high, 2.5))  # a cost that stays the same looks flat
        panels[0, 0].legend(fontsize=8)
        panels[0, 0].set_ylabel("over the smallest value's")
        with write_aside(path) as partial:
            figure.savefig(partial, format="png", dpi=120)
        pyplot.close(figure)


# ---------------------------------------------------------------------------------------------- command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="as small as it goes; the numbers mean nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings that begin with one of these: frames, ...")
    parser.add_argument("--output", type=Path, help="JSON file: growth.json beside this file, none with --tiny")
    parser.add_argument("--table", action="store_true", help="take the results of --output, and measure nothing")
    parser.add_argument(
        "--publish", nargs="?", type=Path, const=PAGE, metavar="PAGE", help="page for table and figure: docs/costs.md"
    )
    parser.add_argument("--peaks", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, writes the JSON, prints the table and publishes it; returns the results."""
    options = parse_arguments(arguments)
    from vjepa2_hf.visualization.tables import publish_tables

    output = options.output or (None if options.tiny else RESULTS)
    if options.table:
        results = json.loads((output or RESULTS).read_text(encoding="utf-8"))
    else:
        results = measure(options.tiny, options.only)
        if output:
            write_json(results, output)
    text, pages = format_report(results), []
    if options.publish:
        draw(results, options.publish.with_name(FIGURE))
        text, pages = f"![Cost over value, for each setting]({FIGURE})\n\n{text}", [options.publish]
    publish_tables(results, text, None, pages, "growth")
    return results


if __name__ == "__main__":
    options = parse_arguments()  # wrong arguments are reported before the restart
    if options.peaks is not None:
        print(json.dumps(measure_peaks(options.tiny, options.peaks)))
    else:
        restart_with_fixed_allocator()
        main()
