"""Area under the ROC curve, as an `evaluate` module.

metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/roc_auc")
metric.add_batch(predictions=scores, references=labels)
metric.compute()   # {"roc_auc": 0.93}
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
The probability that a positive scores higher than a negative, with ties counted half: 1 is perfect, 0.5 is random.
scikit-learn's `roc_auc_score`.
"""

_INPUTS = """
Args:
    predictions: scores, higher for positives.
    references: 1 for positive, 0 for negative.

Returns:
    `roc_auc`.
"""


class RocAuc(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        found = set(references.tolist())
        if found != {0, 1}:
            raise ValueError(f"references hold {sorted(found)}; expected both 0 and 1.")
        if not np.isfinite(predictions).all():
            count = int((~np.isfinite(predictions)).sum())
            raise ValueError(f"{count} predictions are not finite; leave them out, with their references.")
        return {"roc_auc": float(roc_auc_score(references, predictions))}
