"""The evaluate module `latent_rollout`, against numbers worked out by hand."""

from pathlib import Path

import evaluate
import pytest
import torch

from vjepa2_hf.metrics.latent_rollout import latent_rollout
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores


# one window of two steps, one token of two numbers: 3-4-5 triangles
LATENTS = {
    "references": [[[[3.0, 4.0]], [[6.0, 8.0]]]],
    "predictions": [[[[3.0, 4.0]], [[8.0, 6.0]]]],
    "copies": [[[0.0, 2.0]]],
    "previous": [[[-3.0, 0.0]]],  # so the straight line goes on to (3, 4), (6, 6)
}
SCORES = {
    "error": [0.0, 4.0],
    "absolute_error": [0.0, 2.0],
    "cosine": [1.0, 0.96],
    "copy_absolute_error": [2.5, 6.0],
    "extrapolation_absolute_error": [0.0, 1.0],
    "copy_error": [6.5, 36.0],
    "copy_cosine": [0.8, 0.8],
    "extrapolation_error": [0.0, 2.0],
    "extrapolation_cosine": [1.0, 84 / (10 * 72**0.5)],
}


@pytest.fixture
def metric(monkeypatch, tmp_path):
    """Loaded as users do, from the package's folder, without the Hub."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    return evaluate.load(str(Path(latent_rollout.__file__).parent))


def test_loaded_module_gives_the_numbers_worked_out_by_hand(metric):
    found = metric.compute(**LATENTS)
    assert (found.pop("horizon"), found.pop("windows")) == ([1, 2], 1)
    assert found == {name: pytest.approx(values, abs=1e-6) for name, values in SCORES.items()}
    assert metric.compute(**LATENTS, horizons=[2])["error"] == [4.0]  # the first windows are forgotten


def test_batches_give_what_all_windows_at_once_give(metric):
    generator = torch.Generator().manual_seed(0)
    shapes = {"predictions": (5, 3, 4, 6), "references": (5, 3, 4, 6), "copies": (5, 4, 6), "previous": (5, 4, 6)}
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    whole = metric.compute(**given)
    metric.add_batch(**{name: value[:3].numpy() for name, value in given.items()})
    one = {name: value[3] for name, value in given.items() if name not in ("predictions", "references")}
    metric.add(prediction=given["predictions"][3], reference=given["references"][3], **one)
    parts = metric.compute(**{name: value[4:] for name, value in given.items()})
    assert parts.keys() == whole.keys() and parts["windows"] == 5
    assert all(parts[name] == pytest.approx(whole[name], rel=1e-6) for name in whole)
    truth = torch.nn.functional.mse_loss(given["predictions"][:, 2], given["references"][:, 2])
    assert whole["error"][2] == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [[[[3.0, 4.0]]]]}, r"predictions have shape \(1, 1, 1, 2\)"),
        ({"copies": [[0.0, 2.0]]}, r"copies have shape \(1, 2\)"),
        ({"copies": None}, "previous is given without copies"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RolloutScores().add(**{**LATENTS, **change})


def test_batches_of_different_inputs_are_refused():
    scores = RolloutScores()
    scores.add(**LATENTS)
    with pytest.raises(ValueError, match="give the same inputs every time"):
        scores.add(LATENTS["predictions"], LATENTS["references"])
    with pytest.raises(ValueError, match="a horizon is 3"):
        scores.means([3])
