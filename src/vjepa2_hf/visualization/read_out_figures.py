"""Figure of positions that were read out of a world model's states, next to the true ones. Needs matplotlib.

Letters: A appearances, T frames, K objects; positions are in field units, 0 to 1 from the left and from the top.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .curves import STYLE
from .distance_figures import COLORS


OBJECT_COLORS = (COLORS["latent"], COLORS["learned"], COLORS["whitened"])


def plot_read_out(
    images: np.ndarray, true: np.ndarray, read: np.ndarray, names: list[str], r_squared: list[float], episodes: int
) -> Figure:
    """One motion in several appearances: an image of each, and under it the paths of the objects.

    Args:
        images: uint8 (A, H, W, 3).
        true: positions (T, K, 2), the same in all appearances.
        read: positions (A, T, K, 2) that were read out of the states.
        names, r_squared: of the K objects; the R² is written in the figure.
        episodes: held-out episodes that the R² is measured on.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * len(images), 4.6), layout="constrained")
        above, below = figure.subplots(2, len(images), squeeze=False)
        for axis, image in zip(above, images, strict=True):
            axis.imshow(image, extent=(0, 1, 1, 0), interpolation="nearest")
        for axis, paths in zip(below, read, strict=True):
            for index, name in enumerate(names):
                color = OBJECT_COLORS[index % len(OBJECT_COLORS)]
                axis.plot(*true[:, index].T, color=color, lw=6, alpha=0.25, label=f"{name}, true")
                label = f"{name}, read out: R² {r_squared[index]:.2f}"
                axis.plot(*paths[:, index].T, "o-", color=color, lw=1.2, ms=2.5, label=label)
            axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
        for axis in (*above, *below):
            axis.set(xticks=[], yticks=[])
        title = f"One motion in {len(images)} appearances; R² on {episodes} held-out episodes, each in its own"
        figure.suptitle(title, fontsize=10.5)
        figure.legend(*below[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(names))
    return figure
