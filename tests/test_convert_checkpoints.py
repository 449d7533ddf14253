"""Every format into every other one: the same weights to the bit, the published numbers, and one sentence for each
file that does not convert."""

import io
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    GOLDEN_SETTINGS,
    TINY_ENCODER,
    TINY_PREDICTOR,
    below,
    clips,
    golden,
    golden_content,
    linear,
    loaded,
    on_meta,
    published_blocks,
    published_part,
    same_parts,
    same_weights,
    spread,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoVideoProcessor,
    BertConfig,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

import vjepa2_hf
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
from vjepa2_hf.hub import conversion
from vjepa2_hf.hub.inferred_config import published_config
from vjepa2_hf.hub.mismatch import shapes_of
from vjepa2_hf.hub.published_format import PublishedFile, model_to_parts
from vjepa2_hf.hub.transformers_format import config_to_transformers, to_transformers_state_dict


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
HEADS = {"num_attention_heads": 3}
PREDICTOR_HEADS = {**HEADS, "predictor_num_attention_heads": 3}
AC = {**PREDICTOR_HEADS, "crop_size": 64}
PROBE = {**HEADS, "pooler_num_attention_heads": 3}
V1 = {"position_embedding_type": "sincos"}


# ------------------------------------------------------------------------------------------------ files


CLASSES = {
    "pretraining": VJepa2ForMaskedLatentPrediction,
    "action-conditioned": VJepa2WorldModel,
    "probe": VJepa2ForVideoClassification,
    "encoder": VJepa2Encoder,
    "V-JEPA 1": VJepa2Encoder,
    "uniform": VJepa2Encoder,
}


def converted(kind: str, folder: Path, **settings):
    """The model that a golden file of this kind becomes, loaded from the folder that the command writes."""
    encoder = write_checkpoint(folder, golden_content("pretraining"), "encoder.pt") if kind == "probe" else None
    source = write_checkpoint(folder, golden_content(kind))
    convert(source, folder / "ours", encoder=encoder, settings={**GOLDEN_SETTINGS[kind], **settings})
    return loaded(CLASSES[kind], folder / "ours")


def random_model(kind: str):
    """A model of ours with random weights and sizes that no golden file has."""
    torch.manual_seed(0)
    encoder = {**TINY_ENCODER, "mlp_ratio": 2.5, "layer_norm_eps": 1e-6}
    if kind == "pretraining":
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder, **TINY_PREDICTOR, num_mask_tokens=3)
        return spread(VJepa2ForMaskedLatentPrediction(config))
    if kind == "action-conditioned":
        sizes = {"action_dim": 4, "proprio_dim": 5, "extrinsics_dim": 3, "action_low": [-1.5] * 4, **TINY_PREDICTOR}
        return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=encoder, **sizes)))
    if kind == "probe":
        pooler = {"pooler_num_attention_heads": 2, "pooler_layer_norm_eps": 1e-6, "num_pooler_layers": 2}
        labels = {"id2label": {0: "left", 1: "right", 2: "still"}}
        config = VJepa2VideoClassificationConfig(encoder_config=encoder, **pooler, **labels)
        return spread(VJepa2ForVideoClassification(config))
    positions = {"V-JEPA 1": V1, "uniform": {**V1, "uniform_power": True}}.get(kind, {"qkv_bias": False})
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**encoder, **positions)))


# ------------------------------------------------------------------------------------------------ published numbers


class TestGoldenNumbers:
    """Golden weights, written as a published file, converted, loaded: the golden outputs."""

    @torch.no_grad()
    def test_encoder(self, tmp_path):
        data = golden("encoder_rope")
        encoder = converted("encoder", tmp_path)
        pixels = data["pixel_values"].transpose(1, 2)
        torch.testing.assert_close(encoder(pixels).last_hidden_state, data["full"], **CLOSE)
        torch.testing.assert_close(encoder(pixels, data["keep"]).last_hidden_state, data["kept"], **CLOSE)
        wide = encoder(data["wide_pixel_values"].transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(wide, data["wide"], **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize(("interleave", "name"), [(False, "tiled"), (True, "interleaved")])
    def test_both_rotary_tables(self, tmp_path, interleave, name):
        data = golden("encoder_rope_interleaved")
        source = write_checkpoint(tmp_path, {"target_encoder": published_part(data, "state/")})
        convert(source, tmp_path / "ours", settings={**HEADS, "rope_interleave": interleave})
        output = loaded(VJepa2Encoder, tmp_path / "ours")(data["pixel_values"].transpose(1, 2))
        torch.testing.assert_close(output.last_hidden_state, data[name], **CLOSE)

    @torch.no_grad()
    def test_sincos(self, tmp_path):
        data = golden("encoder_sincos")
        encoder = converted("V-JEPA 1", tmp_path)
        assert (encoder.config.crop_size, encoder.config.frames_per_clip) == (64, 8)  # told by pos_embed
        pixels = data["pixel_values"].transpose(1, 2)
        torch.testing.assert_close(encoder(pixels).last_hidden_state, data["full"], **CLOSE)
        torch.testing.assert_close(encoder(pixels, data["keep"]).last_hidden_state, data["kept"], **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("pixels", "name"), [("pixel_values", "full"), ("big_pixel_values", "big"), ("short_pixel_values", "short")]
    )
    def test_sincos_with_uniform_power_at_other_sizes(self, tmp_path, pixels, name):
        data = golden("encoder_sincos_uniform")
        output = converted("uniform", tmp_path)(data[pixels].transpose(1, 2))
        torch.testing.assert_close(output.last_hidden_state, data[name], **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("exponent", [1, 2])
    def test_masked_latents_and_both_losses(self, tmp_path, exponent):
        data = golden("masked_latent")
        model = converted("pretraining", tmp_path, loss_exponent=exponent)
        masks = [[data[f"out/{kind}_mask_{i}"] for i in (0, 1)] for kind in ("context", "target")]
        output = model(data["pixel_values"].transpose(1, 2), *masks)
        torch.testing.assert_close(output.loss, data[f"loss_{exponent}"], **CLOSE)
        for i in (0, 1):
            torch.testing.assert_close(output.predicted_latents[i], data[f"out/prediction_{i}"], **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("extrinsics", [False, True])
    def test_world_model(self, tmp_path, extrinsics):
        data = golden("world_model_ac_extrinsics" if extrinsics else "world_model_ac")
        parts = {part: published_part(data, f"{part}/", "module.") for part in ("encoder", "predictor")}
        settings = {**AC, "extrinsics_dim": 6} if extrinsics else AC
        convert(write_checkpoint(tmp_path, parts), tmp_path / "ours", settings=settings)
        model = loaded(VJepa2WorldModel, tmp_path / "ours")
        states = {"proprio_states": data["states"], "extrinsics": data["extrinsics"] if extrinsics else None}
        latents = model.encode(data["frames"])
        torch.testing.assert_close(latents.flatten(1, 2), data["latents"], **CLOSE)
        output = model(latents=latents, actions=data["actions"], **states)
        torch.testing.assert_close(output.predicted_latents.flatten(1, 2), data["teacher_forced"], **CLOSE)
        torch.testing.assert_close(output.teacher_forcing_loss, data["loss_teacher_forcing"], **CLOSE)
        torch.testing.assert_close(output.rollout_loss, data["loss_rollout"], **CLOSE)
        states = {name: value if value is None else value[:, :3] for name, value in states.items()}
        future = model.rollout(latents[:, :1], data["actions"][:, :2], **states)
        torch.testing.assert_close(future.flatten(1, 2), data["rollout"], **CLOSE)

    @torch.no_grad()
    def test_classifier(self, tmp_path):
        data = golden("attentive_classifier")
        model = converted("probe", tmp_path)
        torch.testing.assert_close(model.classifier(model.pooler(data["features"])), data["logits"], **CLOSE)


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("kind", list(GOLDEN_SETTINGS))
class TestPublishedRoundTrips:
    def test_published_to_ours_to_published(self, tmp_path, kind):
        """Every tensor of the file comes back, to the bit, under its name with its prefix."""
        converted(kind, tmp_path)
        convert(tmp_path / "ours", tmp_path / "back", to="published")
        before, after = golden_content(kind), torch.load(tmp_path / "back" / "model.pt", weights_only=True)
        for part in {"encoder", "target_encoder", "predictor"} & set(before):
            assert same_parts(after[part], before[part]), part
        if kind == "probe":
            assert same_parts(after["classifiers"][0], before["classifiers"][0])

    def test_ours_to_published_to_ours(self, tmp_path, kind, notes):
        """Weights come back to the bit, and the config with the settings that the command tells to give."""
        model = random_model(kind)
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "published", to="published")
        told = notes().rpartition("--set ")[2].split(" | ")[0]
        main([str(tmp_path / "published" / "model.pt"), str(tmp_path / "back"), "--set", *shlex.split(told)])
        back = loaded(type(model), tmp_path / "back")
        assert same_weights(back, model)
        before, after = (loaded(type(model), tmp_path / folder).config.to_dict() for folder in ("ours", "back"))
        lost = {"id2label", "label2id", "_name_or_path"}  # of the labels, their number stays
        assert [n for n in before if before[n] != after[n] and n not in lost] == [] and before.keys() == after.keys()


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_predictor_with_a_table_of_positions(tmp_path, positions):
    """V-JEPA 1's files have a table for the encoder and one of the predictor's width."""
    encoder = {**TINY_ENCODER, "position_embedding_type": positions}
    torch.manual_seed(0)
    model = spread(
        VJepa2ForMaskedLatentPrediction(
            VJepa2MaskedLatentPredictionConfig(
                encoder_config=encoder, **{**TINY_PREDICTOR, "predictor_hidden_size": 16}
            )
        )
    )
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "published", to="published")
    content = torch.load(tmp_path / "published" / "model.pt", weights_only=True)
    assert content["encoder"]["module.backbone.pos_embed"].shape == (1, 32, 24)
    assert content["predictor"]["module.backbone.predictor_pos_embed"].shape == (1, 32, 16)
    settings = {"num_attention_heads": 2, "predictor_num_attention_heads": 2, "position_embedding_type": positions}
    if positions == "learned":  # which the table does not tell
        settings |= {"crop_size": 32, "frames_per_clip": 4}
    convert(tmp_path / "published" / "model.pt", tmp_path / "back", settings=settings)
    back = loaded(VJepa2ForMaskedLatentPrediction, tmp_path / "back")
    assert same_weights(back, model) and back.config.encoder_config.frames_per_clip == 4


class TestTransformersRoundTrips:
    @pytest.mark.parametrize("kind", ["pretraining", "encoder"])
    def test_published_to_ours_to_transformers_to_ours(self, tmp_path, kind):
        converted(kind, tmp_path)
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        convert(tmp_path / "theirs", tmp_path / "back")
        ours, back = loaded(CLASSES[kind], tmp_path / "ours"), loaded(CLASSES[kind], tmp_path / "back")
        if kind == "pretraining":  # transformers has one encoder: the target encoder unless asked for the other
            assert same_weights(back.target_encoder, ours.target_encoder)
            assert same_weights(back.encoder, ours.target_encoder)
            assert same_weights(back.predictor, ours.predictor)
        else:
            assert same_weights(back, ours)

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_weights_follow_the_umask(self, tmp_path):
        random_model("encoder").save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        (tmp_path / "other").touch()
        files = [tmp_path / folder / "model.safetensors" for folder in ("ours", "theirs")]
        assert {file.stat().st_mode for file in files} == {(tmp_path / "other").stat().st_mode}

    def test_online_encoder_goes_to_transformers_when_asked_for(self, tmp_path):
        model = random_model("pretraining")
        model.encoder.layernorm.bias.data.add_(1.0)
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers", component="encoder")
        convert(tmp_path / "theirs", tmp_path / "back")
        back = loaded(VJepa2ForMaskedLatentPrediction, tmp_path / "back")
        assert same_weights(back.encoder, model.encoder) and same_weights(back.predictor, model.predictor)

    def test_classifier_with_its_labels(self, tmp_path):
        model = random_model("probe")
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        convert(tmp_path / "theirs", tmp_path / "back")
        back = loaded(VJepa2ForVideoClassification, tmp_path / "back")
        assert same_weights(back, model) and back.config.id2label == {0: "left", 1: "right", 2: "still"}

    @pytest.mark.parametrize("their_class", [VJEPA2Model, VJEPA2ForVideoClassification])
    def test_transformers_to_ours_to_transformers(self, tmp_path, their_class):
        theirs = random_transformers_model(their_class)
        theirs.save_pretrained(tmp_path / "theirs")
        convert(tmp_path / "theirs", tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "back", to="transformers")
        before, after = theirs.state_dict(), loaded(their_class, tmp_path / "back").state_dict()
        if their_class is VJEPA2ForVideoClassification:  # the predictor, which it never runs, is lost
            before, after = ({n: v for n, v in s.items() if "predictor." not in n} for s in (before, after))
        assert same_parts(after, before)

    @pytest.mark.parametrize("their_class", [VJEPA2Model, VJEPA2ForVideoClassification])
    def test_transformers_to_published(self, tmp_path, their_class):
        theirs = random_transformers_model(their_class)
        theirs.save_pretrained(tmp_path / "theirs")
        convert(tmp_path / "theirs", tmp_path / "published", to="published")
        content = torch.load(tmp_path / "published" / "model.pt", weights_only=True)
        classifies = their_class is VJEPA2ForVideoClassification
        prefix = "module." if classifies else "module.backbone."
        encoder = theirs.vjepa2.encoder if classifies else theirs.encoder
        for part in ("encoder", "target_encoder"):
            assert torch.equal(content[part][f"{prefix}blocks.1.mlp.fc1.weight"], encoder.layer[1].mlp.fc1.weight)
        attention = encoder.layer[0].attention
        joined = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        assert torch.equal(content["encoder"][f"{prefix}blocks.0.attn.qkv.weight"], joined)
        if classifies:
            assert torch.equal(content["classifiers"][0]["module.linear.weight"], theirs.classifier.weight)
        else:
            token = theirs.predictor.embeddings.mask_tokens[2]
            assert torch.equal(content["predictor"]["module.backbone.mask_tokens.2"], token)


def random_transformers_model(model_class):
    torch.manual_seed(0)
    sizes = {**TINY_ENCODER, "mlp_ratio": 48 / 11, "num_labels": 3, "num_pooler_layers": 1}
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    return spread(model_class(VJEPA2Config(**sizes, **predictor, pred_num_mask_tokens=3)))


class TestInTransformers:
    """What the command writes loads there without a newly initialised weight and computes the same."""

    @torch.no_grad()
    def test_encoder_and_predictor(self, tmp_path):
        model = random_model("pretraining").eval()
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        theirs = loaded(VJEPA2Model, tmp_path / "theirs").eval()
        pixels, ids = clips(), torch.arange(32).expand(2, -1)
        context, target = ids[:, :20], ids[:, 20:]
        tokens = model.encode_targets(pixels)
        output = theirs(pixels, context_mask=[context], target_mask=[target])
        torch.testing.assert_close(output.last_hidden_state, tokens, **CLOSE)
        expected = model.predictor(tokens[:, :20], context, target, (2, 4, 4), mask_token_index=1)
        torch.testing.assert_close(output.predictor_output.last_hidden_state, expected, **CLOSE)

    @torch.no_grad()
    def test_encoder_alone_has_a_predictor_that_predicts_nothing(self, tmp_path, notes):
        encoder = random_model("encoder").eval()
        encoder.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        assert "a predictor: one without layers" in notes()
        theirs = loaded(VJEPA2Model, tmp_path / "theirs").eval()
        output = theirs(clips())
        torch.testing.assert_close(output.last_hidden_state, encoder(clips()).last_hidden_state, **CLOSE)
        assert theirs.config.pred_num_hidden_layers == 0 and not output.predictor_output.last_hidden_state.any()

    @torch.no_grad()
    def test_classifier(self, tmp_path):
        model = random_model("probe").eval()
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        theirs = loaded(VJEPA2ForVideoClassification, tmp_path / "theirs").eval()
        torch.testing.assert_close(theirs(clips()).logits, model(clips()).logits, **CLOSE)

    def test_encoder_of_a_world_model(self, tmp_path):
        model = random_model("action-conditioned")
        model.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers", component="encoder")
        assert same_weights(loaded(VJepa2Encoder, tmp_path / "theirs"), model.encoder)

    def test_video_processor(self, tmp_path):
        random_model("encoder").save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        processor = AutoVideoProcessor.from_pretrained(tmp_path / "theirs")
        assert type(processor).__name__ == "VJEPA2VideoProcessor" and processor.crop_size.height == 32


UNEQUAL = {
    "sincos": ({"encoder_config": V1}, "position_embedding_type is 'sincos'.*'rope'"),
    "corrected rotary table": ({"encoder_config": {"rope_interleave": True}}, "rope_interleave is True"),
    "factorized attention": ({"encoder_config": {"attention_type": "factorized"}}, "attention_type is 'factorized'"),
    "stem": ({"encoder_config": {"patch_stem": "conv"}}, "patch_stem is 'conv'.*always computes with 'linear'"),
    "pooler heads": ({"pooler_num_attention_heads": 4}, "pooler_num_attention_heads is 4.* 2:"),
    "pooler eps": ({"pooler_layer_norm_eps": 1e-5}, "pooler_layer_norm_eps is 1e-05.*1e-06"),
    "pooler ratio": ({"pooler_mlp_ratio": 2.0}, "pooler_mlp_ratio is 2.0.*4.0"),
    "linear pooler": ({"pooler_type": "linear"}, "pooler_type is 'linear'"),
    "several layers": ({"encoder_layers": [0, 1]}, r"encoder_layers is \[0, 1\]"),
}


@pytest.mark.parametrize(("fields", "message"), UNEQUAL.values(), ids=UNEQUAL)
def test_transformers_that_would_compute_something_else_is_refused(tmp_path, fields, message):
    base = {"num_labels": 2, "pooler_num_attention_heads": 2, "pooler_layer_norm_eps": 1e-6}
    fields = {**base, **fields, "encoder_config": {**TINY_ENCODER, **fields.get("encoder_config", {})}}
    VJepa2ForVideoClassification(VJepa2VideoClassificationConfig(**fields)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert not (tmp_path / "theirs").exists()


UNPUBLISHED = {
    "factorized attention": ("encoder", {"attention_type": "factorized"}, "attention_type is 'factorized'"),
    "eps": ("encoder", {"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
    "stem": ("encoder", {"patch_stem": "conv"}, "patch_stem is 'conv'.*always computes with 'linear'"),
    "linear pooler": ("probe", {"pooler_type": "linear"}, "pooler_type is 'linear'"),
    "added actions": ("action-conditioned", {"action_fusion": "add"}, "action_fusion is 'add'"),
    "residual": ("action-conditioned", {"residual": True}, "residual is True"),
    "pixels": ("action-conditioned", {"state_type": "pixels"}, "state_type is 'pixels'"),
    "adapting encoder": ("action-conditioned", {"freeze_encoder": False}, "freeze_encoder is False"),
    "reward head": ("action-conditioned", {"reward_head": True}, "reward_head is True"),
    "several views": ("action-conditioned", {"num_views": 2}, "num_views is 2"),
    "several embodiments": ("action-conditioned", {"num_embodiments": 2, "action_low": None}, "num_embodiments is 2"),
    "shared keys": ("action-conditioned", {"predictor_num_key_value_heads": 1}, "predictor_num_key_value_heads is 1"),
    "standardised actions": ("action-conditioned", {"action_std": [2.0] * 4}, "action_std is"),
}


@pytest.mark.parametrize(("kind", "fields", "message"), UNPUBLISHED.values(), ids=UNPUBLISHED)
def test_what_published_code_would_compute_otherwise_is_refused(tmp_path, kind, fields, message):
    model = random_model(kind)
    config = model.config.to_dict() | fields
    type(model)(type(model.config).from_dict(config)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "ours", tmp_path / "published", to="published")
    assert not (tmp_path / "published").exists()


# ------------------------------------------------------------------------------------------------ what is taken


class TestParts:
    @pytest.mark.parametrize("component", ["target_encoder", "encoder"])
    def test_component_is_that_encoder_alone(self, tmp_path, component):
        source = write_checkpoint(tmp_path, golden_content("pretraining"))
        convert(source, tmp_path / "alone", component=component, settings=HEADS)
        convert(source, tmp_path / "all", settings=PREDICTOR_HEADS)
        alone = loaded(VJepa2Encoder, tmp_path / "alone")
        assert same_weights(alone, getattr(loaded(VJepa2ForMaskedLatentPrediction, tmp_path / "all"), component))
        convert(tmp_path / "all", tmp_path / "of_folder", component=component)
        assert same_weights(alone, loaded(VJepa2Encoder, tmp_path / "of_folder"))

    def test_without_a_target_encoder_the_encoder_is_taken_and_said(self, tmp_path, capsys):
        content = golden_content("pretraining")
        del content["target_encoder"]
        arguments = [str(write_checkpoint(tmp_path, content)), str(tmp_path / "ours"), "--set"]
        main([*arguments, *(f"{name}={value}" for name, value in PREDICTOR_HEADS.items())])
        assert "holds no target_encoder: its encoder is taken" in capsys.readouterr().out
        model = loaded(VJepa2ForMaskedLatentPrediction, tmp_path / "ours")
        assert same_weights(model.target_encoder, model.encoder)

    def test_card_names_the_source(self, tmp_path):
        source = write_checkpoint(tmp_path, golden_content("pretraining"))
        convert(source, tmp_path / "ours", settings=PREDICTOR_HEADS)
        card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
        assert source.name in card and str(tmp_path) not in card

    @pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "module.module.backbone."])
    def test_prefixes(self, tmp_path, prefix):
        state = below(golden("encoder_rope"), "state/")
        content = {"encoder": {prefix + name: value for name, value in state.items()}}
        convert(write_checkpoint(tmp_path, content), tmp_path / "ours", settings=HEADS)
        assert torch.equal(loaded(VJepa2Encoder, tmp_path / "ours").layernorm.bias, state["norm.bias"])

    def test_bare_state_dict_and_old_torch_file(self, tmp_path):
        state = below(golden("encoder_rope"), "state/")
        torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        convert(tmp_path / "old.pth", tmp_path / "ours", settings=HEADS)
        assert torch.equal(loaded(VJepa2Encoder, tmp_path / "ours").layernorm.bias, state["norm.bias"])

    def test_tensors_beside_the_parts_make_no_bare_state_dict(self, tmp_path, notes):
        content = {**golden_content("encoder"), "loss": torch.tensor(0.5), "mean": torch.zeros(3)}
        convert(write_checkpoint(tmp_path, content), tmp_path / "ours", settings=HEADS)
        loaded(VJepa2Encoder, tmp_path / "ours")
        assert "left out of" in notes() and "loss, mean" in notes()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_numpy_numbers_among_the_counters(self, tmp_path, zipped):
        counters = {"lr": np.float64(1e-4), "epoch": np.int64(3), "loss": np.float32(0.5), "amp": np.bool_(True)}
        torch.save(
            {**golden_content("encoder"), **counters},
            tmp_path / "published.pt",
            _use_new_zipfile_serialization=zipped,
        )
        convert(tmp_path / "published.pt", tmp_path / "ours", settings=HEADS)
        norm = loaded(VJepa2Encoder, tmp_path / "ours").layernorm
        assert torch.equal(norm.bias, below(golden("encoder_rope"), "state/")["norm.bias"])

    def test_planning_bounds_from_the_command_line(self, tmp_path):
        source = str(write_checkpoint(tmp_path, golden_content("action-conditioned")))
        settings = [f"{name}={value}" for name, value in AC.items()]
        settings += ["action_low=[-1, -1, -1, -1, -1, -1, -0.5]", "action_high=[1, 1, 1, 1, 1, 1, 2]"]
        main([source, str(tmp_path / "ours"), "--set", *settings])
        config = loaded(VJepa2WorldModel, tmp_path / "ours").config
        assert (config.action_low, config.action_high) == ([-1.0] * 6 + [-0.5], [1.0] * 6 + [2.0])
        assert config.planner["solver"] == "cem"  # the rest stays as published

    def test_world_model_starts_from_the_target_encoder_unless_told_otherwise(self, tmp_path):
        content = golden_content("action-conditioned")
        content["target_encoder"] = {name: value + 1 for name, value in content["encoder"].items()}
        source = write_checkpoint(tmp_path, content)
        for component, added in ((None, 1), ("encoder", 0)):
            convert(source, tmp_path / f"ours{added}", component=component, settings=AC)
            bias = loaded(VJepa2WorldModel, tmp_path / f"ours{added}").encoder.layernorm.bias
            assert torch.equal(bias, content["encoder"]["module.norm.bias"] + added)

    def test_unused_extrinsics_survive_and_turn_on(self, tmp_path):
        model = converted("action-conditioned", tmp_path)
        weight = golden("world_model_ac")["predictor/extrinsics_encoder.weight"]
        assert torch.equal(model.predictor.extrinsics_encoder.weight, weight) and model.config.extrinsics_dim == 0
        assert not any(p.requires_grad for p in model.predictor.extrinsics_encoder.parameters())
        with pytest.raises(ValueError, match="extrinsics were given, but the model does not use them"):
            model(torch.zeros(1, 2, 3, 64, 64), None, torch.zeros(1, 1, 7), torch.zeros(1, 2, 7), torch.zeros(1, 2, 6))
        used = VJepa2WorldModel.from_pretrained(tmp_path / "ours", extrinsics_dim=6)
        assert torch.equal(used.predictor.extrinsics_encoder.weight, weight)
        assert all(p.requires_grad for p in used.predictor.extrinsics_encoder.parameters())
        with pytest.raises(ValueError, match="extrinsics_dim is 3; expected 0 or stored_extrinsics_dim=6"):
            VJepa2WorldModelConfig(extrinsics_dim=3, stored_extrinsics_dim=6)

    def test_world_model_moves_poses(self, tmp_path):
        config = converted("action-conditioned", tmp_path).config
        assert (config.action_dim, config.proprio_dim, config.proprio_transition) == (7, 7, "pose_delta")

    @pytest.mark.parametrize("encoder", ["pt", "ours", "transformers"])
    def test_probe_on_an_encoder_from_anywhere(self, tmp_path, encoder):
        file = write_checkpoint(tmp_path, golden_content("pretraining"), "encoder.pt")
        settings = {"pooler_num_attention_heads": 3}
        if encoder == "pt":
            settings |= HEADS
        else:
            file = convert(file, tmp_path / "encoder", to=encoder, settings=PREDICTOR_HEADS)
        convert(
            write_checkpoint(tmp_path, golden_content("probe")), tmp_path / "ours", encoder=file, settings=settings
        )
        model = loaded(VJepa2ForVideoClassification, tmp_path / "ours")
        target = golden("masked_latent")["target_encoder/blocks.2.attn.qkv.weight"]
        assert torch.equal(model.encoder.layer[2].attention.qkv.weight, target)
        assert model.config.num_labels == 7 and model.config.num_pooler_layers == 3

    def test_action_conditioned_file_on_an_encoder_from_elsewhere(self, tmp_path):
        content, encoder = golden_content("action-conditioned"), golden_content("pretraining")
        path = write_checkpoint(tmp_path, encoder, "encoder.pt")
        source = write_checkpoint(tmp_path, {"predictor": content["predictor"]})
        for component, wanted in ((None, "target_encoder"), ("encoder", "encoder")):
            convert(source, tmp_path / wanted, component=component, encoder=path, settings=AC)
            model = loaded(VJepa2WorldModel, tmp_path / wanted)
            assert torch.equal(model.encoder.layernorm.bias, encoder[wanted]["module.backbone.norm.bias"])
            assert torch.equal(model.predictor.layernorm.bias, content["predictor"]["module.predictor_norm.bias"])

    def test_classifier_index(self, tmp_path, notes):
        state = golden_content("probe")["classifiers"][0]
        content = {"classifiers": [state, {name: value + 1 for name, value in state.items()}]}
        encoder = write_checkpoint(tmp_path, golden_content("encoder"), "encoder.pt")
        settings = {**PROBE, "classifier_index": 1}
        convert(write_checkpoint(tmp_path, content), tmp_path / "ours", encoder=encoder, settings=settings)
        bias = loaded(VJepa2ForVideoClassification, tmp_path / "ours").classifier.bias
        assert torch.equal(bias, state["module.linear.bias"] + 1) and "2 classifiers: number 1 is taken" in notes()

    def test_labels(self, tmp_path):
        encoder = write_checkpoint(tmp_path, golden_content("encoder"), "encoder.pt")
        arguments = [
            str(write_checkpoint(tmp_path, golden_content("probe"))),
            str(tmp_path / "ours"),
            "--encoder",
            str(encoder),
        ]
        labels = "id2label={" + ", ".join(f"{i}: action {i}" for i in range(7)) + "}"
        main([*arguments, "--set", "num_attention_heads=3", "pooler_num_attention_heads=3", labels])
        config = loaded(VJepa2ForVideoClassification, tmp_path / "ours").config
        assert config.id2label[6] == "action 6"

    def test_unused_pos_embed_is_left_out_and_said(self, tmp_path, notes):
        convert(write_checkpoint(tmp_path, golden_content("V-JEPA 1")), tmp_path / "ours", settings=HEADS)
        assert "pos_embed" in notes() and "left out" in notes()
        assert loaded(VJepa2Encoder, tmp_path / "ours").config.position_embedding_type == "rope"

    def test_settings_change_a_folder_too(self, tmp_path):
        random_model("pretraining").save_pretrained(tmp_path / "ours")
        settings = {"loss_exponent": 2, "crop_size": 64, "num_frames": 8}
        convert(tmp_path / "ours", tmp_path / "other", settings=settings)
        config = loaded(VJepa2ForMaskedLatentPrediction, tmp_path / "other").config
        assert (config.loss_exponent, config.encoder_config.crop_size, config.num_frames) == (2, 64, 8)
        assert VJepa2VideoProcessor.from_pretrained(tmp_path / "other").crop_size.height == 64

    def test_processor_of_a_folder_is_kept(self, tmp_path):
        random_model("encoder").save_pretrained(tmp_path / "ours")
        VJepa2VideoProcessor(size={"height": 40, "width": 40}, crop_size=32).save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "copy")
        assert VJepa2VideoProcessor.from_pretrained(tmp_path / "copy").size.height == 40

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtype_is_kept(self, tmp_path, dtype):
        content = {"encoder": {n: v.to(dtype) for n, v in golden_content("encoder")["target_encoder"].items()}}
        convert(write_checkpoint(tmp_path, content), tmp_path / "ours", settings=HEADS)
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
        convert(tmp_path / "theirs", tmp_path / "back")
        for folder, model_class in (("ours", VJepa2Encoder), ("theirs", VJEPA2Model), ("back", VJepa2Encoder)):
            assert loaded(model_class, tmp_path / folder).dtype == dtype

    def test_mixed_dtypes_are_widened_and_said(self, tmp_path, notes):
        content = golden_content("probe")
        encoder = {n: v.bfloat16() for n, v in golden_content("encoder")["target_encoder"].items()}
        encoder = write_checkpoint(tmp_path, {"target_encoder": encoder}, "encoder.pt")
        convert(write_checkpoint(tmp_path, content), tmp_path / "ours", encoder=encoder, settings=PROBE)
        model = loaded(VJepa2ForVideoClassification, tmp_path / "ours")
        assert {p.dtype for p in model.parameters()} == {
            torch.float32
        } and "are all written as torch.float32" in notes()
        assert torch.equal(model.pooler.query_tokens, content["classifiers"][0]["module.pooler.query_tokens"])


# ------------------------------------------------------------------------------------------------ full size

PUBLISHED_SIZES = {  # width, blocks, MLP width, parameters in millions
    "large": (1024, 24, 4096, 304),
    "huge": (1280, 32, 5120, 632),
    "giant": (1408, 40, 6144, 1012),
}


def published_encoder(width: int, depth: int, hidden: int) -> dict[str, tuple]:
    names = {"patch_embed.proj.weight": (width, 3, 2, 16, 16), "patch_embed.proj.bias": (width,)}
    return names | published_blocks("blocks", width, depth, hidden) | {"norm.weight": (width,), "norm.bias": (width,)}


def published_predictor(width: int, size: int, depth: int) -> dict[str, tuple]:
    names = linear("predictor_embed", width, size) | linear("predictor_proj", size, width)
    names |= published_blocks("predictor_blocks", size, depth, 4 * size)
    return names | {"predictor_norm.weight": (size,), "predictor_norm.bias": (size,)}


def published_probe(width: int, labels: int) -> dict[str, tuple]:
    cross = "pooler.cross_attention_block"
    names = {"pooler.query_tokens": (1, 1, width)} | published_blocks("pooler.blocks", width, 3, 4 * width)
    names |= {f"{cross}.{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    names |= linear(f"{cross}.xattn.q", width, width) | linear(f"{cross}.xattn.kv", width, 2 * width)
    names |= linear(f"{cross}.mlp.fc1", width, 4 * width) | linear(f"{cross}.mlp.fc2", 4 * width, width)
    return names | linear("linear", width, labels)


def full_size_parts(size: str) -> dict[str, dict[str, tuple]]:
    width, depth, hidden, _ = PUBLISHED_SIZES[size]
    encoder, predictor = published_encoder(width, depth, hidden), published_predictor(width, 384, 12)
    predictor |= {f"mask_tokens.{i}": (1, 1, 384) for i in range(10)}
    dynamics = published_predictor(width, 1024, 24)
    for name, inputs in (("action_encoder", 7), ("state_encoder", 7), ("extrinsics_encoder", 6)):
        dynamics |= linear(name, inputs, 1024)
    return {"encoder": encoder, "predictor": predictor, "dynamics": dynamics, "probe": published_probe(width, 174)}


@pytest.mark.parametrize("size", list(PUBLISHED_SIZES))
class TestFullSize:
    @pytest.fixture
    def parts(self, size):
        return full_size_parts(size)

    def test_names_shapes_and_parameter_counts(self, size, parts):
        with torch.device("meta"):
            model = VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig.from_preset(size))
            world_model = VJepa2WorldModel(VJepa2WorldModelConfig.from_preset(size))
            config = VJepa2VideoClassificationConfig.from_preset(size, num_labels=174)
            classifier = VJepa2ForVideoClassification(config)
        ours = model_to_parts(model.state_dict(), model.config.model_type)
        for part in ("encoder", "target_encoder", "predictor"):
            assert shapes_of(ours[part]) == parts[part.removeprefix("target_")]
        ours = model_to_parts(world_model.state_dict(), world_model.config.model_type)
        assert shapes_of(ours["predictor"]) == parts["dynamics"] and shapes_of(ours["encoder"]) == parts["encoder"]
        ours = model_to_parts(classifier.state_dict(), classifier.config.model_type)
        assert shapes_of(ours["probe"]) == parts["probe"] and shapes_of(ours["encoder"]) == parts["encoder"]
        millions = sum(parameter.numel() for parameter in model.encoder.parameters()) / 1e6
        assert round(millions) == PUBLISHED_SIZES[size][3]

    @pytest.mark.parametrize("their_class", [VJEPA2Model, VJEPA2ForVideoClassification])
    def test_transformers_names_and_shapes(self, size, their_class):
        with torch.device("meta"):
            if their_class is VJEPA2Model:
                ours = VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig.from_preset(size))
            else:
                encoder = VJepa2EncoderConfig.from_preset(size)
                fields = {"pooler_num_attention_heads": encoder.num_attention_heads, "pooler_layer_norm_eps": 1e-6}
                config = VJepa2VideoClassificationConfig(encoder_config=encoder.to_dict(), num_labels=174, **fields)
                ours = VJepa2ForVideoClassification(config)
            theirs = their_class(VJEPA2Config(**config_to_transformers(ours.config), num_labels=174))
        state = {n: v for n, v in ours.state_dict().items() if not n.startswith("target_encoder.")}
        state = shapes_of(to_transformers_state_dict(state, ours.config.model_type))
        wanted = {n: s for n, s in shapes_of(theirs.state_dict()).items() if not n.startswith("vjepa2.predictor.")}
        assert state == wanted
        encoder = theirs.encoder if their_class is VJEPA2Model else theirs.vjepa2.encoder
        assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == PUBLISHED_SIZES[size][3]

    def test_released_files_need_no_settings(self, size, parts):
        """The config that tensors of the released shapes tell is the preset."""
        encoder, predictor, dynamics, probe = (on_meta(part) for part in parts.values())
        file = PublishedFile(
            "pt", "pretraining", {"encoder": encoder, "target_encoder": encoder, "predictor": predictor}
        )
        expected = VJepa2MaskedLatentPredictionConfig.from_preset(size).to_dict()
        assert published_config(file, "target_encoder", {}).to_dict() == expected
        file = PublishedFile("pt", "action-conditioned", {"encoder": encoder, "predictor": dynamics})
        assert published_config(file, "encoder", {}).to_dict() == VJepa2WorldModelConfig.from_preset(size).to_dict()
        file = PublishedFile("pt", "probe", {"probe": probe})
        config = published_config(file, None, {}, VJepa2EncoderConfig.from_preset(size))
        assert config.to_dict() == VJepa2VideoClassificationConfig.from_preset(size, num_labels=174).to_dict()


@pytest.mark.parametrize(
    ("width", "hidden"), [(1408, 6144), (1024, 4096), (96, 100), (384, 1536), (56, 115), (1408, 6145)]
)
def test_mlp_ratio_survives(width, hidden):
    state = {"patch_embed.proj.weight": torch.empty(width, 3, 2, 16, 16, device="meta")}
    state["blocks.0.mlp.fc1.weight"] = torch.empty(hidden, width, device="meta")
    ratio = published_config(PublishedFile("pt", "encoder", {"encoder": state}), "encoder", {"num_attention_heads": 1})
    assert int(width * ratio.mlp_ratio) == hidden


# ------------------------------------------------------------------------------------------------ errors


class _Code:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def write_hostile_files(folder: Path) -> None:
    code = _Code(folder / "proof")
    write_checkpoint(folder, {"encoder": code}, "hostile.pt")
    write_checkpoint(folder, {**golden_content("encoder"), "opt": {"state": [code]}}, "nested.pt")
    torch.save({"encoder": code}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    for protocol in (2, 4):
        (folder / f"pickle{protocol}.pt").write_bytes(pickle.dumps({"encoder": code}, protocol=protocol))
    (folder / "dotted.pt").write_bytes(  # a global that is an attribute of an attribute
        b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93\x8c\x0btouch proof\x85R."
    )
    with tarfile.open(folder / "tar.pt", "w") as tar:  # as torch wrote before 0.2
        for name in ("sys_info", "pickle", "storages", "tensors"):
            body = pickle.dumps({"encoder": code}, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


WEIGHT = "module.backbone.blocks.0.mlp.fc1.weight"
MALFORMED = {  # what stands for that weight, and what is said of it
    "single number": (torch.tensor(1.0), r"shape \(\)"),
    "no number": (torch.zeros(0, 96), r"shape \(0, 96\)"),
    "int32": (torch.ones(384, 96, dtype=torch.int32), "torch.int32"),
    "int64": (torch.ones(384, 96, dtype=torch.int64), "torch.int64"),
    "complex64": (torch.ones(384, 96, dtype=torch.complex64), "torch.complex64"),
    "float8": (torch.ones(384, 96).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "sparse": (torch.ones(384, 96).to_sparse(), "layout torch.sparse_coo"),
    "meta": (torch.ones(384, 96, device="meta"), "a meta tensor"),
    "expanded": (torch.ones(96).expand(2_000_000, 96), r"shape \(2000000, 96\) on 384 bytes"),
    "text": ("weights", "a str"),
}


@pytest.mark.parametrize(("value", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_weight_that_is_none_is_named(tmp_path, value, fault, capsys):
    state = {**golden_content("encoder")["target_encoder"], WEIGHT: value}
    source = write_checkpoint(tmp_path, {"target_encoder": state})
    said = error_of([str(source), str(tmp_path / "ours"), "--set", "num_attention_heads=3"], capsys)
    assert re.search(f"{WEIGHT}' of 'target_encoder' is not a weight \\({fault}", said)
    assert list(tmp_path.iterdir()) == [source]


def write_bad_files(folder: Path) -> None:
    """The files that `BAD` names, and the good ones that it needs."""
    write_hostile_files(folder)
    good, ours = golden_content("pretraining"), folder / "ours"
    for name, kind in (("good", "pretraining"), ("encoder", "encoder"), ("probe", "probe"), ("v1", "uniform")):
        write_checkpoint(folder, golden_content(kind), f"{name}.pt")
    (folder / "cut.pt").write_bytes((folder / "good.pt").read_bytes()[:100_000])
    damaged = bytearray((folder / "good.pt").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = b"\xff" * 64
    (folder / "damaged.pt").write_bytes(damaged)
    write_checkpoint(folder, {"encoder": {**good["encoder"], 7: torch.zeros(7)}}, "number.pt")
    (folder / "dir.pt").mkdir()
    (folder / "text.pt").write_text("no checkpoint")
    write_checkpoint(folder, {"model": {"a": 1}, "step": 3}, "other.pt")
    new = {"patch_embed.proj.weight": torch.zeros(1), "norms_block.0.weight": torch.zeros(1)}
    write_checkpoint(folder, {"encoder": new}, "new.pt")
    write_checkpoint(folder, {"predictor": golden_content("action-conditioned")["predictor"]}, "predictor.pt")
    name = "module.backbone.blocks.1.mlp.fc1.bias"
    write_checkpoint(folder, {**good, "encoder": {**good["encoder"], name: torch.zeros(7)}}, "shape.pt")
    del good["predictor"]["module.backbone.predictor_blocks.1.norm2.bias"]
    write_checkpoint(folder, good, "lacking.pt")
    convert(folder / "encoder.pt", ours, settings=HEADS)
    convert(ours, folder / "truncated")
    (folder / "truncated" / "model.safetensors").write_bytes((ours / "model.safetensors").read_bytes()[:-1000])
    weights = load_file(convert(ours, folder / "incomplete") / "model.safetensors")
    del weights["layernorm.bias"]
    save_file(weights, folder / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    BertConfig().save_pretrained(folder / "bert")
    (folder / "empty").mkdir()
    random_model("action-conditioned").save_pretrained(folder / "world_model")
    random_model("pretraining").save_pretrained(folder / "pretraining")
    random_model("probe").save_pretrained(folder / "classifier")


BAD = {  # arguments of the command beside OUT_DIR, and what stderr has to say
    "hostile": ("hostile.pt", r"hostile.pt holds code or objects \(.*open\)"),
    "hostile beside tensors": ("nested.pt", r"nested.pt holds code or objects \(.*open\)"),
    "hostile legacy file": ("legacy.pt", r"legacy.pt holds code or objects \(.*open\)"),
    "hostile pickle": ("pickle2.pt", r"pickle2.pt (holds code|is unreadable)"),
    "hostile pickle of protocol 4": ("pickle4.pt", r"pickle4.pt (holds code|is unreadable)"),
    "hostile dotted global": ("dotted.pt", r"dotted.pt (holds code|is unreadable)"),
    "hostile tar": ("tar.pt", "tar.pt is not a torch file"),
    "damaged": ("damaged.pt", r"damaged.pt is damaged: the checksum of \S+ differs from that of its bytes"),
    "name that is a number": ("number.pt", "7 of 'encoder' is not a weight .its name is not a string"),
    "device": ("/dev/null", "/dev/null is neither a file nor a folder"),
    "device as encoder": ("probe.pt --encoder /dev/null", "/dev/null is neither a file nor a folder"),
    "folder called .pt": ("dir.pt", "dir.pt is a folder without config.json"),
    "dtype": ("encoder.pt --set num_attention_heads=3 dtype=bfloat16", "dtype is that of the weights"),
    "transformers' field": ("encoder.pt --set is_encoder_decoder=true", "Unknown config field 'is_encoder_decoder'"),
    "labels without a classifier": ("good.pt --set id2label={0:a}", "id2label is a classifier's field"),
    "labels without numbers": (
        "probe.pt --encoder ours --set id2label=[a,b]",
        r"id2label is \['a', 'b'\]; expected names",
    ),
    "labels of another number": (
        "probe.pt --encoder ours --set pooler_num_attention_heads=3 id2label.0=a",
        r"linear.weight of 'probe' has shape \(7, 96\), .*\(1, 96\)",
    ),
    "fewer blocks": ("pretraining --set num_hidden_layers=1", "holds 24 weights that the model does not have"),
    "fewer blocks of the predictor": (
        "pretraining --set predictor_num_hidden_layers=1",
        "holds 12 weights .*predictor.layer.1",
    ),
    "no bias": ("pretraining --set qkv_bias=false", r"holds \d+ weights .*attention.qkv.bias"),
    "fewer blocks of a component": (
        "pretraining --component encoder --set num_hidden_layers=1",
        "holds 12 weights that the model does not have, such as layer.1",
    ),
    "fewer blocks of a world model": (
        "world_model --set num_hidden_layers=1",
        "holds 12 weights that the model does not have",
    ),
    "fewer blocks of a classifier": (
        "classifier --set num_hidden_layers=1",
        "holds 12 weights that the model does not have",
    ),
    "fewer blocks of a probe's encoder": (
        "probe.pt --encoder pretraining --set num_hidden_layers=1 pooler_num_attention_heads=3",
        "pretraining holds 12 weights that the model does not have",
    ),
    "truncated": ("cut.pt", "cut.pt is cut short"),
    "text": ("text.pt", "text.pt is not a torch file"),
    "missing file": ("nowhere.pt", "There is no file 'nowhere.pt'"),
    "missing folder": ("./nowhere", "There is no folder './nowhere'"),
    "other keys": ("other.pt", "not a published V-JEPA 2 file: it holds model, step"),
    "V-JEPA 2.1 of odd shapes": ("new.pt", r"patch_embed.proj.weight has shape \(1,\); expected \(width, channels"),
    "heads": (
        "good.pt",
        "num_attention_heads, predictor_num_attention_heads cannot be inferred from .*: "
        "add --set num_attention_heads=... predictor_num_attention_heads=...$",
    ),
    "unknown key": ("good.pt --set loss_expnent=2", "config field 'loss_expnent'; did you mean 'loss_exponent'"),
    "no value": ("good.pt --set crop_size", "crop_size' is not of the form key=value"),
    "bad value": (
        "good.pt --set num_attention_heads=3 predictor_num_attention_heads=3 loss_exponent=3",
        "loss_exponent is 3; expected one of 1, 2",
    ),
    "heads that do not divide": (
        "good.pt --set num_attention_heads=5 predictor_num_attention_heads=3",
        "num_attention_heads=5 must divide hidden_size=96",
    ),
    "wrong shape": (
        "shape.pt --set num_attention_heads=3 predictor_num_attention_heads=3",
        r"blocks.1.mlp.fc1.bias of 'encoder' has shape \(7,\), .*\(384,\)",
    ),
    "missing weight": (
        "lacking.pt --set num_attention_heads=3 predictor_num_attention_heads=3",
        "predictor_blocks.1.norm2.bias of 'predictor' is missing",
    ),
    "component": (
        "encoder.pt --component encoder --set num_attention_heads=3",
        "holds no 'encoder', but target_encoder",
    ),
    "probe without encoder": ("probe.pt", "probe.pt holds no encoder: add --encoder"),
    "probe's heads": (
        "probe.pt --encoder ours --set pooler_num_attention_heads=5",
        "pooler_num_attention_heads=5 must",
    ),
    "classifier index": ("probe.pt --encoder ours --set classifier_index=4", "index is 4; .* classifiers 0 to 0"),
    "encoder for a file with one": ("good.pt --encoder ours", "leave --encoder out"),
    "encoder of another width": (
        "probe.pt --encoder world_model --set pooler_num_attention_heads=3",
        "probe.pt is for an encoder of hidden_size 96; the given one has 24",
    ),
    "action-conditioned file without encoder": ("predictor.pt", "predictor.pt holds no encoder: add --encoder"),
    "encoder of another model": ("probe.pt --encoder bert", "bert holds a model of type 'bert'"),
    "encoder for a folder": ("ours --encoder ours", "--encoder is for"),
    "wrong table": (
        "v1.pt --set num_attention_heads=3 position_embedding_type=sincos",
        "not a sin-cos table .*uniform_power=True",
    ),
    "wrong crop": (
        "v1.pt --set num_attention_heads=3 position_embedding_type=sincos uniform_power=true crop_size=32",
        "is not the sin-cos table of crop_size=32",
    ),
    "truncated folder": ("truncated", "truncated are unreadable"),
    "folder that lacks a weight": (
        "incomplete",
        "incomplete lacks 1 weights of a VJepa2Encoder, such as layernorm.bias",
    ),
    "folder of another model": ("bert", "holds a model of type 'bert'; expected 'vjepa2'"),
    "empty folder": ("empty", "empty is a folder without config.json"),
    "world model to transformers": ("world_model --to transformers", "no counterpart of a vjepa2_hf_world_model"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_bad_files(folder)
    return folder


def error_of(arguments: list[str], capsys) -> str:
    """What the command says as it ends with exit code 1."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert ended.value.code == 1 and len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_one_sentence_exit_1_and_nothing_written(bad_files, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(bad_files)
    before = sorted(bad_files.iterdir())
    source, *options = arguments.split()
    assert re.search(message, error_of([source, "out", *options], capsys))
    assert sorted(bad_files.iterdir()) == before  # no OUT_DIR, no trace of it, and nothing that hostile code makes


def test_out_dir_that_is_not_empty_is_left_alone(bad_files, capsys):
    arguments = [str(bad_files / "encoder.pt"), str(bad_files / "bert"), "--set", "num_attention_heads=3"]
    assert "bert exists and is not an empty folder: choose another OUT_DIR" in error_of(arguments, capsys)
    assert [file.name for file in (bad_files / "bert").iterdir()] == ["config.json"]


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    source = write_checkpoint(tmp_path, golden_content("encoder"))
    monkeypatch.setattr(VJepa2Encoder, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "ours", settings=HEADS)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_writing_leaves_nothing(tmp_path, monkeypatch, number):
    def terminated(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), number)

    source, caught = write_checkpoint(tmp_path, golden_content("encoder")), []
    monkeypatch.setattr(VJepa2Encoder, "save_pretrained", terminated)
    before = signal.signal(number, lambda *signals: caught.append(signals))
    own = signal.getsignal(number)
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(source), str(tmp_path / "ours"), "--set", "num_attention_heads=3"])
        assert signal.getsignal(number) is own  # put back
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number and not caught
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    content = golden_content("encoder")
    source = write_checkpoint(tmp_path, content)
    settings = {"num_attention_heads": 3}
    folder = convert(source, tmp_path / "ours", settings=settings)
    path = folder / "model.safetensors"
    state = load_file(path)
    state["layernorm.bias"][1] = value
    save_file(state, path, metadata={"format": "pt"})
    for to in ("ours", "transformers", "published"):
        with pytest.raises(ValueError, match="ours: 1 of the .* values of layernorm.bias are NaN or infinite"):
            convert(folder, tmp_path / "bad", to=to)
    assert not (tmp_path / "bad").exists()
    weights = next(part for part in content.values() if isinstance(part, dict))
    name = next(name for name in weights if name.endswith("bias"))
    weights[name] = torch.full_like(weights[name], value)
    torch.save(content, source)
    with pytest.raises(ValueError, match="are NaN or infinite, as after a training that diverged"):
        convert(source, tmp_path / "bad", settings=settings)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("there", [True, False])
def test_out_dir_that_another_process_fills_meanwhile_keeps_its_files(tmp_path, monkeypatch, capsys, there):
    out = tmp_path / "ours"
    save = VJepa2Encoder.save_pretrained

    def overtaken(self, folder):
        save(self, folder)
        out.mkdir(exist_ok=True)
        (out / "theirs").touch()

    source = write_checkpoint(tmp_path, golden_content("encoder"))
    if there:
        out.mkdir()
    monkeypatch.setattr(VJepa2Encoder, "save_pretrained", overtaken)
    said = error_of([str(source), str(out), "--set", "num_attention_heads=3"], capsys)
    assert "another process wrote" in said and "the result of this conversion was removed" in said
    assert sorted(tmp_path.iterdir()) == [out, source] and list(out.iterdir()) == [out / "theirs"]


def test_a_linked_out_dir_appears_where_the_link_leads(tmp_path):
    source = write_checkpoint(tmp_path, golden_content("encoder"))
    (tmp_path / "ours").symlink_to(tmp_path / "disk")
    convert(source, tmp_path / "ours", settings={"num_attention_heads": 3})
    assert (tmp_path / "ours").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


def test_empty_out_dir_is_filled_and_not_replaced(tmp_path, monkeypatch):
    """As a working directory or a mount has to be."""
    source, out, moved = write_checkpoint(tmp_path, golden_content("encoder")), tmp_path / "ours", []
    out.mkdir()
    monkeypatch.chdir(out)
    inode, move = out.stat().st_ino, conversion.shutil.move
    monkeypatch.setattr(conversion.shutil, "move", lambda a, b: (moved.append(Path(b).name), move(a, b)))
    convert(source, ".", settings=HEADS)
    assert out.stat().st_ino == inode and sorted(tmp_path.iterdir()) == [out, source]
    assert moved[-1] == "config.json" and sorted(moved) == sorted(os.listdir("."))
    loaded(VJepa2Encoder, Path.cwd())


def test_failure_while_filling_an_out_dir_leaves_it_empty(tmp_path, monkeypatch):
    source, out = write_checkpoint(tmp_path, golden_content("encoder")), tmp_path / "ours"
    out.mkdir()
    move = conversion.shutil.move

    def full_disk(file, target):
        if file.name == "model.safetensors":
            raise OSError("No space left on device")
        move(file, target)

    monkeypatch.setattr(conversion.shutil, "move", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(source, out, settings=HEADS)
    assert sorted(tmp_path.iterdir()) == [out, source] and not list(out.iterdir())


COMMAND_AND_PEAK = """
import re, runpy
import transformers.models.vjepa2.modeling_vjepa2, vjepa2_hf
# not getrusage: its maximum is inherited from the process that started this one
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
imports = peak()
runpy.run_module("vjepa2_hf.convert_checkpoints", run_name="__main__", alter_sys=True)
print("peak over imports", peak() - imports)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_command_in_a_process_of_its_own_is_lean(tmp_path):
    """Its notes are on stdout; it holds the weights once, and never the optimiser's state beside them."""
    state = on_meta(published_encoder(width=768, depth=6, hidden=3072))
    state = {name: torch.empty(value.shape).normal_() for name, value in state.items()}
    moments = {i: {"exp_avg": value + 1, "exp_avg_sq": value + 2} for i, value in enumerate(state.values())}
    source = write_checkpoint(tmp_path, {"encoder": state, "opt": {"state": moments}})
    weights = sum(value.nbytes for value in state.values())
    environment = {**os.environ, "PYTHONPATH": str(Path(vjepa2_hf.__file__).parents[1])}
    command = [sys.executable, "-c", COMMAND_AND_PEAK, str(source), str(tmp_path / "ours")]
    command += ["--set", "num_attention_heads=12"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "its encoder is taken" in done.stdout and "left out of" in done.stdout and "written: " in done.stdout
    assert int(done.stdout.split()[-1]) * 1024 < 1.5 * weights


@pytest.mark.parametrize("to", ["transformers", "published"])
def test_predictor_of_pixels_stays_in_our_format(to, tmp_path):
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, target_type="pixels", **TINY_PREDICTOR)
    VJepa2ForMaskedLatentPrediction(config).save_pretrained(tmp_path / "pixels")
    with pytest.raises(ValueError, match="target_type is 'pixels'.*--component"):
        convert(tmp_path / "pixels", tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()
