"""Masked latent prediction of V-JEPA 2.1 against the published code: levels, context tokens, images, distillation."""

import pytest
import torch
from builders import (
    FIELDS_2_1,
    GOLDEN_2_1,
    TINY_2_1,
    TINY_ENCODER,
    TINY_PREDICTOR,
    clips,
    golden,
    our_names,
    same_weights,
    spread,
)

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2ForMaskedLatentPrediction
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as Config
from vjepa2_hf.hub.transformers_format import config_to_transformers
from vjepa2_hf.modeling_masked_losses import distance_to_masked


CLOSE = {"atol": 1e-5, "rtol": 0}
DENSE = {"predictor_levels": True, "predictor_modality_embeddings": True, "predict_context": True}
DISTILLED = {**DENSE, "predictor_levels": False, "target_type": "teacher", "teacher_hidden_size": 80}
PUBLISHED_PREDICTOR = {
    "predictor_hidden_size": 48,
    "predictor_num_hidden_layers": 4,
    "predictor_num_attention_heads": 3,
    "num_mask_tokens": 8,
}
CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])


def load(name: str, fields: dict) -> VJepa2ForMaskedLatentPrediction:
    model = VJepa2ForMaskedLatentPrediction(Config(encoder_config=GOLDEN_2_1, **PUBLISHED_PREDICTOR, **fields))
    for part in ("encoder", "target_encoder", "predictor"):
        if state := our_names(golden(name), f"{part}/"):  # a distilled model has no target encoder here
            getattr(model, part).load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def published():
    return load("v2_1", DENSE)


@pytest.fixture(scope="module")
def distilled():
    return load("v2_1_distilled", DISTILLED)


def build(**fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    fields = {**TINY_PREDICTOR, **DENSE, "context_loss_weight": 0.5, **fields}
    return spread(VJepa2ForMaskedLatentPrediction(Config(encoder_config=TINY_2_1, **fields)).eval())


class TestPublished:
    @torch.no_grad()
    @pytest.mark.parametrize(("kind", "pixels"), [("video", "pixel_values"), ("image", "image")])
    def test_predictions_targets_and_losses(self, published, kind, pixels, monkeypatch):
        data = golden("v2_1")
        masks = data[f"out/{kind}_context_mask"], data[f"out/{kind}_target_mask"]
        output = published(data[pixels].transpose(1, 2), *masks, context_loss_weight=0.5)
        for found, name in (
            (output.predicted_latents, "predicted"),
            (output.target_latents, "targets"),
            (output.predicted_context_latents, "predicted_context"),
            (output.context_target_latents, "context_targets"),
        ):
            torch.testing.assert_close(found[0], data[f"out/{kind}_{name}"], **CLOSE)
        predicted, context = data[f"out/{kind}_loss_predicted"], data[f"out/{kind}_loss_context"]
        torch.testing.assert_close(output.losses["prediction"], predicted, **CLOSE)
        torch.testing.assert_close(output.losses["context"], context, **CLOSE)
        torch.testing.assert_close(output.loss, predicted + 0.5 * context, **CLOSE)
        monkeypatch.setattr(published.config, "weight_context_by_distance", True)
        weighted = published(data[pixels].transpose(1, 2), *masks, context_loss_weight=0.5)
        expected = data[f"out/{kind}_loss_context_weighted"]
        torch.testing.assert_close(weighted.losses["context"], expected, **CLOSE)
        torch.testing.assert_close(weighted.loss, predicted + 0.5 * expected, **CLOSE)

    @pytest.mark.parametrize(("kind", "grid"), [("video", (4, 4, 4)), ("image", (1, 4, 4))])
    def test_distances(self, kind, grid):
        data = golden("v2_1")
        masks = data[f"out/{kind}_context_mask"], data[f"out/{kind}_target_mask"]
        torch.testing.assert_close(distance_to_masked(*masks, grid).sqrt(), data[f"out/{kind}_distance"], **CLOSE)

    @torch.no_grad()
    def test_distilled(self, distilled):
        data = golden("v2_1_distilled")
        context = distilled.encoder(data["pixel_values"].transpose(1, 2), context_mask=data["context_mask"])
        found = distilled.predict(context, data["context_mask"], data["target_mask"], context.grid, mask_token_index=1)
        torch.testing.assert_close(found[0], data["predicted"], **CLOSE)
        torch.testing.assert_close(found[1], data["predicted_context"], **CLOSE)


class TestLevels:
    @torch.no_grad()
    def test_each_level_is_normalized_for_itself(self):
        model = build()
        levels = model.target_encoder(clips()).level_hidden_states
        raw = model.encode_targets(clips())
        assert torch.equal(raw, torch.cat(levels, dim=-1)) and raw.shape == (2, 32, 48)
        expected = torch.cat([torch.nn.functional.layer_norm(level, (24,)) for level in levels], dim=-1)
        assert torch.equal(model.normalize_targets(raw), expected)

    @torch.no_grad()
    def test_the_last_level_alone(self):
        model = build(predictor_levels=False)
        assert torch.equal(model.encode_targets(clips()), model.target_encoder(clips()).last_hidden_state)
        assert model(clips(), CONTEXT, TARGET).predicted_latents[0].shape == (2, 3, 24)

    @torch.no_grad()
    def test_meters_are_of_the_last_level(self):
        dense = build()
        meters = dense(clips(), CONTEXT, TARGET, output_meters=True)
        last = dense.target_encoder(clips()).last_hidden_state
        torch.testing.assert_close(meters.target_std, last.std(dim=0).mean())

    @torch.no_grad()
    @pytest.mark.parametrize("autoregressive", [False, True])
    def test_the_future_of_a_clip_and_of_an_image(self, autoregressive):
        model = build()
        assert model.predict_future(clips(), 4, autoregressive).shape == (2, 2, 16, 48)
        image = model.encoder(clips(1))
        ids = torch.arange(32).expand(2, -1)
        expected, _ = model.predict(image, ids[:, :16], ids[:, 16:], (2, 4, 4))
        torch.testing.assert_close(model.predict_future(clips(1), 2, autoregressive)[:, 0], expected)

    @torch.no_grad()
    def test_images_and_videos_have_their_own_vector_in_the_predictor(self):
        model, ids = build(), (CONTEXT % 16)[:, :2]
        for frames, kind in ((1, "image"), (4, "video")):
            before = model(clips(frames), ids, ids + 3).predicted_latents[0]
            for other in ("image", "video"):
                vector = getattr(model.predictor, f"{other}_modality_embedding")
                vector.add_(torch.arange(24.0))
                after = model(clips(frames), ids, ids + 3).predicted_latents[0]
                vector.sub_(torch.arange(24.0))
                assert torch.allclose(before, after, atol=1e-4) == (other != kind)


class TestContextLoss:
    def test_its_weight_is_of_the_config_or_of_the_call(self):
        model = build()
        losses = {weight: model(clips(), CONTEXT, TARGET, context_loss_weight=weight) for weight in (None, 0, 2.0)}
        parts = losses[None].losses
        assert set(parts) == {"prediction", "context"}
        for weight, output in losses.items():
            expected = parts["prediction"] + (0.5 if weight is None else weight) * parts["context"]
            torch.testing.assert_close(output.loss, expected)
        losses[0].loss.backward()
        assert (model.predictor.proj_context.weight.grad == 0).all()  # there, as DDP wants it

    @torch.no_grad()
    def test_tokens_far_from_what_is_hidden_count_less(self):
        model = build(weight_context_by_distance=True)
        near, far = torch.tensor([[0], [1]]), torch.tensor([[31], [30]])
        output = model(clips(), torch.cat([near, far], dim=1), near + 2)
        distances = torch.tensor([[2.0, 11**0.5], [2.0, 11**0.5]])
        torch.testing.assert_close(distance_to_masked(torch.cat([near, far], 1), near + 2, (2, 4, 4)), distances)
        errors = model.latent_errors(output.predicted_context_latents[0], output.context_target_latents[0])
        torch.testing.assert_close(output.losses["context"], (errors / distances.sqrt()).mean())

    @torch.no_grad()
    def test_with_several_mask_sets_and_another_term(self):
        model = build(variance_weight=2.0)
        output = model(clips(), [CONTEXT, CONTEXT[:, :3]], [TARGET, TARGET[:, 2:]])
        assert [tuple(p.shape) for p in output.predicted_context_latents] == [(2, 5, 48), (2, 3, 48)]
        each = [
            model(clips(), context, target, mask_token_index=i).losses
            for i, (context, target) in enumerate([(CONTEXT, TARGET), (CONTEXT[:, :3], TARGET[:, 2:])])
        ]
        for name, value in output.losses.items():
            torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2)
        parts = output.losses
        torch.testing.assert_close(output.loss, parts["prediction"] + 0.5 * parts["context"] + 2 * parts["variance"])

    def test_a_weight_without_predictions_of_the_context_is_refused(self):
        model = build(predict_context=False, context_loss_weight=0.0)
        with pytest.raises(
            ValueError, match="context_loss_weight is 1.0; expected None or 0: .*predict_context=False"
        ):
            model(clips(), CONTEXT, TARGET, context_loss_weight=1.0)
        assert model(clips(), CONTEXT, TARGET, context_loss_weight=0).losses is None

    def test_it_trains(self):
        model = build().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for step in range(12):
            video = clips(1 if step % 2 else 4)
            masks = (
                (CONTEXT % 16, (CONTEXT + 3) % 16 + 16 * (step % 2 == 0))
                if step % 2 == 0
                else (CONTEXT[:, :1], TARGET[:, :1] % 16)
            )
            loss = model(video, *masks).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


class TestTeacher:
    TEACHER = {**TINY_ENCODER, **FIELDS_2_1, "hidden_size": 48, "num_hidden_layers": 1}

    @pytest.fixture
    def teacher(self):
        torch.manual_seed(1)
        return spread(VJepa2Encoder(VJepa2EncoderConfig(**self.TEACHER)))

    def build(self, **fields):
        return build(predictor_levels=False, target_type="teacher", teacher_hidden_size=48, **fields)

    def test_targets_are_its_last_tokens(self, teacher):
        model = self.build()
        model.set_teacher(teacher.train())
        output = model.train()(clips(), CONTEXT, TARGET, output_meters=True)
        tokens = torch.nn.functional.layer_norm(teacher(clips()).last_hidden_state, (48,))
        expected = torch.stack([row[ids] for row, ids in zip(tokens, TARGET)])
        torch.testing.assert_close(output.target_latents[0], expected)
        own = model.target_encoder(clips()).last_hidden_state
        torch.testing.assert_close(output.target_std, own.std(dim=0).mean())
        output.loss.backward()
        assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_it_is_no_part_of_what_is_saved(self, teacher, tmp_path):
        model = self.build()
        before = set(model.state_dict())
        model.set_teacher(teacher)
        assert set(model.state_dict()) == before
        model.save_pretrained(tmp_path)
        loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path)
        assert same_weights(loaded, model) and loaded.predictor.proj.out_features == 48
        with pytest.raises(ValueError, match="needs its teacher, which is not saved .* call model.set_teacher"):
            loaded(clips(), CONTEXT, TARGET)
        assert loaded.predict_future(clips(), 2).shape == (2, 1, 16, 48)
        with pytest.raises(ValueError, match="autoregressive=True .* teacher_hidden_size is 48"):
            loaded.predict_future(clips(), 2, autoregressive=True)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.target_encoder)

    def test_the_target_encoder_still_follows_the_encoder(self, teacher):
        model = self.build()
        model.set_teacher(teacher)
        model.update_target_encoder(0.0)
        assert same_weights(model.target_encoder, model.encoder)

    def test_a_teacher_that_does_not_fit(self, teacher):
        model = self.build()
        with pytest.raises(ValueError, match="teacher is a|teacher is 'large'; expected a VJepa2Encoder"):
            model.set_teacher("large")
        other = VJepa2Encoder(VJepa2EncoderConfig(**{**self.TEACHER, "patch_size": 16}))
        with pytest.raises(
            ValueError, match="patch_size of the teacher is 16; expected 8, as the model's config says"
        ):
            model.set_teacher(other)
        with pytest.raises(ValueError, match="target_type is 'ema'; expected 'teacher'"):
            build().set_teacher(teacher)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"predictor_levels": True},
                "predictor_levels=True reads the output_levels of encoder_config, which is None",
            ),
            ({"context_loss_weight": 0.5}, "context_loss_weight=0.5 is about .*: set predict_context=True"),
            ({"weight_context_by_distance": True}, "weight_context_by_distance=True .*: set predict_context=True"),
            ({"context_loss_weight": -1.0}, "context_loss_weight is -1.0; expected 0 or more"),
            (
                {"target_type": "teacher"},
                "target_type='teacher' and teacher_hidden_size=None; expected 'teacher' and its",
            ),
            ({"teacher_hidden_size": 48}, "target_type='ema' and teacher_hidden_size=48"),
            (
                {"teacher_hidden_size": 0, "target_type": "teacher"},
                "teacher_hidden_size is 0; expected a number above 0",
            ),
        ],
    )
    def test_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Config(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **fields)

    def test_a_teacher_has_one_level(self):
        encoder = {**TINY_ENCODER, "output_levels": [0, 1]}
        with pytest.raises(ValueError, match="target_type='teacher' predicts one level: set predictor_levels=False"):
            Config(encoder_config=encoder, predictor_levels=True, target_type="teacher", teacher_hidden_size=48)

    @pytest.mark.parametrize(
        ("name", "width", "depth", "levels"),
        [("base", 768, 12, 1), ("large", 1024, 12, 1), ("giant", 1408, 24, 4), ("gigantic", 1664, 24, 4)],
    )
    def test_presets_have_the_published_weights(self, name, width, depth, levels):
        config = Config.from_preset(f"2.1-{name}")
        assert config.context_loss_weight == 0.5 and (config.target_type == "teacher") == (levels == 1)
        with torch.device("meta"):
            predictor = VJepa2ForMaskedLatentPrediction(config).predictor
        shapes = {name: tuple(weight.shape) for name, weight in predictor.state_dict().items()}
        output = 1664 if levels == 1 else 4 * width
        expected = {
            "mask_tokens": (8, 1, 1, 384),
            "image_modality_embedding": (1, 1, 384),
            "video_modality_embedding": (1, 1, 384),
            "layernorm.weight": (384,),
            "proj.weight": (output, 384),
            "proj_context.weight": (output, 384),
        }
        embed = {"embed.weight": (384, width)}
        if levels > 1:
            embed = {"embed.0.weight": (width, 4 * width), "embed.2.weight": (384, width)}
        expected |= embed
        for i in range(depth):
            expected |= {f"layer.{i}.norm{n}.weight": (384,) for n in (1, 2)}
            expected |= {
                f"layer.{i}.attention.qkv.weight": (1152, 384),
                f"layer.{i}.attention.proj.weight": (384, 384),
                f"layer.{i}.mlp.fc1.weight": (1536, 384),
                f"layer.{i}.mlp.fc2.weight": (384, 1536),
            }
        expected |= {name[:-6] + "bias": shape[:1] for name, shape in expected.items() if name.endswith(".weight")}
        assert shapes == expected

    @pytest.mark.parametrize("field", ["predictor_modality_embeddings", "predict_context"])
    def test_transformers_has_no_such_predictor(self, field):
        config = Config(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **{field: True})
        with pytest.raises(ValueError, match=f"{field} is True, but transformers' VJEPA2 always computes with False"):
            config_to_transformers(config)
