"""Mean intersection over union of label images, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/mean_iou")
    metric.compute(predictions=label_images, references=label_images, num_labels=3)     # {"mean_iou": 0.8, ...}

The names of arguments and results are those of the module `mean_iou` on the Hub, which cannot be loaded offline.
Shapes: B images, any further dimensions (time, height, width), C classes.
"""

from typing import Any

import datasets
import numpy as np
import torch

from vjepa2_hf import metrics
from vjepa2_hf.metrics.confusion_matrix.confusion_matrix import MAX_CLASSES
from vjepa2_hf.specs import check_count, is_integer, refuse


IGNORED = 255  # label of pixels that do not count


class LabelCounts:
    """Pixels by true and predicted class, over batches of any sizes.

    Args:
        num_labels: C.
        ignore_index: label of reference pixels that do not count.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = IGNORED):
        self.num_labels = check_count("num_labels", num_labels, highest=MAX_CLASSES)
        if ignore_index is not None and not is_integer(ignore_index):
            refuse("ignore_index", ignore_index, "a label, or None")
        self.ignore_index = ignore_index
        self.counts = np.zeros((self.num_labels, self.num_labels), np.int64)  # true class by predicted class

    def add(self, predictions: Any, references: Any) -> None:
        """Adds label images of one shape, integers."""
        predictions, references = _as_labels("predictions", predictions), _as_labels("references", references)
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape} and references {references.shape}; expected one shape."
            )
        kept = slice(None) if self.ignore_index is None else references != self.ignore_index
        found, true = predictions[kept].ravel(), references[kept].ravel()
        for name, values in {"predictions": found, "references": true}.items():
            if values.size and not 0 <= values.min() <= values.max() < self.num_labels:
                raise ValueError(
                    f"{name} hold labels from {values.min()} to {values.max()}; expected 0 to {self.num_labels - 1} "
                    f"where the reference is not ignore_index={self.ignore_index}."
                )
        size = self.num_labels
        self.counts += np.bincount(true * size + found, minlength=size * size).reshape(size, size)

    def scores(self) -> dict[str, Any]:
        """See `MeanIoU.compute`."""
        if not self.counts.any():
            raise ValueError("There is no pixel to score: add predictions and references first.")
        hits, true, found = np.diag(self.counts), self.counts.sum(axis=1), self.counts.sum(axis=0)
        union = true + found - hits
        iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
        accuracy = np.where(true > 0, hits / np.maximum(true, 1), np.nan)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "overall_accuracy": float(hits.sum() / self.counts.sum()),
            "per_category_iou": iou.tolist(),
            "per_category_accuracy": accuracy.tolist(),
        }


def mean_iou(predictions: Any, references: Any, num_labels: int, ignore_index: int | None = IGNORED) -> float:
    """Mean over classes of intersection over union, all pixels of label images (any one shape) counted together."""
    counts = LabelCounts(num_labels, ignore_index)
    counts.add(predictions, references)
    return counts.scores()["mean_iou"]


def _as_labels(name: str, value: Any) -> np.ndarray:
    """An int64 array; floats are refused, whatever their values."""
    value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    array = metrics.to_array(name, value, None)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        refuse(name, value, "label images: integers")
    return array.astype(np.int64)


class MeanIoU(metrics.OneProcessMetric):
    """Mean over classes of intersection over union. All pixels of all images count together, as is usual for semantic
    segmentation. It keeps counts instead of its inputs.

    `num_labels` and `ignore_index` are given to `compute`; where batches are added before, to `evaluate.load`.
    """

    _image = datasets.List(datasets.List(datasets.Value("int64")))
    columns = {"predictions": _image, "references": _image}

    def __init__(self, *args, num_labels: int | None = None, ignore_index: int | None = IGNORED, **kwargs):
        super().__init__(*args, **kwargs)
        self._counts = None if num_labels is None else LabelCounts(num_labels, ignore_index)

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Adds label images."""  # `evaluate` extends this docstring
        if self._counts is None:
            raise ValueError("num_labels is missing: give it to evaluate.load before adding batches.")
        self._counts.add(predictions, references)

    def add(self, *, prediction=None, reference=None) -> None:
        """Adds one label image."""
        self.add_batch(predictions=prediction, references=reference)

    def compute(
        self,
        *,
        predictions=None,
        references=None,
        num_labels: int | None = None,
        ignore_index: int | None = IGNORED,
    ) -> dict[str, Any]:
        """
        Args:
            predictions: label images (B, ...), integers.
            references: the true ones.
            num_labels: C; labels are 0 to C - 1.
            ignore_index: label of reference pixels that do not count; None: all count.

        Returns:
            `mean_iou` and `mean_accuracy` over the classes that occur, `overall_accuracy` of the pixels, and lists
            `per_category_iou` and `per_category_accuracy`, NaN for a class that occurs nowhere.
        """
        if num_labels is not None:
            self._counts = LabelCounts(num_labels, ignore_index)
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self._counts is None:
            raise ValueError("num_labels is missing: give the number of classes.")
        found, self._counts = self._counts, LabelCounts(self._counts.num_labels, self._counts.ignore_index)
        return found.scores()
