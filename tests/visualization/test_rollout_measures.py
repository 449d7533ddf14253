"""Measures of rollouts: intervals that cover what they claim, objects found where they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.environments import IMAGE_SIZE, PUSHING, PushingEnv, make_plain
from vjepa2_hf.visualization.rollout_measures import (
    calibrate,
    central_interval,
    decode_windows,
    find_object,
    image_strip,
    measure_object,
    score_interval,
    tabulate,
)
from vjepa2_hf.visualization.rollout_windows import Windows


def test_interval_ends_at_the_fifth_sample_of_99():
    samples = torch.arange(1, 100.0).view(99, 1)
    assert [end.item() for end in central_interval(samples, 0.9)] == [5.0, 95.0]


@pytest.mark.parametrize("count", [19, 30, 99])
def test_intervals_cover_what_they_claim_however_few_the_samples(count):
    drawn = torch.randn(count + 1, 20000, generator=torch.Generator().manual_seed(0))
    samples, truth = drawn[1:].sort(dim=0).values, drawn[:1]
    for level in (0.5, 0.9):
        ends = tuple(end.view(1, 1, -1) for end in central_interval(samples, level))
        scores = score_interval(ends, truth.view(1, 1, -1), level)
        assert scores[f"coverage_{100 * level:g}"].item() == pytest.approx(level, abs=0.015)


def test_score_of_an_interval_is_its_width_and_what_it_misses():
    """Of 0 to 2 at 80 %: 1 lies inside, 3 is 1 outside, which counts 2 / 0.2 times."""
    ends = torch.zeros(1, 1, 2), torch.full((1, 1, 2), 2.0)
    scores = score_interval(ends, torch.tensor([[[1.0, 3.0]]]), 0.8)
    assert {name: round(value.item(), 4) for name, value in scores.items()} == {
        "coverage_80": 0.5,
        "width_80": 2.0,
        "score_80": 7.0,
    }


def test_intervals_of_too_certain_samples_are_stretched_until_they_cover():
    """Samples spread by 1 at both steps, the truth by 1 and by 3; every other window is ten times as wide as these."""
    generator = torch.Generator().manual_seed(0)
    ends, width = torch.tensor([-1.645, 0.0, 1.645]), torch.tensor([1.0, 10.0]).repeat(4).view(8, 1, 1, 1)
    episodes = []
    for _ in range(100):
        truth = torch.randn(8, 1, 2, 2, generator=generator) * torch.tensor([1.0, 3.0]).view(2, 1)
        intervals = ends.view(3, 1, 1).expand(8, 3, 2, 2)
        episodes.append(5 + width * torch.cat([intervals, truth], dim=1))
    table = calibrate(episodes, 0.9)
    means = {name: values.mean(dim=0) for name, values in table.items()}
    torch.testing.assert_close(means["factor_90"], torch.tensor([1.0, 3.0]), rtol=0.1, atol=0)
    torch.testing.assert_close(means["calibrated_coverage_90"], torch.tensor([0.9, 0.9]), rtol=0, atol=0.025)
    torch.testing.assert_close(means["calibrated_width_90"], 5.5 * 3.29 * means["factor_90"], rtol=0.05, atol=0)
    assert calibrate(episodes[:1], 0.9) == {}


def test_an_episode_does_not_calibrate_its_own_intervals():
    """The truth of the second of two episodes is twice as far from the median as the end, that of the first inside."""
    near, far = (torch.tensor([-1.0, 0.0, 1.0, truth]).view(1, 4, 1, 1) for truth in (0.5, 2.0))
    table = calibrate([near, far], 0.5)
    assert table["calibrated_width_50"].flatten().tolist() == [4, 1]
    assert table["calibrated_coverage_50"].flatten().tolist() == [1, 0]


def test_objects_are_found_where_the_environment_draws_them():
    env = make_plain(PUSHING)
    states = env.sample_starts(np.random.default_rng(0), 8)
    pictures = np.stack([env.render_state(state) for state in states])
    blurred = [Image.fromarray(picture).resize((16, 16)).resize((64, 64)) for picture in pictures]
    for shown, error in ((pictures, 0.15), (np.stack(blurred), 1.0)):
        shown = torch.from_numpy(shown).movedim(-1, -3) / 255
        found = find_object(shown, list(PushingEnv.plain_colors[1]), 100.0)
        assert (found - torch.from_numpy(states[:, 2:]) * IMAGE_SIZE).norm(dim=-1).max() < error
    assert find_object(torch.full((2, 3, 8, 8), 0.9), [45.0, 90.0, 200.0], 100.0).isnan().all()


class Painter:
    """A decoder of latents that are states of pushing: paints every disc 3 pixels too far right, or only the floor."""

    env = make_plain(PUSHING)

    def decode_views(self, latents: torch.Tensor) -> torch.Tensor:
        shift = torch.tensor([3.0, 0.0]).repeat(2) / IMAGE_SIZE
        states = (latents[..., 0, :] + shift).numpy()
        blank = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 225, np.uint8)
        shown = [self.env.render_state(one) if one[0] < 1 else blank for one in states.reshape(-1, 4)]
        return torch.from_numpy(np.stack(shown)).movedim(-1, 1).reshape(*states.shape[:-1], 3, 64, 64) / 255


def test_objects_in_decoded_images_are_off_by_what_prediction_and_decoder_miss():
    """The block moves down by 4 pixels a step, is predicted to stay, and in the second window is not painted."""
    start = torch.tensor([0.1, 0.1, 0.5, 0.5])
    down = torch.tensor([0.0, 0.0, 0.0, 4 / IMAGE_SIZE])
    states = start + torch.arange(5.0).unsqueeze(1) * down
    states = torch.stack([states, states])  # (2 windows, 2 known and 3 future, 4)
    frames = np.stack([[Painter.env.render_state(one) for one in window] for window in states.numpy()])
    latents = states.unsqueeze(2)
    predicted = latents[:, 1:2].expand(-1, 3, -1, -1).clone()
    predicted[1, :, :, 0] = 2.0
    windows = Windows(
        latents[:, 1:2], latents[:, :2], latents[:, 2:], torch.zeros(2, 4, 2), None, states[:, 2:], None, frames
    )
    processor = VJepa2VideoProcessor(size=IMAGE_SIZE, crop_size=IMAGE_SIZE)
    images = decode_windows(Painter(), processor, windows, predicted)
    color, located = list(PushingEnv.plain_colors[1]), windows.states[..., [2, 3]] * IMAGE_SIZE
    measured = measure_object(images, "block", color, 100.0, located)

    steps = torch.tensor([1.0, 2.0, 3.0])
    exact = {"rtol": 0, "atol": 0.1}
    torch.testing.assert_close(measured["block_painted_px"][0], (9 + (4 * steps).square()).sqrt(), **exact)
    assert measured["block_painted_px"][1].isnan().all()
    torch.testing.assert_close(measured["block_decoder_px"], torch.full((2, 3), 3.0), **exact)
    torch.testing.assert_close(measured["block_copy_px"], (4 * steps).expand(2, 3), **exact)
    assert measured["block_locator_px"].max() < 0.1
    assert measured["block_not_painted"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert measured["block_not_decoded"].sum() == measured["block_not_seen"].sum() == 0
    assert image_strip(images, [1, 3]).shape == (3, 3, 3, 64, 64)  # the present and two horizons
    row = tabulate({"horizon": [3], "windows": 2}, {k: [v] for k, v in measured.items()})[0]
    assert row["block_painted_px"] == pytest.approx(153**0.5, abs=0.1) and row["block_not_painted"] == 0.5
