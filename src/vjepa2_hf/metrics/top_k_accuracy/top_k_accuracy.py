"""How often the true class is among the k best scored ones: an `evaluate` module that needs nothing from the Hub.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/top_k_accuracy")
    metric.compute(predictions=scores, references=labels, k=5)   # {"top_5_accuracy": 0.93}

Shapes: B clips, C classes.
"""

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "Share of the clips whose true class is among the k with the highest scores; k = 1 is the accuracy."

_INPUTS = """
Args:
    predictions: (B, C), a score for each class; only their order counts.
    references: (B,), the true class of each clip, 0 to C-1.
    k: of `compute`, 1 by default. With k >= C every clip counts as right.

Returns:
    `accuracy` for k = 1, else `top_<k>_accuracy`.
"""


def is_among_best(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether each clip's class (B,) is among the k with the highest scores (B, C), bool (B,).

    Of equal scores those of the other classes count as higher: a model that scores all alike is right about nothing.

    Raises:
        ValueError: shapes that do not fit, a class out of range, scores that are NaN, or k below 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; expected (B, C) and (B,), B above 0.")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"labels lie in {labels.min()} to {labels.max()}, but the {scores.shape[1]} scores are of classes 0 to "
            f"{scores.shape[1] - 1}."
        )
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; score every class by a number.")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1.")
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    return (scores >= own).sum(axis=1) <= k


class TopKAccuracy(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, k: int = 1) -> dict[str, float]:
        right = is_among_best(np.asarray(predictions), np.asarray(references), min(k, len(predictions[0])))
        return {"accuracy" if k == 1 else f"top_{k}_accuracy": float(right.mean())}
