"""Mean average precision of multi-label predictions, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/mean_average_precision")
    metric.compute(predictions=scores, references=labels)   # {"mean_average_precision": 0.37, "labels": 157}

Shapes: B clips, C labels.
"""

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from vjepa2_hf import metrics


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """Average precision of each label that occurs; scores and labels (B, C)."""
    scores, labels = metrics.to_array("scores", scores), metrics.to_array("labels", labels)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; expected (B, C) both.")
    if not np.isin(labels, (0, 1)).all() or not labels.any() or np.isnan(scores).any():
        raise ValueError("labels must be 0 or 1, some of them 1, and scores must be numbers.")
    ranks = [np.unique(column, return_inverse=True)[1] for column in scores.T]  # scikit-learn refuses infinite scores
    return [float(average_precision_score(labels[:, i], ranks[i])) for i in np.flatnonzero(labels.any(axis=0))]


class MeanAveragePrecision(metrics.Metric):
    """scikit-learn's `average_precision_score`, averaged over the labels that occur."""

    columns = {"predictions": metrics.NUMBERS, "references": metrics.INTEGERS}

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """
        Args:
            predictions: (B, C), a score for each label.
            references: (B, C), 1 where the clip has the label, else 0.

        Returns:
            `mean_average_precision`, and `labels`, the number of labels that it averages.
        """
        precisions = average_precisions(predictions, references)
        return {"mean_average_precision": float(np.mean(precisions)), "labels": len(precisions)}
