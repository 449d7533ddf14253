"""The encoder against the published code, against transformers, and against what it promises."""

import pytest
import torch
from builders import (
    ENCODER,
    TINY_ENCODER,
    TINY_PREDICTOR,
    TOLERANCE,
    clips,
    golden,
    our_names,
    same_weights,
    spread,
    transformers_names,
)
from transformers import VJEPA2Config, VJEPA2Model

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2WorldModel,
)
from vjepa2_hf.modeling_layers import (
    KeyValueBuffer,
    VJepa2FactorizedLayer,
    VJepa2Layer,
    VJepa2MLP,
    grid_positions,
    rotary_table,
    rotate_queries_keys,
    spread_over_heads,
)


@pytest.fixture(scope="module")
def published():
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**ENCODER)).eval()
    encoder.load_state_dict(our_names(golden("encoder_rope"), "state/"))
    return encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval())


class TestPublished:
    @torch.no_grad()
    def test_full_clip(self, published):
        output = published(golden("encoder_rope")["pixel_values"].transpose(1, 2))
        assert output.grid == (4, 4, 4)
        torch.testing.assert_close(output.last_hidden_state, golden("encoder_rope")["full"], **TOLERANCE)

    @torch.no_grad()
    def test_kept_tokens(self, published):
        data = golden("encoder_rope")
        kept = published(data["pixel_values"].transpose(1, 2), context_mask=data["keep"]).last_hidden_state
        torch.testing.assert_close(kept, data["kept"], **TOLERANCE)

    @torch.no_grad()
    def test_clip_that_is_not_square(self, published):
        data = golden("encoder_rope")
        output = published(data["wide_pixel_values"].transpose(1, 2))
        assert output.grid == (2, 4, 6)
        torch.testing.assert_close(output.last_hidden_state, data["wide"], **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize(("interleave", "name"), [(False, "tiled"), (True, "interleaved")])
    def test_both_rotary_tables(self, interleave, name):
        data = golden("encoder_rope_interleaved")
        config = VJepa2EncoderConfig(**{**ENCODER, "num_hidden_layers": 2, "rope_interleave": interleave})
        encoder = VJepa2Encoder(config).eval()
        encoder.load_state_dict(our_names(data, "state/"))
        tokens = encoder(data["pixel_values"].transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(tokens, data[name], **TOLERANCE)


@pytest.fixture(scope="module")
def pair():
    """Our encoder and transformers' with the same weights, at the size that transformers takes positions from."""
    torch.manual_seed(0)
    ours = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval())
    config = VJEPA2Config(
        **TINY_ENCODER,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=2,
    )
    theirs = VJEPA2Model(config).eval()
    missing, unexpected = theirs.load_state_dict(transformers_names(ours.state_dict()), strict=False)
    assert not unexpected and all(name.startswith("predictor.") for name in missing)
    return ours, theirs


class TestTransformers:
    @torch.no_grad()
    def test_same_tokens_at_the_configured_size(self, pair):
        ours, theirs = pair
        expected = theirs(clips(), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(ours(clips()).last_hidden_state, expected, **TOLERANCE)

    @torch.no_grad()
    def test_context_encoder_never_sees_targets(self, pair):
        """Changing only target pixels leaves the context latents the same to the bit; transformers' model, which drops
        tokens after its encoder, fails the same test."""
        ours, theirs = pair
        context_mask = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
        video = clips()
        changed = torch.randn(video.shape, generator=torch.Generator().manual_seed(9))
        for row, ids in enumerate(context_mask.tolist()):
            for token in ids:  # put the context's own pixels back
                time, position = divmod(token, 16)
                top, left = position // 4 * 8, position % 4 * 8
                where = (row, slice(2 * time, 2 * time + 2), slice(None), slice(top, top + 8), slice(left, left + 8))
                changed[where] = video[where]
        target_mask = torch.arange(32)[None].repeat(2, 1)
        target_mask = torch.stack([ids[~torch.isin(ids, kept)] for ids, kept in zip(target_mask, context_mask)])

        before, after = (ours(v, context_mask=context_mask).last_hidden_state for v in (video, changed))
        assert torch.equal(before, after)

        masks = {"context_mask": [context_mask], "target_mask": [target_mask]}
        before, after = (theirs(v, **masks).masked_hidden_state for v in (video, changed))
        assert (before - after).abs().max() > 0.01


class TestPositions:
    @torch.no_grad()
    @pytest.mark.parametrize(
        ("frames", "height", "width", "grid"),
        [(2, 8, 8, (1, 1, 1)), (4, 16, 40, (2, 2, 5)), (10, 40, 8, (5, 5, 1)), (6, 64, 48, (3, 8, 6))],
    )
    def test_any_size(self, encoder, frames, height, width, grid):
        output = encoder(clips(frames, height, width))
        assert output.grid == grid
        assert output.last_hidden_state.shape == (2, grid[0] * grid[1] * grid[2], 24)
        assert output.last_hidden_state.isfinite().all()

    def test_positions_come_from_the_clips_own_grid(self):
        positions = grid_positions((2, 2, 3))
        assert positions.shape == (12, 3)
        assert positions[7].tolist() == [1, 0, 1] and positions[11].tolist() == [1, 1, 2]

    @torch.no_grad()
    def test_attention_depends_on_differences_of_positions_alone_with_the_corrected_table(self):
        qkv = torch.randn(1, 2, 3, 1, 26, generator=torch.Generator().manual_seed(0))
        products = []
        for shift in (0.0, 3.0):
            positions = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]]) + shift
            query, key, _ = rotate_queries_keys(qkv, rotary_table(positions, 26, interleave=True))
            products.append((query[0, 0] * key[0, 1]).sum())
        torch.testing.assert_close(*products)

    @torch.no_grad()
    def test_the_last_channels_are_not_turned(self):
        qkv = torch.randn(1, 3, 3, 1, 32, generator=torch.Generator().manual_seed(0))
        query, key, value = rotate_queries_keys(qkv, rotary_table(torch.ones(3, 3), 32))
        for states, turned in ((qkv[:, :, 0], query), (qkv[:, :, 1], key)):
            assert torch.equal(turned[..., 30:], states[..., 30:])
            assert ((turned - states)[..., :30].abs() > 0).all()
        assert torch.equal(value, qkv[:, :, 2])

    @pytest.mark.parametrize("head_dim", [8, 9])
    def test_gradients_of_turned_queries_and_keys(self, head_dim):
        """The backward is written by hand; odd head widths leave the last channel without a neighbor."""
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(2, 3, 3, 2, head_dim, dtype=torch.float64, generator=generator, requires_grad=True)
        positions = torch.randint(0, 5, (2, 3, 3), generator=generator)
        table = tuple(part.double() for part in rotary_table(positions, head_dim))
        assert torch.autograd.gradcheck(lambda qkv: rotate_queries_keys(qkv, table), qkv)

    @pytest.mark.parametrize("head_dim", [8, 9])
    def test_a_table_spread_over_heads_turns_the_same(self, head_dim):
        """Neighbors of another head have no part, also where heads are oddly wide; values and gradients as well."""
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(2, 4, 3, 3, head_dim, generator=generator, requires_grad=True)
        table = rotary_table(torch.randint(1, 5, (4, 3), generator=generator), head_dim)
        expected, found = rotate_queries_keys(qkv, table), rotate_queries_keys(qkv, spread_over_heads(table, 3))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        weights = torch.randn(3, *expected[0].shape, generator=generator)
        gradients = [torch.autograd.grad((torch.stack(turned) * weights).sum(), qkv) for turned in (expected, found)]
        torch.testing.assert_close(*gradients)
        with torch.no_grad():
            torch.testing.assert_close(rotate_queries_keys(qkv, spread_over_heads(table, 3)), expected)

    @torch.no_grad()
    def test_an_mlp_overwrites_nothing_of_its_input(self):
        mlp, tokens = VJepa2MLP(8, 4.0, "gelu"), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
        before = tokens.clone()
        with torch.enable_grad():
            expected = mlp(tokens).detach()
        torch.testing.assert_close(mlp(tokens), expected)
        assert torch.equal(tokens, before)

    @torch.no_grad()
    def test_a_key_value_buffer_copies_the_new_tokens_alone(self):
        key, value = torch.randn(2, 2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
        buffer = KeyValueBuffer(room=5, shared=(key, value), copies=2)
        new = torch.ones(4, 1, 2, 4)
        where = [part.data_ptr() for part in buffer.parts]
        found = buffer.extend(new, 2 * new)
        assert buffer.length == 5 and [part.data_ptr() for part in found] == where
        assert torch.equal(found[0], torch.cat([key.repeat_interleave(2, dim=0), new], dim=2))
        assert torch.equal(found[1], torch.cat([value.repeat_interleave(2, dim=0), 2 * new], dim=2))

    @torch.no_grad()
    def test_kept_tokens_keep_their_place(self, encoder):
        """All tokens as context, in any order, are the full clip."""
        order = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(i)) for i in range(2)])
        shuffled = encoder(clips(), context_mask=order).last_hidden_state
        full = encoder(clips()).last_hidden_state.gather(1, order.unsqueeze(-1).expand(-1, -1, 24))
        torch.testing.assert_close(shuffled, full, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("tubelet_size", [2, 4])
    def test_frames_fewer_than_a_tubelet_are_repeated(self, tubelet_size):
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, tubelet_size=tubelet_size)).eval())
        still = clips(1)
        repeated = encoder(still.repeat(1, tubelet_size, 1, 1, 1))
        folded = encoder(still)
        assert folded.grid == repeated.grid == (1, 4, 4)
        torch.testing.assert_close(folded.last_hidden_state, repeated.last_hidden_state, **TOLERANCE)
        if tubelet_size == 4:
            short = clips(2)
            expected = encoder(short.repeat(1, 2, 1, 1, 1)).last_hidden_state
            assert torch.equal(encoder(short).last_hidden_state, expected)
            expected = encoder(clips(3)[:, [0, 1, 2, 0]]).last_hidden_state
            assert torch.equal(encoder(clips(3)).last_hidden_state, expected)

    @torch.no_grad()
    def test_a_still_frame_with_a_context_mask(self, encoder):
        ids = torch.tensor([[1, 4], [0, 15]])
        one = encoder(clips(1), context_mask=ids).last_hidden_state
        two = encoder(clips(1).repeat(1, 2, 1, 1, 1), context_mask=ids).last_hidden_state
        torch.testing.assert_close(one, two, **TOLERANCE)


class TestOutputs:
    @torch.no_grad()
    def test_hidden_states(self, encoder):
        output = encoder(clips(), output_hidden_states=True)
        assert len(output.hidden_states) == 3
        assert torch.equal(output.hidden_states[0], encoder.patch_embeddings(clips()))
        assert torch.equal(encoder.layernorm(output.hidden_states[-1]), output.last_hidden_state)
        assert encoder(clips()).hidden_states is None

    @torch.no_grad()
    def test_attentions_of_eager_and_sdpa_agree_on_the_tokens(self, encoder):
        expected = encoder(clips()).last_hidden_state
        encoder.set_attn_implementation("eager")
        output = encoder(clips(), output_attentions=True)
        assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 32, 32)] * 2
        torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 32))
        torch.testing.assert_close(output.last_hidden_state, expected, **TOLERANCE)

    @torch.no_grad()
    def test_encode_pools(self, encoder):
        tokens = encoder.encode(clips())
        assert tokens.shape == (2, 32, 24) and not tokens.requires_grad
        torch.testing.assert_close(encoder.encode(clips(), pool="frame"), tokens.unflatten(1, (2, 16)).mean(2))
        torch.testing.assert_close(encoder.encode(clips(), pool="clip"), tokens.mean(1))
        with pytest.raises(ValueError, match="pool is 'mean'; expected None, 'frame' or 'clip'"):
            encoder.encode(clips(), pool="mean")

    @torch.no_grad()
    def test_half_precision_weights_take_float32_pixels(self, encoder):
        tokens = encoder.to(torch.bfloat16)(clips()).last_hidden_state
        assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


class TestTraining:
    def test_gradient_checkpointing_gives_the_same_gradients(self, encoder):
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                encoder.activation_checkpointing_enable()
            encoder.train()
            encoder.zero_grad()
            encoder(clips()).last_hidden_state.square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)

    def test_drop_path_only_in_training(self):
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, drop_path_rate=0.5)))
        torch.manual_seed(0)
        with torch.no_grad():
            video = clips(batch_size=16)
            assert torch.equal(encoder.eval()(video)[0], encoder(video)[0])
            assert not torch.equal(encoder.train()(video)[0], encoder(video)[0])

    @pytest.mark.parametrize("layer_class", [VJepa2Layer, VJepa2FactorizedLayer])
    def test_drop_path_skips_every_branch(self, layer_class):
        config = VJepa2EncoderConfig(**TINY_ENCODER)
        layer = layer_class(config, 24, 2, 4.0, index=1, drop_path=1 - 1e-9).train()
        tokens = torch.randn(2, 8, 24)
        arguments = (None, 2) if layer_class is VJepa2FactorizedLayer else ()
        assert torch.equal(layer(tokens, *arguments)[0], tokens)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_attention_dropout_only_in_training(self, implementation):
        config = VJepa2EncoderConfig(**TINY_ENCODER, attention_probs_dropout_prob=0.5)
        encoder = spread(VJepa2Encoder._from_config(config, attn_implementation=implementation))
        with torch.no_grad():
            video = clips(batch_size=2)
            assert torch.equal(encoder.eval()(video)[0], encoder(video)[0])
            assert not torch.equal(encoder.train()(video)[0], encoder(video)[0])

    def test_initialization(self):
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**{**ENCODER, "hidden_size": 192}))
        for index, layer in enumerate(encoder.layer, start=1):
            assert abs(layer.mlp.fc1.weight.std().item() / 0.02 - 1) < 0.05
            for projection in (layer.attention.proj, layer.mlp.fc2):
                assert abs(projection.weight.std().item() / (0.02 / (2 * index) ** 0.5) - 1) < 0.05
            assert layer.mlp.fc1.bias.abs().max() == 0


class TestFolders:
    def test_own_folder(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded, info = VJepa2Encoder.from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(encoder, loaded) and not any(info[key] for key in ("missing_keys", "unexpected_keys"))

    def test_masked_latent_folder_holds_two_encoders(self, tmp_path):
        torch.manual_seed(1)
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
        model = spread(VJepa2ForMaskedLatentPrediction(config))
        model.save_pretrained(tmp_path)
        assert not same_weights(model.encoder, model.target_encoder)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.target_encoder)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path, component="target_encoder"), model.target_encoder)
        online = VJepa2Encoder.from_pretrained(tmp_path, component="encoder")
        assert same_weights(online, model.encoder) and all(p.requires_grad for p in online.parameters())
        with pytest.raises(ValueError, match="component is 'predictor'.*expected one of"):
            VJepa2Encoder.from_pretrained(tmp_path, component="predictor")

    def test_world_model_folder(self, encoder, tmp_path):
        model = VJepa2WorldModel.from_encoder(encoder, action_dim=2, **TINY_PREDICTOR)
        model.fit_state(torch.randn(5, 16, 24))
        model.save_pretrained(tmp_path)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), encoder)

    def test_component_of_a_plain_encoder_is_refused(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="component is 'encoder'.*leave it out"):
            VJepa2Encoder.from_pretrained(tmp_path, component="encoder")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0, 1]]), r"context_mask has shape \(1, 2\)"),
        (torch.tensor([[0.0], [1.0]]), "dtype torch.float32; expected int64"),
        (torch.zeros(2, 0, dtype=torch.int64), "K above 0"),
        (torch.tensor([[0], [32]]), "ids from 0 to 32; the clip has tokens 0 to 31"),
        (torch.tensor([[-1], [3]]), "ids from -1 to 3"),
    ],
)
def test_wrong_masks_are_refused(encoder, mask, message):
    with pytest.raises(ValueError, match=message):
        encoder(clips(), context_mask=mask)
