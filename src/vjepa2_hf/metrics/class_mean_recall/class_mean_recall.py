"""Recall at k, the mean over classes: an `evaluate` module that needs nothing from the Hub.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/class_mean_recall")
    metric.compute(predictions=scores, references=labels, k=5)   # {"class_mean_recall_at_5": 0.41}

Shapes: B clips, C classes.
"""

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
For each class that occurs, the share of its clips for which it is among the k highest scores; then the mean over these
classes, so that rare ones count as much as frequent ones (action anticipation on EPIC-KITCHENS reports k = 5).
"""

_INPUTS = """
Args:
    predictions: (B, C), a score for each class; only their order counts.
    references: (B,), the true class of each clip, 0 to C-1.
    k: of `compute`, 5 by default.

Returns:
    `class_mean_recall_at_<k>`.
"""


def class_mean_recall(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Mean over the classes that occur in `labels` (B,) of their recall among the k highest scores (B, C).

    Of equal scores those of the other classes count as higher.

    Raises:
        ValueError: shapes that do not fit, a class out of range, or scores that are NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, np.int64)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; expected (B, C) and (B,), B above 0.")
    if labels.min() < 0 or labels.max() >= scores.shape[1] or np.isnan(scores).any():
        raise ValueError(f"labels must lie in 0 to {scores.shape[1] - 1} and scores be numbers; got {labels.max()}.")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    found = (scores >= own).sum(axis=1) <= min(k, scores.shape[1])
    clips = np.bincount(labels)
    return float((np.bincount(labels, weights=found)[clips > 0] / clips[clips > 0]).mean())


class ClassMeanRecall(evaluate.Metric):
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

    def _compute(self, predictions: Any, references: Any, k: int = 5) -> dict[str, float]:
        return {f"class_mean_recall_at_{k}": class_mean_recall(predictions, references, k)}
