"""The ablations are the demo's run but for one thing, and the objective's settings reach model and metrics."""

import pytest
from script_runs import run_pretrain, write_square_shards

from vjepa2_hf import VJepa2ForMaskedLatentPrediction


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_square_shards(tmp_path_factory.mktemp("shards") / "train")


def test_terms_are_logged_by_name_and_saved_with_the_model(monkeypatch, shards, tmp_path):
    settings = ["loss_exponent=2", "temporal_diversity_weight=0.1", "temporal_contrastive_weight=0.1"]
    settings += ["variance_weight=0.5", "covariance_weight=0.02", "variance_margin=0.5", "max_steps=2"]
    lines = run_pretrain(monkeypatch, shards, tmp_path, *settings)
    weights = {"prediction": 1, "temporal_diversity": 0.1, "temporal_contrastive": 0.1}
    weights |= {"variance": 0.5, "covariance": 0.02}
    for line in lines:
        expected = sum(weight * line[f"{name}_loss"] for name, weight in weights.items())
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    config = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final").config
    assert config.auxiliary_weights == {name: weight for name, weight in weights.items() if name != "prediction"}
    assert config.variance_margin == 0.5


def test_a_run_with_the_settings_for_varied_appearance(monkeypatch, shards, tmp_path):
    settings = ["encoder.patch_stem=conv", "encoder.tubelet_size=1", "normalize_targets=position", "max_steps=2"]
    settings += ["temporal_contrastive_weight=0.1", "temporal_contrastive_negatives=times"]
    for line in run_pretrain(monkeypatch, shards, tmp_path, *settings):
        expected = line["prediction_loss"] + 0.1 * line["temporal_contrastive_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4) and line["temporal_contrastive_loss"] > 0
    config = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final").config
    assert (config.normalize_targets, config.temporal_contrastive_negatives) == ("position", "times")
    assert (config.encoder_config.patch_stem, config.encoder_config.tubelet_size) == ("conv", 1)


@pytest.mark.filterwarnings("ignore:target_type='online'")
@pytest.mark.parametrize("target_type", ["online", "pixels"])
def test_a_run_with_another_target(monkeypatch, shards, tmp_path, target_type):
    run_pretrain(monkeypatch, shards, tmp_path, f"target_type={target_type}", "max_steps=2")
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final")
    pairs = zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
    assert all((a == b).all() for a, b in pairs) == (target_type == "online")
    assert model.predictor.proj.out_features == (3 * 2 * 8 * 8 if target_type == "pixels" else 16)
