"""The `evaluate` modules of probes: values checked against scikit-learn or by hand, and loaded offline."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import sklearn.metrics
import torch

import vjepa2_hf
from vjepa2_hf.metrics.class_mean_recall.class_mean_recall import class_mean_recall
from vjepa2_hf.metrics.confusion_matrix.confusion_matrix import confusion_matrix, plot_confusion_matrix
from vjepa2_hf.metrics.mean_average_precision.mean_average_precision import average_precisions
from vjepa2_hf.metrics.mean_iou.mean_iou import mean_iou
from vjepa2_hf.metrics.r_squared.r_squared import r_squared
from vjepa2_hf.metrics.root_mean_squared_error.root_mean_squared_error import root_mean_squared_error
from vjepa2_hf.metrics.top_k_accuracy.top_k_accuracy import is_in_top_k


FOLDER = Path(vjepa2_hf.__file__).parent / "metrics"


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 7)), rng.integers(7, size=60)


def load(name, tmp_path):
    return evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))


def test_top_k_accuracy_is_scikit_learns(scores, tmp_path):
    metric = load("top_k_accuracy", tmp_path)
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(scores[1], scores[0], k=k, labels=range(7))
        found = metric.compute(predictions=scores[0], references=scores[1], k=k)
        assert found == {"accuracy" if k == 1 else "top_5_accuracy": pytest.approx(expected)}
    assert metric.compute(predictions=scores[0][:, :7], references=scores[1], k=9) == {"top_9_accuracy": 1.0}


def test_equal_scores_are_never_correct():
    assert not is_in_top_k(np.zeros((3, 4)), np.array([0, 1, 2]), 3).any()
    assert class_mean_recall(np.zeros((3, 4)), np.array([0, 1, 2]), 3) == 0


def test_class_mean_recall_gives_rare_classes_their_weight(tmp_path):
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [3, 2, 1]])
    found = load("class_mean_recall", tmp_path).compute(predictions=scores, references=[0, 0, 0, 2], k=1)
    assert found == {"class_mean_recall_at_1": 0.5}  # the accuracy is 0.75
    assert class_mean_recall(scores, np.array([0, 0, 0, 2])) == 1.0


def test_mean_average_precision_is_scikit_learns_with_ties(scores, tmp_path):
    values = scores[0].round(0)
    labels = (np.random.default_rng(1).random(values.shape) < 0.2).astype(int)
    labels[:, 3] = 0  # a label that no clip has is left out
    expected = [sklearn.metrics.average_precision_score(labels[:, i], values[:, i]) for i in range(7) if i != 3]
    assert average_precisions(values, labels) == pytest.approx(expected)
    found = load("mean_average_precision", tmp_path).compute(predictions=values, references=labels)
    assert found == {"mean_average_precision": pytest.approx(np.mean(expected)), "labels": 6}


def test_mean_average_precision_takes_infinite_scores():
    labels = np.array([[1], [0], [1], [0]])
    finite = average_precisions([[9.0], [1], [0.5], [-9]], labels)
    assert average_precisions([[np.inf], [1], [0.5], [-np.inf]], labels) == finite == [pytest.approx(5 / 6)]


def test_r_squared_is_scikit_learns(scores, tmp_path):
    labels = scores[0] + np.random.default_rng(1).normal(size=scores[0].shape)
    found = load("r_squared", tmp_path).compute(predictions=scores[0], references=labels)
    assert found["r_squared"] == pytest.approx(sklearn.metrics.r2_score(labels, scores[0]))
    assert found["mean_squared_error"] == pytest.approx(((labels - scores[0]) ** 2).mean())


def test_confusion_is_counted_and_drawn(scores, tmp_path):
    guesses = scores[0].argmax(axis=1)
    expected = sklearn.metrics.confusion_matrix(scores[1], guesses, labels=range(8)).tolist()
    metric = load("confusion_matrix", tmp_path)
    assert metric.compute(predictions=guesses, references=scores[1], classes=8) == {"confusion_matrix": expected}
    figure = plot_confusion_matrix(expected, list("abcdefgh"))
    figure.savefig(tmp_path / "confusion.png")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list("abcdefgh")
    fractions = figure.axes[0].images[0].get_array()
    assert fractions.sum() == pytest.approx(7)  # the eighth class has no clip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: is_in_top_k(np.zeros((2, 3)), np.array([0, 3])), "labels lie in 0 to 3; expected 0 to 2"),
        (lambda: is_in_top_k(np.zeros((2, 3)), np.array([0])), "expected"),
        (lambda: is_in_top_k(np.full((1, 3), np.nan), np.array([0])), "NaN"),
        (lambda: class_mean_recall(np.zeros((1, 3)), np.array([3])), "expected 0 to 2"),
        (lambda: average_precisions(np.zeros((2, 3)), np.zeros((2, 3))), "some of them 1"),
        (lambda: r_squared(np.zeros((2, 1)), np.ones((2, 1))), "No label varies"),
        (lambda: confusion_matrix(np.array([0]), np.array([4]), 3), "lie outside 0 to 2"),
        (lambda: mean_iou(np.array([[3]]), np.array([[0]]), 3), "expected 0 to 2"),
        (lambda: mean_iou(np.array([[0.5]]), np.array([[0]]), 3), "label images: integers"),
        (lambda: mean_iou(np.array([[0]]), np.array([[255]]), 3), "no pixel to score"),
        (lambda: mean_iou(np.array([[0]]), np.array([[0, 1]]), 3), "expected one shape"),
        (lambda: root_mean_squared_error([np.inf], [1.0]), "expected finite"),
        (lambda: root_mean_squared_error([1.0], [np.nan]), "not NaN first"),
    ],
)
def test_wrong_inputs_are_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mean_iou_counts_all_pixels_together(tmp_path):
    references = np.array([[[0, 0, 1], [1, 1, 255]], [[0, 0, 0], [0, 0, 2]]])
    predictions = np.array([[[0, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]])
    expected = [6 / 8, 3 / 4, 0.0, np.nan]  # the ignored pixel counts nowhere
    found = load("mean_iou", tmp_path).compute(predictions=predictions, references=references, num_labels=4)
    np.testing.assert_allclose(found["per_category_iou"], expected)
    assert found["mean_iou"] == pytest.approx(0.5) and found["overall_accuracy"] == pytest.approx(9 / 11)
    np.testing.assert_allclose(found["per_category_accuracy"], [6 / 7, 1.0, 0.0, np.nan])
    metric = evaluate.load(str(FOLDER / "mean_iou"), cache_dir=str(tmp_path), num_labels=4)
    for one, other in zip(predictions, references, strict=True):
        metric.add_batch(predictions=torch.from_numpy(one), references=torch.from_numpy(other))
    assert metric.compute()["mean_iou"] == pytest.approx(0.5)
    assert mean_iou(predictions, references, 4) == pytest.approx(0.5)


def test_root_mean_squared_error_is_scikit_learns(tmp_path):
    rng = np.random.default_rng(0)
    references, predictions = rng.normal(3, 2, (2, 5, 6)), rng.normal(3, 2, (2, 5, 6))
    known = rng.random((2, 5, 6)) < 0.7
    expected = sklearn.metrics.root_mean_squared_error(references[known], predictions[known])
    holes = np.where(known, references, np.nan)
    found = load("root_mean_squared_error", tmp_path).compute(predictions=predictions, references=holes)
    assert found["rmse"] == pytest.approx(expected) == root_mean_squared_error(predictions, holes)
    assert found["rmse_of_the_mean"] == pytest.approx(references[known].std())
    assert found["mean_absolute_error"] == pytest.approx(np.abs(references - predictions)[known].mean())
