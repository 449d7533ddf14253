"""How good a probe is: the metrics of each kind of label, beside an answer that needs no look, and a picture.

Shapes: E clips, C labels.
"""

import logging
from pathlib import Path

import numpy as np

from ..data.files import write_aside
from ..metrics.class_mean_recall.class_mean_recall import ClassMeanRecall
from ..metrics.confusion_matrix.confusion_matrix import ConfusionMatrix, draw_confusion
from ..metrics.mean_average_precision.mean_average_precision import MeanAveragePrecision
from ..metrics.r_squared.r_squared import RSquared
from ..metrics.top_k_accuracy.top_k_accuracy import TopKAccuracy
from .labeled_clips import Labels


logger = logging.getLogger(__name__)

# What heads are chosen by, of each problem: the first number of its metrics
SCORES = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "mean_average_precision",
    "regression": "r_squared",
}


def measure(labels: Labels, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metrics of one head's scores (E, C), by `evaluate` modules."""
    if labels.problem_type == "regression":
        return RSquared().compute(predictions=scores, references=targets)
    if labels.problem_type == "multi_label_classification":
        return MeanAveragePrecision().compute(predictions=scores, references=targets.astype(np.int64))
    found = {}
    for k in (1, 5) if len(labels.names) > 5 else (1,):
        found |= TopKAccuracy().compute(predictions=scores, references=targets, k=k)
        found |= ClassMeanRecall().compute(predictions=scores, references=targets, k=k)
    return found


def guess_without_looking(labels: Labels, training: np.ndarray, targets: np.ndarray) -> float:
    """The score of the answer that is best on the training clips for all of them: their commonest class, how often
    each label occurs, the mean."""
    classes = len(labels.names)
    single = labels.problem_type == "single_label_classification"
    answer = np.bincount(training, minlength=classes) if single else training.mean(axis=0)
    scores = np.repeat(answer[None].astype(np.float64), len(targets), axis=0)
    if single:  # of equally common classes the first
        scores = np.eye(classes)[scores.argmax(axis=1)]
    return measure(labels, scores, targets)[SCORES[labels.problem_type]]


def draw_confusion_picture(path: Path, labels: Labels, scores: np.ndarray, targets: np.ndarray) -> None:
    """The confusion matrix of single labels."""
    arguments = {"predictions": scores.argmax(axis=1), "references": targets, "classes": len(labels.names)}
    counts = ConfusionMatrix().compute(**arguments)["confusion_matrix"]
    try:
        figure = draw_confusion(counts, labels.names)
    except ImportError:
        logger.warning("matplotlib is not installed, so there is no %s; `pip install matplotlib`", path.name)
        return
    with write_aside(path) as partial:
        figure.savefig(partial, format="png")


__all__ = ["SCORES", "draw_confusion_picture", "guess_without_looking", "measure"]
