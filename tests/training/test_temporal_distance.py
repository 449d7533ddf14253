"""Training of the distance head: the loss by hand, what is learned, and that nothing else changes."""

import math

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, same_weights

from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.data.feature_cache import CacheWriter, FeatureCache, finish_cache
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.training import temporal_distance
from vjepa2_hf.training.temporal_distance import (
    DistanceSettings,
    distance_loss,
    expectile_error,
    measure_distance_head,
    sample_frames,
    train_distance_head,
)


SETTINGS = DistanceSettings(max_steps=120, batch_size=16, learning_rate=5e-3)


def build() -> VJepa2WorldModel:
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 1, "state_type": "pooled", "distance_hidden_size": 32}
    return VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **fields)).eval()


def write_walks(folder, held_out: float = 1.0) -> tuple[WindowMixture, WindowMixture]:
    """Walks of 12 frames along a line in the space of latents, all in one direction, with other noise in each frame;
    the last four are held out, with `held_out` times their numbers."""
    generator = torch.Generator().manual_seed(0)
    direction, across = torch.randn(2, 24, generator=generator)
    writer = CacheWriter(folder)
    for number in range(12):
        places = number % 4 + torch.arange(12.0)
        latents = torch.outer(torch.cos(places / 8), direction) + torch.outer(torch.sin(places / 8), across)
        latents += 0.1 * torch.randn(latents.shape, generator=generator)
        latents *= held_out if number >= 8 else 1.0
        writer.add(f"{number:02d}", 10.0, {"latents": latents.unsqueeze(1), "actions": torch.zeros(11, 1)})
    writer.flush()
    finish_cache(folder, {})
    cache = FeatureCache(folder, ["latents"])
    return tuple(WindowMixture([cache], [torch.arange(*ends)], [1.0]) for ends in ((8,), (8, 12)))


def test_too_long_distances_count_nine_times():
    distances, times = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([1, 1, 1])
    step = math.log(2)
    torch.testing.assert_close(expectile_error(distances, times), torch.tensor([0.9, 0.1, 0.0]) * step**2)


def test_the_loss_by_hand():
    """Frames are numbers, and the distance is their difference; the pairs of one frame have no time between them."""
    frames = torch.tensor([[0, 3, 3], [5, 4, 4]])
    embedded = torch.tensor([[0.0, 7.0, 3.0], [1.0, 1.0, 1.0]]).unsqueeze(-1)
    errors = []

    def between(start, end):
        return (start - end).abs().squeeze(-1)

    def error(distance, time):
        return expectile_error(torch.tensor(float(distance)), torch.tensor(time)).item()

    # later frames: 0 -> 3 twice in the first episode, 4 -> 5 twice in the second
    weights = [1 / 3, 1 / 3, 1, 1]
    errors = [error(7, 3), error(3, 3), error(0, 1), error(0, 1)]
    within = sum(map(math.prod, zip(weights, errors, strict=True))) / sum(weights)
    between_episodes = [error(abs(a - b), 20) for a in (0, 7, 3) for b in (1, 1, 1)]
    names = torch.tensor([[0, 0], [0, 1]])
    found = distance_loss(between, embedded, frames, names, longest=20)
    assert found.item() == pytest.approx(within + sum(between_episodes) / 9, rel=1e-5)
    same = distance_loss(between, embedded, frames, names * 0, longest=20)  # twice the same episode
    assert same.item() == pytest.approx(within, rel=1e-5)


def test_sources_are_sampled_by_their_weights_and_frames_evenly(tmp_path):
    first, _ = write_walks(tmp_path / "first")
    second, _ = write_walks(tmp_path / "second")
    mixture = WindowMixture([*first.caches, *second.caches], [torch.tensor([3]), torch.tensor([5, 6])], [3.0, 1.0])
    windows, frames = sample_frames(mixture, 4000, np.random.default_rng(0))
    assert windows.shape == (32_000, 3) and torch.equal(windows[:, 2], frames.flatten())
    assert (windows[:, 0] == 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert windows[windows[:, 0] == 1, 1].unique().tolist() == [5, 6]
    counts = frames.flatten().bincount()
    assert len(counts) == 12 and counts.min() > 0.9 * counts.float().mean()


def test_it_learns_the_time_between_frames_on_the_training_episodes_alone(tmp_path):
    model, before = build(), {name: value.clone() for name, value in build().state_dict().items()}
    training, held_out = write_walks(tmp_path / "good")
    losses = train_distance_head(model, training, SETTINGS, seed=0)
    assert [row["step"] for row in losses] == [1, 50, 100, 120] and losses[-1]["loss"] < 0.8 * losses[0]["loss"]
    found = measure_distance_head(model, held_out, seed=0)
    assert found["rank_correlation"] > 0.9 and found["pairs"] == sum(row["pairs"] for row in found["rows"])
    assert [row["from"] for row in found["rows"]] == [1, 2, 4, 8]
    for row in found["rows"]:  # in frames
        assert row["from"] / 2 <= row["predicted"] <= 2 * row["to"]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())

    # Held-out episodes that would spoil it are never read; the same seed gives the same weights, another one others
    spoilt, _ = write_walks(tmp_path / "spoilt", held_out=math.nan)
    again, other = build(), build()
    train_distance_head(again, spoilt, SETTINGS, seed=0)
    assert same_weights(again, model)
    train_distance_head(other, training, SETTINGS, seed=1)
    assert not torch.equal(other.distance_head.proj.weight, model.distance_head.proj.weight)


def test_what_cannot_be_trained_ends_in_a_sentence(tmp_path, monkeypatch):
    training, _ = write_walks(tmp_path / "walks")
    monkeypatch.setattr(temporal_distance, "distance_loss", lambda *_: torch.tensor(math.nan))
    with pytest.raises(ValueError, match="the loss of the distance head is nan in step 1"):
        train_distance_head(build(), training, SETTINGS, seed=0)
    training.caches[0].lengths = torch.ones(12, dtype=torch.int64)
    with pytest.raises(ValueError, match="episodes have one frame each"):
        train_distance_head(build(), training, SETTINGS, seed=0)
    with pytest.raises(ValueError, match=r"distance\.max_steps must be at least 1"):
        DistanceSettings(max_steps=0)
    with pytest.raises(ValueError, match=r"distance\.learning_rate"):
        DistanceSettings(learning_rate=0.0)  # trains nothing
