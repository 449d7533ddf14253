"""Area under the ROC curve, as an `evaluate` module.

metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/roc_auc")
metric.add_batch(predictions=scores, references=labels)
metric.compute()   # {"roc_auc": 0.93}
"""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from vjepa2_hf import metrics


class RocAuc(metrics.Metric):
    """scikit-learn's `roc_auc_score`: the probability that a positive scores higher than a negative."""

    columns = {"predictions": metrics.NUMBER, "references": metrics.INTEGER}

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """
        Args:
            predictions: scores, higher for positives.
            references: 1 for positive, 0 for negative.

        Returns:
            `roc_auc`.
        """
        predictions, references = np.asarray(predictions), np.asarray(references)
        found = set(references.tolist())
        if found != {0, 1}:
            raise ValueError(f"references hold {sorted(found)}; expected both 0 and 1.")
        if not np.isfinite(predictions).all():
            count = int((~np.isfinite(predictions)).sum())
            raise ValueError(f"{count} predictions are not finite; leave them out, with their references.")
        return {"roc_auc": float(roc_auc_score(references, predictions))}
