"""Distance curves and calibration, of made-up frames whose distances are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import raw_pixels

from vjepa2_hf.visualization import distance_curves
from vjepa2_hf.visualization.distance_curves import (
    EncodedFrames,
    compare_pairs,
    encode_episodes,
    format_distances,
    measure_calibration,
    measure_curve,
    measure_distances,
    sample_pairs,
)
from vjepa2_hf.visualization.distance_figures import plot_distances


class Line:
    """Frames are positions on a line; the learned distance is 10 frames per unit, and twice as far to the left."""

    device, tokens_per_frame, latent_size = torch.device("cpu"), 1, 1

    def __init__(self, distance_head: bool = True):
        self.config = SimpleNamespace(frame_skip=2, distance_head=distance_head)

    def encode_targets(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(2)[..., :1, None]

    def distance_embedding(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[..., 0]

    def embedded_distance(self, start: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        move = (goal - start)[..., 0]
        return 10 * torch.where(move < 0, -2 * move, move)


def line_frames(episodes: int = 8, count: int = 10, seed: int = 0) -> EncodedFrames:
    """Episodes that move right by 0.1 a step, from random starts; the state's second number is noise."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 3, episodes)[:, None] + 0.1 * np.arange(count)
    states = np.stack([positions, rng.uniform(size=positions.shape)], axis=-1).reshape(-1, 2)
    times = np.tile(2 * np.arange(count), episodes)
    numbers = np.repeat(np.arange(episodes), count)
    return EncodedFrames(torch.from_numpy(states[:, :1, None]).float(), numbers, times, states)


def test_a_model_of_whitened_states_has_that_distance_too():
    model, latents = Line(distance_head=False), torch.tensor([[[1.0]], [[2.0]], [[4.0]]])
    model.state_whitening = torch.tensor([[3.0]])
    found = compare_pairs(model, latents, np.array([0, 0]), np.array([1, 2]))
    assert found["latent"].tolist() == [1, 9] and found["whitened"].tolist() == [9, 81]
    result = measure_distances(model, line_frames(), {"position": [0]})
    curves = result["groups"]["position"]
    assert curves["whitened"]["rank_correlation"] == pytest.approx(curves["latent"]["rank_correlation"])
    assert "latent distance (whitened)" in format_distances(result)
    assert len(plot_distances(result).axes[0].lines) == 2


def test_pairs_are_distinct_and_half_of_them_lie_within_an_episode(monkeypatch):
    monkeypatch.setattr(distance_curves, "PAIRS", 200)
    frames = line_frames()
    starts, goals = sample_pairs(frames, seed=0)
    within = frames.episodes[starts] == frames.episodes[goals]
    assert (len(starts), within.sum(), len(set(zip(starts, goals, strict=True)))) == (200, 100, 200)
    assert (frames.times[starts] < frames.times[goals])[within].all()


def test_a_distance_that_grows_with_the_true_one_has_rank_correlation_one():
    result = measure_distances(Line(), line_frames(), {"position": [0], "noise": [1]})
    curve = result["groups"]["position"]["latent"]
    kinds = ("rank_correlation", "low", "high", "within_episodes", "across_episodes")
    assert [curve[kind] for kind in kinds] == pytest.approx([1] * 5, abs=0.02)
    assert [part["rank_correlation_beyond"] for part in curve["bins"]][:-1] == pytest.approx([1] * 7, abs=0.02)
    assert sum(part["pairs"] for part in curve["bins"]) == result["pairs"] == 80 * 79 / 2
    for part in curve["bins"][1:]:  # rounding by float32 makes ties
        assert part["from"] <= part["true_mean"] <= part["to"]
        assert part["low"] <= part["median"] <= part["high"]
        assert part["mean"] == pytest.approx(part["true_mean"] ** 2, rel=0.1)  # mean of squares
    noise = result["groups"]["noise"]["latent"]
    assert abs(noise["rank_correlation"]) < 0.2 and noise["low"] < 0 < noise["high"]


def test_the_bin_from_which_a_distance_is_flat_shows():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 64, 4000)
    found = np.minimum(true, 16) + 0.01 * rng.standard_normal(4000)
    sides = (np.arange(4000) % 20, np.arange(4000) // 20 % 20)
    curve = measure_curve(true, found, sides, seed=0)
    beyond = {round(part["from"]): part["rank_correlation_beyond"] for part in curve["bins"]}
    assert curve["rank_correlation"] == beyond[0] and beyond[0] > 0.5
    assert beyond[8] > 0.3 and abs(beyond[16]) < 0.05 and abs(beyond[32]) < 0.05
    assert curve["low"] < curve["rank_correlation"] < curve["high"]


def test_the_interval_is_over_episodes_not_over_pairs():
    """Half of the episodes go the wrong way; pairs within one agree with each other."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(6), 500)
    true = rng.uniform(size=3000)
    found = np.where(episode % 2, -true, true)
    together = measure_curve(true, found, (episode, episode), seed=0)
    alone = measure_curve(true, found, (np.arange(3000), np.arange(3000)), seed=0)
    assert together["high"] - together["low"] > 5 * (alone["high"] - alone["low"])
    assert together["across_episodes"] is None and together["within_episodes"] == together["rank_correlation"]


def test_equal_distances_have_no_rank_correlation():
    curve = measure_curve(np.zeros(9), np.arange(9.0), (np.zeros(9, int), np.zeros(9, int)), seed=0)
    assert (curve["rank_correlation"], curve["low"], curve["high"]) == (None, None, None)
    assert [(part["from"], part["to"], part["pairs"]) for part in curve["bins"]] == [(0, 0, 9)]


def test_calibration_bins_double_and_count_what_is_above_the_elapsed_frames():
    elapsed = np.repeat([2, 4, 6, 8, 10, 16], 10)
    predicted = elapsed * np.where(np.arange(60) % 2, 1.5, 0.5)
    result = measure_calibration(elapsed, predicted, step=2)
    assert [(part["from"], part["to"], part["pairs"]) for part in result["bins"]] == [
        (2, 2, 10), (4, 4, 10), (6, 8, 20), (10, 16, 20),
    ]  # fmt: skip
    assert [part["mean"] for part in result["bins"]] == [2, 4, 7, 13]
    assert {part["fraction_above"] for part in result["bins"]} == {0.5}
    assert 0 < result["rank_correlation"] < 1


def test_calibration_compares_frames_of_one_episode_in_order_of_time():
    result = measure_distances(Line(), line_frames(), {})["calibration"]
    # 0.1 per model step of two frames, and 10 per unit: half a frame per frame
    assert [part["mean"] / part["elapsed_mean"] for part in result["bins"]] == pytest.approx([0.5] * 5, rel=1e-3)
    assert result["rank_correlation"] > 0.98 and not any(p["fraction_above"] for p in result["bins"])


def test_path_distance_gets_complete_states_and_is_a_group():
    frames = line_frames()
    result = measure_distances(Line(), frames, {"position": [0]}, lambda a, b: 64 * np.abs(a - b)[..., 0])
    euclidean, path = (result["groups"][name]["latent"]["bins"] for name in ("position", "path"))
    assert [part["to"] for part in path] == pytest.approx([64 * part["to"] for part in euclidean])


def test_frames_are_evenly_spaced_over_the_first_episodes(monkeypatch):
    monkeypatch.setattr(distance_curves, "EPISODES", 2)
    monkeypatch.setattr(distance_curves, "FRAMES", 3)
    values = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    episode = {"frames": np.repeat(values, 3, axis=-1), "states": np.arange(18.0).reshape(9, 2)}
    found = encode_episodes(Line(), raw_pixels, iter([episode] * 3))
    assert found.latents.flatten().tolist() == [0, 4, 8] * 2 and found.episodes.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.times.tolist() == [0, 8, 16] * 2 and found.states[:, 0].tolist() == [0, 8, 16] * 2


def test_without_states_the_calibration_remains_and_without_a_head_nothing():
    episode = {"frames": np.zeros((5, 1, 1, 3), np.uint8), "states": None}
    assert encode_episodes(Line(distance_head=False), raw_pixels, [episode]) is None
    frames = encode_episodes(Line(), raw_pixels, [episode] * 2)
    result = measure_distances(Line(), frames, {})
    assert result["groups"] == {} and result["calibration"]["bins"][0]["mean"] == 0


def test_tables_and_figure_show_the_measured_numbers():
    result = measure_distances(Line(), line_frames(), {"position": [0]})
    text, bins = format_distances(result), result["groups"]["position"]["learned"]["bins"]
    assert f"| {bins[0]['from']:.3g}–{bins[0]['to']:.3g} | {bins[0]['pairs']} |" in text
    assert "learned distance (frames): rank correlation with true distance 0." in text  # twice as far to the left
    assert text.splitlines()[-1].startswith("| 10–16 |") or "| 10–16 |" in text
    curves, calibration = plot_distances(result).axes
    latent, learned = curves.lines
    assert learned.get_xdata() == pytest.approx([part["true_mean"] for part in bins])
    assert learned.get_ydata()[-1] == latent.get_ydata()[-1] == 1
    diagonal, predicted = calibration.lines
    assert predicted.get_ydata() == pytest.approx([part["mean"] for part in result["calibration"]["bins"]])
    assert diagonal.get_xdata() == pytest.approx(diagonal.get_ydata())
