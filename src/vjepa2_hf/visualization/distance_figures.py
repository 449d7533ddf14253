"""Figures of distances: curves by true distance, calibration, and maps of the distance to a goal. Needs matplotlib.

The numbers come from `vjepa2_hf.visualization.distance_curves`.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .curves import STYLE
from .distance_curves import NAMES


COLORS = {"latent": "#d97706", "whitened": "#059669", "learned": "#2563eb"}
GRAY = "#64748b"


def plot_distances(result: dict[str, Any]) -> Figure:
    """A panel per group of states and one of the calibration, as `measure_distances` returns them."""
    panels = [*result["groups"], *(["calibration"] if "calibration" in result else [])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
        for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            if name in result["groups"]:
                _plot_curves(axis, name, result["groups"][name])
            else:
                _plot_calibration(axis, result["calibration"])
    return figure


def _plot_curves(axis: Axes, group: str, curves: dict[str, Any]) -> None:
    """Each distance is divided by its mean in the farthest bin: their units differ."""
    for kind, curve in curves.items():
        bins = curve["bins"]
        scale = max(bins[-1]["mean"], 1e-12)
        x, mean, low, high = (np.array([part[key] for part in bins]) for key in ("true_mean", "mean", "low", "high"))
        value = curve["rank_correlation"]
        label = f"{NAMES[kind]}\nrank correlation {'undefined' if value is None else f'{value:.2f}'}"
        axis.plot(x, mean / scale, "o-", color=COLORS[kind], ms=4, label=label)
        axis.fill_between(x, low / scale, high / scale, color=COLORS[kind], alpha=0.15, lw=0)
    axis.set(title=f"held-out frames: {group}", xlabel="true distance", ylabel="relative to the farthest bin")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _plot_calibration(axis: Axes, calibration: dict[str, Any]) -> None:
    bins = calibration["bins"]
    x, mean, low, high = (np.array([part[key] for part in bins]) for key in ("elapsed_mean", "mean", "low", "high"))
    axis.plot([0, x[-1]], [0, x[-1]], "--", color=GRAY, lw=1, label="frames elapsed (upper bound)")
    axis.plot(x, mean, "o-", color=COLORS["learned"], ms=4, label="learned distance, 10 to 90 %")
    axis.fill_between(x, low, high, color=COLORS["learned"], alpha=0.15, lw=0)
    axis.set(title="held-out episodes: calibration", xlabel="frames elapsed", ylabel="learned distance (frames)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
