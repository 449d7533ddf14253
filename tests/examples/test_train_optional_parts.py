"""The optional parts of the world model through its training script: rewards of the rows reach the head, in units."""

import numpy as np
import pytest
import torch
from script_runs import run_train_world_model, write_noise_episodes

from vjepa2_hf import VJepa2WorldModel


PARTS = ["world_model.reward_head=true", "world_model.stochastic_dim=2"]


def test_run_trains_reward_head_and_stochastic_latent(monkeypatch, tmp_path):
    data = write_noise_episodes(tmp_path / "data", with_rewards=True)
    metrics = run_train_world_model(monkeypatch, data, tmp_path / "run", *PARTS)
    assert all(row["reward_loss"] > 0 and np.isfinite(row["nll_loss"]) for row in metrics)
    model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").eval()
    config = model.config
    # frame_skip 2: a step's reward is the sum of two; single rewards lie between 2 and 14
    assert 4 < config.reward_mean < 28 and config.reward_std > 1
    latents = torch.zeros(1, 1, model.tokens_per_frame, model.latent_size)
    samples = model.rollout(latents, torch.zeros(1, 3, 2, 4), generator=torch.Generator())
    assert samples.shape[:3] == (1, 3, 2) and samples.std(dim=1).max() > 0
    joined = torch.cat([latents.unsqueeze(1).expand(-1, 3, -1, -1, -1), samples], dim=2)
    assert model.predict_rewards(joined, torch.zeros(1, 3, 2, 4)).shape == (1, 3, 2)


def test_a_reward_head_without_rewards_ends_in_a_sentence(monkeypatch, tmp_path, capsys):
    data = write_noise_episodes(tmp_path / "data", with_rewards=False)
    with pytest.raises(SystemExit) as exit_:
        run_train_world_model(monkeypatch, data, tmp_path / "run", *PARTS)
    assert exit_.value.code == 1 and "rewards" in capsys.readouterr().err.strip().splitlines()[-1]
