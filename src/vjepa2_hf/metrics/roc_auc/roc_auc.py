"""Area under the ROC curve of scores: an `evaluate` module that needs nothing from the Hub.

metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/roc_auc")
metric.add_batch(predictions=scores, references=labels)
metric.compute()
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
How often a positive has a higher score than a negative, ties counted half: 1 is perfect, 0.5 is chance, and below it
the scores are the wrong way round. scikit-learn's `roc_auc_score`.
"""

_INPUTS = """
Args:
    predictions: scores, higher for what is more likely positive.
    references: 1 for positive, 0 for negative.

Returns:
    `roc_auc`.
"""


class RocAuc(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        if set(references.tolist()) != {0, 1}:
            raise ValueError(
                f"references hold {sorted(set(references.tolist()))}; expected both 0 and 1, or there is no curve."
            )
        if not np.isfinite(predictions).all():
            count = int((~np.isfinite(predictions)).sum())
            raise ValueError(f"{count} predictions are not finite; leave out what was not scored, with its reference.")
        return {"roc_auc": float(roc_auc_score(references, predictions))}
