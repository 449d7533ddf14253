"""Training curves read from a run's `metrics.jsonl`, and the style of their figures."""

import json
from pathlib import Path

import numpy as np


STYLE = {  # of matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
}


def require(path: Path, script: str) -> Path:
    """The path; if it does not exist, the error names the script that writes it."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {str(path)!r}; run examples/{script} first, or the whole demo.")
    return path


def read_curves(folder: Path, script: str) -> dict[str, np.ndarray]:
    """The numbers in a run's `metrics.jsonl` by name, one per line; nan where a line has none."""
    path = require(folder / "metrics.jsonl", script)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{str(path)!r} has a line that is not JSON ({error}); run examples/{script} again."
        ) from error
    if not lines:
        raise ValueError(f"{str(path)!r} is empty; run examples/{script} to its end.")
    names = dict.fromkeys(name for line in lines for name, value in line.items() if not isinstance(value, str))
    return {name: np.array([line.get(name) for line in lines], np.float64) for name in names}


def smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving mean (T,) over about a fifteenth of a curve (T,)."""
    reach = len(values) // 30
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])
