"""Maps of the distance to a goal image from every position of a disc, in environments that render any state.

Letters: P points along each side of a map, S state.
"""

from collections.abc import Sequence
from typing import Protocol

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ..modeling_state import view_names
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .curves import STYLE
from .distance_curves import NAMES, compare_pairs
from .rollout_windows import encode_frames


POINTS = 24  # P
BACKGROUND, MARK = "#cbd5e1", "white"


class Plane(Protocol):
    """An environment of discs in the unit square, such as `vjepa2_hf.environments.PlaneEnv`: a state holds the x and
    y of each disc, y from the top."""

    controlled: slice  # the columns of the discs that actions can move

    def render_state(self, state: np.ndarray, *, view: str | None = None) -> np.ndarray:
        """Image of a state (S,), for a model of several cameras in a view."""

    def is_free(self, states: np.ndarray) -> np.ndarray:
        """Whether states (..., S) are possible."""


@torch.no_grad()
def measure_maps(
    model: VJepa2WorldModel,
    processor: VJepa2VideoProcessor,
    env: Plane,
    start: np.ndarray,
    goal: np.ndarray,
    points: int = POINTS,
) -> list[dict[str, np.ndarray]]:
    """Distances (P, P) of each disc, by name as of `compare_pairs`: from states with that disc on a grid, and the
    others as in the start (S,), to the goal's (S,). The first row is the top; NaN where no state is possible. A model
    of several cameras sees the views of its names."""
    sides = (np.arange(points) + 0.5) / points
    maps = []
    for first in range(env.controlled.start, env.controlled.stop, 2):
        states = np.tile(np.float32(start), (points, points, 1))
        states[..., first], states[..., first + 1] = np.meshgrid(sides, sides)
        free = env.is_free(states)
        shown = [np.float32(goal), *states[free]]
        if model.config.num_views > 1:
            names = view_names(model.config)
            images = {name: np.stack([env.render_state(state, view=name) for state in shown]) for name in names}
        else:
            images = np.stack([env.render_state(state) for state in shown])
        latents = encode_frames(model, processor, images)
        starts = np.arange(1, len(shown))
        found = {}
        for name, values in compare_pairs(model, latents, starts, np.zeros_like(starts)).items():
            found[name] = np.full((points, points), np.nan)
            found[name][free] = values
        maps.append(found)
    return maps


def plot_maps(
    maps: list[dict[str, np.ndarray]], env: Plane, start: np.ndarray, goal: np.ndarray, discs: Sequence[str]
) -> Figure:
    """A row per disc: the goal image, then each distance of `measure_maps`. A circle marks the disc's start, a star
    its goal; both are states (S,) of the environment."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        columns = 1 + len(maps[0])
        figure = Figure(figsize=(3.4 * columns, 2.9 * len(maps)), layout="constrained")
        axes = figure.subplots(len(maps), columns, squeeze=False)
        for number, (row, found, disc) in enumerate(zip(axes, maps, discs, strict=True)):
            row[0].imshow(env.render_state(np.float32(goal)), extent=(0, 1, 1, 0))
            row[0].set(title="goal image")
            for axis, (name, values) in zip(row[1:], found.items(), strict=True):
                axis.set_facecolor(BACKGROUND)
                shown = axis.imshow(values, extent=(0, 1, 1, 0), cmap="viridis")
                figure.colorbar(shown, ax=axis, shrink=0.9)
                axis.set(title=f"{disc}: {NAMES[name]}")
            for axis in row:
                for state, mark, size in ((start, "o", 8), (goal, "*", 13)):
                    axis.plot(*state[2 * number : 2 * number + 2], mark, color=MARK, mec="black", ms=size)
                axis.set(xticks=[], yticks=[])
    return figure
