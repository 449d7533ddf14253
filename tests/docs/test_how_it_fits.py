"""The snippets of docs/how_it_fits.md run, and its shapes are right."""

import pytest
import torch
from script_runs import blocks, write_square_shards

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel


def test_from_a_clip_to_the_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_square_shards(tmp_path / "runs/demo/episodes")
    names = {}
    exec(blocks("how_it_fits.md", "python")[0], names)
    kept, hidden = names["context_mask"].shape[1], names["target_mask"].shape[1]
    assert [clip["pixel_values_videos"].shape for clip in names["clips"]] == 4 * [(8, 3, 64, 64)]
    assert names["pixels"].shape == (4, 8, 3, 64, 64) and kept + hidden <= 64
    assert names["context"].shape == (4, kept, 96) and names["targets"].shape == (4, 64, 96)
    (predicted,), (target,) = names["out"].predicted_latents, names["out"].target_latents
    assert predicted.shape == target.shape == (4, hidden, 96)
    assert names["model"].encoder.layer[0].attention.qkv.weight.grad is not None


def test_from_an_observation_to_the_action(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = VJepa2EncoderConfig(crop_size=64, hidden_size=96, num_hidden_layers=1, num_attention_heads=4)
    small = {"predictor_hidden_size": 24, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    steps = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "context_frames": 1}
    model = VJepa2WorldModel.from_encoder(VJepa2Encoder(config), **steps, **small)
    planner = VJepa2Planner(model, VJepa2VideoProcessor(size=64, crop_size=64), horizon=3, num_candidates=8)
    planner.save_pretrained("runs/demo/world_model/final")
    names = {}
    exec(blocks("how_it_fits.md", "python")[1], names)
    assert names["frames"].shape == (1, 1, 3, 64, 64)
    assert names["latents"].shape == names["goal_latents"].shape == (1, 1, 16, 96)
    assert names["futures"].shape == (1, 128, 3, 16, 96) and names["costs"].shape == (1, 128)
    assert names["plan"]["action"].shape == (4,) and names["plan"]["actions"].shape == (3, 4)
    reached = (names["futures"][:, :, -1] - names["goal_latents"]).square().mean(dim=(-1, -2))
    assert names["costs"].tolist()[0] == pytest.approx(reached.tolist()[0], rel=1e-4)
