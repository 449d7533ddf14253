"""Mask sampling: whole batches at once, against one clip at a time as in the published collator.

    python benchmarks/masks.py                 # 64 clips of 16x256^2, under a minute
    python benchmarks/masks.py --tiny          # seconds; shows that everything runs, the numbers mean nothing

Checks first that both sides cover as much of a clip as the published code does (`mask_statistics.json`: mean,
standard deviation and extremes of 1000 masks), then times them in turn; writes the section `masks` of `results.json`.
"""

import argparse
import json
import math
import sys
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import align, describe_machine, restart_with_fixed_allocator, write_json
from measure import Check, DisagreementError, summary

from vjepa2_hf.masking import PUBLISHED_MASKS, Grid, build_mask_samplers


GRID = (8, 16, 16)  # 16 frames of 256 x 256
STATISTICS = Path(__file__).parents[1] / "tests" / "fixtures" / "mask_statistics.json"
# Over 1000 sampled masks: mean and standard deviation vary by 0.002, the extremes by 0.03
TOLERANCES = {"mean_target_ratio": 0.01, "std": 0.008, "min": 0.08, "max": 0.08}
TWO_PHASE = {
    "type": "multi_block",
    "num_blocks": (4, 8),
    "spatial_scale": (0.15, 0.7),
    "temporal_scale": (0.4, 1.0),
    "aspect_ratio": (0.75, 1.5),
    "mask_ratio": (0.75, 0.9),
}


def sample_clip_by_clip(
    spec: dict[str, Any], batch_size: int, grid: Grid, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks of a multi-block spec one clip and one block at a time: (context ids (B, K), target ids (B, M)).

    What the published collator does: a tensor of the whole clip for each block, multiplied together, and the batch cut
    to its shortest from the end. With a `mask_ratio` (not published) each clip is sampled until it lies within it.
    """
    size = _sample_size(spec, grid, generator)
    contexts, targets = [], []
    while len(contexts) < batch_size:
        number, own = spec["num_blocks"], "mask_ratio" in spec
        if own:
            number = int(torch.randint(number[0], number[1] + 1, (1,), generator=generator))
        visible = torch.ones(grid, dtype=torch.int32)
        for _ in range(number):
            visible *= _sample_block(_sample_size(spec, grid, generator) if own else size, grid, generator)
        visible = visible.flatten()
        target, context = torch.nonzero(visible == 0).squeeze(1), torch.nonzero(visible).squeeze(1)
        low, high = spec.get("mask_ratio", (0, 1))
        if len(context) > 0 and low * len(visible) <= len(target) <= high * len(visible):
            contexts.append(context)
            targets.append(target)
    num_context, num_target = min(map(len, contexts)), min(map(len, targets))
    return torch.stack([ids[:num_context] for ids in contexts]), torch.stack([ids[:num_target] for ids in targets])


def _sample_size(spec: dict[str, Any], grid: Grid, generator: torch.Generator) -> tuple[int, int, int]:
    def uniform(limits: float | tuple[float, float]) -> float:
        low, high = limits if isinstance(limits, tuple) else (limits, limits)
        return low + torch.rand(1, generator=generator).item() * (high - low)

    length = max(1, int(grid[0] * uniform(spec["temporal_scale"])))
    area = int(grid[1] * grid[2] * uniform(spec["spatial_scale"]))
    aspect = uniform(spec["aspect_ratio"])
    return (
        length,
        min(grid[1], round(math.sqrt(area * aspect))),
        min(grid[2], round(math.sqrt(area / aspect))),
    )


def _sample_block(size: tuple[int, int, int], grid: Grid, generator: torch.Generator) -> torch.Tensor:
    """(T', H', W') int32: 0 in a block of that size, at a random position, 1 elsewhere."""
    top, left, start = (torch.randint(0, grid[axis] - size[axis] + 1, (1,), generator=generator) for axis in (1, 2, 0))
    block = torch.ones(grid, dtype=torch.int32)
    block[start : start + size[0], top : top + size[1], left : left + size[2]] = 0
    return block


def check_statistics(
    who: str, sample: Callable[[], tuple], golden: dict[str, float], count: int = 1000
) -> list[Check]:
    """Compares the fraction of target tokens, over masks of one clip each, with the published code's.

    Raises:
        DisagreementError: a figure differs by more than sampling noise.
    """
    ratios = torch.tensor([sample()[1].shape[1] / math.prod(GRID) for _ in range(count)])
    figures = {"mean_target_ratio": ratios.mean(), "std": ratios.std(), "min": ratios.min(), "max": ratios.max()}
    checks = []
    for name, tolerance in TOLERANCES.items():
        difference = abs(figures[name].item() - golden[name])
        if not difference <= tolerance:
            raise DisagreementError(
                f"{who}: {name} is {figures[name]:.3f}, the published code's {golden[name]:.3f} (within {tolerance})."
            )
        checks.append(Check(f"{who}: {name}", difference, tolerance))
    return checks


def check_published() -> list[Check]:
    """Both sides against the published statistics, for both published sets."""
    golden, generator, checks = json.loads(STATISTICS.read_text()), torch.Generator().manual_seed(0), []
    for name, spec in zip(("short", "long"), PUBLISHED_MASKS, strict=True):
        (sampler,) = build_mask_samplers([spec])
        for who, sample in (
            (f"ours, {name}", lambda sampler=sampler: sampler(1, GRID, generator)),
            (f"clip by clip, {name}", lambda spec=spec: sample_clip_by_clip(spec, 1, GRID, generator)),
        ):
            checks += check_statistics(who, sample, golden[name])
    return checks


def time_masks(name: str, specs: list[dict[str, Any]], batch_size: int, rounds: int) -> dict[str, Any]:
    """Times both sides in turn; ours ten times per round, because one call is too short to time."""
    samplers, repeats = build_mask_samplers(specs), 10
    ours_generator, other_generator = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    times: dict[str, list[float]] = {"ours": [], "baseline": []}

    def ours() -> None:
        for _ in range(repeats):
            for sampler in samplers:
                sampler(batch_size, GRID, ours_generator)

    def baseline() -> None:
        for spec in specs:
            sample_clip_by_clip(spec, batch_size, GRID, other_generator)

    ours()
    baseline()
    for index in range(rounds):
        for run in (ours, baseline) if index % 2 == 0 else (baseline, ours):  # neither side always runs first
            started = time.process_time()
            run()
            taken = time.process_time() - started
            times[run.__name__].append(taken / repeats if run is ours else taken)
    return {
        "name": name,
        "size": f"{batch_size} clips, {'x'.join(map(str, GRID))} tokens",
        "baseline": "clip by clip",
        "rounds": rounds,
        "ratio": summary(theirs / ours for ours, theirs in zip(times["ours"], times["baseline"], strict=True)),
        "seconds": {side: summary(values) for side, values in times.items()},
    }


def format_report(section: dict[str, Any]) -> str:
    """The table as text."""
    rows = [["masks", "size", "against", "ratio", "ms: ours", "other"]]
    for each in section["comparisons"]:
        ratio, seconds = each["ratio"], each["seconds"]
        rows.append(
            [
                each["name"],
                each["size"],
                each["baseline"],
                f"{ratio['median']:.1f} ({ratio['minimum']:.1f} to {ratio['maximum']:.1f})",
                f"{1000 * seconds['ours']['median']:.2f}",
                f"{1000 * seconds['baseline']['median']:.1f}",
            ]
        )
    heading = "Process CPU time. Ratio: the other way's over ours, of paired rounds, median (minimum to maximum)."
    return "\n".join([heading, "", *align(rows)])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Checks, times, prints the table and writes it into the JSON; returns what it wrote."""
    arguments = parse_arguments(arguments)
    torch.set_num_threads(1)
    batch_size, rounds = (2, 2) if arguments.tiny else (64, 20)
    section = {"machine": describe_machine(), "comparisons": [], "checks": []}
    section["checks"] = [vars(check) for check in check_published()]
    for name, specs in {
        "both published sets": PUBLISHED_MASKS,
        "published, 8 small blocks": PUBLISHED_MASKS[:1],
        "published, 2 large blocks": PUBLISHED_MASKS[1:],
        "two-phase recipe, 75 to 90 %": [TWO_PHASE],
    }.items():
        section["comparisons"].append(time_masks(name, specs, batch_size, rounds))
    print(format_report(section))
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    write_json({**results, "masks": section}, arguments.output)
    print(f"written to {arguments.output}")
    return section


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="as small as it goes")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"), help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    try:
        main()
    except ValueError as error:  # also if a side disagrees with the published code
        sys.exit(f"error: {error}")
