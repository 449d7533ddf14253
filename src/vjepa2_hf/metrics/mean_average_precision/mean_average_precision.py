"""Mean average precision of several labels a clip: an `evaluate` module that needs nothing from the Hub.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/mean_average_precision")
    metric.compute(predictions=scores, references=labels)   # {"mean_average_precision": 0.37, "labels": 157}

Shapes: B clips, C labels.
"""

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
For each label, clips are ranked by their score, and precision is averaged over the ranks of the clips that have it;
then the mean over the labels that some clip has. Clips of equal score share one rank.
"""

_INPUTS = """
Args:
    predictions: (B, C), a score for each label.
    references: (B, C), 1 where the clip has the label, else 0.

Returns:
    `mean_average_precision`, and `labels`, the number of labels it is the mean of.
"""


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """The sum over thresholds of (growth of recall) x precision: scores (B,), present (B,) of 0 and 1, some 1."""
    order = np.argsort(-scores, kind="stable")
    scores, present = scores[order], present[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of the clips that share a score
    found = np.cumsum(present)[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / found[-1])


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """Average precision of each label that some clip has; scores and labels (B, C).

    Raises:
        ValueError: shapes that do not fit, labels other than 0 and 1 or all 0, or scores that are NaN.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; expected (B, C) both.")
    if not np.isin(labels, (0, 1)).all() or not labels.any() or np.isnan(scores).any():
        raise ValueError("labels must be 0 or 1, some of them 1, and scores numbers.")
    return [average_precision(scores[:, i], labels[:, i]) for i in range(labels.shape[1]) if labels[:, i].any()]


class MeanAveragePrecision(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        precisions = average_precisions(predictions, references)
        return {"mean_average_precision": float(np.mean(precisions)), "labels": len(precisions)}
