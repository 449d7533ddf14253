"""Matplotlib figures of what encoders, probes and predictors see, and animations of them as GIF or mp4.

The numbers come from `vjepa2_hf.visualization.measures` and `VJepa2ForVideoClassification.pooler_attention`.
The argument `shown` of a `plot_*` function selects the frames; `write_figure` makes an animation of one figure each.

Shapes: T frames, H W pixels, (T', H', W') grid of tokens, h heads, Q queries, k neighbors.
"""

import math
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.files import write_aside


if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure

MAX_COLUMNS = 8  # images in a row, by default
MAX_QUERIES = 6  # rows of nearest frames, by default
CELL = 1.25  # side of an image, in inches
DPI = 120
Rows = Sequence[tuple[str, np.ndarray]]  # a title and images (n, H, W, 3), uint8 or floats in 0..1
ENDINGS = (".png", ".gif", ".mp4")


def plot_feature_pca(
    frames: Sequence[np.ndarray],
    colors: Sequence[np.ndarray],
    shown: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Frames of clips, and their features as colors.

    Args:
        frames: uint8 (T, H, W, 3) per clip, all of one shape.
        colors: floats (T', H', W', 3) per clip, from [`~vjepa2_hf.visualization.measures.feature_colors`].
        shown: frame numbers; default eight, evenly spaced. With several frames each clip has two rows; with one frame
            each clip has a column.
    """
    steps, count = len(colors[0]), len(frames[0])
    shown = evenly_spaced(steps, MAX_COLUMNS) * count // steps if shown is None else np.asarray(shown)
    names = [f"clip {number}" for number in range(1, len(frames) + 1)] if names is None else names
    parts = [(clip[shown], features[shown * steps // count]) for clip, features in zip(frames, colors, strict=True)]
    if len(shown) == 1:
        images, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return plot_rows([(f"frame {shown[0]}", images), ("features", features)], names)
    rows = []
    for name, (images, features) in zip(names, parts, strict=True):
        rows += [(name, images), (f"{name}:\nfeatures", features)]
    return plot_rows(rows, [f"frame {number}" for number in shown])


def plot_probe_attention(
    frames: np.ndarray,
    attention: torch.Tensor | np.ndarray,
    frames_per_step: int,
    shown: Sequence[int] | None = None,
    by_head: bool = False,
    title: str | None = None,
) -> "Figure":
    """Attention of a probe's query over the frames, and its sum at each time step.

    Args:
        frames: uint8 (T, H, W, 3).
        attention: (h, T', H', W') of one clip, from `VJepa2ForVideoClassification.pooler_attention`, plotted as
            multiples of the uniform weight. (With `labels_per_frame` each time step has its own query, and all time
            steps have the same sum.) Leave out the time steps that a probe with `predicted_frames` predicts.
        frames_per_step: frames of a tubelet.
        shown: frame numbers; default eight, evenly spaced.
        by_head: also plot each head; else only their mean.
    """
    matplotlib = _matplotlib()
    weights = _as_array(attention)
    steps, count = weights.shape[1], len(frames)
    if steps != max(1, count // frames_per_step):
        raise ValueError(
            f"attention has {steps} time steps, but {count} frames in tubelets of {frames_per_step} have "
            f"{max(1, count // frames_per_step)}: leave out the time steps that were predicted."
        )
    shown = evenly_spaced(steps, MAX_COLUMNS) * count // steps if shown is None else np.asarray(shown)
    by_time = weights.mean(axis=0).sum(axis=(1, 2))
    total = by_time.sum()  # 1, or T' where each time step has a query
    uniform = total / weights[0].size
    maps = [("attention", weights.mean(axis=0) / uniform)]
    if by_head:
        maps += [(f"head {number}", head / uniform) for number, head in enumerate(weights, start=1)]
    scale = matplotlib.colors.Normalize(0, max(np.percentile([values for _, values in maps], 99.5), 1))
    heat, at = matplotlib.colormaps["inferno"], shown * steps // count
    rows = [("", frames[shown]), *((name, _overlay(frames[shown], part[at], scale, heat)) for name, part in maps)]
    labels = [f"frame {number}" for number in shown]
    if len(shown) == 1:  # side by side
        labels = [name for name, _ in rows]
        rows = [(f"frame {shown[0]}", np.concatenate([frames[shown] / 255, *(part for _, part in rows[1:])]))]
    figure, (above, below) = _stacked(rows, len(labels), under=1.3)
    axes = _fill(above, rows, labels)
    _color_bar(above, axes, scale, "inferno", "times the\nuniform weight")
    _plot_times(below, by_time / total, count, shown, 1, "fraction of\nattention", reference=1 / steps)
    _add_title(figure, title)
    return figure


def plot_nearest_frames(
    queries: np.ndarray,
    neighbors: np.ndarray,
    distances: torch.Tensor | np.ndarray,
    names: Sequence[str],
    neighbor_names: Sequence[Sequence[str]],
    shown: Sequence[int] | None = None,
    title: str | None = None,
) -> "Figure":
    """Rows of a frame and its k nearest frames, nearest first.

    Args:
        queries: uint8 (Q, H, W, 3).
        neighbors: uint8 (Q, k, H, W, 3).
        distances: (Q, k), from [`~vjepa2_hf.visualization.measures.nearest_frames`].
        neighbor_names: k per query.
        shown: numbers of queries; default six, evenly spaced.
    """
    shown = evenly_spaced(len(queries), MAX_QUERIES) if shown is None else np.asarray(shown)
    rows = [(names[q], np.concatenate([queries[q, None], neighbors[q]])) for q in shown]
    ranks = ["frame", "nearest", *(f"{number}." for number in range(2, neighbors.shape[1] + 1))]
    figure, (above, _) = _stacked(rows, len(ranks), captions=True)
    axes = _fill(above, rows, ranks)
    for line, q in zip(axes, shown, strict=True):
        line[0].spines[:].set(visible=True, linewidth=2.5)  # a frame around the query
        for axis, name, distance in zip(line[1:], neighbor_names[q], _as_array(distances)[q], strict=True):
            axis.set_xlabel(f"{name}\n{distance:.3f}", fontsize=7, labelpad=2)
    _add_title(figure, title)
    return figure


def plot_loss_by_position(
    losses: torch.Tensor | np.ndarray,
    frames_per_step: int,
    shown: Sequence[int] | None = None,
    title: str | None = None,
) -> "Figure":
    """Prediction loss at each grid position: a map per time step, their mean, and the mean loss over time.

    Args:
        losses: (T', H', W'), the `mean` of [`loss_by_position`]; NaN (never masked) is gray.
        frames_per_step: frames of a tubelet.
        shown: numbers of time steps; default eight, evenly spaced.
    """
    matplotlib = _matplotlib()
    losses = np.ma.masked_invalid(_as_array(losses))
    shown = evenly_spaced(len(losses), MAX_COLUMNS) if shown is None else np.asarray(shown)
    scale = matplotlib.colors.Normalize(*np.percentile(losses.compressed(), [0.5, 99.5]))
    colors = matplotlib.colormaps["viridis"].with_extremes(bad="lightgray")
    maps = np.ma.concatenate([losses[shown], losses.mean(axis=0)[None]])
    rows = [("loss", colors(scale(maps))[..., :3])]
    labels = [f"frames {first}–{first + frames_per_step - 1}" for first in shown * frames_per_step]
    labels = [*(labels if frames_per_step > 1 else (f"frame {step}" for step in shown)), "mean over time"]
    figure, (above, below) = _stacked(rows, len(labels), under=1.5)
    axes = _fill(above, rows, labels)
    _color_bar(above, axes, scale, "viridis", "")
    by_time = losses.mean(axis=(1, 2)).filled(np.nan)
    times = (len(losses) * frames_per_step, shown * frames_per_step, frames_per_step)
    _plot_times(below, by_time, *times, "mean over\npositions")
    _add_title(figure, title)
    return figure


def plot_rows(rows: Rows, labels: Sequence[str]) -> "Figure":
    """A figure with a titled row of images (n, H, W, 3) for each of `rows`, and `labels` over the n columns."""
    figure, (above, _) = _stacked(rows, len(labels))
    _fill(above, rows, labels)
    return figure


def _stacked(
    rows: Rows, columns: int, under: float = 0, captions: bool = False
) -> "tuple[Figure, tuple[SubFigure, SubFigure | None]]":
    """An empty figure with space for the rows, and `under` inches below them."""
    height, width = rows[0][1].shape[1:3]
    tall = (CELL * height / width + 0.32 * captions) * len(rows) + 0.4
    size = (CELL * columns + (2.2 if under else 1.4), tall + under + 0.3)
    figure = _matplotlib().figure.Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)
    if not under:
        return figure, (figure.subfigures(1, 1), None)
    return figure, tuple(figure.subfigures(2, 1, height_ratios=(tall, under)))


def _matplotlib() -> Any:
    try:
        import matplotlib.cm
        import matplotlib.colors
        import matplotlib.figure  # not pyplot: no window, no state
    except ImportError as error:
        raise ImportError("figures need matplotlib, which is not installed: pip install 'vjepa2-hf[demo]'.") from error
    return matplotlib


def _fill(parent: "SubFigure", rows: Rows, labels: Sequence[str]) -> np.ndarray:
    """Axes (rows, n) with the images in them."""
    height, width = rows[0][1].shape[1:3]
    axes = parent.subplots(len(rows), len(labels), squeeze=False)
    for line, (title, images) in zip(axes, rows, strict=True):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
        for axis, image in zip(line, images, strict=True):
            # all rows have the same extent, whatever their resolution
            axis.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label, fontsize=9)
    return axes


def _color_bar(parent: "SubFigure", axes: np.ndarray, scale: "Normalize", colors: str, label: str) -> None:
    mappable = _matplotlib().cm.ScalarMappable(scale, colors)
    bar = parent.colorbar(mappable, ax=axes, shrink=0.9, aspect=12 * len(axes), pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _plot_times(
    parent: "SubFigure",
    values: np.ndarray,
    frames: int,
    shown: np.ndarray,
    length: int,
    label: str,
    reference: float | None = None,
) -> None:
    """Values (T',) as steps over the frames, with a line at `reference`; a single `shown` frame is marked over its
    `length` in frames."""
    axis = parent.subplots()
    edges = np.arange(len(values) + 1) * frames / len(values)
    axis.stairs(values, edges, baseline=None, color="black", linewidth=1.5)
    if reference is not None:
        axis.axhline(reference, color="gray", linestyle="--", linewidth=1, label="uniform")
        axis.legend(fontsize=8, frameon=False)
    if len(shown) == 1:
        axis.axvspan(shown[0], shown[0] + length, color="tab:blue", alpha=0.3, linewidth=0)
    axis.set_xlim(0, frames)
    axis.set_ylim(0, max(np.nanmax(values), reference or 0) * 1.15)
    axis.set_xlabel("frame", fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _add_title(figure: "Figure", title: str | None) -> None:
    if title is not None:
        figure.suptitle(textwrap.fill(title, int(10 * figure.get_figwidth())), fontsize=10)  # 10 letters an inch


def _overlay(images: np.ndarray, values: np.ndarray, scale: "Normalize", colors: "Colormap") -> np.ndarray:
    """Values (n, H', W') as colors over gray images (n, H, W, 3): floats (n, H, W, 3)."""
    height, width = images.shape[1:3]
    lines, columns = np.ogrid[:height, :width]
    values = values[:, lines * values.shape[1] // height, columns * values.shape[2] // width]
    return 0.25 * (images / 255).mean(axis=-1, keepdims=True) + 0.75 * colors(scale(values))[..., :3]


def _as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """float64 on the CPU, from any dtype and device (NumPy has no bfloat16)."""
    values = values.detach().double().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, np.float64)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the integers below `count`, evenly spaced: int64 (n,)."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def check_output(path: str | os.PathLike, fps: float = 6.0) -> None:
    """Refuses what `write_figure` could not write, before the work starts. Arguments as in `write_figure`."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f"The output is {os.fspath(path)!r}; expected a name that ends in .png, .gif or .mp4.")
    if not 0 < fps < math.inf:
        raise ValueError(f"The frame rate of the animation is {fps}; expected a number above 0.")
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(f"The output {os.fspath(path)!r} cannot be written: {folder} is not a writable folder.")


def write_figure(
    path: str | os.PathLike, plot: Callable[[Sequence[int] | None], "Figure"], count: int = 1, fps: float = 6.0
) -> None:
    """Writes a figure or an animation; the file appears complete or not at all.

    Args:
        path: .png: the figure `plot(None)`; .gif (Pillow) or .mp4 (h264): the figures `plot([0])` to
            `plot([count - 1])` as an animation. Missing folders are created.
        plot: a `plot_*` function with all arguments but `shown` filled in.
        count, fps: frames of the animation, and how many per second.
    """
    check_output(path, fps)
    path = Path(path)
    if count < 1:
        raise ValueError(f"count is {count}; expected at least one frame.")
    with write_aside(path, unique=True) as partial:
        if path.suffix.lower() == ".png":
            plot(None).savefig(partial, format="png")
            return
        frames = [render(plot([number])) for number in range(count)]
        if path.suffix.lower() == ".gif":
            import PIL.Image

            first, *rest = map(PIL.Image.fromarray, frames)
            first.save(partial, format="GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        else:
            from ..data.video_writing import encode_video  # PyAV only where a video is written

            partial.write_bytes(encode_video(frames, fps=fps, crf=16, pixel_format="yuv420p"))


def render(figure: "Figure") -> np.ndarray:
    """A figure's pixels, uint8 (H, W, 3); H and W are even, as video codecs require."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].copy()
