"""Pictures of what encoders, probes and predictors see: matplotlib figures, and their frames as PNG, GIF or mp4.

The numbers come from `vjepa2_hf.visualization.measures` and `VJepa2ForVideoClassification.pooler_attention`.
matplotlib (extra `demo`) is imported where a figure is drawn. Every `plot_*` draws what `shown` says; an animation is
the same figure for one frame after the other, see `write_picture`.

Shapes: T frames, H W pixels, (T', H', W') grid of tokens, h heads, Q queries, k neighbours.
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

MAX_COLUMNS = 8  # pictures of a row, where nobody says which
MAX_QUERIES = 6  # rows of nearest frames
CELL = 1.25  # inches of a picture's side
DPI = 120
Rows = Sequence[tuple[str, np.ndarray]]  # a title and pictures (n, H, W, 3), uint8 or floats in 0..1
ENDINGS = (".png", ".gif", ".mp4")


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------
def plot_feature_pca(
    pictures: Sequence[np.ndarray],
    colours: Sequence[np.ndarray],
    shown: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Frames of clips, and their features as colours.

    Args:
        pictures: uint8 (T, H, W, 3) a clip, all of one shape.
        colours: floats (T', H', W', 3) a clip, as of [`~vjepa2_hf.visualization.measures.feature_colours`].
        shown: numbers of frames; default eight, evenly spaced. Of several frames each clip has two rows; of one, each
            clip has a column.
        names: of the clips.
    """
    steps, count = len(colours[0]), len(pictures[0])
    shown = evenly_spaced(steps, MAX_COLUMNS) * count // steps if shown is None else np.asarray(shown)
    names = [f"clip {number}" for number in range(1, len(pictures) + 1)] if names is None else names
    parts = [(clip[shown], features[shown * steps // count]) for clip, features in zip(pictures, colours, strict=True)]
    if len(shown) == 1:
        frames, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return draw_rows([(f"frame {shown[0]}", frames), ("features", features)], names)
    rows = []
    for name, (frames, features) in zip(names, parts, strict=True):
        rows += [(name, frames), (f"{name}:\nfeatures", features)]
    return draw_rows(rows, [f"frame {number}" for number in shown])


def plot_probe_attention(
    pictures: np.ndarray,
    attention: torch.Tensor | np.ndarray,
    frames_per_step: int,
    shown: Sequence[int] | None = None,
    by_head: bool = False,
    title: str | None = None,
) -> "Figure":
    """Where and when a probe's query looks: frames, its weights over them, and their sum at each time.

    Args:
        pictures: uint8 (T, H, W, 3).
        attention: (h, T', H', W') of one clip, as of `VJepa2ForVideoClassification.pooler_attention`. Drawn as
            multiples of what every token would have if all had the same. (With `labels_per_frame` each time
            step has a query of its own, and all the same sum.) Of time steps that are seen alone: a probe with
            `predicted_frames` has more.
        frames_per_step: frames of a tubelet.
        shown: numbers of frames; default eight, evenly spaced.
        by_head: also each head by itself; else their mean alone.
        title: over the figure, for example what the probe answers.

    Raises:
        ValueError: T' that is not that of the pictures.
    """
    matplotlib = _matplotlib()
    weights = _as_array(attention)
    steps, count = weights.shape[1], len(pictures)
    if steps != max(1, count // frames_per_step):
        raise ValueError(
            f"attention has {steps} time steps, but {count} pictures in tubelets of {frames_per_step} have "
            f"{max(1, count // frames_per_step)}: leave out the steps that were predicted, not seen."
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
    rows = [("", pictures[shown]), *((name, _overlay(pictures[shown], part[at], scale, heat)) for name, part in maps)]
    labels = [f"frame {number}" for number in shown]
    if len(shown) == 1:  # side by side
        labels = [name for name, _ in rows]
        rows = [(f"frame {shown[0]}", np.concatenate([_as_float(part) for _, part in rows]))]
    figure, (above, below) = _stacked(rows, len(labels), under=1.3)
    axes = _fill(above, rows, labels)
    _colour_bar(above, axes, scale, "inferno", "times the\nuniform weight")
    _draw_times(below, by_time / total, count, shown, 1, "share of the\nattention", reference=1 / steps)
    _entitle(figure, title)
    return figure


def plot_nearest_frames(
    queries: np.ndarray,
    neighbours: np.ndarray,
    distances: torch.Tensor | np.ndarray,
    names: Sequence[str],
    neighbour_names: Sequence[Sequence[str]],
    shown: Sequence[int] | None = None,
    title: str | None = None,
) -> "Figure":
    """Rows of a frame and the k that are nearest to it, nearest first.

    Args:
        queries: uint8 (Q, H, W, 3).
        neighbours: uint8 (Q, k, H, W, 3).
        distances: (Q, k), as of [`~vjepa2_hf.visualization.measures.nearest_frames`].
        names: of the queries.
        neighbour_names: of their neighbours, k a query.
        shown: numbers of queries; default six, evenly spaced.
        title: over the figure.
    """
    shown = evenly_spaced(len(queries), MAX_QUERIES) if shown is None else np.asarray(shown)
    rows = [(names[q], np.concatenate([queries[q, None], neighbours[q]])) for q in shown]
    ranks = ["frame", "nearest", *(f"{number}." for number in range(2, neighbours.shape[1] + 1))]
    figure, (above, _) = _stacked(rows, len(ranks), captions=True)
    axes = _fill(above, rows, ranks)
    for line, q in zip(axes, shown, strict=True):
        line[0].spines[:].set(visible=True, linewidth=2.5)  # sets what is asked for apart from what was found
        for axis, name, distance in zip(line[1:], neighbour_names[q], _as_array(distances)[q], strict=True):
            axis.set_xlabel(f"{name}\n{distance:.3f}", fontsize=7, labelpad=2)
    _entitle(figure, title)
    return figure


def plot_loss_by_position(
    losses: torch.Tensor | np.ndarray,
    frames_per_step: int,
    shown: Sequence[int] | None = None,
    title: str | None = None,
) -> "Figure":
    """The prediction loss of each place of the grid: a map a time step, their mean, and the mean over places by time.

    Args:
        losses: (T', H', W'), as `mean` of [`loss_by_position`]; NaN, never hidden, is grey.
        frames_per_step: frames of a tubelet.
        shown: numbers of time steps; default eight, evenly spaced.
        title: over the figure.
    """
    matplotlib = _matplotlib()
    losses = np.ma.masked_invalid(_as_array(losses))
    shown = evenly_spaced(len(losses), MAX_COLUMNS) if shown is None else np.asarray(shown)
    scale = matplotlib.colors.Normalize(*np.percentile(losses.compressed(), [0.5, 99.5]))
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="lightgrey")
    maps = np.ma.concatenate([losses[shown], losses.mean(axis=0)[None]])
    rows = [("loss", colours(scale(maps))[..., :3])]
    labels = [*(_frames_of(step, frames_per_step) for step in shown), "mean over time"]
    figure, (above, below) = _stacked(rows, len(labels), under=1.5)
    axes = _fill(above, rows, labels)
    _colour_bar(above, axes, scale, "viridis", "")
    by_time = losses.mean(axis=(1, 2)).filled(np.nan)
    times = (len(losses) * frames_per_step, shown * frames_per_step, frames_per_step)
    _draw_times(below, by_time, *times, "mean over\nplaces")
    _entitle(figure, title)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Their parts
# ---------------------------------------------------------------------------------------------------------------------
def draw_rows(rows: Rows, labels: Sequence[str]) -> "Figure":
    """A figure of pictures: a row a title, (n, H, W, 3) each, with `labels` over its n columns."""
    figure, (above, _) = _stacked(rows, len(labels))
    _fill(above, rows, labels)
    return figure


def _stacked(
    rows: Rows, columns: int, under: float = 0, captions: bool = False
) -> "tuple[Figure, tuple[SubFigure, SubFigure | None]]":
    """An empty figure with room for the rows, and `under` inches below them."""
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
        raise ImportError(
            "pictures are drawn with matplotlib, which is not installed: pip install 'vjepa2-hf[demo]'."
        ) from error
    return matplotlib


def _fill(parent: "SubFigure", rows: Rows, labels: Sequence[str]) -> np.ndarray:
    """Axes (rows, n) with the pictures in them."""
    height, width = rows[0][1].shape[1:3]
    axes = parent.subplots(len(rows), len(labels), squeeze=False)
    for line, (title, pictures) in zip(axes, rows, strict=True):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
        for axis, picture in zip(line, pictures, strict=True):
            # all rows cover the same field, whatever their number of pixels
            axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label, fontsize=9)
    return axes


def _colour_bar(parent: "SubFigure", axes: np.ndarray, scale: "Normalize", colours: str, label: str) -> None:
    bar = parent.colorbar(
        _matplotlib().cm.ScalarMappable(scale, colours), ax=axes, shrink=0.9, aspect=12 * len(axes), pad=0.01
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_times(
    parent: "SubFigure",
    values: np.ndarray,
    frames: int,
    shown: np.ndarray,
    length: int,
    label: str,
    reference: float | None = None,
) -> None:
    """Values (T',) as steps over the frames, from 0; where one picture is shown, its first frame `shown` and its
    `length` in frames are marked, and what is uniform is a line."""
    axis = parent.subplots()
    edges = np.arange(len(values) + 1) * frames / len(values)
    axis.stairs(values, edges, baseline=None, color="black", linewidth=1.5)
    if reference is not None:
        axis.axhline(reference, color="grey", linestyle="--", linewidth=1, label="uniform")
        axis.legend(fontsize=8, frameon=False)
    if len(shown) == 1:
        axis.axvspan(shown[0], shown[0] + length, color="tab:blue", alpha=0.3, linewidth=0)
    axis.set_xlim(0, frames)
    axis.set_ylim(0, max(np.nanmax(values), reference or 0) * 1.15)
    axis.set_xlabel("frame", fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _entitle(figure: "Figure", title: str | None) -> None:
    if title is not None:
        letters = int(10 * figure.get_figwidth())  # DejaVu Sans at 10 points, wide letters
        figure.suptitle(textwrap.fill(title, letters), fontsize=10)


def _overlay(pictures: np.ndarray, values: np.ndarray, scale: "Normalize", colours: "Colormap") -> np.ndarray:
    """Values (n, H', W') in colours over grey pictures (n, H, W, 3): floats (n, H, W, 3)."""
    height, width = pictures.shape[1:3]
    lines = np.arange(height) * values.shape[1] // height
    columns = np.arange(width) * values.shape[2] // width
    grey = _as_float(pictures).mean(axis=-1, keepdims=True)
    return 0.25 * grey + 0.75 * colours(scale(values[:, lines][:, :, columns]))[..., :3]


def _as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """float64 on the CPU, of any dtype and device (NumPy knows no bfloat16)."""
    values = values.detach().double().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, np.float64)


def _as_float(pictures: np.ndarray) -> np.ndarray:
    return pictures / 255 if pictures.dtype == np.uint8 else pictures


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _frames_of(step: int, size: int) -> str:
    return f"frame {step}" if size == 1 else f"frames {step * size}–{(step + 1) * size - 1}"


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------
def check_output(path: str | os.PathLike, fps: float = 6.0) -> None:
    """Refuses what `write_picture` could not write, before there is anything to write; arguments as of it.

    Raises:
        ValueError: a name that does not end in .png, .gif or .mp4, a frame rate that is not positive, or a folder that
            cannot be made or written to.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f"The picture's name is {os.fspath(path)!r}; expected one that ends in .png, .gif or .mp4.")
    if not 0 < fps < math.inf:
        raise ValueError(f"The picture is to play at {fps} pictures a second; expected a number above 0.")
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(
            f"The picture {os.fspath(path)!r} cannot be written: {folder} is no folder that this user may write to; "
            "give another name."
        )


def write_picture(
    path: str | os.PathLike,
    draw: Callable[[Sequence[int] | None], "Figure"],
    count: int,
    fps: float = 6.0,
) -> None:
    """Writes what `draw` draws as the file's ending says, aside and then renamed.

    Args:
        path: .png, the figure of `draw(None)`; .gif (Pillow) or .mp4 (h264), the figures of `draw([0])` to
            `draw([count - 1])` one after the other. Folders are made.
        draw: a `plot_*` function that wants nothing but `shown`.
        count: pictures of the animation.
        fps: pictures a second of the animation.

    Raises:
        ValueError: what `check_output` refuses, or no picture.
    """
    check_output(path, fps)
    path = Path(path)
    if count < 1:
        raise ValueError(f"{count} pictures were asked for; expected at least one.")
    with write_aside(path, unique=True) as partial:
        if path.suffix.lower() == ".png":
            draw(None).savefig(partial, format="png")
        else:
            frames = [render(draw([number])) for number in range(count)]
            _write_gif(partial, frames, fps) if path.suffix.lower() == ".gif" else _write_mp4(partial, frames, fps)


def render(figure: "Figure") -> np.ndarray:
    """A figure's pixels, uint8 (H, W, 3); H and W are even, which video asks for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].copy()


def _write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    import PIL.Image

    first, *rest = (PIL.Image.fromarray(frame) for frame in frames)
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0)


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    from ..data.video_writing import encode_video  # PyAV only where a video is written

    path.write_bytes(encode_video(frames, fps=fps, crf=16, pixel_format="yuv420p"))


__all__ = [
    "check_output",
    "draw_rows",
    "evenly_spaced",
    "plot_feature_pca",
    "plot_loss_by_position",
    "plot_nearest_frames",
    "plot_probe_attention",
    "render",
    "write_picture",
]
