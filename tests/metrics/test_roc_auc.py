"""The `evaluate` module `roc_auc` loads from the package and counts pairs."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

import vjepa2_hf


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    return evaluate.load(str(Path(vjepa2_hf.__file__).parent / "metrics" / "roc_auc"))


def test_is_the_share_of_pairs_in_the_right_order(metric):
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 20, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    metric.add_batch(predictions=scores[:30], references=labels[:30])
    metric.add_batch(predictions=scores[30:], references=labels[30:])
    assert metric.compute()["roc_auc"] == pytest.approx(np.mean(pairs))


def test_what_has_no_curve_is_refused(metric):
    with pytest.raises(ValueError, match=r"references hold \[1\]; expected both 0 and 1"):
        metric.compute(predictions=[0.1, 0.2], references=[1, 1])
    with pytest.raises(ValueError, match="1 predictions are not finite"):
        metric.compute(predictions=[0.1, float("nan")], references=[1, 0])
