"""How much of the labels' variance predictions explain: an `evaluate` module that needs nothing from the Hub.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/r_squared")
    metric.compute(predictions=values, references=labels)   # {"r_squared": 0.8, "mean_squared_error": 0.02}

Shapes: B clips, C numbers a clip.
"""

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
One minus the squared error over that of the labels' own mean, the mean over the numbers of a clip that vary: 1 is
perfect, 0 a constant, below 0 worse than one.
"""

_INPUTS = """
Args:
    predictions: (B, C).
    references: (B, C).

Returns:
    `r_squared`, and `mean_squared_error` over all numbers.
"""


def r_squared(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean over columns of 1 - error / variance; predictions and labels (B, C).

    Raises:
        ValueError: shapes that do not fit, or labels that do not vary.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if labels.ndim != 2 or predictions.shape != labels.shape:
        raise ValueError(f"predictions are {predictions.shape} and labels {labels.shape}; expected (B, C) both.")
    variance = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    if not (variance > 0).any():
        raise ValueError("No label varies between clips: there is no variance to explain.")
    error = ((predictions - labels) ** 2).sum(axis=0)
    return float((1 - error[variance > 0] / variance[variance > 0]).mean())


class RSquared(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        error = float(np.mean((np.asarray(predictions) - np.asarray(references)) ** 2))
        return {"r_squared": r_squared(predictions, references), "mean_squared_error": error}
