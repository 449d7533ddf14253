"""Class-mean recall at k, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/class_mean_recall")
    metric.compute(predictions=scores, references=labels, k=5)   # {"class_mean_recall_at_5": 0.41}

Shapes: B clips, C classes.
"""

from typing import Any

import numpy as np
from sklearn.metrics import recall_score

from vjepa2_hf import metrics
from vjepa2_hf.metrics.top_k_accuracy.top_k_accuracy import is_in_top_k


def class_mean_recall(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Mean recall at k over the classes in `labels` (B,), from scores (B, C); ties count as wrong."""
    labels = metrics.to_array("labels", labels)
    is_in_top_k(scores, labels, k)  # refuses wrong labels before they become integers
    labels = labels.astype(np.int64)
    guesses = np.where(is_in_top_k(scores, labels, k), labels, -1)
    return float(recall_score(labels, guesses, labels=np.unique(labels), average="macro"))


class ClassMeanRecall(metrics.Metric):
    """Recall at k, averaged over the classes that occur, so that rare classes count as much as frequent ones."""

    columns = {"predictions": metrics.NUMBERS, "references": metrics.INTEGER}

    def _compute(self, predictions: Any, references: Any, k: int = 5) -> dict[str, float]:
        """
        Args:
            predictions: (B, C), a score for each class; only their order matters.
            references: (B,), the true class of each clip, 0 to C-1.
            k: 5 as reported for EPIC-KITCHENS.

        Returns:
            `class_mean_recall_at_<k>`.
        """
        return {f"class_mean_recall_at_{k}": class_mean_recall(predictions, references, k)}
