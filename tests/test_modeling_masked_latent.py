"""Masked latent prediction against the published code, its formulas on numbers made by hand, meters and folders."""

import pytest
import torch
from published import ENCODER, PREDICTOR, TINY_ENCODER, TINY_PREDICTOR, golden, our_names
from test_modeling_encoder import TOLERANCE, clips, same_weights, spread

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig
from vjepa2_hf.modeling_masked_latent import collapse_meters


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
    def test_predictions_depend_on_the_place_asked_for_and_not_on_the_order(self, model):
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


class TestLoss:
    @pytest.mark.parametrize(("exponent", "expected"), [(1, (1 + 2 + 0 + 3) / 4), (2, (1 + 4 + 0 + 9) / 4 / 2)])
    def test_four_numbers_by_hand(self, exponent, expected):
        model = build(loss_exponent=exponent)
        predicted = torch.tensor([1.0, 2.0, 0.5, -1.0]).view(1, 2, 2)
        target = torch.tensor([0.0, 4.0, 0.5, 2.0]).view(1, 2, 2)
        assert model.latent_loss(predicted, target).item() == pytest.approx(expected)

    def test_layer_normalisation_of_targets(self):
        targets = torch.tensor([[[1.0, 3.0], [0.0, 10.0]]])
        normal = build().normalize_targets(targets)
        torch.testing.assert_close(normal, torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]]), atol=1e-4, rtol=0)

    def test_batch_normalisation_of_targets(self):
        model = build(normalize_targets="batch")
        targets = torch.randn(64, 3, 5) * 4 + 7
        normal = model.normalize_targets(targets)
        torch.testing.assert_close(normal.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std(0), torch.ones(3, 5), atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match="needs at least 2 clips in a batch; got 1"):
            model.normalize_targets(targets[:1])

    def test_batch_channel_normalisation_leaves_places_their_own_deviation(self):
        model = build(normalize_targets="batch_channel")
        places = torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1)
        normal = model.normalize_targets(torch.randn(64, 3, 5) * places + 7 * places)
        torch.testing.assert_close(normal.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std((0, 1)), torch.ones(5), atol=1e-4, rtol=0)
        assert (normal[:, 2].std(0) > 50 * normal[:, 0].std(0)).all()
        with pytest.raises(ValueError, match="'batch_channel' needs at least 2 clips"):
            model.normalize_targets(torch.randn(1, 3, 5))

    def test_no_normalisation_of_targets(self):
        targets = torch.randn(2, 3, 5)
        assert build(normalize_targets="none").normalize_targets(targets) is targets


class TestTargetEncoder:
    def test_starts_as_a_copy_without_gradient(self):
        model = build()
        assert same_weights(model.encoder, model.target_encoder)
        assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())
        assert not model.train().target_encoder.training and model.encoder.training

    def test_moves_by_the_ema_formula_in_place(self, model):
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        places = [parameter.data_ptr() for parameter in model.target_encoder.parameters()]
        model.update_target_encoder(0.9)
        for old, target, online in zip(before, model.target_encoder.parameters(), model.encoder.parameters()):
            torch.testing.assert_close(target, 0.9 * old + 0.1 * online)
            assert target.grad is None and not target.requires_grad
        assert places == [parameter.data_ptr() for parameter in model.target_encoder.parameters()]

    def test_momentum_one_keeps_and_zero_copies(self, model):
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        model.update_target_encoder(1.0)
        assert all(torch.equal(old, new) for old, new in zip(before, model.target_encoder.parameters()))
        model.update_target_encoder(0.0)
        assert same_weights(model.encoder, model.target_encoder)


class TestGradients:
    def test_reach_encoder_and_predictor_alone(self):
        model = build().train()
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
        mask = torch.tensor([[0, 2, 3]]).repeat(6, 1)  # place 0 at two times, place 1 once
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

    @pytest.mark.parametrize("zero", [True, False])
    def test_mask_tokens_at_the_start(self, zero):
        tokens = build(zero_init_mask_tokens=zero).predictor.mask_tokens
        assert (tokens == 0).all() if zero else tokens.std().item() == pytest.approx(0.02, rel=0.3)
