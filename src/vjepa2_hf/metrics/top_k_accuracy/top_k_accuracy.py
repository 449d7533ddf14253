"""Top-k accuracy, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/top_k_accuracy")
    metric.compute(predictions=scores, references=labels, k=5)   # {"top_5_accuracy": 0.93}

Shapes: B clips, C classes.
"""

from typing import Any

import numpy as np

from vjepa2_hf import metrics
from vjepa2_hf.specs import is_integer, refuse


def is_in_top_k(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the class of each clip (B,) is among the k highest scores (B, C), bool (B,).

    Ties count as wrong, so that a model with equal scores is never correct. (scikit-learn's `top_k_accuracy_score`
    prefers the last of the tied classes instead.)
    """
    scores, labels = metrics.to_array("scores", scores), metrics.to_array("labels", labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; expected (B, C) and (B,), B above 0.")
    if not (labels.min() >= 0 and labels.max() < scores.shape[1]) or (labels != np.floor(labels)).any():
        found = f"labels lie in {labels.min():g} to {labels.max():g}"
        raise ValueError(
            f"{found}; expected 0 to {scores.shape[1] - 1}, the classes of scores of shape {scores.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; expected a number for every class.")
    if not is_integer(k) or k < 1:
        refuse("k", k, "an integer of at least 1")
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    return (scores >= own).sum(axis=1) <= min(k, scores.shape[1])


class TopKAccuracy(metrics.Metric):
    """Fraction of clips whose true class is among the k highest scores; k = 1 is the accuracy."""

    columns = {"predictions": metrics.NUMBERS, "references": metrics.INTEGER}

    def _compute(self, predictions: Any, references: Any, k: int = 1) -> dict[str, float]:
        """
        Args:
            predictions: (B, C), a score for each class; only their order matters.
            references: (B,), the true class of each clip, 0 to C-1.
            k: with k >= C every clip is correct.

        Returns:
            `accuracy` for k = 1, else `top_<k>_accuracy`.
        """
        correct = is_in_top_k(predictions, references, k)
        return {"accuracy" if k == 1 else f"top_{k}_accuracy": float(correct.mean())}
