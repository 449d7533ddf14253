"""Maps of the distance to a goal, with a model whose latents are the position of the red disc."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, raw_pixels

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments import PUSHING, TWO_ROOMS, make_plain
from vjepa2_hf.visualization.distance_maps import measure_maps, plot_maps


class RedPosition:
    device, config = torch.device("cpu"), SimpleNamespace(distance_head=True, num_views=1)

    def encode_targets(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, T, H, W, 3) -> x, y as (1, T, 1, 2)."""
        red = (pixels[0, ..., 0] - pixels[0, ..., 1]).clamp(min=0)
        at = (torch.arange(64) + 0.5) / 64
        mass = red.sum(dim=(1, 2))
        x, y = (red.sum(dim=1) * at).sum(-1) / mass, (red.sum(dim=2) * at).sum(-1) / mass
        return torch.stack([x, y], dim=-1)[None, :, None]

    def distance_embedding(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, 0]

    def embedded_distance(self, start: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (goal - start)[..., 0]  # how far to the right the goal lies


def test_a_map_is_low_at_the_goal_empty_in_walls_and_seen_from_the_top():
    env, start, goal = make_plain(TWO_ROOMS), np.float32([0.2, 0.2]), np.float32([0.8, 0.7])
    (found,) = measure_maps(RedPosition(), raw_pixels, env, start, goal, points=10)
    latent, learned = found["latent"], found["learned"]
    x, y = np.meshgrid(np.arange(10) / 10 + 0.05, np.arange(10) / 10 + 0.05)
    free = env.is_free(np.stack([x, y], axis=-1).astype(np.float32))
    assert (np.isnan(latent) == ~free).all() and 0 < free.sum() < 100
    assert latent[free] == pytest.approx((((x - 0.8) ** 2 + (y - 0.7) ** 2) / 2)[free], abs=0.01)
    assert learned[free] == pytest.approx((0.8 - x)[free], abs=0.01)


def test_each_disc_has_a_map_with_the_others_at_the_start():
    env, start, goal = make_plain(PUSHING), np.float32([0.2, 0.2, 0.7, 0.7]), np.float32([0.7, 0.2, 0.7, 0.7])
    agent, block = measure_maps(RedPosition(), raw_pixels, env, start, goal, points=6)
    assert np.isnan(agent["latent"][4, 4]) and agent["latent"][1, 4] < 0.01 < agent["latent"][1, 1]
    assert np.isnan(block["latent"][1, 1]) and np.nanmin(block["latent"]) > 0.1  # the agent is far from its goal
    figure = plot_maps([agent, block], env, start, goal, ["agent", "block"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:3] == ["goal image", "agent: latent distance (l2)", "agent: learned distance (frames)"]
    assert titles[4].startswith("block")
    begin, end = figure.axes[4].lines  # of the block's map
    assert [begin.get_xydata()[0].tolist(), end.get_xydata()[0].tolist()] == [start[2:].tolist(), goal[2:].tolist()]


def test_a_model_of_two_cameras_sees_both_views():
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "crop_size": 64}))
    sizes = {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    names = {"num_views": 2, "view_names": ["agent", "top"]}
    model = VJepa2WorldModel.from_encoder(encoder, action_dim=2, **names, **sizes).eval()
    env, processor = make_plain(TWO_ROOMS, views=["top", "agent"]), VJepa2VideoProcessor(size=64, crop_size=64)
    (found,) = measure_maps(model, processor, env, np.float32([0.2, 0.2]), np.float32([0.875, 0.625]), points=4)
    assert found["latent"][2, 3] == pytest.approx(0, abs=1e-6)  # the goal itself
    assert np.nanmax(found["latent"]) > 0.01
