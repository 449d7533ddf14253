"""Masked latent prediction against the published code, its formulas on numbers made by hand, meters and folders."""

import json

import pytest
import torch
from builders import (
    ENCODER,
    PREDICTOR,
    TINY_ENCODER,
    TINY_PREDICTOR,
    TOLERANCE,
    clips,
    golden,
    our_names,
    same_weights,
    spread,
)

from vjepa2_hf import VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig
from vjepa2_hf.modeling_masked_latent import tubelet_pixels
from vjepa2_hf.modeling_masked_losses import (
    collapse_meters,
    covariance_at_positions,
    covariance_loss,
    temporal_contrastive_loss,
    variance_loss,
)


CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])


def build(**fields):
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **{**TINY_PREDICTOR, **fields})
    return VJepa2ForMaskedLatentPrediction(config)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return spread(build().eval())


@pytest.fixture(scope="module")
def published():
    model = VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig(encoder_config=ENCODER, **PREDICTOR))
    for name in ("encoder", "target_encoder", "predictor"):
        getattr(model, name).load_state_dict(our_names(golden("masked_latent"), f"{name}/"))
    return model.eval()


class TestPublished:
    @torch.no_grad()
    @pytest.mark.parametrize("exponent", [1, 2])
    def test_predictions_and_loss(self, published, exponent, monkeypatch):
        data = golden("masked_latent")
        monkeypatch.setattr(published.config, "loss_exponent", exponent)
        masks = ([data[f"out/{kind}_mask_{i}"] for i in range(2)] for kind in ("context", "target"))
        output = published(data["pixel_values"].transpose(1, 2), *masks)
        for i, predicted in enumerate(output.predicted_latents):
            torch.testing.assert_close(predicted, data[f"out/prediction_{i}"], **TOLERANCE)
        torch.testing.assert_close(output.loss, data[f"loss_{exponent}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(output.mask_losses.mean(), output.loss)

    @torch.no_grad()
    def test_mask_token_is_an_argument(self, published):
        data = golden("masked_latent")
        video = data["pixel_values"].transpose(1, 2)
        masks = data["out/context_mask_1"], data["out/target_mask_1"]
        with_token_1 = published(video, *masks, mask_token_index=1).predicted_latents[0]
        torch.testing.assert_close(with_token_1, data["out/prediction_1"], **TOLERANCE)
        with_token_0 = published(video, *masks).predicted_latents[0]
        assert (with_token_0 - data["out/prediction_1"]).abs().max() > 1e-3


class TestForward:
    @torch.no_grad()
    def test_one_mask_set_is_a_tensor_and_several_are_a_list(self, model):
        one = model(clips(), CONTEXT, TARGET)
        assert [tuple(p.shape) for p in one.predicted_latents] == [(2, 3, 24)] and one.target_std is None
        two = model(clips(), [CONTEXT, CONTEXT[:, :2]], [TARGET, TARGET[:, :1]])
        assert [tuple(z.shape) for z in two.target_latents] == [(2, 3, 24), (2, 1, 24)]
        torch.testing.assert_close(two.loss, two.mask_losses.mean())
        torch.testing.assert_close(two.mask_losses[0], one.loss)

    @torch.no_grad()
    def test_targets_are_the_target_encoders_of_the_whole_clip(self, model):
        targets = torch.nn.functional.layer_norm(model.target_encoder(clips()).last_hidden_state, (24,))
        expected = torch.stack([row[ids] for row, ids in zip(targets, TARGET)])
        torch.testing.assert_close(model(clips(), CONTEXT, TARGET).target_latents[0], expected)

    @torch.no_grad()
    def test_predictions_depend_on_the_position_asked_for_and_not_on_the_order(self, model):
        predicted = model(clips(), CONTEXT, TARGET).predicted_latents[0]
        assert (predicted[:, 0] - predicted[:, 1]).abs().max() > 1e-4
        other = model(clips(), CONTEXT.flip(1), TARGET.flip(1)).predicted_latents[0]
        torch.testing.assert_close(other.flip(1), predicted, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_predictions_never_see_targets(self, model):
        """Only the pixels of the context's tokens reach the predictions."""
        video = clips(batch_size=1)
        changed = torch.randn(video.shape, generator=torch.Generator().manual_seed(3))
        changed[:, :2, :, :8, :8] = video[:, :2, :, :8, :8]  # token 0
        masks = torch.tensor([[0]]), torch.tensor([[1, 20]])
        one, two = model(video, *masks), model(changed, *masks)
        assert torch.equal(one.predicted_latents[0], two.predicted_latents[0])
        assert not torch.equal(one.target_latents[0], two.target_latents[0])

    @pytest.mark.parametrize(
        ("context", "target", "message"),
        [
            (CONTEXT, None, "both required"),
            ([CONTEXT], [TARGET, TARGET], "1 context masks and 2 target masks"),
            ([], [], "0 context masks"),
            (CONTEXT, TARGET + 100, "target_mask holds ids from 100 to 130; the clip has tokens 0 to 31"),
            (CONTEXT[:1], TARGET, r"context_mask has shape \(1, 5\)"),
        ],
    )
    def test_wrong_masks_are_refused(self, model, context, target, message):
        with pytest.raises(ValueError, match=message):
            model(clips(), context, target)


class TestPredictorStart:
    def test_query_and_key_biases_start_where_they_are_told_and_load_as_they_were_saved(self, tmp_path):
        model = build(predictor_query_key_bias=2.0)
        for layer in model.predictor.layer:
            query, key, value = layer.attention.qkv.bias.chunk(3)
            assert (query == 2).all() and (key == 2).all() and (value == 0).all()
        assert all((layer.attention.qkv.bias == 0).all() for layer in model.encoder.layer)
        with torch.no_grad():
            model.predictor.layer[0].attention.qkv.bias.add_(1)
        model.save_pretrained(tmp_path)
        loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path)
        assert torch.equal(loaded.predictor.layer[0].attention.qkv.bias, model.predictor.layer[0].attention.qkv.bias)

    def test_without_biases_it_is_refused(self):
        with pytest.raises(ValueError, match="predictor_query_key_bias=2.0 needs biases"):
            sizes = {"encoder_config": {**TINY_ENCODER, "qkv_bias": False}, **TINY_PREDICTOR}
            VJepa2MaskedLatentPredictionConfig(**sizes, predictor_query_key_bias=2.0)


class TestLoss:
    @pytest.mark.parametrize(("exponent", "expected"), [(1, (1 + 2 + 0 + 3) / 4), (2, (1 + 4 + 0 + 9) / 4 / 2)])
    def test_four_numbers_by_hand(self, exponent, expected):
        model = build(loss_exponent=exponent)
        predicted = torch.tensor([1.0, 2.0, 0.5, -1.0]).view(1, 2, 2)
        target = torch.tensor([0.0, 4.0, 0.5, 2.0]).view(1, 2, 2)
        assert model.latent_loss(predicted, target).item() == pytest.approx(expected)
        by_token = [[1.5, 1.5]] if exponent == 1 else [[(1 + 4) / 2 / 2, (0 + 9) / 2 / 2]]
        assert model.latent_errors(predicted, target).tolist() == by_token

    def test_layer_normalization_of_targets(self):
        targets = torch.tensor([[[1.0, 3.0], [0.0, 10.0]]])
        normal = build().normalize_targets(targets)
        torch.testing.assert_close(normal, torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]]), atol=1e-4, rtol=0)

    def test_batch_normalization_of_targets(self):
        model = build(normalize_targets="batch")
        targets = torch.randn(64, 3, 5) * 4 + 7
        normal = model.normalize_targets(targets)
        torch.testing.assert_close(normal.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std(0), torch.ones(3, 5), atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match="needs at least 2 clips in a batch; got 1"):
            model.normalize_targets(targets[:1])

    def test_batch_channel_normalization_leaves_places_their_own_deviation(self):
        model = build(normalize_targets="batch_channel")
        positions = torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1)
        normal = model.normalize_targets(torch.randn(64, 3, 5) * positions + 7 * positions)
        torch.testing.assert_close(normal.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std((0, 1)), torch.ones(5), atol=1e-4, rtol=0)
        assert (normal[:, 2].std(0) > 50 * normal[:, 0].std(0)).all()
        with pytest.raises(ValueError, match="'batch_channel' needs at least 2 clips"):
            model.normalize_targets(torch.randn(1, 3, 5))

    def test_clip_normalization_says_nothing_of_what_a_clip_shows_everywhere(self):
        model = build(normalize_targets="clip")
        targets = torch.randn(64, 3, 5) * 4 + 7
        normal = model.normalize_targets(targets)
        torch.testing.assert_close(normal.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.mean(1), torch.zeros(64, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std((0, 1)), torch.ones(5), atol=1e-4, rtol=0)
        appearance = torch.randn(64, 1, 5) * 100
        torch.testing.assert_close(model.normalize_targets(targets + appearance), normal, atol=1e-3, rtol=0)
        with pytest.raises(ValueError, match="'clip' needs at least 2 clips"):
            model.normalize_targets(targets[:1])

    def test_no_normalization_of_targets(self):
        targets = torch.randn(2, 3, 5)
        assert build(normalize_targets="none").normalize_targets(targets) is targets


SHARED = torch.tensor([[0, 1, 5, 17, 29], [2, 3, 5, 17, 29]])  # a context in which clips show the same positions
WEIGHTS = {
    "temporal_diversity_weight": 0.1,
    "temporal_contrastive_weight": 0.2,
    "variance_weight": 0.3,
    "covariance_weight": 0.4,
}


class TestAuxiliaryLosses:
    def test_none_is_computed_by_default(self, model, monkeypatch):
        monkeypatch.setattr("vjepa2_hf.modeling_masked_latent.auxiliary_losses", None)
        output = model(clips(), SHARED, TARGET)
        assert output.losses is None and torch.equal(output.loss, output.mask_losses.mean())

    def test_loss_is_the_weighted_sum_of_the_named_terms(self):
        torch.manual_seed(0)
        model = spread(build(loss_exponent=2, **WEIGHTS)).train()
        masks = [SHARED, SHARED[:, 2:]], [TARGET, TARGET]
        output = model(clips(), *masks)
        names = [name.removesuffix("_weight") for name in WEIGHTS]
        assert list(output.losses) == ["prediction", *names]
        assert not any(term.requires_grad for term in output.losses.values()) and output.loss.requires_grad
        torch.testing.assert_close(output.losses["prediction"], output.mask_losses.mean())
        weights = {"prediction": 1.0, **{name: WEIGHTS[f"{name}_weight"] for name in names}}
        expected = sum(weights[name] * term for name, term in output.losses.items())
        torch.testing.assert_close(output.loss.detach(), expected)

    @torch.no_grad()
    def test_terms_act_on_the_tokens_they_say_and_are_means_over_mask_sets(self):
        torch.manual_seed(0)
        model = spread(build(loss_exponent=2, **WEIGHTS, variance_margin=0.7, temporal_contrastive_temperature=0.3))
        contexts, targets = [SHARED, SHARED[:, 2:]], [TARGET, TARGET]
        output = model(clips(), contexts, targets)
        covariances = [
            covariance_at_positions(model.encoder(clips(), context_mask=ids).last_hidden_state, ids, 32)
            for ids in contexts
        ]
        expected = {
            "temporal_contrastive": [
                temporal_contrastive_loss(p, z, 0.3)
                for p, z in zip(output.predicted_latents, output.target_latents, strict=True)
            ],
            "variance": [variance_loss(covariance, 0.7) for covariance in covariances],
            "covariance": [covariance_loss(covariance) for covariance in covariances],
        }
        for name, values in expected.items():
            torch.testing.assert_close(output.losses[name], sum(values) / 2)

    @pytest.mark.parametrize("weight", WEIGHTS)
    def test_one_term_alone(self, weight):
        output = build(loss_exponent=2, **{weight: 0.1})(clips(), SHARED, TARGET)
        assert list(output.losses) == ["prediction", weight.removesuffix("_weight")]

    @pytest.mark.parametrize("weight", ["variance_weight", "covariance_weight"])
    def test_variance_and_covariance_reach_the_encoder_and_not_the_predictor(self, weight):
        torch.manual_seed(0)
        model = spread(build(**{weight: 1.0})).train()
        output = model(clips(), SHARED, TARGET)
        prediction = model.latent_loss(output.predicted_latents[0], output.target_latents[0])
        (output.loss - prediction).backward()
        assert model.encoder.layernorm.weight.grad.abs().max() > 0
        assert model.predictor.proj.weight.grad.abs().max() < 1e-6

    @pytest.mark.parametrize("weight", ["temporal_contrastive_weight", "variance_weight", "covariance_weight"])
    def test_one_clip_cannot_be_compared(self, weight):
        with pytest.raises(ValueError, match=f"{weight}=0.5 needs at least 2 clips in a batch to compare; got 1"):
            build(**{weight: 0.5})(clips(batch_size=1), SHARED[:1], TARGET[:1])

    def test_terms_are_float32_under_autocast(self):
        torch.manual_seed(0)
        model = spread(build(loss_exponent=2, **WEIGHTS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(clips(), SHARED, TARGET)
        assert {term.dtype for term in output.losses.values()} == {torch.float32}
        exact = model(clips(), SHARED, TARGET).losses
        for name, term in output.losses.items():
            torch.testing.assert_close(term, exact[name], atol=2e-2, rtol=5e-2)

    def test_diversity_under_the_absolute_loss_warns(self):
        with pytest.warns(UserWarning, match="temporal_diversity_weight=0.1 with loss_exponent=1 has no minimum"):
            build(temporal_diversity_weight=0.1)


class TestPixelTargets:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return spread(build(target_type="pixels"))

    def test_pixels_stand_in_the_encoders_order_of_tokens(self):
        """A patch of numbers of its own shows up at its token's id, whole."""
        config = build().config.encoder_config
        video = torch.zeros(1, 4, 3, 16, 24)
        video[:, 2:4, :, 8:16, 16:24] = torch.arange(2 * 3 * 64, dtype=torch.float32).view(2, 3, 8, 8) + 1
        pixels = tubelet_pixels(config, video)
        assert pixels.shape == (1, 12, 3 * 2 * 64)
        assert pixels.sum(-1).nonzero().tolist() == [[0, 11]]  # (1 · 2 + 1) · 3 + 2
        assert sorted(pixels[0, 11].tolist()) == list(range(1, 385))

    def test_a_linear_map_of_them_is_the_patch_embedding(self):
        encoder = spread(build()).encoder
        weight, bias = encoder.patch_embeddings.proj.weight, encoder.patch_embeddings.proj.bias
        for frames in (4, 1):
            pixels = tubelet_pixels(encoder.config, clips(frames))
            expected = encoder.patch_embeddings(clips(frames))
            torch.testing.assert_close(torch.nn.functional.linear(pixels, weight.flatten(1), bias), expected)

    def test_targets_are_each_hidden_tubelets_pixels_standardized(self, model):
        output = model(clips(), CONTEXT, TARGET)
        assert output.predicted_latents[0].shape == output.target_latents[0].shape == (2, 3, 384)
        # token 18 is frames 2 and 3, row 0, column 2
        patch = clips()[0, 2:4, :, 0:8, 16:24].flatten()
        expected = (patch - patch.mean()) / patch.std()
        found = output.target_latents[0][0, 2]
        torch.testing.assert_close(found.sort().values, expected.sort().values, atol=1e-2, rtol=0)
        assert found.mean().abs() < 1e-6

    def test_the_target_encoder_is_not_called_but_for_meters(self, model, monkeypatch):
        calls = []
        model.target_encoder.register_forward_hook(lambda *_: calls.append(1))
        model(clips(), CONTEXT, TARGET)
        assert not calls
        output = model(clips(), CONTEXT, TARGET, output_meters=True)
        assert len(calls) == 1 and output.effective_rank <= 24  # of the latents, not of the pixels

    def test_the_target_encoder_still_follows(self, model):
        model.update_target_encoder(0.0)
        assert same_weights(model.encoder, model.target_encoder)

    def test_a_folder_loads_back_with_its_encoder(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert same_weights(VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path), model)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.target_encoder)
        with pytest.raises(ValueError, match="predictor.proj.*config and weights are of different models"):
            VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path, target_type="ema")

    def test_the_future_comes_as_pixels_all_at_once(self, model):
        assert model.predict_future(clips(), 4).shape == (2, 2, 16, 384)
        with pytest.raises(ValueError, match="autoregressive=True needs predicted latents"):
            model.predict_future(clips(), 4, autoregressive=True)


class TestOnlineTarget:
    def test_warns_that_it_collapses(self):
        with pytest.warns(UserWarning, match="target_type='online' .* tends to collapse"):
            build(target_type="online")

    @pytest.mark.filterwarnings("ignore:target_type='online'")
    def test_target_is_the_encoder_after_every_update(self):
        torch.manual_seed(0)
        model = spread(build(target_type="online"))
        assert not same_weights(model.encoder, model.target_encoder)
        model.update_target_encoder(0.999)
        assert same_weights(model.encoder, model.target_encoder)
        model.train()(clips(), CONTEXT, TARGET).loss.backward()
        assert all(parameter.grad is None for parameter in model.target_encoder.parameters())


class TestTargetEncoder:
    def test_starts_as_a_copy_without_gradient(self):
        model = build()
        assert same_weights(model.encoder, model.target_encoder)
        assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())
        assert not model.train().target_encoder.training and model.encoder.training

    def test_moves_by_the_ema_formula_in_place(self, model):
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        positions = [parameter.data_ptr() for parameter in model.target_encoder.parameters()]
        model.update_target_encoder(0.9)
        for old, target, online in zip(before, model.target_encoder.parameters(), model.encoder.parameters()):
            torch.testing.assert_close(target, 0.9 * old + 0.1 * online)
            assert target.grad is None and not target.requires_grad
        assert positions == [parameter.data_ptr() for parameter in model.target_encoder.parameters()]

    def test_momentum_one_keeps_and_zero_copies(self, model):
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        model.update_target_encoder(1.0)
        assert all(torch.equal(old, new) for old, new in zip(before, model.target_encoder.parameters()))
        model.update_target_encoder(0.0)
        assert same_weights(model.encoder, model.target_encoder)


class TestGradients:
    @pytest.mark.filterwarnings("ignore:target_type='online'")
    @pytest.mark.parametrize(
        "fields",
        [{}, {"target_type": "pixels"}, {"target_type": "online"}, {"loss_exponent": 2, **WEIGHTS}],
        ids=["default", "pixels", "online", "all terms"],
    )
    def test_reach_every_trained_parameter_and_no_other(self, fields):
        """A trained parameter without gradient would stop DistributedDataParallel."""
        model = build(**fields).train()
        model(clips(), CONTEXT, TARGET).loss.backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == {name for name, _ in model.named_parameters() if name.startswith("target_encoder.")}

    def test_checkpointing_gives_the_same(self, model):
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            model.train().zero_grad()
            model(clips(), [CONTEXT, CONTEXT[:, :3]], [TARGET, TARGET]).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)

    @pytest.mark.parametrize("fields", [{}, {"loss_exponent": 2, **WEIGHTS}], ids=["default", "all terms"])
    def test_backward_after_each_mask_set_gives_the_same(self, fields, monkeypatch):
        torch.manual_seed(0)
        model = spread(build(**fields).train())
        contexts, hidden = [CONTEXT, CONTEXT[:, :3]], [TARGET, TARGET[:, :2]]
        whole = model(clips(), contexts, hidden)
        whole.loss.backward()
        expected = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        model.zero_grad()

        first = model(clips(), contexts[0], hidden[0], 0, output_targets=True)
        assert whole.targets is None and not first.targets.requires_grad
        monkeypatch.setattr(model.target_encoder, "forward", None)  # not called again
        second = model(clips(), contexts[1], hidden[1], 1, targets=first.targets)
        for output in (first, second):
            (output.loss / 2).backward()
        torch.testing.assert_close((first.loss + second.loss) / 2, whole.loss)
        for parameter, gradient in zip([p for p in model.parameters() if p.requires_grad], expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)

    def test_targets_of_other_clips_are_refused(self, model):
        with pytest.raises(ValueError, match=r"targets have shape \(2, 7, 24\); expected \(2, 32, 24\)"):
            model(clips(), CONTEXT, TARGET, targets=torch.zeros(2, 7, 24))

    def test_a_few_steps_lower_the_loss(self):
        torch.manual_seed(0)
        model = build().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(15):
            loss = model(clips(), CONTEXT, TARGET).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]


class TestMeters:
    GRID, MASK = (4, 1, 2), torch.arange(8).repeat(6, 1)

    def meters(self, targets, predicted=None):
        meters = collapse_meters(targets, targets if predicted is None else predicted, self.MASK, self.GRID)
        return {name: value.item() for name, value in meters.items()}

    def test_collapsed_to_a_point(self):
        meters = self.meters(torch.ones(6, 8, 16))
        assert meters["target_std"] == 0 and meters["prediction_variation"] == 0
        assert meters["effective_rank"] < 1.01

    def test_collapsed_to_a_line(self):
        line = torch.randn(6, 8, 1) * torch.randn(16)
        assert self.meters(line)["effective_rank"] == pytest.approx(1, abs=0.01)

    def test_not_collapsed(self):
        generator = torch.Generator().manual_seed(0)
        meters = self.meters(torch.randn(6, 8, 16, generator=generator))
        assert meters["target_std"] == pytest.approx(1, abs=0.1)
        assert 12 < meters["effective_rank"] <= 16
        assert 0.7 < meters["prediction_variation"] < 1

    def test_collapsed_over_the_batch_alone(self):
        meters = self.meters(torch.randn(1, 8, 16).repeat(6, 1, 1))
        assert meters["target_std"] < 1e-6 and meters["prediction_variation"] > 0.5

    def test_predictions_that_stand_still(self):
        targets = torch.randn(6, 8, 16)
        still = torch.randn(6, 1, 2, 16).repeat(1, 4, 1, 1).flatten(1, 2)
        assert self.meters(targets, still)["prediction_variation"] < 1e-6
        moving = torch.tensor([0.0, 2.0, 0.0, 2.0]).view(1, 4, 1, 1).expand(6, 4, 2, 16).flatten(1, 2)
        assert self.meters(targets, moving)["prediction_variation"] == pytest.approx(1, abs=1e-5)

    def test_places_asked_for_once_do_not_count(self):
        predicted = torch.tensor([0.0, 2.0, 5.0]).view(1, 3, 1).expand(6, 3, 16)
        mask = torch.tensor([[0, 2, 3]]).repeat(6, 1)  # position 0 at two times, position 1 once
        meters = collapse_meters(torch.randn(6, 8, 16), predicted, mask, self.GRID)
        assert meters["prediction_variation"].item() == pytest.approx(1, abs=1e-5)

    @torch.no_grad()
    def test_on_request_from_forward(self, model):
        output = model(clips(), CONTEXT, TARGET, output_meters=True)
        raw = model.encode_targets(clips())
        torch.testing.assert_close(output.target_std, raw.std(dim=0).mean())
        assert 1 <= output.effective_rank <= 24 and output.prediction_variation.isfinite()


class TestFuture:
    def test_shapes(self, model):
        for autoregressive in (False, True):
            future = model.predict_future(clips(4, 16, 24), 6, autoregressive)
            assert future.shape == (2, 3, 6, 24) and not future.requires_grad

    @torch.no_grad()
    def test_one_step_is_the_predictor_call(self, model):
        context = model.encoder(clips()).last_hidden_state
        ids = torch.arange(48).repeat(2, 1)
        expected = model.predictor(context, ids[:, :32], ids[:, 32:], (3, 4, 4), 0)
        for autoregressive in (False, True):
            assert torch.equal(model.predict_future(clips(), 2, autoregressive)[:, 0], expected)

    @torch.no_grad()
    def test_autoregressive_steps_feed_on_each_other(self, model):
        context = model.encoder(clips()).last_hidden_state
        ids = torch.arange(64).repeat(2, 1)
        first = model.predictor(context, ids[:, :32], ids[:, 32:48], (3, 4, 4), 0)
        second = model.predictor(torch.cat([context, first], 1), ids[:, :48], ids[:, 48:], (4, 4, 4), 0)
        future = model.predict_future(clips(), 4, autoregressive=True)
        torch.testing.assert_close(future, torch.stack([first, second], 1))

    @pytest.mark.parametrize("frames", [0, 3, -2])
    def test_wrong_number_of_frames(self, model, frames):
        with pytest.raises(ValueError, match=f"num_future_frames is {frames}; expected a multiple of 2"):
            model.predict_future(clips(), frames)


class TestFolder:
    def test_keeps_all_three(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded, info = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
        assert not same_weights(loaded.encoder, loaded.target_encoder)
        assert not any(parameter.requires_grad for parameter in loaded.target_encoder.parameters())

    def test_of_an_older_version_loads_with_the_same_loss(self, model, tmp_path):
        """Written before the objective had more than an exponent and a normalization."""
        model.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        new = {"target_type", "variance_margin", "temporal_contrastive_temperature", *WEIGHTS}
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in fields.items() if name not in new}))
        loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path)
        assert same_weights(model, loaded)
        assert torch.equal(loaded(clips(), CONTEXT, TARGET).loss, model(clips(), CONTEXT, TARGET).loss)

    @pytest.mark.parametrize("zero", [True, False])
    def test_mask_tokens_at_the_start(self, zero):
        tokens = build(zero_init_mask_tokens=zero).predictor.mask_tokens
        assert (tokens == 0).all() if zero else tokens.std().item() == pytest.approx(0.02, rel=0.3)
