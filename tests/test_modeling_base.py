"""What all models share: folders with missing weights, keyword arguments, the EMA target encoder."""

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, same_weights
from safetensors.torch import load_file, save_file

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
    modeling_base,
)


CLASSIFIER = {"pooler_num_attention_heads": 2, "num_pooler_layers": 1}


def build(kind: str):
    torch.manual_seed(0)
    if kind == "encoder":
        return VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
    if kind == "world_model":
        return VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, action_dim=2, **TINY_PREDICTOR))
    if kind == "classifier":
        return VJepa2ForVideoClassification(VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, **CLASSIFIER))
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
    return VJepa2ForMaskedLatentPrediction(config)


def save_without(model, folder, prefix: str) -> list[str]:
    """Saves a model without the weights below a prefix, whose names are returned in order."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({n: v for n, v in weights.items() if not n.startswith(prefix)}, file, metadata={"format": "pt"})
    return sorted(name for name in weights if name.startswith(prefix))


class TestMissingWeights:
    @pytest.mark.parametrize(
        ("kind", "prefix"),
        [
            ("encoder", "layer.0."),
            ("encoder", "layernorm.bias"),
            ("world_model", "predictor."),
            ("classifier", "encoder."),
            ("masked_latent", "predictor."),
            ("masked_latent", "target_encoder.layer.1."),
        ],
    )
    def test_are_refused_unless_allowed(self, tmp_path, kind, prefix):
        model = build(kind)
        missing = save_without(model, tmp_path, prefix)
        with pytest.raises(ValueError, match="pass allow_missing=True") as refusal:
            type(model).from_pretrained(tmp_path)
        said = f"{tmp_path} lacks {len(missing)} weights of {type(model).__name__}, the first of them {missing[0]}: "
        assert said in str(refusal.value) and "\n" not in str(refusal.value)
        loaded, info = type(model).from_pretrained(tmp_path, allow_missing=True, output_loading_info=True)
        assert sorted(info["missing_keys"]) == missing and not hasattr(loaded.config, "allow_missing")

    def test_of_the_component_that_an_encoder_loads_from(self, tmp_path):
        model = build("masked_latent")
        save_without(model, tmp_path, "target_encoder.layer.1.")
        with pytest.raises(ValueError, match=r"the first of them layer\.1\."):
            VJepa2Encoder.from_pretrained(tmp_path)
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path, component="encoder"), model.encoder)

    def test_do_not_include_a_target_encoder_that_starts_as_a_copy(self, tmp_path):
        model = build("masked_latent")
        save_without(model, tmp_path, "target_encoder.")
        assert same_weights(VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path).target_encoder, model.encoder)

    def test_of_a_part_that_a_new_setting_adds(self, tmp_path):
        build("world_model").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"the first of them reward_head\."):
            VJepa2WorldModel.from_pretrained(tmp_path, reward_head=True)
        assert VJepa2WorldModel.from_pretrained(tmp_path, reward_head=True, allow_missing=True).reward_head


class TestKeywords:
    @pytest.mark.parametrize(
        ("kind", "keyword", "hint"),
        [
            ("encoder", "contextmask", "did you mean 'context_mask'?"),
            ("encoder", "labels", "known ones are pixel_values_videos, context_mask, output_attentions, "),
            ("encoder", "output_hidden_state", "did you mean 'output_hidden_states'?"),
            ("classifier", "label", "did you mean 'labels'?"),
            ("classifier", "contextmask", "did you mean 'context_mask'?"),
        ],
    )
    def test_that_are_unknown_are_refused_with_the_nearest_known_one(self, kind, keyword, hint):
        with pytest.raises(TypeError) as refusal:
            build(kind)(torch.randn(2, 4, 3, 32, 32), **{keyword: torch.tensor([[0], [1]])})
        assert f"unexpected keyword argument {keyword!r}; {hint}" in str(refusal.value)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["encoder", "classifier"])
    def test_of_transformers_are_taken(self, kind):
        model, video = build(kind).eval(), torch.randn(2, 4, 3, 32, 32)
        model.set_attn_implementation("eager")
        options = {"num_items_in_batch": torch.tensor(2), "use_cache": False, "input_ids": None}  # None as PEFT has it
        output = model(video, output_attentions=True, output_hidden_states=True, return_dict=True, **options)
        assert len(output.attentions) == 2 and len(output.hidden_states) == 3
        assert isinstance(model(video, return_dict=False), tuple)


def test_an_average_in_half_precision_warns_once(caplog):
    modeling_base._warn_of_rounded_average.cache_clear()
    model, warning = build("masked_latent"), "most of its updates are rounded away: keep the model in float32"
    model.update_target_encoder(0.99)
    model.bfloat16()
    model.update_target_encoder(0.0)  # a copy loses nothing
    assert warning not in caplog.text
    for _ in range(2):
        model.update_target_encoder(0.99)
    assert caplog.text.count(warning) == 1


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan")])
def test_a_momentum_outside_0_to_1_is_refused(momentum):
    model = build("masked_latent")
    with pytest.raises(ValueError, match="momentum is .*; expected 0"):
        model.update_target_encoder(momentum)
    assert same_weights(model.target_encoder, model.encoder)
