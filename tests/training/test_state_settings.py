"""The settings of the training of a learned state."""

import pytest

from vjepa2_hf.training.state_settings import StateSettings, StateTrainingConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 2}, "state.frames must be at least 3, got 2"),
        ({"frames": "8"}, "^state.frames is '8'; expected an integer"),
        ({"gradient_clipping": 0}, "^state.gradient_clipping is 0; expected a number above 0"),
        ({"gradient_clipping": -1.0}, "^state.gradient_clipping is -1.0"),
        ({"episode_contrast_weight": 0.0}, "there is no loss"),
        ({"episode_contrast_temperature": 0.0}, "state.episode_contrast_temperature"),
        ({"inverse_dynamics_weight": 1.0, "frames": 4}, "state.inverse_dynamics_steps=4 needs state.frames above it"),
        ({"symmetries": "vjepa2_hf/Pushing-v0"}, "set state.augment=true"),
        ({"augment": True, "symmetries": {"turn": [[1.0]]}}, "turn"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StateSettings(**fields)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = StateSettings(max_steps=10, warmup_steps=2, learning_rate=1.0)
    config = StateTrainingConfig(output_dir="out", data="data", encoder="pixels", state=settings)
    rates = [config.scheduled(step)["learning_rate"] for step in range(1, 11)]
    assert rates[0] == 0.5 and rates[1] == 1.0 and rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[1:] == sorted(rates[1:], reverse=True) and (config.max_steps, config.batch_size) == (10, 16)
