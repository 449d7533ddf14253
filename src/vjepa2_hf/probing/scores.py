"""Scores of probes: the metrics of each kind of label, the best constant answer, results.json, confusion matrix.

Shapes: H heads, E clips, V views of a clip, T' tubelets, C labels.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.files import write_aside, write_json
from ..metrics.class_mean_recall.class_mean_recall import ClassMeanRecall
from ..metrics.confusion_matrix.confusion_matrix import ConfusionMatrix, plot_confusion_matrix
from ..metrics.mean_average_precision.mean_average_precision import MeanAveragePrecision
from ..metrics.r_squared.r_squared import RSquared
from ..metrics.top_k_accuracy.top_k_accuracy import TopKAccuracy
from ..modeling_classification import VJepa2ForVideoClassification
from .labeled_clips import LabeledPart, Labels
from .sweep import ProbeSweep


logger = logging.getLogger(__name__)

# The metric that heads are chosen by, for each kind of label
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


def best_constant_score(labels: Labels, training: np.ndarray, targets: np.ndarray) -> float:
    """The score of the best constant answer on the training clips: the most common class (labels (n,)), the frequency
    of each label, or the mean (labels (n, C))."""
    classes = len(labels.names)
    single = labels.problem_type == "single_label_classification"
    answer = np.bincount(training, minlength=classes) if single else training.mean(axis=0)
    scores = np.repeat(answer[None].astype(np.float64), len(targets), axis=0)
    if single:  # the first of equally common classes
        scores = np.eye(classes)[scores.argmax(axis=1)]
    return measure(labels, scores, targets)[SCORES[labels.problem_type]]


@torch.no_grad()
def score_clips(
    sweep: ProbeSweep,
    model: VJepa2ForVideoClassification,
    part: LabeledPart,
    column: str,
    inputs_of: Callable[[torch.Tensor], torch.Tensor],
    num_tubelets: int,
    batch_size: int,
) -> torch.Tensor:
    """The scores of each head for a part's clips, float32 (H, E, C): probabilities, the mean over views, or numbers.
    With labels per frame, the tubelets of all views are concatenated: (H, E · V · T', C).

    `inputs_of` maps rows of the cache's `column` (B, ...) to the heads' inputs, `batch_size` views at once.
    """
    found = []
    for clips in part.clips.split(max(1, batch_size // int(part.cache.lengths[0]))):
        values = part.read(clips, column)
        logits = sweep.predictions(sweep.logits(inputs_of(values.flatten(0, 1)), num_tubelets)).float()
        if not part.labels.per_frame:
            by_view = logits.unflatten(1, values.shape[:2])
            logits = model.mean_over_views(by_view.flatten(0, 1)).unflatten(0, by_view.shape[:2])
        found.append(logits.flatten(1, -2).cpu())
    logits = torch.cat(found, dim=1)
    kind = model.config.problem_type
    if kind == "regression":
        return logits
    return logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(dim=-1)


@torch.no_grad()
def score_neighbors(
    model: VJepa2ForVideoClassification, part: LabeledPart, num_neighbors: Sequence[int]
) -> torch.Tensor:
    """The scores of each number of neighbors for a part's clips, (H, E, C): the mean over views."""
    features = part.read(part.clips, "features").float()
    scores = model.classifier.scores(features.flatten(0, 1).to(model.device), num_neighbors)
    return scores.unflatten(1, features.shape[:2]).mean(dim=2).cpu()


def compare_heads(
    parts: dict[str, LabeledPart],
    labels: Labels,
    scores: dict[str, torch.Tensor],
    settings: list[dict[str, Any]],
    choose_on: str,
    where: str,
) -> dict[str, Any]:
    """The chosen head on validation and the scores of all heads, as JSON holds them.

    Args:
        scores: (H, E, C) of every part but "training".
        choose_on: the part whose score decides; `where` describes it.
    """
    targets = {part: parts[part].flat_targets for part in parts}
    heads = [
        {**setting, **{part: measure(labels, values[i].numpy(), targets[part]) for part, values in scores.items()}}
        for i, setting in enumerate(settings)
    ]
    name = SCORES[labels.problem_type]
    best = max(range(len(heads)), key=lambda i: heads[i][choose_on][name])
    return {
        "problem_type": labels.problem_type,
        "labels": len(labels.names),
        "score": name,
        "validation": heads[best]["validation"],
        "same_answer_for_all": best_constant_score(labels, targets["training"], targets["validation"]),
        "chosen": best,
        "chosen_by": f"{name} on {where}",
        "heads": heads,
        "clips": {part: len(found.clips) for part, found in parts.items()},
        "skipped": {part: len(found.cache.skipped) for part, found in parts.items() if found.cache.skipped},
    }


def write_results(
    folder: Path, results: dict[str, Any], labels: Labels, parts: dict[str, LabeledPart], scores: dict
) -> None:
    """Writes results.json and confusion.png (of single labels), and prints the scores."""
    if labels.problem_type == "single_label_classification":
        answers = scores["validation"][results["chosen"]].numpy().argmax(axis=1)
        targets = {"references": parts["validation"].flat_targets, "classes": len(labels.names)}
        counts = ConfusionMatrix().compute(predictions=answers, **targets)["confusion_matrix"]
        try:
            figure = plot_confusion_matrix(counts, labels.names)
        except ImportError:
            logger.warning("matplotlib is not installed, so confusion.png is not written; `pip install matplotlib`")
        else:
            with write_aside(folder / "confusion.png") as partial:
                figure.savefig(partial, format="png")
    write_json(folder / "results.json", results)
    name = results["score"]
    tqdm.write(
        f"{name} {results['validation'][name]:.3f} on {results['clips']['validation']} validation clips (the same "
        f"answer for all: {results['same_answer_for_all']:.3f}); chosen by {results['chosen_by']}"
    )
    for part, found in results["evaluate_on"].items():
        tqdm.write(f"{name} {found[name]:.3f} on {results['clips'][part]} clips of {part}")
