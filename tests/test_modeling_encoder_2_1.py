"""The encoder of V-JEPA 2.1 against the published code: images, modality, stretched positions, levels."""

import pytest
import torch
from builders import GOLDEN_2_1, TINY_2_1, TINY_ENCODER, clips, golden, our_names, same_weights, spread
from transformers import AutoModel

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.modeling_layers import grid_positions


CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def published():
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**GOLDEN_2_1)).eval()
    encoder.load_state_dict(our_names(golden("v2_1"), "encoder/"))
    return encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_2_1)).eval())


class TestPublished:
    @torch.no_grad()
    @pytest.mark.parametrize(
        ("pixels", "name", "grid"),
        [
            ("pixel_values", "last", (4, 4, 4)),
            ("image", "last_image", (1, 4, 4)),
            ("wide_pixel_values", "last_wide", (2, 4, 6)),
        ],
    )
    def test_last_features(self, published, pixels, name, grid):
        data = golden("v2_1")
        output = published(data[pixels].transpose(1, 2))
        assert output.grid == grid
        torch.testing.assert_close(output.last_hidden_state, data[name], **CLOSE)

    @torch.no_grad()
    def test_kept_tokens(self, published):
        data = golden("v2_1")
        kept = published(data["pixel_values"].transpose(1, 2), context_mask=data["out/video_context_mask"])
        torch.testing.assert_close(kept.last_hidden_state, data["kept"], **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize(("kind", "pixels"), [("video", "pixel_values"), ("image", "image")])
    def test_levels_of_kept_tokens(self, published, kind, pixels):
        data = golden("v2_1")
        kept = published(data[pixels].transpose(1, 2), context_mask=data[f"out/{kind}_context_mask"])
        levels = torch.cat(kept.level_hidden_states, dim=-1)
        torch.testing.assert_close(levels, data[f"out/{kind}_context_levels"], **CLOSE)


class TestImages:
    @torch.no_grad()
    def test_a_clip_of_one_frame_takes_the_image_tokenizer(self, encoder):
        image = clips(1)
        before = encoder(image).last_hidden_state
        encoder.patch_embeddings.proj.weight.zero_()
        assert torch.equal(encoder(image).last_hidden_state, before)
        encoder.image_patch_embeddings.proj.weight.zero_()
        assert not torch.equal(encoder(image).last_hidden_state, before)

    @torch.no_grad()
    @pytest.mark.parametrize("frames", [1, 4])
    def test_tokens_of_each_kind_carry_its_vector(self, encoder, frames):
        own = [encoder.image_modality_embedding, encoder.video_modality_embedding]
        own = own if frames == 1 else own[::-1]
        first = encoder(clips(frames), output_hidden_states=True).hidden_states[0]
        for vector, moved in zip(own, (1.0, 0.0), strict=True):
            vector.add_(1.0)
            found = encoder(clips(frames), output_hidden_states=True).hidden_states[0]
            torch.testing.assert_close(found, first + moved, atol=1e-5, rtol=0)
            vector.sub_(1.0)

    @torch.no_grad()
    def test_the_kept_tokens_of_an_image(self, encoder):
        ids = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
        kept = encoder(clips(1), context_mask=ids)
        full = encoder(clips(1))
        for found, expected in zip(kept.level_hidden_states, full.level_hidden_states, strict=True):
            torch.testing.assert_close(found, expected.gather(1, ids.unsqueeze(-1).expand(-1, -1, 24)), **CLOSE)

    @torch.no_grad()
    def test_one_frame_of_an_encoder_without_image_tokenizer_is_a_repeated_frame(self):
        torch.manual_seed(0)
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "output_levels": [0, 1]})).eval())
        one, two = (encoder(clips(1).repeat(1, n, 1, 1, 1)).last_hidden_state for n in (1, 2))
        torch.testing.assert_close(one, two, **CLOSE)


class TestLevels:
    @torch.no_grad()
    def test_levels_are_normed_outputs_of_their_blocks(self, encoder):
        output = encoder(clips(), output_hidden_states=True)
        assert len(output.level_hidden_states) == 2 and len(encoder.level_norms) == 1
        assert torch.equal(output.level_hidden_states[0], encoder.level_norms[0](output.hidden_states[1]))
        assert torch.equal(output.level_hidden_states[1], output.last_hidden_state)
        assert torch.equal(output.last_hidden_state, encoder.layernorm(output.hidden_states[2]))

    @torch.no_grad()
    def test_encode_puts_levels_side_by_side(self, encoder):
        levels = torch.cat(encoder(clips()).level_hidden_states, dim=-1)
        assert torch.equal(encoder.encode(clips(), levels=True), levels) and levels.shape == (2, 32, 48)
        torch.testing.assert_close(encoder.encode(clips(), "frame", levels=True), levels.unflatten(1, (2, 16)).mean(2))
        torch.testing.assert_close(encoder.encode(clips(), "clip", levels=True), levels.mean(1))

    @torch.no_grad()
    def test_an_encoder_without_levels(self):
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval()
        assert encoder(clips()).level_hidden_states is None
        with pytest.raises(ValueError, match=r"levels=True needs output_levels .* like \[5, 11, 17, 23\]; it is None"):
            encoder.encode(clips(), levels=True)

    def test_a_model_without_the_fields_has_the_weights_it_always_had(self):
        names = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).state_dict()
        outside = {name for name in names if not name.startswith("layer.")}
        assert outside == {
            f"{part}.{kind}" for part in ("patch_embeddings.proj", "layernorm") for kind in ("weight", "bias")
        }

    @pytest.mark.parametrize("attention_type", ["joint", "factorized"])
    def test_gradients_reach_every_weight_with_and_without_checkpointing(self, attention_type):
        torch.manual_seed(0)
        config = VJepa2EncoderConfig(**TINY_2_1, attention_type=attention_type)
        encoder, gradients = spread(VJepa2Encoder(config)).train(), []
        for _ in range(2):
            encoder.zero_grad()
            for video in (clips(), clips(1)):
                sum(level.square().sum() for level in encoder(video).level_hidden_states).backward()
            gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
            encoder.activation_checkpointing_enable()
        for plain, checkpointed in zip(*gradients, strict=True):
            assert plain.abs().max() > 0
            torch.testing.assert_close(plain, checkpointed)

    def test_a_saved_folder(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is VJepa2Encoder and same_weights(loaded, encoder)
        assert loaded.config.output_levels == [0, 1] and loaded.config.image_tubelet_size == 1

    @torch.no_grad()
    def test_modality_starts_near_zero(self):
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_2_1, "hidden_size": 240}))
        for vector in (encoder.image_modality_embedding, encoder.video_modality_embedding):
            assert 5e-7 < vector.std() < 2e-6


class TestPositions:
    def test_rows_and_columns_are_stretched_and_time_is_counted(self):
        positions = grid_positions((3, 4, 1), stretched_to=16)
        assert positions[:, 0].unique().tolist() == [0, 1, 2]
        assert positions[:4, 1].tolist() == [0, 5, 10, 15] and positions[:, 2].unique().tolist() == [0]

    @torch.no_grad()
    def test_a_grid_of_the_stretched_size_is_unchanged(self):
        plain, stretched = (
            VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "rope_grid_size": size})).eval() for size in (None, 4)
        )
        stretched.load_state_dict(plain.state_dict())
        small, large = clips(), clips(height=48, width=48)
        assert torch.equal(plain(small).last_hidden_state, stretched(small).last_hidden_state)
        assert not torch.equal(plain(large).last_hidden_state, stretched(large).last_hidden_state)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"image_tubelet_size": 2}, "image_tubelet_size is 2; expected None or 1"),
            ({"rope_grid_size": 0}, "rope_grid_size is 0; expected a number above 0"),
            (
                {"rope_grid_size": 16, "position_embedding_type": "learned"},
                "rope_grid_size=16 .*: set position_embedding_type='rope'",
            ),
            ({"output_levels": [0]}, r"output_levels is \[0\]; expected .* the last is 1, the last block"),
            ({"output_levels": []}, r"output_levels is \[\]"),
            ({"output_levels": [1, 0, 1]}, r"output_levels is \[1, 0, 1\]; expected increasing"),
            ({"output_levels": [-1, 1]}, r"output_levels is \[-1, 1\]"),
        ],
    )
    def test_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            VJepa2EncoderConfig(**{**TINY_ENCODER, **fields})

    @pytest.mark.parametrize(
        ("name", "size", "depth", "inner"),
        [("base", 768, 12, 3072), ("large", 1024, 24, 4096), ("giant", 1408, 40, 6144), ("gigantic", 1664, 48, 8192)],
    )
    def test_presets_have_the_published_weights(self, name, size, depth, inner):
        config = VJepa2EncoderConfig.from_preset(f"2.1-{name}")
        assert (config.crop_size, config.frames_per_clip, config.tubelet_size) == (384, 64, 2)
        with torch.device("meta"):
            shapes = {name: tuple(weight.shape) for name, weight in VJepa2Encoder(config).state_dict().items()}
        expected = {
            "patch_embeddings.proj.weight": (size, 3, 2, 16, 16),
            "image_patch_embeddings.proj.weight": (size, 3, 1, 16, 16),
            "image_modality_embedding": (1, 1, size),
            "video_modality_embedding": (1, 1, size),
            **{f"level_norms.{i}.weight": (size,) for i in range(3)},
            "layernorm.weight": (size,),
        }
        for i in range(depth):
            expected |= {f"layer.{i}.norm{n}.weight": (size,) for n in (1, 2)}
            expected |= {
                f"layer.{i}.attention.qkv.weight": (3 * size, size),
                f"layer.{i}.attention.proj.weight": (size, size),
                f"layer.{i}.mlp.fc1.weight": (inner, size),
                f"layer.{i}.mlp.fc2.weight": (size, inner),
            }
        expected |= {name[:-6] + "bias": shape[:1] for name, shape in expected.items() if name.endswith(".weight")}
        assert shapes == expected
        assert shapes.keys() >= {f"layer.{level}.norm1.weight" for level in config.output_levels}

    def test_a_preset_of_2_1_that_was_not_released(self):
        with pytest.raises(ValueError, match="preset is '2.1-small'; expected one of .*'2.1-gigantic'"):
            VJepa2EncoderConfig.from_preset("2.1-small")
