"""The convolutional stem of the encoder: independent patches, one frame and several, folders, export, refusals."""

import pytest
import torch
import yaml
from builders import ROOT, TINY_2_1, TINY_ENCODER, TINY_PREDICTOR, clips, same_weights, spread
from torch import nn

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.modeling_encoder import VJepa2ConvPatchEmbeddings, VJepa2PatchEmbeddings


CLOSE = {"atol": 1e-5, "rtol": 0}
CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])


def build(**fields) -> VJepa2Encoder:
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "patch_stem": "conv", **fields})).eval())


class TestStem:
    def test_channels_double_from_pixels_to_the_width(self):
        def sizes(**fields):
            return VJepa2EncoderConfig(**{"num_attention_heads": 2, "patch_stem": "conv", **fields}).stem_sizes

        assert sizes(hidden_size=96, patch_size=8) == [24, 48, 96]
        assert sizes(hidden_size=64, patch_size=16) == [12, 16, 32, 64]  # 2 × 2 pixels hold 12 numbers
        assert sizes(hidden_size=96, patch_size=8, patch_stem="linear") == []

    @torch.no_grad()
    @pytest.mark.parametrize("tubelet", [1, 2])
    def test_a_token_is_what_its_patch_gives_alone(self, tubelet):
        embed = build(tubelet_size=tubelet).patch_embeddings
        tokens = embed(clips())
        for step, row, column in [(0, 0, 0), (1, 2, 3)]:
            frames = slice(step * tubelet, (step + 1) * tubelet)
            alone = clips()[:, frames, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            alone = alone.repeat(1, 3 - tubelet, 1, 1, 1) if tubelet == 1 else alone  # one frame would be an image
            torch.testing.assert_close(tokens[:, 16 * step + 4 * row + column], embed(alone)[:, 0], **CLOSE)

    @torch.no_grad()
    def test_one_frame_by_written_out_convolutions(self):
        embed = build(tubelet_size=1, patch_size=2, hidden_size=12).patch_embeddings
        convolution, norm = embed.stem[0], embed.stem[1]
        pixels = clips(1)[0, 0, :, 4:6, 8:10]  # of row 2, column 4
        found = torch.einsum("ocij,cij->o", convolution.weight, pixels) + convolution.bias
        found = (found - found.mean()) / (found.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias
        expected = embed.proj(nn.functional.gelu(found))
        torch.testing.assert_close(embed(clips(1))[0, 2 * 16 + 4], expected, **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("tubelet", [1, 2])
    def test_kept_tokens_never_see_other_pixels(self, tubelet):
        """Changing all pixels but those of the kept tokens leaves the encoder's output the same to the bit."""
        encoder = build(tubelet_size=tubelet)
        video, changed = clips(), clips(seed=9)
        for clip, ids in enumerate(CONTEXT.tolist()):
            for token in ids:
                time, position = divmod(token, 16)
                top, left = position // 4 * 8, position % 4 * 8
                frames = slice(tubelet * time, tubelet * time + tubelet)
                where = (clip, frames, slice(None), slice(top, top + 8), slice(left, left + 8))
                changed[where] = video[where]
        one, two = (encoder(pixels, context_mask=CONTEXT).last_hidden_state for pixels in (video, changed))
        assert torch.equal(one, two) and not torch.equal(encoder(video)[0], encoder(changed)[0])

    @torch.no_grad()
    @pytest.mark.parametrize("tubelet", [1, 2])
    def test_kept_tokens_are_those_of_the_whole_clip(self, tubelet):
        embed = build(tubelet_size=tubelet).patch_embeddings
        whole = embed(clips()).gather(1, CONTEXT.unsqueeze(-1).expand(-1, -1, 24))
        torch.testing.assert_close(embed(clips(), CONTEXT), whole, **CLOSE)

    @torch.no_grad()
    def test_one_frame_is_repeated_to_a_tubelet(self):
        encoder = build()
        one, two = (encoder(clips(1).repeat(1, n, 1, 1, 1)).last_hidden_state for n in (1, 2))
        torch.testing.assert_close(one, two, **CLOSE)

    @torch.no_grad()
    def test_images_have_a_stem_of_their_own(self):
        encoder = build(**TINY_2_1)
        assert isinstance(encoder.image_patch_embeddings, VJepa2ConvPatchEmbeddings)
        assert encoder.image_patch_embeddings.proj.in_features == 24
        before = encoder(clips(1)).last_hidden_state
        encoder.patch_embeddings.stem[0].weight.zero_()
        assert torch.equal(encoder(clips(1)).last_hidden_state, before)
        encoder.image_patch_embeddings.stem[0].weight.zero_()
        assert not torch.equal(encoder(clips(1)).last_hidden_state, before)

    @torch.no_grad()
    def test_a_norm_leaves_the_brightness_of_an_even_patch_visible(self):
        torch.manual_seed(0)
        embed = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, patch_stem="conv")).patch_embeddings
        assert all(embed.stem[i].bias.abs().max() > 0.05 for i in (0, 3, 6))
        dark, bright = (embed(torch.full((1, 2, 3, 8, 8), value)) for value in (0.5, 2.0))
        assert (dark - bright).norm() > 0.05 * bright.norm()


class TestModels:
    def test_the_default_is_the_published_embedding(self):
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
        assert type(encoder.patch_embeddings) is VJepa2PatchEmbeddings
        assert [name for name in encoder.state_dict() if "patch_embeddings" in name] == [
            "patch_embeddings.proj.weight",
            "patch_embeddings.proj.bias",
        ]

    def test_masked_prediction_trains_the_stem_and_a_folder_keeps_it(self, tmp_path):
        torch.manual_seed(0)
        encoder = {**TINY_ENCODER, "patch_stem": "conv", "tubelet_size": 1, "frames_per_clip": 2}
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder, **TINY_PREDICTOR)
        model = spread(VJepa2ForMaskedLatentPrediction(config)).train()
        model(clips(2), CONTEXT, TARGET).loss.backward()
        for parameter in model.encoder.patch_embeddings.parameters():
            assert parameter.grad.abs().max() > 0
        model.save_pretrained(tmp_path)
        loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path)
        assert same_weights(loaded, model) and loaded.config.encoder_config.patch_stem == "conv"
        alone = VJepa2Encoder.from_pretrained(tmp_path)
        assert same_weights(alone, model.target_encoder)
        assert "embedded by convolutions within the patch" in (tmp_path / "README.md").read_text()

    def test_a_folder_without_the_stem_is_not_loaded_with_a_random_one(self, tmp_path):
        VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="patch_embeddings"):
            VJepa2Encoder.from_pretrained(tmp_path, patch_stem="conv")

    @torch.no_grad()
    def test_exported_with_any_number_of_clips(self):
        encoder = build(tubelet_size=1)
        dynamic = {"pixel_values_videos": {0: torch.export.Dim("batch", min=1, max=8)}}
        program = torch.export.export(encoder, (), {"pixel_values_videos": clips()}, dynamic_shapes=dynamic)
        found = program.module()(pixel_values_videos=clips(batch_size=3, seed=1)).last_hidden_state
        torch.testing.assert_close(found, encoder(clips(batch_size=3, seed=1)).last_hidden_state, **CLOSE)


class TestConfig:
    @pytest.mark.parametrize("patch", [1, 12])
    def test_patches_that_are_no_power_of_two_are_refused(self, patch):
        with pytest.raises(ValueError, match=f"patch_stem='conv' .* patch_size is {patch}; expected a power of 2"):
            VJepa2EncoderConfig(**{**TINY_ENCODER, "patch_stem": "conv", "patch_size": patch})

    def test_preset_of_states_of_one_frame(self):
        config = VJepa2MaskedLatentPredictionConfig.from_preset("single-frame", {"patch_stem": "conv"})
        encoder = config.encoder_config
        assert (encoder.patch_size, encoder.tubelet_size, encoder.patch_stem) == (8, 1, "conv")
        assert (encoder.hidden_size, config.predictor_hidden_size, config.predictor_query_key_bias) == (96, 64, 2.0)
        tokens = VJepa2Encoder(VJepa2EncoderConfig.from_preset("single-frame", num_hidden_layers=1))(clips(1, 64, 64))
        assert tokens.grid == (1, 8, 8) and tokens.last_hidden_state.shape == (2, 64, 96)

    def test_dynamics_around_the_small_preset_are_those_of_the_demo(self):
        """Not those of the published arm, whose predictor has 300 million parameters."""
        demo = yaml.safe_load((ROOT / "examples/configs/demo/world_model.yaml").read_text())["world_model"]
        config = VJepa2WorldModelConfig.from_preset("single-frame", {"patch_stem": "conv"}, action_dim=2)
        assert config.encoder_config.patch_stem == "conv" and config.proprio_dim == 0 and config.planner is None
        assert {name: getattr(config, name) for name in demo if name != "frame_skip"} == {
            name: value for name, value in demo.items() if name != "frame_skip"
        }
        model = VJepa2WorldModel(config)
        assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
        wider = VJepa2WorldModelConfig.from_preset("single-frame", predictor_hidden_size=96)
        assert (wider.predictor_hidden_size, wider.predictor_num_hidden_layers) == (96, 2)
