"""Added positions (sin-cos and learned) and factorized attention: against the published code and written-out sums."""

import pytest
import torch
from builders import ENCODER, TINY_ENCODER, TINY_PREDICTOR, clips, golden, our_names, same_weights, spread
from torch import nn

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2WorldModel,
)
from vjepa2_hf.modeling_layers import configured_grid, rotate_queries_keys, sincos_table


TOLERANCE = {"atol": 1e-5, "rtol": 0}
ADDED = ["sincos", "learned"]
CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])


def build(**fields):
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, **fields})).eval())


def build_masked_latent(**fields):
    torch.manual_seed(0)
    config = VJepa2MaskedLatentPredictionConfig(encoder_config={**TINY_ENCODER, **fields}, **TINY_PREDICTOR)
    return spread(VJepa2ForMaskedLatentPrediction(config).eval())


def published_sincos(name):
    """The published encoder of a fixture, which holds its table under `pos_embed`."""
    uniform = name == "encoder_sincos_uniform"
    fields = {"position_embedding_type": "sincos", "uniform_power": uniform, "num_hidden_layers": 2 if uniform else 3}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**{**ENCODER, **fields})).eval()
    weights = {key: value for key, value in golden(name).items() if key != "state/pos_embed"}
    encoder.load_state_dict(our_names(weights, "state/"))
    return encoder


def added(encoder, video, ids=None):
    """What the encoder adds to its patch embeddings."""
    first = encoder(video, context_mask=ids, output_hidden_states=True).hidden_states[0]
    return first - encoder.patch_embeddings(video, ids)


class TestPublishedSinCos:
    @pytest.mark.parametrize(("name", "uniform"), [("encoder_sincos", False), ("encoder_sincos_uniform", True)])
    def test_table(self, name, uniform):
        table = sincos_table((4, 4, 4), 96, uniform)
        torch.testing.assert_close(table, golden(name)["state/pos_embed"][0], **TOLERANCE)

    @torch.no_grad()
    def test_full_clip_and_kept_tokens(self):
        encoder, data = published_sincos("encoder_sincos"), golden("encoder_sincos")
        video = data["pixel_values"].transpose(1, 2)
        torch.testing.assert_close(encoder(video).last_hidden_state, data["full"], **TOLERANCE)
        kept = encoder(video, context_mask=data["keep"]).last_hidden_state
        torch.testing.assert_close(kept, data["kept"], **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize(("name", "pixels"), [("full", ""), ("big", "big_"), ("short", "short_")])
    def test_uniform_power_at_the_configured_size_and_others(self, name, pixels):
        encoder, data = published_sincos("encoder_sincos_uniform"), golden("encoder_sincos_uniform")
        output = encoder(data[f"{pixels}pixel_values"].transpose(1, 2))
        torch.testing.assert_close(output.last_hidden_state, data[name], **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("grid", [(6, 4, 4), (4, 4, 6), (3, 6, 2), (1, 8, 8)])
    def test_any_other_size_is_interpolated_by_scale_factors(self, grid):
        """The published rule on the published table; also for longer clips, and for short ones of another size."""
        table = golden("encoder_sincos")["state/pos_embed"].reshape(1, 4, 4, 4, 96).permute(0, 4, 1, 2, 3)
        factors = tuple(new / 4 for new in grid)
        expected = nn.functional.interpolate(table, scale_factor=factors, mode="trilinear")
        video = clips(2 * grid[0], 16 * grid[1], 16 * grid[2])
        actual = added(published_sincos("encoder_sincos"), video)[0]
        torch.testing.assert_close(actual, expected[0].permute(1, 2, 3, 0).flatten(0, 2), **TOLERANCE)

    def test_the_table_is_no_weight(self):
        assert build(position_embedding_type="sincos").state_dict().keys() == build().state_dict().keys()


class TestAddedPositions:
    @torch.no_grad()
    def test_learned_positions_are_the_parameters_of_their_places(self):
        encoder = build(position_embedding_type="learned")
        assert encoder.position_embeddings.shape == (32, 24) and configured_grid(encoder.config) == (2, 4, 4)
        expected = encoder.position_embeddings
        torch.testing.assert_close(added(encoder, clips())[1], expected, **TOLERANCE)
        torch.testing.assert_close(added(encoder, clips(), CONTEXT), expected[CONTEXT], **TOLERANCE)
        torch.testing.assert_close(added(encoder, clips(2))[0], expected[:16], **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    def test_interpolated_positions_of_kept_tokens(self, kind):
        encoder = build(position_embedding_type=kind)
        video = clips(6, 40, 24)
        torch.testing.assert_close(
            added(encoder, video, CONTEXT)[0], added(encoder, video)[0, CONTEXT[0]], **TOLERANCE
        )

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    @pytest.mark.parametrize("size", [32, 48])
    def test_a_still_frame_is_a_clip_of_one_step(self, kind, size):
        encoder = build(position_embedding_type=kind)
        still = clips(1, size, size)
        output = encoder(still)
        assert output.grid == (1, size // 8, size // 8)
        repeated = encoder(still.repeat(1, 2, 1, 1, 1)).last_hidden_state
        torch.testing.assert_close(output.last_hidden_state, repeated, **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    def test_all_tokens_in_any_order_are_the_full_clip(self, kind):
        encoder = build(position_embedding_type=kind)
        order = torch.stack([torch.randperm(32) for _ in range(2)])
        full = encoder(clips()).last_hidden_state.gather(1, order.unsqueeze(-1).expand(-1, -1, 24))
        torch.testing.assert_close(encoder(clips(), context_mask=order).last_hidden_state, full, **TOLERANCE)

    @pytest.mark.parametrize("attention", ["joint", "factorized"])
    @pytest.mark.parametrize("kind", ADDED)
    def test_added_positions_alone_tell_places_apart(self, kind, attention):
        """A clip without content gives equal tokens if nothing says where they are; nothing turns queries and keys."""
        encoder = build(position_embedding_type=kind, attention_type=attention)
        assert encoder.rotary((2, 4, 4), None, "cpu") is None
        tokens = encoder(torch.zeros(1, 4, 3, 32, 32)).last_hidden_state[0]
        assert torch.pdist(tokens).min() > 1e-3

    @pytest.mark.parametrize("kind", ["rope", *ADDED])
    def test_learned_positions_start_as_a_truncated_normal_in_every_model(self, kind):
        fields = {**TINY_ENCODER, "position_embedding_type": kind, "hidden_size": 64, "initializer_range": 0.05}
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**fields))
        classifier = VJepa2ForVideoClassification.config_class(
            encoder_config=fields, num_labels=3, pooler_num_attention_heads=2
        )
        nested = VJepa2ForVideoClassification(classifier).encoder
        for table in (encoder.position_embeddings, nested.position_embeddings):
            if kind != "learned":
                assert table is None
            else:
                assert table.std().item() == pytest.approx(0.05, rel=0.1) and table.requires_grad

    def test_learned_positions_are_trained_and_saved(self, tmp_path):
        encoder = build(position_embedding_type="learned")
        encoder(clips(), context_mask=CONTEXT).last_hidden_state.square().sum().backward()
        moved = encoder.position_embeddings.grad.abs().sum(dim=1) > 0
        assert moved.nonzero().flatten().tolist() == sorted(CONTEXT.flatten().tolist())
        encoder.save_pretrained(tmp_path)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), encoder)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    def test_half_precision(self, kind):
        encoder = build(position_embedding_type=kind)
        expected = encoder(clips(6, 40, 24)).last_hidden_state
        tokens = encoder.to(torch.bfloat16)(clips(6, 40, 24)).last_hidden_state
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), expected, atol=0.15, rtol=0)


class TestPredictor:
    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    def test_its_own_table_is_added_to_context_and_mask_tokens(self, kind):
        model = build_masked_latent(position_embedding_type=kind)
        predictor = model.predictor
        if kind == "learned":
            table = predictor.position_embeddings
            assert table.shape == (32, 24) and not torch.equal(table, model.encoder.position_embeddings)
        else:
            assert predictor.position_embeddings is None
            table = sincos_table((2, 4, 4), 24)
        context = model.encoder(clips(), context_mask=CONTEXT).last_hidden_state
        tokens = torch.cat([predictor.embed(context), predictor.mask_tokens[1].expand(2, 3, -1)], dim=1)
        tokens = tokens + table[torch.cat([CONTEXT, TARGET], dim=1)]
        for layer in predictor.layer:
            tokens = layer(tokens)[0]
        expected = predictor.proj(predictor.layernorm(tokens[:, 5:]))
        predicted = model(clips(), CONTEXT, TARGET, mask_token_index=1).predicted_latents[0]
        torch.testing.assert_close(predicted, expected, **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    @pytest.mark.parametrize("autoregressive", [False, True])
    def test_predicts_beyond_the_configured_clip(self, kind, autoregressive):
        model = build_masked_latent(position_embedding_type=kind)
        future = model.predict_future(clips(), 4, autoregressive)
        assert future.shape == (2, 2, 16, 24) and future.isfinite().all()
        assert (future[:, 0] - future[:, 1]).abs().amax(
            -1
        ).min() > 1e-4  # every position of the second step is its own

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ADDED)
    def test_the_future_within_the_configured_clip_has_the_trained_positions(self, kind):
        model = build_masked_latent(position_embedding_type=kind)
        context, ids = model.encoder(clips(2)).last_hidden_state, torch.arange(32).expand(2, -1)
        expected = model.predictor(context, ids[:, :16], ids[:, 16:], (2, 4, 4), 0)
        torch.testing.assert_close(model.predict_future(clips(2), 2)[:, 0], expected, **TOLERANCE)

    def test_learned_positions_follow_by_moving_average_and_are_saved(self, tmp_path):
        model = build_masked_latent(position_embedding_type="learned")
        before = model.target_encoder.position_embeddings.clone()
        model.update_target_encoder(0.5)
        middle = (before + model.encoder.position_embeddings) / 2
        torch.testing.assert_close(model.target_encoder.position_embeddings, middle)
        model.save_pretrained(tmp_path)
        assert same_weights(VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path), model)

    def test_it_starts_as_a_truncated_normal(self):
        config = VJepa2MaskedLatentPredictionConfig(
            encoder_config={**TINY_ENCODER, "position_embedding_type": "learned"}, **TINY_PREDICTOR
        )
        table = VJepa2ForMaskedLatentPrediction(config).predictor.position_embeddings
        assert table.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    "fields",
    [{"position_embedding_type": kind} for kind in ADDED] + [{"attention_type": "factorized"}],
    ids=lambda fields: next(iter(fields.values())),
)
def test_a_world_model_encodes_frames_alone_and_keeps_its_encoder(fields, tmp_path):
    encoder = build(**fields)
    model = VJepa2WorldModel.from_encoder(encoder, action_dim=2, **TINY_PREDICTOR)
    latents = model.encode(clips(3))
    for frame in range(3):
        alone = encoder(clips(3)[:, frame : frame + 1]).last_hidden_state
        torch.testing.assert_close(latents[:, frame], nn.functional.layer_norm(alone, (24,)), **TOLERANCE)
    output = model(latents=latents, actions=torch.randn(2, 2, 2))
    output.loss.backward()
    assert output.predicted_latents.shape == (2, 2, 16, 24)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    model.save_pretrained(tmp_path)
    assert same_weights(VJepa2WorldModel.from_pretrained(tmp_path), model)
    assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), encoder)


def written_out(encoder, video, ids):
    """Factorized attention as a sum over all kept tokens in which a token's weight is zero unless it is in the same
    frame (first step) or at the same position (second step): (B, K, D)."""
    grid = encoder.get_grid(video)
    time, position = ids // (grid[1] * grid[2]), ids % (grid[1] * grid[2])
    rotary = encoder.rotary(grid, ids, "cpu")
    tokens = encoder(video, context_mask=ids, output_hidden_states=True).hidden_states[0]
    for layer in encoder.layer:
        steps = [(layer.norm1, layer.attention, time), (layer.norm_time, layer.attention_time, position)]
        for norm, attention, group in steps:
            qkv = attention.qkv(norm(tokens)).unflatten(-1, (3, attention.num_heads, -1))
            query, key, value = qkv.unbind(2) if rotary is None else rotate_queries_keys(qkv, rotary)
            scores = torch.einsum("bihc,bjhc->bhij", query, key) * attention.scaling
            weights = scores.exp() * (group.unsqueeze(1) == group.unsqueeze(2)).unsqueeze(1)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            tokens = tokens + attention.proj(torch.einsum("bhij,bjhc->bihc", weights, value).flatten(2))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    return encoder.layernorm(tokens)


class TestFactorized:
    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["rope", *ADDED])
    @pytest.mark.parametrize("video", [clips(), clips(6, 24, 40), clips(2), clips(8, 8, 8)], ids=lambda v: v.shape[1])
    def test_whole_clip_against_the_sums_written_out(self, kind, video):
        encoder = build(attention_type="factorized", position_embedding_type=kind)
        tokens = encoder(video).last_hidden_state
        expected = written_out(encoder, video, torch.arange(tokens.shape[1]).expand(2, -1))
        torch.testing.assert_close(tokens, expected, **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("kind", ["rope", *ADDED])
    def test_kept_tokens_against_the_sums_written_out(self, kind, implementation):
        encoder = build(attention_type="factorized", position_embedding_type=kind)
        encoder.set_attn_implementation(implementation)
        kept = encoder(clips(), context_mask=CONTEXT).last_hidden_state
        torch.testing.assert_close(kept, written_out(encoder, clips(), CONTEXT), **TOLERANCE)

    @torch.no_grad()
    def test_all_tokens_in_any_order_are_the_full_clip(self):
        encoder = build(attention_type="factorized")
        order = torch.stack([torch.randperm(32) for _ in range(2)])
        full = encoder(clips()).last_hidden_state.gather(1, order.unsqueeze(-1).expand(-1, -1, 24))
        torch.testing.assert_close(encoder(clips(), context_mask=order).last_hidden_state, full, **TOLERANCE)

    @torch.no_grad()
    def test_dropped_pixels_reach_nothing(self):
        encoder = build(attention_type="factorized")
        changed = torch.full((2, 4, 3, 32, 32), 7.0)
        for row, ids in enumerate(CONTEXT.tolist()):
            for time, position in (divmod(token, 16) for token in ids):
                top, left = position // 4 * 8, position % 4 * 8
                where = (row, slice(2 * time, 2 * time + 2), slice(None), slice(top, top + 8), slice(left, left + 8))
                changed[where] = clips()[where]
        before, after = (encoder(video, context_mask=CONTEXT).last_hidden_state for video in (clips(), changed))
        assert torch.equal(before, after)

    @torch.no_grad()
    def test_attention_of_a_whole_clip_is_computed_within_frames_and_places_only(self):
        encoder = build(attention_type="factorized")
        encoder.set_attn_implementation("eager")
        output = encoder(clips(6), output_attentions=True, output_hidden_states=True)
        assert [tuple(w.shape) for w in output.attentions] == [(2 * 3, 2, 16, 16), (2 * 16, 2, 3, 3)] * 2
        assert [tuple(states.shape) for states in output.hidden_states] == [(2, 48, 24)] * 3

    def test_projections_start_scaled_by_depth(self):
        fields = {"hidden_size": 192, "num_hidden_layers": 3, "attention_type": "factorized"}
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, **fields}))
        for index, layer in enumerate(encoder.layer, start=1):
            for projection in (layer.attention.proj, layer.attention_time.proj, layer.mlp.fc2):
                assert projection.weight.std().item() == pytest.approx(0.02 / (2 * index) ** 0.5, rel=0.05)
            assert layer.attention_time.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_the_predictor_is_joint_and_every_weight_is_trained(self):
        model = build_masked_latent(attention_type="factorized").train()
        assert not any("attention_time" in name for name, _ in model.predictor.named_parameters())
        model(clips(), CONTEXT, TARGET).loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.encoder.layer.parameters())

    @torch.no_grad()
    def test_flash_attention_takes_no_masks(self):
        encoder = build(attention_type="factorized")
        encoder.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="'factorized' with a context_mask needs attention masks.*'sdpa'"):
            encoder(clips(), context_mask=CONTEXT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "alibi"}, "expected one of 'rope', 'sincos', 'learned'"),
        ({"attention_type": "divided"}, "expected one of 'joint', 'factorized'"),
        (
            {"position_embedding_type": "sincos", "hidden_size": 20},
            "hidden_size=20 to be a multiple of 8.*uniform_power=True",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2EncoderConfig(**{**TINY_ENCODER, **fields})


def test_a_predictor_width_that_sines_and_cosines_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="predictor_hidden_size=28 to be a multiple of 8"):
        VJepa2MaskedLatentPredictionConfig(
            encoder_config={**TINY_ENCODER, "position_embedding_type": "sincos"},
            **{**TINY_PREDICTOR, "predictor_hidden_size": 28},
        )
