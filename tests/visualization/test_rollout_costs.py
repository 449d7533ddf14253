"""What a rollout step costs, counted by hand beside torch's counter, and where held-out errors come from."""

import json

import pytest
import torch

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.visualization.rollout_costs import count_flops, held_out_errors, measure_world_model


SIZES = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 2, "predictor_num_attention_heads": 2}


def make_model(**fields) -> VJepa2WorldModel:
    encoder = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32}
    config = {"action_dim": 3, **SIZES, **fields}
    return VJepa2WorldModel.from_encoder(VJepa2Encoder(VJepa2EncoderConfig(**encoder)), **config).eval()


def test_operations_of_an_mlp_are_two_for_every_weight():
    model = make_model(state_type="pooled", dynamics_type="mlp")
    weights = [parameter for parameter in model.predictor.parameters() if parameter.ndim == 2]
    assert count_flops(model) == 2 * sum(map(torch.numel, weights))


def test_attention_is_counted():
    """Twice the blocks: what is added is one block's weights for each token, and scores and sums of its attention."""
    tokens, width = 4 + 1, 16  # a frame's tokens and its action's
    one, two = (make_model(predictor_num_hidden_layers=layers) for layers in (1, 2))
    weights = sum(p.numel() for p in two.predictor.parameters() if p.ndim == 2)
    weights -= sum(p.numel() for p in one.predictor.parameters() if p.ndim == 2)
    assert count_flops(two) - count_flops(one) == 2 * tokens * weights + 2 * 2 * tokens * tokens * width


@pytest.mark.parametrize("fields", [{}, {"proprio_dim": 2, "extrinsics_dim": 3}])
def test_a_planner_is_measured_with_its_own_candidates(tmp_path, fields):
    processor = VJepa2VideoProcessor(size=32, crop_size=32)
    planner = VJepa2Planner(
        make_model(**fields), processor, solver="cem", num_candidates=7, num_elites=2, device="cpu"
    )
    found = measure_world_model(planner, str(tmp_path / "final"))
    assert found["rollout_candidates"] == 7 and found["rollout_milliseconds"] > 0
    assert found["parameters"] == sum(p.numel() for p in planner.model.predictor.parameters())
    assert "rollout_error" not in found  # nothing was measured beside this model


def test_errors_are_those_that_training_left(tmp_path):
    errors = {"error": 0.5, "copy_error": 1.0, "cosine": 0.75, "copy_cosine": 0.25}
    (tmp_path / "rollout_error.json").write_text(
        json.dumps([{"horizon": h, **errors, "windows": 9} for h in (1, 2, 5)])
    )
    assert held_out_errors(str(tmp_path / "final")) == {"rollout_error": {"1": errors, "5": errors}}
