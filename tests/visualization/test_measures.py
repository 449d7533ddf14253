"""The numbers behind the pictures, on features made by hand and on small models."""

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2ForMaskedLatentPrediction
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig
from vjepa2_hf.masking import FutureMask, RandomFrameMask
from vjepa2_hf.visualization.measures import dense_features, feature_colors, loss_by_position, nearest_frames


def masked_model(**fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    config = MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **fields)
    return VJepa2ForMaskedLatentPrediction(config).eval()


def test_features_lie_in_their_places():
    torch.manual_seed(0)
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval()
    clip = torch.randn(1, 6, 3, 24, 32)
    features = dense_features(encoder, clip)
    assert features.shape == (3, 3, 4, 24) and not features.requires_grad
    assert torch.equal(features[1, 2, 3], encoder.encode(clip)[0, 1 * 12 + 2 * 4 + 3])


def test_colors_tell_features_apart_and_gray_means_unchanged():
    features = torch.zeros(4, 2, 2, 5)
    features[:, 0, 0] = torch.arange(5.0)
    (colors,) = feature_colors([features])
    assert colors.shape == (4, 2, 2, 3) and colors.min() >= 0 and colors.max() <= 1
    assert np.abs(colors[:, 0, 0] - colors[:, 1, 1]).max() > 0.9
    np.testing.assert_allclose(colors[0], colors[3])

    features = torch.zeros(4, 2, 2, 5)
    features[:, 0, 0, 1] = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    (changes,) = feature_colors([features], around_zero=True)
    np.testing.assert_allclose(changes[:, 1, 1], 0.5, atol=1e-6)
    assert np.abs(changes[0, 0, 0] - changes[1, 0, 0]).max() > 0.9
    assert feature_colors([torch.randn(2, 2, 2, 2)])[0].shape == (2, 2, 2, 3)  # narrower than three colors


def test_equal_features_of_several_clips_have_one_color():
    torch.manual_seed(0)
    first, second = torch.randn(3, 2, 2, 8), torch.randn(2, 4, 1, 8)
    second[1, 3, 0] = first[0, 1, 1]
    one, other = feature_colors([first, second])
    assert one.shape == (3, 2, 2, 3) and other.shape == (2, 4, 1, 3)
    np.testing.assert_allclose(other[1, 3, 0], one[0, 1, 1])
    alone = feature_colors([first])[0]
    assert np.abs(alone - one).max() > 0.05  # a basis of its own


def test_nearest_frames_come_in_order_of_their_distance():
    gallery = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    distances, places = nearest_frames(torch.tensor([[0.0, 0.9], [3.0, 1.0]]), gallery, k=3, metric="l2")
    assert places.tolist() == [[2, 0, 1], [1, 2, 0]]
    torch.testing.assert_close(distances[0], torch.tensor([0.1, 0.9, (9 + 0.81) ** 0.5]))


def test_cosine_is_of_latents_less_what_all_share():
    gallery = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 100
    distances, places = nearest_frames(torch.tensor([[103.0, 100.0]]), gallery, k=4)
    assert places[0, 0] == 0 and places[0, 3] == 1
    torch.testing.assert_close(distances[0], torch.tensor([0.0, 1.0, 1.0, 2.0]), atol=1e-5, rtol=0)


def test_of_each_group_the_nearest_alone_counts():
    gallery, query = torch.tensor([[0.0], [0.1], [2.0], [1.0]]), torch.tensor([[0.08]])
    groups = torch.tensor([7, 7, 8, 8])
    _, places = nearest_frames(query, gallery, k=2, metric="l2", groups=groups)
    assert places.tolist() == [[1, 3]]
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"{k} neighbors were requested; expected 1 to 2"):
            nearest_frames(query, gallery, k=k, groups=groups)
    with pytest.raises(ValueError, match="metric is 'dot'"):
        nearest_frames(query, gallery, k=1, metric="dot")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(wrong):
    features, gallery = torch.randn(2, 2, 2, 5), torch.randn(4, 5)
    features[1, 0, 0, 3] = gallery[2, 1] = wrong
    with pytest.raises(ValueError, match="features has 1 of 8 vectors that are not finite"):
        feature_colors([features])
    with pytest.raises(ValueError, match="gallery has 1 of 4 vectors"):
        nearest_frames(gallery[:1], gallery, k=1)
    with pytest.raises(ValueError, match="queries has 1 of 4 vectors"):
        nearest_frames(gallery, gallery[:1], k=1)


def test_features_of_any_dtype_are_taken():
    features = torch.randn(2, 2, 2, 5, dtype=torch.bfloat16, requires_grad=True)
    assert feature_colors([features])[0].shape == (2, 2, 2, 3)
    assert not nearest_frames(features[0, 0], features.flatten(0, 2), k=1)[0].requires_grad


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"loss_exponent": 2, "normalize_targets": "clip"}])
def test_loss_by_position_is_the_models_loss_told_by_place(fields):
    model, clips = masked_model(**fields), torch.randn(3, 8, 3, 16, 16)
    found = loss_by_position(model, clips, [FutureMask(0.5)], num_samples=2)
    context, target = FutureMask(0.5)(3, (4, 2, 2))
    assert found.count.tolist() == [[[0, 0], [0, 0]]] * 2 + [[[6, 6], [6, 6]]] * 2
    assert found.mean[:2].isnan().all()
    output = model(clips, context, target)
    torch.testing.assert_close(found.mean[2:].mean(), output.loss)
    by_token = model.latent_errors(output.predicted_latents[0], output.target_latents[0]).mean(0)
    torch.testing.assert_close(found.mean[2:].flatten(), by_token)


@torch.no_grad()
def test_loss_by_position_averages_over_sets_clips_and_draws():
    model, clips = masked_model(), torch.randn(2, 8, 3, 16, 16)
    samplers = [FutureMask(0.75), RandomFrameMask(0.5)]
    found = loss_by_position(model, clips, samplers, num_samples=3, seed=5)
    assert found.count.sum() == 2 * 3 * (4 + 8) and found.count[3].min() >= 6
    generator, sums = torch.Generator().manual_seed(5), torch.zeros(())
    for _ in range(3):
        masks = [sampler(2, (4, 2, 2), generator) for sampler in samplers]
        output = model(clips, [one for one, _ in masks], [other for _, other in masks])
        for predicted, target in zip(output.predicted_latents, output.target_latents, strict=True):
            sums += model.latent_errors(predicted, target).sum()
    torch.testing.assert_close((found.mean.nan_to_num() * found.count).sum(), sums)
    again = loss_by_position(model, clips, samplers, num_samples=3, seed=5)
    assert torch.equal(found.mean.nan_to_num(), again.mean.nan_to_num())
    with pytest.raises(ValueError, match="num_samples is 0"):
        loss_by_position(model, clips, samplers, num_samples=0)
