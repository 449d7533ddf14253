"""Anomaly errors are the training loss of the next tubelets; what calibration makes of them."""

import json
import math

import pytest
import torch
from builders import build_masked_latent, noise_pixels
from safetensors.torch import save, save_file

from vjepa2_hf.data.frame_source import FrameSource
from vjepa2_hf.pipelines.anomaly_scores import (
    CALIBRATION_FILE,
    Calibration,
    calibrate,
    change_statistics,
    measure_video,
    reversal_statistic,
    target_statistics,
    window_errors,
)


@pytest.fixture(scope="module")
def model():
    return build_masked_latent()


def windows_of(frames: torch.Tensor, size: int) -> torch.Tensor:
    return torch.stack([frames[first : first + size] for first in range(0, len(frames) - size + 1, 2)])


def masks(count: int, context: int, total: int, places: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(total * places).expand(count, -1)
    return ids[:, : context * places], ids[:, context * places :]


def errors_of(model, frames: torch.Tensor, *settings: int) -> torch.Tensor:
    """Errors (T', H', W') of a video; settings as in `measure_video`."""
    return measure_video(model, FrameSource(frames), *settings)["errors"]


class TestErrors:
    @pytest.mark.parametrize(
        "fields", [{}, {"loss_exponent": 2}, {"normalize_targets": "none"}, {"target_type": "pixels"}]
    )
    def test_are_the_training_loss_of_the_future(self, fields):
        model, windows = build_masked_latent(**fields), windows_of(noise_pixels(12), 8)
        with torch.no_grad():
            errors = window_errors(model, windows, context_steps=3)
            expected = model(windows, *masks(3, 3, 4), mask_token_index=0).loss
        assert errors.shape == (3, 1, 4) and torch.allclose(errors.mean(), expected, rtol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    @pytest.mark.parametrize("future", [2, 6])
    def test_of_a_video_are_means_over_the_windows_that_predicted(self, model, batch_size, future):
        frames, steps = noise_pixels(19), future // 2
        found = errors_of(model, frames, 4, future, batch_size)
        by_window = window_errors(model, windows_of(frames, 4 + future), 2).detach()  # (W, f, P)
        assert found.shape == (9, 2, 2) and found[:2].isnan().all() and not found[2:].isnan().any()
        for step in range(2, 9):
            said = [by_window[step - 2 - h, h] for h in range(steps) if 0 <= step - 2 - h < len(by_window)]
            assert torch.allclose(found[step].flatten(), torch.stack(said).mean(dim=0), rtol=1e-4)

    def test_only_what_comes_later_can_change_them(self, model):
        changed = noise_pixels(20).clone()
        changed[12:] += 3
        one, two = (errors_of(model, frames, 4, 2) for frames in (noise_pixels(20), changed))
        assert torch.allclose(one[2:6], two[2:6], rtol=1e-4) and not torch.allclose(one[6], two[6], rtol=1e-2)

    def test_a_video_shorter_than_a_window_is_refused(self, model):
        with pytest.raises(ValueError, match="the video has 5 frames; expected at least the 6 of context and future"):
            errors_of(model, noise_pixels(5), 4, 2)

    @pytest.mark.parametrize("normalize", ["batch", "batch_channel", "clip"])
    def test_statistics_of_a_batch_normalise_it_as_the_model_does(self, normalize):
        model, windows = build_masked_latent(normalize_targets=normalize), windows_of(noise_pixels(24), 8)
        statistics = target_statistics(model, windows.split(4))
        targets = model.encode_targets(windows)
        assert torch.allclose(statistics.normalize(targets), model.normalize_targets(targets), atol=2e-3)
        half = targets.bfloat16()  # of a model in bfloat16: they are standardized in float32
        assert torch.equal(statistics.normalize(half), statistics.normalize(half.float()))
        with torch.no_grad(), pytest.raises(ValueError, match="calibrate on normal video first"):
            window_errors(model, windows, 3)


class TestCalibration:
    @pytest.mark.parametrize("two_sided", [True, False])
    def test_errors_below_what_is_normal_count_if_both_sides_do(self, two_sided):
        settings = {"top_fraction": 0.5, "two_sided": two_sided}
        normal = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
        found = calibrate([normal], 0.9, settings)
        high, low = (found.scores(torch.full((1, 2, 2), value)).item() for value in (9.0, 0.1))
        assert high > found.threshold and (low > found.threshold) == two_sided
        assert (found.scores(normal) > found.threshold).float().mean().item() == pytest.approx(0.1, abs=0.03)

    def test_normal_video_in_which_nothing_varies_is_refused(self):
        with pytest.raises(ValueError, match=r"rise_std=0\.0; expected errors above 0 that vary"):
            calibrate([torch.ones(9, 2, 2)], 0.9, {"top_fraction": 0.5, "two_sided": True})

    def test_none_where_none_was_saved_and_one_of_another_version_is_refused(self, tmp_path):
        assert Calibration.load(tmp_path) is None
        settings = {"top_fraction": 0.5, "two_sided": True}
        found = calibrate([torch.rand(9, 2, 2) + 1], 0.9, settings)
        found.save(tmp_path)
        loaded = Calibration.load(tmp_path)
        numbers = {name: getattr(found, name) for name in ("rise_mean", "rise_std", "fall_mean", "threshold")}
        assert all(getattr(loaded, name) == value for name, value in numbers.items()) and loaded.settings == settings
        assert torch.equal(loaded.position_mean, found.position_mean) and torch.equal(
            loaded.position_std, found.position_std
        )
        save_file({"none": torch.empty(0)}, tmp_path / CALIBRATION_FILE, metadata={"calibration": json.dumps(numbers)})
        with pytest.raises(ValueError, match="was saved by another version; calibrate again"):
            Calibration.load(tmp_path)
        for content in (b"half", save({"none": torch.empty(0)})):
            (tmp_path / CALIBRATION_FILE).write_bytes(content)
            with pytest.raises(ValueError, match="is damaged .*: remove it, and calibrate again"):
                Calibration.load(tmp_path)

    def test_places_that_are_always_hard_do_not_hide_a_change_elsewhere(self):
        normal = torch.rand(50, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
        normal[:, 0] *= 100  # a row that nobody can predict
        found = calibrate([normal], 1.0, {"top_fraction": 0.1, "two_sided": False})
        changed = normal.clone()
        changed[20, 3, 3:] *= 5
        above = (found.scores(changed) > found.threshold).nonzero().flatten()
        assert above.tolist() == [20]

    def test_another_grid_is_refused(self):
        found = calibrate([torch.rand(9, 2, 2) + 1], 0.9, {"top_fraction": 0.5, "two_sided": True})
        with pytest.raises(
            ValueError, match=r"a grid of \(2, 3\) positions, but the detector was calibrated on \(2, 2\)"
        ):
            found.scores(torch.ones(4, 2, 3))
        with pytest.raises(ValueError, match=r"normal videos have grids of \[\(2, 2\), \(2, 3\)\] positions"):
            calibrate([torch.ones(9, 2, 2), torch.ones(9, 2, 3)], 0.9, {"top_fraction": 0.5, "two_sided": True})

    def test_one_saved_under_the_names_of_0_1_loads(self, tmp_path, caplog):
        found = calibrate([torch.rand(9, 2, 2) + 1], 0.9, {"top_fraction": 0.5, "two_sided": True})
        names = ("rise_mean", "rise_std", "fall_mean", "fall_std", "threshold")
        numbers = {name: getattr(found, name) for name in names}
        numbers["settings"] = {"top_share": 0.5, "two_sided": True}
        tensors = {"place_mean": found.position_mean, "place_std": found.position_std}
        save_file(tensors, tmp_path / CALIBRATION_FILE, metadata={"calibration": json.dumps(numbers)})
        loaded = Calibration.load(tmp_path)
        assert loaded.settings == found.settings and torch.equal(loaded.position_mean, found.position_mean)
        errors = torch.rand(5, 2, 2) + 1
        assert torch.equal(loaded.scores(errors), found.scores(errors))
        Calibration.load(tmp_path)
        assert caplog.text.count("'top_share' is now called 'top_fraction'") == 1


class TestNamedScores:
    SETTINGS = {"top_fraction": 0.5, "two_sided": True, "scores": ["error", "change", "reversal"]}

    def normal(self, steps: int = 60) -> torch.Tensor:
        errors = torch.rand(steps, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
        errors[:3] = float("nan")
        return errors

    def fit(self, factor: float = 1.2) -> Calibration:
        noise = 1 + 0.01 * torch.rand(60, 2, 2, generator=torch.Generator().manual_seed(1))
        backward = (self.normal().nan_to_num(1.5) / factor * noise).clone()
        backward[-3:] = float("nan")
        return calibrate([self.normal()], 0.99, self.SETTINGS, [backward])

    def test_change_is_that_of_the_log_errors(self):
        errors = torch.tensor([math.nan, 1.0, math.e, math.e, 0.0])[:, None, None].expand(-1, 2, 2)
        mean, quartile = change_statistics(errors)
        assert mean[:2].isnan().all() and torch.allclose(mean[2], quartile[2])
        assert mean[2].item() == pytest.approx(0, abs=1e-5)  # log of a change of 1
        assert mean[3].item() == pytest.approx(math.log(1e-6)) and torch.isfinite(mean[4])

    @pytest.mark.parametrize(("first", "last"), [(3, 20), (20, 37), (41, 60)])
    def test_change_finds_constant_errors_also_at_the_borders_and_over_odd_lengths(self, first, last):
        found, errors = self.fit(), self.normal()
        errors[first:last] = errors[first].clone()
        scores = found.change_scores(errors)
        assert scores[:4].isnan().all() and torch.isfinite(scores[4:]).all()
        assert (scores[first + 1 : last] > found.thresholds["change"]).all()
        assert (found.scores(errors)[first + 1 : last] < found.threshold).float().mean() > 0.9

    def test_change_finds_errors_that_jump(self):
        found, errors = self.fit(), self.normal()
        errors[30] *= 20
        above = (found.change_scores(errors) > found.thresholds["change"]).nonzero().flatten().tolist()
        assert {30, 31} <= set(above)

    @pytest.mark.parametrize("factor", [1.2, 1 / 1.2])
    def test_reversal_is_high_where_the_directions_are_swapped(self, factor):
        found, errors = self.fit(factor), self.normal()
        backward = errors / factor
        assert found.reversal_mean == pytest.approx(math.log(factor), abs=0.01)
        assert reversal_statistic(errors, backward)[10].item() == pytest.approx(math.log(factor), rel=1e-4)
        normal, swapped = found.reversal_scores(errors, backward), found.reversal_scores(backward, errors)
        assert normal[:3].isnan().all()
        assert (swapped[3:] > found.thresholds["reversal"]).all() and (swapped[3:] > normal[3:] + 3).all()

    def test_they_are_saved_and_those_that_were_not_calibrated_are_refused(self, tmp_path):
        found, errors = self.fit(), self.normal()
        found.save(tmp_path)
        loaded = Calibration.load(tmp_path)
        assert torch.equal(loaded.change_scores(errors)[4:], found.change_scores(errors)[4:])
        assert loaded.thresholds == found.thresholds and loaded.reversal_std == found.reversal_std
        old = calibrate([errors], 0.99, {"top_fraction": 0.5, "two_sided": True})
        assert torch.equal(old.scores(errors)[3:], found.scores(errors)[3:])
        for name in ("change", "reversal"):
            with pytest.raises(ValueError, match=f'calibrated without "{name}": calibrate with scores='):
                old.named_scores(name, errors, errors)
        with pytest.raises(ValueError, match='"reversal" needs `backward`'):
            calibrate([errors], 0.99, self.SETTINGS)
        with pytest.raises(ValueError, match=r'0 time steps for the score "change".*give more video with motion'):
            calibrate([errors[step : step + 1] for step in (3, 4, 5)], 0.99, {**self.SETTINGS, "scores": ["change"]})

    @pytest.mark.parametrize("future", [2, 4])
    def test_backward_errors_are_those_of_the_reversed_video(self, model, future):
        frames = noise_pixels(18)
        found = measure_video(model, FrameSource(frames), 4, future, 3, scores=("reversal",))
        assert torch.equal(found["errors"][2:], errors_of(model, frames, 4, future, 3)[2:])
        of_reversed, backward = errors_of(model, frames.flip(0), 4, future).flip(0), found["backward"]
        assert backward[-2:].isnan().all() and torch.allclose(backward[:-2], of_reversed[:-2], rtol=1e-4)
