"""Figures of dense features: those of several encoders beside each other, and label images over frames.

Shapes: T frames, H W pixels, (T', H', W') grid of tokens, n images.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import MAX_COLUMNS, evenly_spaced, plot_rows


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of labels, the background first; they repeat after the last
COLORS = np.array(
    [[0, 0, 0], [255, 215, 0], [0, 200, 120], [230, 70, 220], [0, 200, 240], [255, 130, 40], [150, 110, 255]],
    np.float64,
)


def plot_feature_comparison(
    frames: np.ndarray, colors: Mapping[str, np.ndarray], shown: Sequence[int] | None = None
) -> "Figure":
    """Frames of one clip or image, and the features of several encoders as colors, a row each.

    Args:
        frames: uint8 (T, H, W, 3).
        colors: floats (T', H', W', 3) by name, from [`~vjepa2_hf.visualization.measures.feature_colors`]; grids may
            differ. Every encoder has a basis of its own, so colors compare positions, not encoders.
        shown: frame numbers; default eight, evenly spaced over the time steps. One frame is a row of images.
    """
    count, steps = len(frames), len(next(iter(colors.values())))
    shown = evenly_spaced(steps, MAX_COLUMNS) * count // steps if shown is None else np.asarray(shown)
    parts = {name: values[shown * len(values) // count] for name, values in colors.items()}
    if len(shown) == 1:
        height, width = (max(values.shape[axis] for values in (frames, *parts.values())) for axis in (1, 2))
        images = [_scaled(part[0], height, width) for part in (frames[shown] / 255, *parts.values())]
        return plot_rows([("", np.stack(images))], [f"frame {shown[0]}", *parts])
    rows = [("frames", frames[shown]), *parts.items()]
    return plot_rows(rows, [f"frame {number}" for number in shown])


def overlay_labels(frames: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Label images (n, H, W) as colors over frames uint8 (n, H, W, 3): uint8 (n, H, W, 3). Label 0 is transparent."""
    colors = COLORS[np.where(labels == 0, 0, 1 + (labels - 1) % (len(COLORS) - 1))]
    weight = np.where(labels == 0, 0.0, opacity)[..., None]
    return ((1 - weight) * frames + weight * colors + 0.5).astype(np.uint8)


def plot_propagation(
    frames: np.ndarray,
    labels: np.ndarray,
    references: Mapping[int, np.ndarray] | None = None,
    shown: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Propagated labels over the frames of a video, and the true ones where they are known.

    Args:
        frames: uint8 (T, H, W, 3).
        labels: (T, H, W) integers, 0 the background.
        references: true label images (H, W) by frame number.
        shown: frame numbers; default: those with a reference, else eight, evenly spaced.
        names: of the two rows.
    """
    if shown is None:
        known = sorted(references or ())
        picked = evenly_spaced(len(known) or len(frames), MAX_COLUMNS)
        shown = np.array(known)[picked] if known else picked
    shown = np.asarray(shown)
    first, second = names or ("propagated", "true")
    rows = [(first, overlay_labels(frames[shown], labels[shown]))]
    if references and all(number in references for number in shown.tolist()):
        true = np.stack([references[number] for number in shown.tolist()])
        rows.append((second, overlay_labels(frames[shown], true)))
    return plot_rows(rows, [f"frame {number}" for number in shown])


def plot_dense_predictions(
    frames: np.ndarray, labels: np.ndarray, predictions: np.ndarray, names: Sequence[str] | None = None
) -> "Figure":
    """Frames of a few clips, their labels and the predictions of a dense probe.

    Args:
        frames: uint8 (n, H, W, 3).
        labels, predictions: (n, H, W), integers as colors over the frames, or floats in gray, black is the smallest
            label and NaN is black too.
        names: of the n columns.
    """
    if np.issubdtype(labels.dtype, np.integer):
        known = np.where(labels == 255, 0, labels)
        rows = [overlay_labels(frames, known), overlay_labels(frames, predictions)]
    else:
        low, high = np.nanmin(labels), np.nanmax(labels)
        gray = [np.nan_to_num((part - low) / max(high - low, 1e-9)).clip(0, 1) for part in (labels, predictions)]
        rows = [np.repeat(part[..., None], 3, axis=-1) for part in gray]
    titles = [f"clip {number}" for number in range(1, len(frames) + 1)] if names is None else names
    return plot_rows([("frames", frames), ("labels", rows[0]), ("predictions", rows[1])], titles)


def _scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (h, w, 3) at another size, the nearest pixel."""
    rows = ((np.arange(height) + 0.5) * (image.shape[0] / height)).astype(int)
    columns = ((np.arange(width) + 0.5) * (image.shape[1] / width)).astype(int)
    return image[rows][:, columns]
