"""Tables of rows that ran with several training seeds: means, intervals, differences, and seeds of earlier tables.

What `examples/ablate_world_model.py`, `examples/ablate_planning.py` and others with runs by seed share.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ablate_pretraining import cell
from tqdm import tqdm

from vjepa2_hf.data.files import claim_folder, write_json
from vjepa2_hf.metrics.planning_success.planning_success import seed_interval


SETTINGS = "settings.json"  # in the folder of the runs
EQUAL = 1e-9  # differences of success that rounding alone tells apart


def run_lanes(chains: Sequence[Any], rows: Sequence[str], lanes: int) -> None:
    """`chain.run(row)` of every row with all its chains, in the order of the rows, `lanes` at a time."""
    todo = [(chain, row) for row in rows for chain in chains]
    with tqdm(total=len(todo), desc="runs") as progress, ThreadPoolExecutor(lanes) as pool:

        def run(chain: Any, row: str) -> None:
            chain.run(row)
            progress.update()

        for done in [pool.submit(run, *one) for one in todo]:
            done.result()


def known_rows(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of an earlier table by environment and name, if it was measured with the same settings."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if any(known.get(name) != value for name, value in settings.items() if name != "environments"):
        return {}
    return {
        (environment, row["name"]): row
        for environment, result in known["environments"].items()
        for row in result["rows"]
    }


def joined(known: dict[str, Any] | None, measured: dict[str, Any]) -> dict[str, Any]:
    """A row with the seeds of both; those of a seed that both have are the measured ones.

    Columns that have no values by seed are averaged by the number of seeds.
    """
    if not known or not measured["seeds"]:
        return known or measured
    kept = [i for i, seed in enumerate(known["seeds"]) if seed not in measured["seeds"]]
    counts = len(kept), len(measured["seeds"])

    def join(old: Any, new: Any) -> Any:
        if not isinstance(new, dict):
            return (old * counts[0] + new * counts[1]) / sum(counts)
        if "by_seed" in new:
            return over_seeds([old["by_seed"][i] for i in kept] + new["by_seed"])
        return {key: join(old[key], value) for key, value in new.items()}

    same = {name: measured[name] for name in ("name", "title", "parameters") if name in measured}
    seeds = {"seeds": [known["seeds"][i] for i in kept] + measured["seeds"]}
    return (
        same | seeds | {name: join(known[name], value) for name, value in measured.items() if name not in same | seeds}
    )


def claim_settings(output: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of runs into their folder, or refuses one whose runs have others.

    A folder from before settings were written is taken to have these.

    Raises:
        ValueError: runs there have other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    if not (output / SETTINGS).is_file():
        write_json(output / SETTINGS, settings)
    claim_folder(output / SETTINGS, settings, contents="runs")


def settings_of(output: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Those that the runs of a folder have; the given ones where the folder is from before settings were written."""
    path = output / SETTINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else given


def over_seeds(values: list[float], interval: Callable = seed_interval) -> dict[str, Any]:
    """Mean, interval over seeds, and values by seed; `t_interval` for values that do not lie within 0 and 1."""
    low, high = interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values}


def paired(mine: dict[int, float], others: dict[int, float]) -> dict[str, Any]:
    """Differences of success on the seeds that both have: their mean, interval and values; {} if they share none."""
    values = [mine[seed] - others[seed] for seed in mine if seed in others]
    if not values:
        return {}
    # half of 1 + difference lies between 0 and 1, as `seed_interval` has it
    low, high = (2 * end - 1 for end in seed_interval([(1 + value) / 2 for value in values]))
    return {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values}


def success_cells(success: dict[str, Any]) -> list[str]:
    """Mean with interval, and values by seed."""
    by_seed = success["by_seed"]
    return [cell(success, len(by_seed)), ", ".join(f"{value:.2f}" for value in by_seed)]


def interval_cell(difference: dict[str, Any]) -> str:
    """The interval of `paired`; "–" where all differences are equal, for these say nothing of how they spread."""
    values = difference["by_seed"]
    if len(values) < 2:
        return "one seed"
    return "–" if np.ptp(values) < EQUAL else f"{difference['low']:+.2f} to {difference['high']:+.2f}"
