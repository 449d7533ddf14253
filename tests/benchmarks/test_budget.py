import json
from pathlib import Path

import pytest

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def budget(monkeypatch):
    """benchmarks/budget.py as a module; it finds its neighbours as it does when run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import budget

    return budget


@pytest.fixture
def world_model(tmp_path):
    """One with random weights, as the training script saves it."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    actions = {"action_dim": 4, "actions_per_step": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    VJepa2WorldModel.from_encoder(encoder, frame_skip=2, **actions, **dynamics).save_pretrained(tmp_path / "final")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "final")
    return tmp_path / "final"


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds, within", [(1e-3, 0.0), (60_000, 1.0)])
def test_the_share_of_calls_within_the_budget_is_of_this_budget(budget, world_model, tmp_path, milliseconds, within):
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"masks": {"kept": True}}))
    section = budget.main(
        ["--model", str(world_model), "--episodes", "2", "--budget_ms", str(milliseconds), "--output", str(output)]
    )
    assert json.loads(output.read_text()) == {"masks": {"kept": True}, "budget": section}
    with_budget, fewer, without = section["rows"].values()
    assert with_budget["within_budget"] == fewer["within_budget"] == within
    assert with_budget["episodes"] == without["episodes"] == 2
    assert with_budget["call_milliseconds"]["median"] > 0 and "within_budget" not in without


def test_a_missing_model_is_told_before_anything_runs(budget, tmp_path):
    with pytest.raises(SystemExit, match="there is no world model in .*run `make demo`"):
        budget.main(["--model", str(tmp_path / "none")])
