"""Figures of a search: its cost by iteration, and the cost over the first action.

They are drawn while a plan runs, so axes are placed by hand: automatic layouts take several times as long.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .curves import STYLE


if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARLIER, LATEST = "#94a3b8", "#2563eb"
MOST_SHOWN = 12  # earlier plans
SIZE = (4.6, 3.7)  # inches


def plot_costs(plans: Sequence[Sequence[float]]) -> "Figure":
    """The cost by iteration of each of several plans, one after the other; the last one is bold."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axis = figure.add_axes((0.16, 0.14, 0.8, 0.76))
        shown = plans[-MOST_SHOWN - 1 :]
        for costs in shown[:-1]:
            axis.plot(range(1, len(costs) + 1), costs, "-", color=EARLIER, lw=1, alpha=0.6)
        latest = shown[-1]
        lines = axis.plot(range(1, len(latest) + 1), latest, "o-", color=LATEST, lw=2.2, label=f"plan {len(plans)}")
        if len(shown) > 1:
            lines += axis.plot([], [], "-", color=EARLIER, lw=1, label="earlier plans")
        axis.set(xlabel="iteration of the search", ylabel="cost (lower is better)")
        axis.set_xticks(range(1, max(map(len, shown)) + 1))
        figure.legend(handles=lines, loc="upper center", ncols=2)
    return figure


def plot_action_costs(
    found: dict[str, Any], action: np.ndarray, labels: tuple[str, str] = ("action[0]", "action[1]")
) -> "Figure":
    """The costs of `VJepa2Planner.energy_landscape` over two numbers of an action, and the action (2,) of the plan.

    The second number increases downwards, as positions in an image do.
    """
    import matplotlib
    from matplotlib.figure import Figure

    x, y, costs = found["x"], found["y"], found["costs"]
    line, column = np.unravel_index(int(costs.argmin()), costs.shape)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=SIZE)
        axis = figure.add_axes((0.17, 0.14, 0.64, 0.76))
        extent = (x[0], x[-1], y[-1], y[0])
        image = axis.imshow(costs, extent=extent, aspect="auto", interpolation="bilinear", cmap="viridis")
        style = {"clip_on": False, "ls": "none", "mec": "black"}
        marks = axis.plot(x[column], y[line], "X", color="#f87171", ms=9, label="lowest cost", **style)
        marks += axis.plot(*action, "o", color="white", ms=9, label="first action of the plan", **style)
        axis.set(xlabel=labels[0], ylabel=labels[1])
        figure.colorbar(image, cax=figure.add_axes((0.84, 0.14, 0.03, 0.76)), label="cost")
        figure.legend(handles=marks, loc="upper center", ncols=2, handletextpad=0.2)
    return figure


def to_png(figure: "Figure", dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
