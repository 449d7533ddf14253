"""Figures of a search hold the numbers that they are given."""

import io

import numpy as np
from PIL import Image

from vjepa2_hf.visualization.plan_figures import MOST_SHOWN, plot_action_costs, plot_costs, to_png


def test_the_latest_costs_are_named_and_only_some_earlier_ones_stay():
    plans = [[3.0 + number, 2.0, 1.0] for number in range(MOST_SHOWN + 5)]
    figure = plot_costs(plans)
    axis = figure.axes[0]
    assert axis.lines[MOST_SHOWN].get_label() == f"plan {len(plans)}"
    assert axis.lines[MOST_SHOWN].get_ydata().tolist() == plans[-1]
    assert axis.lines[0].get_ydata().tolist() == plans[4]
    assert [text.get_text() for text in figure.legends[0].texts] == [f"plan {len(plans)}", "earlier plans"]
    assert len(plot_costs([[1.0, 0.5]]).axes[0].lines) == 1


def test_the_lowest_cost_and_the_action_are_marked():
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 3)
    costs = np.ones((3, 5))
    costs[2, 1] = 0.0
    figure = plot_action_costs({"x": x, "y": y, "costs": costs}, np.array([0.5, 2.0]), ("right", "down"))
    axis = figure.axes[0]
    lowest, chosen = axis.lines
    assert lowest.get_xydata().tolist() == [[-0.5, 2.0]] and chosen.get_xydata().tolist() == [[0.5, 2.0]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("right", "down")
    top, bottom = axis.get_ylim()[1], axis.get_ylim()[0]
    assert top < bottom  # the second number increases downwards
    with Image.open(io.BytesIO(to_png(figure, dpi=50))) as image:
        assert image.format == "PNG" and image.size == (230, 185)
