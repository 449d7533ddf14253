"""Variance fractions of features made by hand, and the random encoder beside a trained one."""

import pytest
import torch

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.visualization.feature_variance import random_encoder, variance_fractions


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16, "patch_size": 8}


def test_fractions_of_features_that_position_or_time_alone_explain():
    position, time = torch.randn(1, 3, 4, 8), torch.randn(6, 1, 1, 8)
    assert variance_fractions(position.expand(6, 3, 4, 8)) == pytest.approx({"position": 1, "time": 0, "rest": 0})
    assert variance_fractions(time.expand(6, 3, 4, 8)) == pytest.approx({"position": 0, "time": 1, "rest": 0})
    both = variance_fractions(position + time)
    assert both["rest"] == pytest.approx(0, abs=1e-6) and min(both["position"], both["time"]) > 0.1


def test_fractions_of_noise_are_the_expected_ones():
    torch.manual_seed(0)
    fractions = variance_fractions(torch.randn(10, 20, 20, 8))
    assert sum(fractions.values()) == pytest.approx(1)
    assert fractions["position"] == pytest.approx(1 / 10, abs=0.01)
    assert fractions["time"] == pytest.approx(1 / 400, abs=0.002)


def test_features_without_variance_have_no_fractions():
    with pytest.raises(ValueError, match="All tokens of the clip are equal"):
        variance_fractions(torch.ones(2, 3, 3, 4))


def test_the_random_encoder_is_the_same_each_time_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**SIZES))
    state = torch.get_rng_state()
    first, second = random_encoder(encoder), random_encoder(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.layer[0].mlp.fc1.weight, encoder.layer[0].mlp.fc1.weight)
