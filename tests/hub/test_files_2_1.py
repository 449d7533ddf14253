"""Published files of V-JEPA 2.1: what is inferred from them, their outputs, and round trips."""

import argparse
import shlex
from pathlib import Path

import pytest
import torch
from builders import (
    TINY_2_1,
    TINY_PREDICTOR,
    below,
    golden,
    linear,
    on_meta,
    published_blocks,
    published_part,
    run_python,
    same_parts,
    same_weights,
    spread,
    write_checkpoint,
)

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.convert_checkpoints import convert, main
from vjepa2_hf.hub.inferred_config import published_config
from vjepa2_hf.hub.mismatch import describe_mismatch, shapes_of
from vjepa2_hf.hub.published_format import PublishedFile, model_to_parts, read_published


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
HEADS = {"num_attention_heads": 2}
PREDICTOR_HEADS = {**HEADS, "predictor_num_attention_heads": 3}
# The four files: width, blocks, MLP width, predictor blocks, width of a larger teacher, parameters in millions
FILES = {
    "2.1-base": (768, 12, 3072, 12, 1664, 87),
    "2.1-large": (1024, 24, 4096, 12, 1664, 305),
    "2.1-giant": (1408, 40, 6144, 24, None, 1013),
    "2.1-gigantic": (1664, 48, 8192, 24, None, 1845),
}
DENSE = {
    "predictor_levels": True, "predictor_modality_embeddings": True, "predict_context": True,
    "context_loss_weight": 0.5,
}  # fmt: skip


def norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def published_encoder(width: int, depth: int, hidden: int) -> dict[str, tuple]:
    """Names and shapes as published, written out and not from the package's tables."""
    names = {"img_mod_embed": (1, 1, width), "video_mod_embed": (1, 1, width)}
    for kind, tubelet in (("patch_embed", 2), ("patch_embed_img", 1)):
        names |= {f"{kind}.proj.weight": (width, 3, tubelet, 16, 16), f"{kind}.proj.bias": (width,)}
    names |= published_blocks("blocks", width, depth, hidden)
    for level in range(4):
        names |= norm(f"norms_block.{level}", width)
    return names


def published_predictor(width: int, depth: int, teacher: int | None) -> dict[str, tuple]:
    if teacher:
        names, output = linear("predictor_embed", width, 384), teacher
    else:
        names, output = (
            linear("predictor_embed.0", 4 * width, width) | linear("predictor_embed.2", width, 384),
            4 * width,
        )
    names |= linear("predictor_proj", 384, output) | linear("predictor_proj_context", 384, output)
    names |= {"img_mod_embed": (1, 1, 384), "video_mod_embed": (1, 1, 384)} | norm("predictor_norm", 384)
    names |= published_blocks("predictor_blocks", 384, depth, 1536)
    return names | {f"mask_tokens.{number}": (1, 1, 384) for number in range(8)}


def encoder_content(part: str = "target_encoder") -> dict:
    return {part: published_part(golden("v2_1"), "encoder/")}


def dense_content() -> dict:
    """As g and G are published: the encoder, its moving average, and a predictor of four levels."""
    return {part: published_part(golden("v2_1"), f"{part}/") for part in ("encoder", "target_encoder", "predictor")}


def distilled_content() -> dict:
    """As B and L are published."""
    data = golden("v2_1_distilled")
    return {"ema_encoder": published_part(data, "encoder/"), "predictor": published_part(data, "predictor/")}


def masked_latent_model(folder: Path, content: dict, **settings) -> VJepa2ForMaskedLatentPrediction:
    convert(write_checkpoint(folder, content), folder / "ours", settings={**PREDICTOR_HEADS, **settings})
    return VJepa2ForMaskedLatentPrediction.from_pretrained(folder / "ours").eval()


def random_encoder(**fields) -> VJepa2Encoder:
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_2_1, **fields})))


@pytest.mark.parametrize("size", list(FILES))
class TestFullSize:
    def test_names_shapes_and_parameter_counts(self, size):
        width, depth, hidden, *_, millions = FILES[size]
        with torch.device("meta"):
            model = VJepa2Encoder(VJepa2EncoderConfig.from_preset(size))
        ours = model_to_parts(model.state_dict(), model.config.model_type)["encoder"]
        assert shapes_of(ours) == published_encoder(width, depth, hidden)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions

    def test_names_and_shapes_of_a_whole_file(self, size):
        width, depth, hidden, blocks, teacher, _ = FILES[size]
        with torch.device("meta"):
            model = VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig.from_preset(size))
        ours = model_to_parts(model.state_dict(), model.config.model_type)
        assert {part: shapes_of(state) for part, state in ours.items()} == {
            "encoder": published_encoder(width, depth, hidden),
            "target_encoder": published_encoder(width, depth, hidden),
            "predictor": published_predictor(width, blocks, teacher),
        }

    def test_a_predictor_of_another_depth_is_one_clause(self, size):
        """As the published configs, which do not match their own files."""
        width, _, _, blocks, teacher, _ = FILES[size]
        parts = ({"predictor": published_predictor(width, depth, teacher)} for depth in (blocks, 36 - blocks))
        said = f"'predictor' has {blocks} blocks, not {36 - blocks} (predictor_num_hidden_layers)"
        assert describe_mismatch(*parts) == said

    def test_released_files_need_no_settings(self, size):
        """The config that tensors of the released shapes tell is the preset."""
        width, depth, hidden, blocks, teacher, _ = FILES[size]
        encoder = on_meta(published_encoder(width, depth, hidden))
        file = PublishedFile("pt", "encoder", {"encoder": encoder})
        assert published_config(file, "encoder", {}).to_dict() == VJepa2EncoderConfig.from_preset(size).to_dict()
        parts = {"target_encoder": encoder, "predictor": on_meta(published_predictor(width, blocks, teacher))}
        file = PublishedFile("pt", "pretraining", parts, distilled=teacher is not None)
        expected = VJepa2MaskedLatentPredictionConfig.from_preset(size).to_dict()
        assert published_config(file, "target_encoder", {}).to_dict() == expected


class TestEncoder:
    @torch.no_grad()
    @pytest.mark.parametrize("part", ["target_encoder", "ema_encoder", "encoder"])
    def test_published_outputs(self, tmp_path, part):
        data = golden("v2_1")
        convert(write_checkpoint(tmp_path, encoder_content(part)), tmp_path / "ours", settings=HEADS)
        encoder = VJepa2Encoder.from_pretrained(tmp_path / "ours")
        for pixels, name in (("pixel_values", "last"), ("image", "last_image"), ("wide_pixel_values", "last_wide")):
            output = encoder(data[pixels].transpose(1, 2))
            torch.testing.assert_close(output.last_hidden_state, data[name], **CLOSE)
        output = encoder(data["pixel_values"].transpose(1, 2), context_mask=data["out/video_context_mask"])
        torch.testing.assert_close(output.last_hidden_state, data["kept"], **CLOSE)
        levels = torch.cat(output.level_hidden_states, dim=-1)
        torch.testing.assert_close(levels, data["out/video_context_levels"], **CLOSE)
        assert VJepa2VideoProcessor.from_pretrained(tmp_path / "ours").crop_size.height == 384

    @pytest.mark.parametrize("part", ["target_encoder", "ema_encoder", "encoder"])
    def test_published_to_ours_to_published_to_the_bit(self, tmp_path, part):
        before = encoder_content(part)
        convert(write_checkpoint(tmp_path, before), tmp_path / "ours", settings=HEADS)
        VJepa2Encoder.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again")
        convert(tmp_path / "again", tmp_path / "back", to="published")
        after = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
        assert same_parts(after[part], before[part])

    def test_ours_to_published_to_ours(self, tmp_path, notes):
        """The command tells the settings with which its file is read back."""
        model = random_encoder(rope_grid_size=4)
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "published", to="published")
        told = notes().rpartition("--set ")[2].split(" | ")[0]
        assert "output_levels=[0,1]" in told and "rope_grid_size=4" in told
        main([str(tmp_path / "published" / "model.pt"), str(tmp_path / "back"), "--set", *shlex.split(told)])
        back = VJepa2Encoder.from_pretrained(tmp_path / "back")
        assert same_weights(back, model) and back.config.to_diff_dict() == model.config.to_diff_dict() | {
            "architectures": ["VJepa2Encoder"]
        }

    def test_transformers_is_refused(self, tmp_path):
        random_encoder().save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=r"transformers 5\.\S+ has no V-JEPA 2\.1, .*--to published"):
            convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        assert not (tmp_path / "theirs").exists()

    def test_a_classifier_to_published_and_back(self, tmp_path, notes):
        pooler = {"pooler_num_attention_heads": 2, "num_pooler_layers": 2, "num_labels": 3}
        config = VJepa2VideoClassificationConfig(encoder_config=TINY_2_1, **pooler)
        torch.manual_seed(0)
        model = spread(VJepa2ForVideoClassification(config))
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "published", to="published")
        told = notes().rpartition("--set ")[2].split(" | ")[0]
        main([str(tmp_path / "published" / "model.pt"), str(tmp_path / "back"), "--set", *shlex.split(told)])
        assert same_weights(VJepa2ForVideoClassification.from_pretrained(tmp_path / "back"), model)

    def test_a_world_model_is_not_written_as_published(self, tmp_path):
        config = VJepa2WorldModelConfig(encoder_config=TINY_2_1, action_dim=2, **TINY_PREDICTOR)
        VJepa2WorldModel(config).save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=r"V-JEPA 2-AC code has no V-JEPA 2\.1 encoder"):
            convert(tmp_path / "ours", tmp_path / "published", to="published")

    @pytest.mark.parametrize(
        "fields", [{"modality_embeddings": False}, {"output_levels": None}, {"image_tubelet_size": None}]
    )
    def test_half_of_2_1_is_not_written_as_published(self, tmp_path, fields):
        random_encoder(**fields).save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=r"together \(V-JEPA 2\.1\) or none: keep our format"):
            convert(tmp_path / "ours", tmp_path / "published", to="published")
        assert not (tmp_path / "published").exists()

    def test_other_levels_than_the_published_ones_are_not_written(self, tmp_path):
        random_encoder(num_hidden_layers=12, output_levels=[1, 5, 8, 11]).save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=r"output_levels=\[1, 5, 8, 11\]; .*output_levels=\[2, 5, 8, 11\]"):
            convert(tmp_path / "ours", tmp_path / "published", to="published")

    def test_exported_code_of_a_converted_file_loads_in_a_fresh_process(self, tmp_path):
        model = masked_latent_model(tmp_path, dense_content())
        cache = tmp_path / "modules"
        result = run_python(EXPORT, tmp_path, package=True, cache=cache)
        assert result.returncode == 0, result.stderr
        data = golden("v2_1")
        torch.save([data[name].transpose(1, 2) for name in ("image", "wide_pixel_values")], tmp_path / "clips.pt")
        result = run_python(LOAD_WITHOUT_PACKAGE, tmp_path, package=False, cache=cache)
        assert result.returncode == 0, result.stderr
        (image, wide), state = torch.load(tmp_path / "found.pt", weights_only=True)
        torch.testing.assert_close(image, data["last_image"], **CLOSE)
        torch.testing.assert_close(wide, data["last_wide"], **CLOSE)
        assert same_parts(state, model.state_dict())


class TestMaskedLatents:
    @torch.no_grad()
    @pytest.mark.parametrize(("kind", "pixels"), [("video", "pixel_values"), ("image", "image")])
    def test_published_outputs_and_losses_of_four_levels(self, tmp_path, kind, pixels):
        data, model = golden("v2_1"), masked_latent_model(tmp_path, dense_content())
        masks = [data[f"out/{kind}_{name}_mask"] for name in ("context", "target")]
        output = model(data[pixels].transpose(1, 2), *masks, mask_token_index=0)
        torch.testing.assert_close(output.predicted_latents[0], data[f"out/{kind}_predicted"], **CLOSE)
        torch.testing.assert_close(output.predicted_context_latents[0], data[f"out/{kind}_predicted_context"], **CLOSE)
        loss = data[f"out/{kind}_loss_predicted"] + 0.5 * data[f"out/{kind}_loss_context"]
        torch.testing.assert_close(output.loss, loss, **CLOSE)

    @torch.no_grad()
    def test_published_outputs_of_a_distilled_file(self, tmp_path):
        data, model = golden("v2_1_distilled"), masked_latent_model(tmp_path, distilled_content())
        masks = [data[f"{name}_mask"] for name in ("context", "target")]
        seen, grid = model.encoder(data["pixel_values"].transpose(1, 2), masks[0]), (4, 4, 4)
        predicted, of_context = model.predict(seen, *masks, grid, mask_token_index=1)
        torch.testing.assert_close(predicted, data["predicted"], **CLOSE)
        torch.testing.assert_close(of_context, data["predicted_context"], **CLOSE)
        assert (model.config.target_type, model.config.teacher_hidden_size) == ("teacher", 80)

    @pytest.mark.parametrize("content", [dense_content, distilled_content], ids=["dense", "distilled"])
    def test_published_to_ours_to_published_to_the_bit(self, tmp_path, content):
        before = content()
        masked_latent_model(tmp_path, before).save_pretrained(tmp_path / "again")
        convert(tmp_path / "again", tmp_path / "back", to="published")
        after = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
        for part, state in before.items():
            assert same_parts(after[part], state), part
        assert ("target_encoder" in after) == ("target_encoder" in before)  # of a distilled model the teacher's name

    @pytest.mark.parametrize("content", [dense_content, distilled_content], ids=["dense", "distilled"])
    def test_ours_to_published_to_ours(self, tmp_path, content, notes):
        model = masked_latent_model(tmp_path, content())
        convert(tmp_path / "ours", tmp_path / "published", to="published")
        told = notes().rpartition("--set ")[2].split(" | ")[0]
        main([str(tmp_path / "published" / "model.pt"), str(tmp_path / "back"), "--set", *shlex.split(told)])
        back = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "back")
        assert same_weights(back, model) and back.config.to_diff_dict() == model.config.to_diff_dict()

    @pytest.mark.parametrize("content", [dense_content, distilled_content], ids=["dense", "distilled"])
    def test_the_encoder_of_a_converted_folder_is_the_target_encoder(self, tmp_path, content):
        model = masked_latent_model(tmp_path, content())
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path / "ours"), model.target_encoder)
        if content is distilled_content:  # it holds one encoder, from which both start
            assert same_weights(model.encoder, model.target_encoder)

    def test_a_teacher_in_the_file_is_left_out_and_said(self, tmp_path, notes):
        teacher = {name: torch.zeros(2) for name in distilled_content()["ema_encoder"]}
        content = {**distilled_content(), "target_encoder": teacher}
        model = masked_latent_model(tmp_path, content)
        bias = golden("v2_1_distilled")["encoder/norms_block.3.bias"]
        assert torch.equal(model.target_encoder.layernorm.bias, bias)
        assert "ema_encoder is taken as the target encoder" in notes() and "left out of" in notes()

    @pytest.mark.parametrize("content", [dense_content, distilled_content], ids=["dense", "distilled"])
    def test_transformers_is_refused(self, tmp_path, content):
        masked_latent_model(tmp_path, content())
        with pytest.raises(ValueError, match=r"transformers 5\.\S+ has no V-JEPA 2\.1"):
            convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")

    @pytest.mark.parametrize(
        "fields", [{"predict_context": False, "context_loss_weight": 0}, {"predictor_modality_embeddings": False}]
    )
    def test_half_of_2_1_is_not_written_as_published(self, tmp_path, fields):
        fields = {**DENSE, **TINY_PREDICTOR, **fields}
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_2_1, **fields)
        VJepa2ForMaskedLatentPrediction(config).save_pretrained(tmp_path / "ours")
        with pytest.raises(ValueError, match=r"predict\w+=False.*together \(V-JEPA 2\.1\) or none"):
            convert(tmp_path / "ours", tmp_path / "published", to="published")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"predictor_num_hidden_layers": 24}, "'predictor' has 4 blocks, not 24 (predictor_num_hidden_layers)"),
            ({"predictor_hidden_size": 96}, "'predictor' is 48 wide, not 96 (predictor_hidden_size)"),
            ({"num_mask_tokens": 10}, "'predictor' has 8 mask tokens, not 10 (num_mask_tokens)"),
            ({"predictor_levels": False}, "predictor_embed.*.weight (2 tensors) of 'predictor' is not expected"),
            ({"predictor_modality_embeddings": False}, "video_mod_embed of 'predictor' is not expected"),
            ({"output_levels": [8, 11]}, "'target_encoder' has 4 levels, not 2 (output_levels)"),
        ],
    )
    def test_settings_that_the_file_does_not_fit(self, tmp_path, settings, said):
        """A file with 4 predictor blocks under a config of 24 is one sentence, and nothing is written."""
        with pytest.raises(ValueError, match="does not fit its config") as refusal:
            masked_latent_model(tmp_path, dense_content(), **settings)
        assert said in str(refusal.value) and "\n" not in str(refusal.value)
        assert not (tmp_path / "ours").exists()


EXPORT = """
import sys, vjepa2_hf
vjepa2_hf.register_custom_code()
for name in ("VJepa2Encoder", "VJepa2ForMaskedLatentPrediction"):
    options = {"component": "encoder"} if name == "VJepa2Encoder" else {}
    model = getattr(vjepa2_hf, name).from_pretrained(sys.argv[1] + "/ours", **options)
    model.save_pretrained(f"{sys.argv[1]}/{name}")
"""
LOAD_WITHOUT_PACKAGE = """
import sys, torch
from transformers import AutoModel
names = ("VJepa2Encoder", "VJepa2ForMaskedLatentPrediction")
encoder, model = (AutoModel.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True).eval() for name in names)
with torch.no_grad():
    clips = torch.load(sys.argv[1] + "/clips.pt", weights_only=True)
    torch.save(([encoder(clip).last_hidden_state for clip in clips], model.state_dict()), sys.argv[1] + "/found.pt")
"""


def without_level(content: dict, level: int) -> dict:
    return {p: {n: v for n, v in s.items() if f"norms_block.{level}." not in n} for p, s in content.items()}


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"num_hidden_layers": 24, "output_levels": [5, 11, 17, 23]}, "has 12 blocks, not 24 (num_hidden_layers)"),
            ({"output_levels": [8, 11]}, "has 4 levels, not 2 (output_levels)"),
            ({"hidden_size": 64}, "is 48 wide, not 64 (hidden_size)"),
            ({"modality_embeddings": False}, "video_mod_embed of 'encoder' is not expected"),
            ({"image_tubelet_size": None}, "patch_embed_img.proj.weight of 'encoder' is not expected"),
        ],
    )
    def test_settings_that_the_file_does_not_fit(self, tmp_path, settings, said):
        source = write_checkpoint(tmp_path, encoder_content())
        with pytest.raises(ValueError, match="does not fit its config") as refusal:
            convert(source, tmp_path / "ours", settings={**HEADS, **settings})
        assert said in str(refusal.value) and str(refusal.value).count("\n") == 0
        assert list(tmp_path.iterdir()) == [source]

    def test_a_level_that_is_missing(self, tmp_path):
        source = write_checkpoint(tmp_path, without_level(encoder_content(), 1))
        with pytest.raises(ValueError, match="output_levels cannot be inferred from the tensors"):
            convert(source, tmp_path / "ours", settings=HEADS)
        with pytest.raises(ValueError, match="'encoder' has 3 levels, not 4 .*"):
            convert(source, tmp_path / "ours", settings={**HEADS, "output_levels": [2, 5, 8, 11]})

    def test_settings_of_2_1_for_a_file_of_2(self, tmp_path):
        source = write_checkpoint(tmp_path, {"encoder": below(golden("encoder_rope"), "state/")})
        levels = {"num_attention_heads": 3, "output_levels": [0, 2]}
        with pytest.raises(ValueError, match="does not fit its config: 'encoder' has 0 levels, not 2"):
            convert(source, tmp_path / "ours", settings=levels)

    @pytest.mark.parametrize("content", [{}, {"encoder": {}}, {"encoder": {"model.0.weight": torch.zeros(2)}}])
    def test_a_file_without_known_names(self, tmp_path, content):
        with pytest.raises(ValueError, match="is not a published V-JEPA 2 file: it holds") as refusal:
            convert(write_checkpoint(tmp_path, content), tmp_path / "ours")
        assert "RoboJEPA" not in str(refusal.value)

    def test_one_weight_under_two_prefixes(self, tmp_path):
        state = below(golden("v2_1"), "encoder/")
        state |= {f"module.backbone.{name}": value for name, value in state.items()}
        with pytest.raises(ValueError, match=r"'encoder' has 316 names, but 158 without the prefixes"):
            convert(write_checkpoint(tmp_path, {"encoder": state}), tmp_path / "ours", settings=HEADS)

    def test_a_truncated_file(self, tmp_path):
        source = write_checkpoint(tmp_path, encoder_content())
        source.write_bytes(source.read_bytes()[:200_000])
        with pytest.raises(ValueError, match="is cut short"):
            convert(source, tmp_path / "ours", settings=HEADS)

    @pytest.mark.parametrize("width", [512, 64])
    def test_robojepa_is_named_and_its_names_are_not_guessed(self, tmp_path, width):
        """Of a `.pth.tar` of unknown names, only what is known of RoboJEPA is said."""
        state = {f"trunk.{i}.weight": torch.zeros(width, 2) for i in range(7)}
        source = write_checkpoint(tmp_path, {"predictor": state, "step": 10_000}, "step10000.pth.tar")
        with pytest.raises(
            ValueError, match=r"RoboJEPA \(arXiv 2610.10515\): its tensor names are not public"
        ) as said:
            read_published(str(source))
        assert ("the file has 7 blocks of width 512" in str(said.value)) == (width == 512)

    def test_robojepa_with_names_of_v_jepa_2_ac(self, tmp_path):
        state = {f"predictor_blocks.{i}.attn.q.weight": torch.zeros(512, 512) for i in range(7)}
        state |= {"predictor_embed.weight": torch.zeros(512, 48), "action_encoder.weight": torch.zeros(512, 7)}
        content = {**encoder_content("encoder"), "predictor": state}
        source = write_checkpoint(tmp_path, content, "latest.pth.tar")
        with pytest.raises(ValueError, match="RoboJEPA.*the file has 7 blocks of width 512") as said:
            convert(source, tmp_path / "ours")
        assert "--set" not in str(said.value) and not (tmp_path / "ours").exists()

    def test_robojepa_with_objects_beside_tensors(self, tmp_path):
        source = write_checkpoint(tmp_path, {"args": argparse.Namespace(width=512)}, "latest.pth.tar")
        with pytest.raises(ValueError, match=r"holds code or objects \(argparse.Namespace\).*RoboJEPA"):
            read_published(str(source))
