"""The classifier against the published attentive probe, and what it promises about views, labels and folders."""

import copy
import functools
import logging

import numpy as np
import pytest
import torch
from builders import ENCODER, TINY_ENCODER, TINY_PREDICTOR, TOLERANCE, clips, golden, our_names, same_weights, spread
from sklearn.neighbors import KNeighborsClassifier
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
)
from vjepa2_hf.modeling_classification import VJepa2ProbeHead
from vjepa2_hf.modeling_layers import eager_attention, sincos_table


def build(**fields):
    torch.manual_seed(0)
    defaults = {"num_labels": 5, "num_pooler_layers": 1, "pooler_num_attention_heads": 2}
    config = VJepa2VideoClassificationConfig(**{"encoder_config": TINY_ENCODER, **defaults, **fields})
    return spread(VJepa2ForVideoClassification(config).eval())


@torch.no_grad()
def test_published_probe():
    data = golden("attentive_classifier")
    config = VJepa2VideoClassificationConfig(
        encoder_config=ENCODER, num_labels=7, num_pooler_layers=3, pooler_num_attention_heads=3
    )
    model = VJepa2ForVideoClassification(config).eval()
    missing, unexpected = model.load_state_dict(our_names(data, "state/"), strict=False)
    assert not unexpected and all(name.startswith("encoder.") for name in missing)
    logits = model.classifier(model.pooler(data["features"]))
    torch.testing.assert_close(logits, data["logits"], **TOLERANCE)


def test_the_published_probe_has_16_heads_and_its_own_norm_eps():
    config = VJepa2VideoClassificationConfig(encoder_config={"hidden_size": 1408, "num_attention_heads": 22})
    assert config.pooler_num_attention_heads == 16 and config.pooler_layer_norm_eps == 1e-5


@torch.no_grad()
@pytest.mark.parametrize("pooler_type", ["attentive", "linear"])
def test_probabilities_of_views_are_averaged(pooler_type):
    model, labels = build(pooler_type=pooler_type), torch.tensor([4, 0])
    views = clips(batch_size=6).unflatten(0, (2, 3))
    output = model(views, labels=labels)
    alone = torch.stack([model(views[:, v]).logits.softmax(-1) for v in range(3)]).mean(0)
    torch.testing.assert_close(output.logits.softmax(-1), alone)
    torch.testing.assert_close(output.loss, -alone[[0, 1], labels].log().mean())
    one = model(views[:, :1]).logits.softmax(-1)
    torch.testing.assert_close(one, model(views[:, 0]).logits.softmax(-1))


@torch.no_grad()
def test_linear_probe_is_the_mean_of_the_tokens():
    model = build(pooler_type="linear")
    output = model(clips(), labels=torch.tensor([1, 2]))
    torch.testing.assert_close(output.logits, model.classifier(model.encoder.encode(clips(), pool="clip")))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 2])))
    assert model(clips()).loss is None and not hasattr(model, "pooler")


@torch.no_grad()
def test_eager_is_sdpa():
    model = build()
    expected = model(clips()).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(clips()).logits, expected, **TOLERANCE)


@torch.no_grad()
def test_layers_that_are_levels_have_norms_of_their_own():
    encoder = {**TINY_ENCODER, "num_hidden_layers": 3, "output_levels": [0, 2]}
    model = build(encoder_config=encoder, encoder_layers=[0, 1, 2])
    output = model.encoder(clips(), output_hidden_states=True)
    expected = [*output.level_hidden_states]
    expected.insert(1, model.encoder.layernorm(output.hidden_states[2]))
    assert torch.equal(model.encode_tokens(clips())[0], torch.cat(expected, dim=1))
    assert not torch.allclose(expected[0], model.encoder.layernorm(output.hidden_states[1]))


def test_gradients_reach_everything():
    model = build().train()
    model(clips(), labels=torch.tensor([1, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_from_encoder_takes_an_encoder_or_a_folder(tmp_path):
    encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))
    encoder.save_pretrained(tmp_path)
    for source in (encoder, tmp_path):
        model = VJepa2ForVideoClassification.from_encoder(source, num_labels=3, pooler_num_attention_heads=2)
        assert same_weights(model.encoder, encoder) and model.classifier.out_features == 3


def test_save_and_load(tmp_path):
    model = build(id2label={0: "a", 1: "b"}, num_labels=2)
    model.save_pretrained(tmp_path)
    loaded, info = VJepa2ForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.id2label == {0: "a", 1: "b"}
    assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.encoder)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"pooler_type": "linear"}, {"encoder_layers": [0, 1]}])
def test_a_label_per_frame_is_read_from_the_frames_own_tokens(fields):
    model = build(labels_per_frame=True, num_pooler_layers=0, **fields)
    tokens, steps = model.encode_tokens(clips())
    assert steps == 2 and model(clips()).logits.shape == (2, 2, 5)
    other = tokens.unflatten(1, (-1, steps, 16)).clone()  # 4 frames of 32 x 32 pixels: 2 tubelets of 16 tokens
    other[:, :, 1] += torch.randn(other[:, :, 1].shape)
    before, after = model.classify(tokens, steps), model.classify(other.flatten(1, 3), steps)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])
    labels = torch.tensor([[0, 1], [4, 4]])
    expected = torch.nn.functional.cross_entropy(before.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(clips(), labels=labels).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"encoder_layers": [0, 1]}])
def test_with_positions_in_time_an_attentive_pooler_knows_the_order_of_frames(fields):
    for positions in (False, True):
        model = build(pooler_time_positions=positions, **fields)
        tokens, steps = model.encode_tokens(clips())
        turned = tokens.unflatten(1, (-1, steps, 16)).flip(2).flatten(1, 3)
        before, after = model.classify(tokens, steps), model.classify(turned, steps)
        assert torch.allclose(before, after, atol=1e-4) != positions
    torch.testing.assert_close(before, model(clips()).logits)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"encoder_layers": [0, 1]}, {"pooler_time_positions": True}])
def test_with_positions_in_position_an_attentive_pooler_knows_where_something_is(fields):
    for positions in (False, True):
        model = build(pooler_space_positions=positions, **fields)
        tokens, steps = model.encode_tokens(clips())
        moved = tokens.unflatten(1, (-1, 4, 4)).transpose(2, 3).flatten(1, 3)  # rows and columns change positions
        before, after = model.classify(tokens, steps), model.classify(moved, steps)
        assert torch.allclose(before, after, atol=1e-4) != positions
    torch.testing.assert_close(before, model(clips()).logits)


def test_positions_in_position_need_square_frames():
    model = build(pooler_space_positions=True)
    with pytest.raises(ValueError, match="square frames, but a time step has 8 tokens"):
        model.classify(torch.zeros(1, 16, 24), steps=2)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"encoder_layers": [0, 1]}])
def test_a_wide_grid_whose_places_are_a_square_number_is_not_taken_for_a_square(fields):
    model, wide = build(pooler_space_positions=True, **fields), torch.zeros(1, 4, 3, 16, 64)
    for call in (model, model.encode_tokens, model.pooler_attention):
        with pytest.raises(ValueError, match="square frames, but these have 2 × 8 tokens"):
            call(wide)
    assert build(**fields)(wide).logits.shape == (1, 5)


def test_labels_per_frame_of_views_are_refused():
    with pytest.raises(ValueError, match="pass them one by one"):
        build(labels_per_frame=True)(clips().unsqueeze(1))


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"pooler_type": "linear"}])
def test_a_head_reads_cached_tokens_as_its_classifier_does(fields):
    model = build(**fields)
    head = VJepa2ProbeHead(model)
    tokens, _ = model.encode_tokens(clips())
    torch.testing.assert_close(head(tokens), model(clips()).logits)
    torch.nn.init.ones_(head.classifier.bias)
    assert not torch.equal(head.classifier.bias, model.classifier.bias)  # a copy
    missing, unexpected = model.load_state_dict(head.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("encoder.") for name in missing)


def build_neighbors(views: int = 40, **fields) -> VJepa2ForVideoClassification:
    fields = {"pooler_type": "linear", "num_neighbors": 1, "num_stored_views": views, "num_labels": 3, **fields}
    return build(**fields)


def test_one_neighbor_is_scikit_learns_and_many_are_a_weighted_mean():
    rng = np.random.default_rng(0)
    stored, queries = (rng.normal(size=(count, 24)).astype(np.float32) for count in (40, 15))
    labels = rng.integers(3, size=40)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float()
    neighbors = build_neighbors().classifier
    neighbors.store(torch.from_numpy(stored), targets)
    found = neighbors.scores(torch.from_numpy(queries), [1, 5, 100])
    assert found.shape == (3, 15, 3) and torch.allclose(found.sum(-1), torch.ones(3, 15))
    expected = KNeighborsClassifier(1, metric="cosine").fit(stored, labels).predict(queries)
    assert (found[0].argmax(-1).numpy() == expected).all()
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (stored, queries)]
    weights = np.exp(unit[1] @ unit[0].T / 0.07)
    expected = torch.from_numpy(weights @ targets.numpy() / weights.sum(axis=1, keepdims=True))
    torch.testing.assert_close(found[2], expected.float(), rtol=1e-3, atol=1e-5)
    neighbors.store(torch.from_numpy(stored * 3 + 100), targets, standardize=True)
    moved = neighbors.scores(torch.from_numpy(queries * 3 + 100), [1])[0]
    assert (moved.argmax(-1) == found[0].argmax(-1)).float().mean() > 0.8  # as before, but for the means taken away


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "multi_label_classification", "regression"])
def test_neighbors_save_load_and_speak_as_a_classifier(tmp_path, kind):
    model = build_neighbors(num_neighbors=3, problem_type=kind)
    targets = torch.eye(3).repeat(14, 1)[:40]
    model.classifier.store(torch.randn(40, 24), targets)
    scores = model.classifier.scores(model.encoder.encode(clips(), pool="clip"), [3])[0]
    model.save_pretrained(tmp_path)
    logits = VJepa2ForVideoClassification.from_pretrained(tmp_path).eval()(clips()).logits
    said = {None: logits.softmax(-1), "multi_label_classification": logits.sigmoid(), "regression": logits}[kind]
    torch.testing.assert_close(said, scores, rtol=1e-3, atol=1e-4)


def test_neighbors_need_stored_views_and_a_linear_pooler():
    for wrong in ({"num_stored_views": 0}, {"pooler_type": "attentive"}, {"labels_per_frame": True}):
        with pytest.raises(ValueError, match="num_neighbors is 1"):
            build_neighbors(**wrong)


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, {"encoder_layers": [0, 1]}, {"labels_per_frame": True}])
def test_the_poolers_attention_is_what_its_output_is_made_of(fields, attn_implementation):
    """Weights times the model's own values give what the model's own attention gave."""
    model = build(num_pooler_layers=1, pooler_time_positions=True, **fields)
    model.set_attn_implementation(attn_implementation)
    layer, seen = model.pooler.cross_attention_layer, {}
    layer.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs))
    layer.norm2.register_forward_hook(lambda module, inputs, output: seen.update(attended=inputs[0]))
    model(clips())
    queries, tokens = seen["inputs"]
    weights = layer.attention(queries, tokens)
    values = layer.kv(layer.norm1(tokens)).chunk(2, dim=-1)[1].unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(queries + (weights @ values).transpose(1, 2).flatten(2), seen["attended"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"encoder_layers": [0, 1]}, {"labels_per_frame": True}])
def test_the_poolers_attention_sums_to_one_over_what_a_query_sees(fields):
    model = build(num_pooler_layers=0, **fields)
    attention = model.pooler_attention(clips())
    assert attention.shape == (2, 2, 2, 4, 4)  # clips, heads, tubelets, positions
    by_time = attention.sum(dim=(-1, -2))
    if fields.get("labels_per_frame"):
        torch.testing.assert_close(by_time, torch.ones_like(by_time))
    else:
        torch.testing.assert_close(by_time.sum(-1), torch.ones(2, 2))
    assert attention.min() > 0 and attention.std() > 1e-4


@torch.no_grad()
def test_the_poolers_attention_lies_where_the_query_finds_its_like():
    """A key that agrees with the query draws all weight to its token's position, in every layer that is read."""
    for fields, layers in (({}, 1), ({"encoder_layers": [0, 1]}, 2)):
        model = build(num_pooler_layers=0, **fields)
        tokens, steps = model.encode_tokens(clips())
        layer = model.pooler.cross_attention_layer
        layer.norm1 = torch.nn.Identity()
        layer.kv.weight[:24] = 1000 * torch.eye(24)
        tokens = torch.zeros_like(tokens)
        for read in range(layers):
            tokens[:, read * 32 + 1 * 16 + 7] = layer.q(model.pooler.query_tokens)[0, 0] * (1 if read == 0 else -1)
        attention = model.attention(tokens, steps)
        assert attention.shape == (2, 2, 2, 16) and attention[:, :, 1, 7].min() > 0.9


def test_a_linear_pooler_has_no_attention():
    with pytest.raises(ValueError, match="pooler_type is 'linear'"):
        build(pooler_type="linear").pooler_attention(clips())


class TestAnticipation:
    """The pooler reads the encoder's tokens, then those that the predictor expects to follow."""

    def build_masked(self, **fields):
        torch.manual_seed(1)
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **fields)
        return spread(VJepa2ForMaskedLatentPrediction(config).eval())

    def build(self, masked, **fields):
        fields = {"num_labels": 5, "num_pooler_layers": 1, "pooler_num_attention_heads": 2, **fields}
        return VJepa2ForVideoClassification.from_encoder(masked.encoder, masked.predictor, **fields).eval()

    @torch.no_grad()
    def test_the_pooler_reads_what_predict_future_gives(self):
        masked = self.build_masked()
        model = self.build(masked, predicted_frames=4, pooler_time_positions=True)
        tokens, steps = model.encode_tokens(clips())
        own, future = tokens[:, :32], tokens[:, 32:]
        assert steps == 4 and torch.equal(own, masked.encoder(clips()).last_hidden_state)
        torch.testing.assert_close(future, masked.predict_future(clips(), 4).flatten(1, 2))
        torch.testing.assert_close(model(clips()).logits, model.classify(tokens, steps))

    @torch.no_grad()
    @pytest.mark.parametrize("frames", [1, 4])
    def test_a_predictor_of_levels_gives_its_last_one(self, frames):
        """A clip of one frame is an image there."""
        encoder = {**TINY_ENCODER, "output_levels": [0, 1], "image_tubelet_size": 1, "modality_embeddings": True}
        fields = {"predictor_levels": True, "predict_context": True, "predictor_modality_embeddings": True}
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder, **TINY_PREDICTOR, **fields)
        masked = spread(VJepa2ForMaskedLatentPrediction(config).eval())
        model = self.build(masked, predicted_frames=4)
        tokens, steps = model.encode_tokens(clips(frames))
        future = masked.predict_future(clips(frames), 4)[..., -24:]
        assert steps == max(frames // 2, 1) + 2
        torch.testing.assert_close(tokens[:, -32:], future.flatten(1, 2))

    def test_a_predictor_of_a_wider_teachers_tokens_is_refused(self):
        masked = self.build_masked(target_type="teacher", teacher_hidden_size=80)
        with pytest.raises(ValueError, match="teacher_hidden_size 80; expected None or 24"):
            self.build(masked, predicted_frames=2)

    @torch.no_grad()
    def test_predicted_tokens_may_begin_later(self):
        masked = self.build_masked()
        model = self.build(masked, predicted_frames=2, skipped_frames=4, pooler_time_positions=True)
        (tokens, steps), context = model.encode_tokens(clips()), masked.encoder(clips()).last_hidden_state
        ids = torch.arange(80).repeat(2, 1)
        expected = masked.predictor(context, ids[:, :32], ids[:, 64:], (5, 4, 4))
        assert steps == 3
        torch.testing.assert_close(tokens[:, 32:], expected)
        times = sincos_table((5, 1, 1), 24, device=tokens.device)
        positions = model._positions(3, tokens.unflatten(1, (1, 3, -1)))
        assert torch.equal(positions, times[[0, 1, 4]].unsqueeze(1))

    @torch.no_grad()
    def test_its_predictor_attends_as_the_model_does(self, tmp_path, monkeypatch, caplog):
        used = []

        def count(name, plain, module, *given, **more):
            used.append(name)
            return plain(module, *given, **more)

        for name in ("sdpa", "eager"):
            plain = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, functools.partial(count, name, plain))
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        model = self.build(self.build_masked(), predicted_frames=2)
        model.save_pretrained(tmp_path)
        outputs = []
        for wanted in ("sdpa", "eager"):
            model.set_attn_implementation(wanted)
            loaded = VJepa2ForVideoClassification.from_pretrained(tmp_path, attn_implementation=wanted).eval()
            for one in (model, loaded, copy.deepcopy(model)):
                used.clear()
                outputs.append(one(clips()).logits)
                assert set(used) == {wanted} and len(used) == 2 + 2 + 2  # blocks of encoder, predictor, pooler
        for output in outputs:
            torch.testing.assert_close(output, outputs[0], **TOLERANCE)
        assert not caplog.records

    @torch.no_grad()
    def test_it_is_saved_with_its_predictor(self, tmp_path):
        model = self.build(self.build_masked(predictor_query_key_bias=1.5, num_mask_tokens=3), predicted_frames=2)
        model.save_pretrained(tmp_path)
        again = VJepa2ForVideoClassification.from_pretrained(tmp_path).eval()
        assert same_weights(model, again) and torch.equal(model(clips()).logits, again(clips()).logits)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.encoder)

    def test_random_weights_are_not_zero_where_a_masked_model_has_none(self):
        fields = VJepa2MaskedLatentPredictionConfig(
            encoder_config=TINY_ENCODER, **TINY_PREDICTOR, zero_init_mask_tokens=False
        ).predictor_fields()
        config = VJepa2VideoClassificationConfig(
            encoder_config=TINY_ENCODER, pooler_num_attention_heads=2, predicted_frames=2, predictor_config=fields
        )
        assert VJepa2ForVideoClassification(config).predictor.mask_tokens.std() > 0

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"predicted_frames": 3}, "predicted_frames is 3, skipped_frames 0 and predictor_config"),
            ({"predicted_frames": 0}, "predicted_frames is 0, skipped_frames 0 and predictor_config"),
            ({"predicted_frames": 2, "skipped_frames": 1}, "skipped_frames is 1; expected a multiple"),
            ({"predicted_frames": 2, "pooler_type": "linear"}, "needs pooler_type 'attentive'"),
            ({"predicted_frames": 2, "encoder_layers": [0, 1]}, "encoder_layers None; got"),
        ],
    )
    def test_settings_that_do_not_go_together_are_refused(self, fields, said):
        with pytest.raises(ValueError, match=said):
            self.build(self.build_masked(), **fields)

    def test_predictors_of_pixels_are_refused(self):
        with pytest.raises(ValueError, match="target_type 'pixels'"):
            self.build(self.build_masked(target_type="pixels"), predicted_frames=2)
