"""Figures of a search: its cost by iteration, and the cost over the first action."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .curves import STYLE


if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARLIER, LATEST = "#94a3b8", "#2563eb"
MOST_SHOWN = 12  # earlier plans


def plot_costs(plans: Sequence[Sequence[float]]) -> "Figure":
    """The cost by iteration of each of several plans, one after the other; the last one is bold."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axis = figure.add_subplot()
        shown = plans[-MOST_SHOWN - 1 :]
        for costs in shown[:-1]:
            axis.plot(range(1, len(costs) + 1), costs, "-", color=EARLIER, lw=1, alpha=0.6)
        latest = shown[-1]
        axis.plot(range(1, len(latest) + 1), latest, "o-", color=LATEST, lw=2.2, label=f"plan {len(plans)}")
        if len(shown) > 1:
            axis.plot([], [], "-", color=EARLIER, lw=1, label="earlier plans")
        axis.set(xlabel="iteration of the search", ylabel="cost (lower is better)")
        axis.set_xticks(range(1, max(map(len, shown)) + 1))
        axis.legend()
    return figure


def mark_action(figure: "Figure", action: np.ndarray, labels: tuple[str, str] | None = None) -> None:
    """Marks an action (2,) in a figure of `VJepa2Planner.energy_landscape`.

    Args:
        labels: of the two axes, for actions that move something in the image: the second axis then points down.
    """
    axis = figure.axes[0]
    (mark,) = axis.plot(*action, "o", mfc="none", mec="white", mew=2, ms=10, clip_on=False, label="first action")
    mark.set_path_effects(_outline())
    if labels is not None:
        axis.set(xlabel=labels[0], ylabel=labels[1])
        axis.invert_yaxis()
    lowest = [line for line in axis.lines if line.get_label() == "lowest cost"]
    for old in figure.legends[:]:
        old.remove()
    figure.legend(handles=[*lowest, mark], loc="outside upper center", ncols=2, numpoints=1, facecolor="#94a3b8")


def _outline() -> list:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=4, foreground="black")]


def to_png(figure: "Figure", dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
