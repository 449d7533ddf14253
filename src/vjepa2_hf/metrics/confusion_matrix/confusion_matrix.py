"""Confusion matrix of predicted classes, as an `evaluate` module and as a figure.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/confusion_matrix")
    counts = metric.compute(predictions=guesses, references=labels, classes=10)["confusion_matrix"]
    plot_confusion_matrix(counts, names).savefig("confusion.png")

Shapes: B clips, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from vjepa2_hf import metrics
from vjepa2_hf.specs import check_count, refuse


MAX_CLASSES = 10_000
NAMED_CLASSES = 30  # names of more classes would overlap


def confusion_matrix(guesses: np.ndarray, labels: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Counts int64 (C, C), true class by predicted class; guesses and labels (B,)."""
    guesses, labels = metrics.to_array("guesses", guesses), metrics.to_array("labels", labels)
    for name, values in {"guesses": guesses, "labels": labels}.items():
        if not np.isfinite(values).all() or (values != np.floor(values)).any():
            refuse(name, values, "class numbers, which are whole")
    if guesses.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"guesses are {guesses.shape} and labels {labels.shape}; expected (B,) both, B above 0.")
    classes = int(max(guesses.max(), labels.max())) + 1 if classes is None else classes
    classes = check_count("classes", classes, highest=MAX_CLASSES)
    if min(guesses.min(), labels.min()) < 0 or max(guesses.max(), labels.max()) >= classes:
        raise ValueError(f"Some classes of guesses or labels lie outside 0 to {classes - 1}.")
    guesses, labels = guesses.astype(np.int64), labels.astype(np.int64)
    return sklearn.metrics.confusion_matrix(labels, guesses, labels=range(classes))


def plot_confusion_matrix(counts: np.ndarray | Sequence, names: Sequence[str] | None = None) -> Any:
    """A matplotlib figure of counts (C, C), each row as fractions of its class; with the names of the classes if there
    are at most NAMED_CLASSES."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    counts = np.asarray(counts, np.float64)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.35 * len(counts))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted class", ylabel="true class")
    if names is not None and len(counts) <= NAMED_CLASSES:
        axes.set_xticks(range(len(counts)), names, rotation=90)
        axes.set_yticks(range(len(counts)), names)
    figure.colorbar(image, label="fraction of the class")
    return figure


class ConfusionMatrix(metrics.Metric):
    """Number of clips of each true class (rows) and predicted class (columns)."""

    columns = {"predictions": metrics.INTEGER, "references": metrics.INTEGER}

    def _compute(self, predictions: Any, references: Any, classes: int | None = None) -> dict[str, list]:
        """
        Args:
            predictions: (B,), predicted classes.
            references: (B,), true classes.
            classes: their number; by default the largest class plus one.

        Returns:
            `confusion_matrix`: (C, C) counts as lists.
        """
        return {"confusion_matrix": confusion_matrix(predictions, references, classes).tolist()}
