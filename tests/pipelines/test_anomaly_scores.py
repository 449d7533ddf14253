"""Anomaly errors are the training loss of the next tubelets; what calibration makes of them."""

import json

import pytest
import torch
from builders import build_masked_latent, noise_pixels
from safetensors.torch import save, save_file

from vjepa2_hf.data.frame_source import FrameSource
from vjepa2_hf.pipelines.anomaly_scores import (
    CALIBRATION_FILE,
    Calibration,
    calibrate,
    prediction_errors,
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
        found = prediction_errors(model, FrameSource(frames), 4, future, batch_size)
        by_window = window_errors(model, windows_of(frames, 4 + future), 2).detach()  # (W, f, P)
        assert found.shape == (9, 2, 2) and found[:2].isnan().all() and not found[2:].isnan().any()
        for step in range(2, 9):
            said = [by_window[step - 2 - h, h] for h in range(steps) if 0 <= step - 2 - h < len(by_window)]
            assert torch.allclose(found[step].flatten(), torch.stack(said).mean(dim=0), rtol=1e-4)

    def test_only_what_comes_later_can_change_them(self, model):
        changed = noise_pixels(20).clone()
        changed[12:] += 3
        one, two = (prediction_errors(model, FrameSource(frames), 4, 2) for frames in (noise_pixels(20), changed))
        assert torch.allclose(one[2:6], two[2:6], rtol=1e-4) and not torch.allclose(one[6], two[6], rtol=1e-2)

    def test_a_video_shorter_than_a_window_is_refused(self, model):
        with pytest.raises(ValueError, match="the video has 5 frames; expected at least the 6 of context and future"):
            prediction_errors(model, FrameSource(noise_pixels(5)), 4, 2)

    @pytest.mark.parametrize("normalize", ["batch", "batch_channel", "clip"])
    def test_statistics_of_a_batch_normalise_it_as_the_model_does(self, normalize):
        model, windows = build_masked_latent(normalize_targets=normalize), windows_of(noise_pixels(24), 8)
        statistics = target_statistics(model, windows.split(4))
        targets = model.encode_targets(windows)
        assert torch.allclose(statistics.normalize(targets), model.normalize_targets(targets), atol=2e-3)
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
