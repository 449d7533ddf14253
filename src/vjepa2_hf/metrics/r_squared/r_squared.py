"""R² of predicted values, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/r_squared")
    metric.compute(predictions=values, references=labels)   # {"r_squared": 0.8, "mean_squared_error": 0.02}

Shapes: B clips, C values per clip.
"""

from typing import Any

import numpy as np
from sklearn.metrics import mean_squared_error, r2_score

from vjepa2_hf import metrics


def r_squared(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean R² over the columns of labels (B, C) that vary; predictions (B, C)."""
    predictions, labels = metrics.to_array("predictions", predictions), metrics.to_array("labels", labels)
    if labels.ndim != 2 or predictions.shape != labels.shape:
        raise ValueError(f"predictions are {predictions.shape} and labels {labels.shape}; expected (B, C) both.")
    for name, values in {"predictions": predictions, "labels": labels}.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold numbers that are not finite; leave these clips out.")
    varies = np.ptp(labels, axis=0) > 0
    if not varies.any():
        raise ValueError("No label varies between clips, so there is no variance to explain.")
    return float(r2_score(labels[:, varies], predictions[:, varies]))


class RSquared(metrics.Metric):
    """scikit-learn's `r2_score`, averaged over the values that vary between clips (1 is perfect, 0 the mean label)."""

    columns = {"predictions": metrics.NUMBERS, "references": metrics.NUMBERS}

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """
        Args:
            predictions, references: (B, C).

        Returns:
            `r_squared`, and `mean_squared_error` over all values.
        """
        explained = r_squared(predictions, references)
        return {"r_squared": explained, "mean_squared_error": float(mean_squared_error(references, predictions))}
