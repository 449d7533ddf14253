"""The table of `examples/plan.py`: a row per method, with success rates, their intervals, and costs."""

from typing import Any

from . import tables
from .rollout_costs import HORIZONS


FIRST = ["success", "95 % interval", "episodes", "steps", "last distance", "ms per plan", "near to far goals"]


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """Cells of a row by column; a column that no row has is left out of the table."""
    seeds = row.get("by_seed")
    cells = {"method": row["name"], "episodes": f"{len(seeds)} × {row['episodes']}" if seeds else str(row["episodes"])}
    for name, level in row.get("levels", {}).items():
        cells[name] = f"{level['success']:.2f} ({level['low']:.2f}–{level['high']:.2f})"
    if "levels" not in row:
        cells |= {"success": f"{row['success']:.2f}", "95 % interval": f"{row['low']:.2f}–{row['high']:.2f}"}
    if seeds:
        cells["by seed"] = ", ".join(f"{value:.2f}" for value in seeds)
    for prefix, part in {"": row, **{f"{name} ": level for name, level in row.get("levels", {}).items()}}.items():
        if "minus" in part and (prefix or "levels" not in row):
            change = part["minus"]
            interval = f"{change['low']:+.2f} to {change['high']:+.2f}"
            cells[f"{prefix}minus {change['row']}"] = f"{change['difference']:+.2f} ({interval})"
    if row["steps_to_success"] is not None:
        cells["steps"] = f"{row['steps_to_success']:.1f}"
    if "last_distance" in row:
        cells["last distance"] = f"{row['last_distance']:.3g}"
    if row.get("plan_milliseconds") is not None:
        cells["ms per plan"] = f"{row['plan_milliseconds']:.1f}"
    if "within_budget" in row:
        cells["calls within budget"] = f"{row['within_budget']:.2f}"
    for name in ("solved_at_start", "ended_early"):
        if row.get(name):
            cells[name.replace("_", " ")] = f"{row[name]:.3g}"
    if "by_distance" in row:
        cells["near to far goals"] = " / ".join(f"{part['success']:.2f}" for part in row["by_distance"])
    for name, values in row.get("scores", {}).items():
        cells |= {f"{name}, largest": f"{values['max']:.2f}", f"{name}, last": f"{values['last']:.2f}"}
    for horizon, error in row.get("rollout_error", {}).items():
        cells[f"error {horizon} / copy error"] = f"{error['error'] / error['copy_error']:.2f}"
    if "imagined_steps" in row:
        at_most = "up to " if "within_budget" in row else ""  # a budget may end the search early
        cells["imagined steps per plan"] = f"{at_most}{row['imagined_steps']:,}"
    if "parameters" in row:
        cells["parameters"] = f"{row['parameters']:,}"
        cells["MFLOP per step"] = f"{row['rollout_flops'] / 1e6:.1f}"
        cells["ms per step of all candidates"] = f"{row['rollout_milliseconds']:.1f} ({row['rollout_candidates']})"
    return cells


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    cells = [_cells(row) for row in rows]
    levels = dict.fromkeys(level for row in rows for level in row.get("levels", ()))
    order = ["method", *levels, *FIRST, *(f"error {horizon} / copy error" for horizon in HORIZONS)]
    found = list(dict.fromkeys(name for row in cells for name in row))
    titles = [name for name in order if name in found] + [name for name in found if name not in order]
    return "\n".join(tables.format_table(titles, [[row.get(title, "–") for title in titles] for row in cells]))
