"""Speed and memory on one GPU: encoder, pretraining step and CEM plan at published sizes, against transformers and
the published loop.

    python benchmarks/gpu.py                            # under 6 minutes; writes benchmarks/gpu.json
    python benchmarks/gpu.py --sections encoder plan    # some sections
    python benchmarks/gpu.py --table                    # prints the JSON as Markdown tables
    python benchmarks/gpu.py --publish docs/results.md  # writes the JSON's short tables between the markers `gpu`
    python benchmarks/gpu.py --tiny                     # on the CPU, seconds; the numbers mean nothing

Every variant is checked for agreement and written to the JSON at once. An error is recorded there, and the exit
status is then 1. Variants that would start after `--seconds` are skipped.
"""

import argparse
import json
import platform
import subprocess
import sys
import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_measure import DATASHEET, Report, matmul_rate
from gpu_variants import Settings, tiny_settings, variants

from vjepa2_hf.visualization.tables import format_table, publish_tables


SECTIONS = ("encoder", "pretraining", "plan", "decoding")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("gpu.json"), help="JSON file")
    parser.add_argument("--seconds", type=float, default=300.0, help="time budget (default 300)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="what to measure")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, as small as it goes")
    parser.add_argument("--table", action="store_true", help="print the results of --output, and measure nothing")
    parser.add_argument("--publish", nargs="+", type=Path, help="write them into documents, and measure nothing")
    return parser.parse_args(arguments)


def describe_machine(device: torch.device) -> dict[str, Any]:
    machine = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"device": properties.name, "memory_bytes": properties.total_memory, "driver": driver_version()}
        machine["cudnn"] = torch.backends.cudnn.version()
    return machine


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes the JSON, prints the tables; returns the exit status."""
    arguments = parse_arguments(arguments)
    if arguments.table:
        print(markdown(json.loads(arguments.output.read_text(encoding="utf-8"))))
        return 0
    if arguments.publish:
        results = json.loads(arguments.output.read_text(encoding="utf-8"))
        publish_tables(results, short_tables(results), None, arguments.publish, "gpu")
        return 0
    if not arguments.tiny and not torch.cuda.is_available():
        print("No GPU was found: this benchmark needs one (--tiny runs it on the CPU, without meaning).")
        return 0
    device = torch.device("cpu" if arguments.tiny else "cuda")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False  # in float32, transformers' patch convolution would differ from ours
    report = Report(arguments.output, arguments.seconds, describe_machine(device))
    rates: dict[str, float] = {}
    settings = replace(tiny_settings(), rates=rates) if arguments.tiny else Settings(device, rates=rates)

    def rate() -> dict[str, Any]:
        size = 64 if arguments.tiny else 8192
        rates["matmul"] = matmul_rate(device, size)
        return {"size": size, "operations_per_second": dict(rates)}

    if datasheet := DATASHEET.get(report.results["machine"]["device"]):
        rates["datasheet"] = datasheet
    report.add("machine", "bf16 matrix product", rate)
    for section, name, run in variants(settings):
        if section in arguments.sections:
            report.add(section, name, run)
    print(markdown(report.results))
    print(f"\nwritten to {arguments.output}")
    if report.failures:
        print("\n".join([f"\n{len(report.failures)} variants failed:", *report.failures]))
    return 1 if report.failures else 0


def short_tables(results: dict[str, Any]) -> str:
    """What was compared, and the memory of pretraining, as two Markdown tables."""
    machine = results["machine"]
    timed, memory = [], []
    for section, variants_found in results["sections"].items():
        for name, found in variants_found.items():
            if "ratio" in found:
                (ours, other), values = found["seconds"], found["seconds"].values()
                times = [f"{1000 * one['median']:.0f}" for one in values]
                ((_, ratio),) = found["ratio"].items()
                spread = f"{ratio['median']:.2f} ({ratio['minimum']:.2f}–{ratio['maximum']:.2f})"
                reached = f"{found['fraction_of']['matmul'][ours]:.2f}"
                timed.append([f"{section}: {name}", f"{ours}, {other}", *times, spread, reached])
            elif "largest_batch" in found:
                peak = f"{found['memory_bytes']['peak'] / 1e9:.1f}" if found["memory_bytes"] else "–"  # on a CPU
                largest, tried = str(found["largest_batch"]), found["ms_per_clip_by_batch"]
                row = [name, peak, largest, str(found["out_of_memory"] or "none tried")]
                memory.append([*row, f"{tried.get(largest, found['ms_per_clip']):.1f}"])
    titles = ["measured", "sides", "ms, first", "ms, second", "second / first", "first: fraction of matmul rate"]
    lines = [f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}:", ""]
    lines += format_table(titles, timed)
    titles = ["pretraining step", "peak memory, 8 clips, GB", "largest batch", "out of memory at", "ms per clip there"]
    return "\n".join([*lines, "", *format_table(titles, memory)])


def markdown(results: dict[str, Any]) -> str:
    """The results as Markdown: a table per section."""
    machine = results["machine"]
    lines = [f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}"]
    header = [
        "variant",
        "milliseconds",
        "ratio",
        "peak memory (+: of the call), GB",
        "fraction of matmul rate",
        "notes",
    ]
    for section, found in results["sections"].items():
        rows = [header, ["---"] * len(header), *(_row(name, each) for name, each in found.items())]
        lines += ["", f"**{section}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    seconds = found.get("seconds") or {}
    times = [f"{side} {1000 * values['median']:.1f}" for side, values in seconds.items()]
    ratios = [
        f"{sides}: {values['median']:.2f} ({values['minimum']:.2f} to {values['maximum']:.2f})"
        for sides, values in (found.get("ratio") or {}).items()
    ]
    memory = found.get("memory_bytes") or {}
    if "peak" in memory:
        peaks = [f"{memory['peak'] / 1e9:.1f}"]
    else:  # the weights of both sides are in memory
        peaks = [f"{side} +{values['added'] / 1e9:.1f}" for side, values in memory.items() if values]
    reached = (found.get("fraction_of") or {}).get("matmul") or {}
    return [name, *(_joined(part) for part in (times, ratios, peaks)), _joined(_shares(reached)), _notes(found)]


def _shares(reached: dict[str, float]) -> list[str]:
    return [f"{side} {value:.2f}" for side, value in reached.items()]


def _joined(parts: list[str]) -> str:
    return ", ".join(parts) or "–"


def _notes(found: dict[str, Any]) -> str:
    notes = [f"{kind}: {found[kind]}" for kind in ("skipped", "error") if kind in found]
    for name in ("clips_per_second", "ms_per_clip"):
        if isinstance(values := found.get(name), dict):
            notes.append(f"{name}: " + ", ".join(f"{side} {value:.1f}" for side, value in values.items()))
        elif values is not None:
            notes.append(f"{name}: {values:.1f}")
    notes += [f"{name}: {found[name]}" for name in ("clips", "candidates", "largest_batch", "graphs") if name in found]
    if "compile_seconds" in found:
        notes.append(f"compiled in {found['compile_seconds']:.0f} s")
    rates = found.get("operations_per_second") or {}
    notes += [f"{kind}: {rate / 1e12:.3g} TFLOP/s" for kind, rate in rates.items()]
    return "; ".join(notes).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
