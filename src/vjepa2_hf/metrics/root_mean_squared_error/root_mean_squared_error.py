"""Root mean squared error of images of numbers, such as depths, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/root_mean_squared_error")
    metric.add_batch(predictions=depths, references=depths)
    metric.compute()     # {"rmse": 0.4, "rmse_of_the_mean": 1.1, "mean_absolute_error": 0.3}

Shapes: B images, any further dimensions (time, height, width).
"""

from typing import Any

import datasets
import numpy as np

from vjepa2_hf import metrics


class ErrorSums:
    """Sums over pixels of batches of any sizes. Pixels whose reference is NaN do not count."""

    def __init__(self):
        self._sums = np.zeros(5)  # pixels, squared and absolute errors, references, squared references

    def add(self, predictions: Any, references: Any) -> None:
        """Adds images of numbers of one shape."""
        predictions, references = (
            metrics.to_array(name, value) for name, value in (("predictions", predictions), ("references", references))
        )
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape} and references {references.shape}; expected one shape."
            )
        kept = ~np.isnan(references)
        found, true = predictions[kept], references[kept]
        if not (np.isfinite(found).all() and np.isfinite(true).all()):
            raise ValueError(
                "predictions or references hold infinite numbers or predictions NaN; expected finite ones."
            )
        errors = found - true
        values = (np.square(errors), np.abs(errors), true, np.square(true))
        self._sums += np.array([true.size, *(value.sum() for value in values)])

    def scores(self) -> dict[str, float]:
        """See `RootMeanSquaredError.compute`."""
        count = self._sums[0]
        if not count:
            raise ValueError("There is no pixel to score: add predictions and references that are not NaN first.")
        squares, absolute, mean, second = self._sums[1:] / count
        return {
            "rmse": float(np.sqrt(squares)),
            "rmse_of_the_mean": float(np.sqrt(max(second - mean**2, 0.0))),
            "mean_absolute_error": float(absolute),
        }


def root_mean_squared_error(predictions: Any, references: Any) -> float:
    """Over all numbers of one shape whose reference is not NaN."""
    sums = ErrorSums()
    sums.add(predictions, references)
    return sums.scores()["rmse"]


class RootMeanSquaredError(metrics.OneProcessMetric):
    """Root of the mean squared error over the pixels of all images whose reference is not NaN, in the unit of the
    references. It keeps sums instead of its inputs."""

    _image = datasets.List(datasets.List(datasets.Value("float32")))
    columns = {"predictions": _image, "references": _image}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._sums = ErrorSums()

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Adds images."""  # `evaluate` extends this docstring
        self._sums.add(predictions, references)

    def add(self, *, prediction=None, reference=None) -> None:
        """Adds one image."""
        self._sums.add(prediction, reference)

    def compute(self, *, predictions=None, references=None) -> dict[str, float]:
        """
        Args:
            predictions: images of numbers (B, ...).
            references: the true ones; NaN where there is none.

        Returns:
            `rmse` and `mean_absolute_error` of the predictions, and `rmse_of_the_mean`, that of predicting the mean
            of the references everywhere.
        """
        if predictions is not None or references is not None:
            self._sums.add(predictions, references)
        sums, self._sums = self._sums, ErrorSums()
        return sums.scores()
