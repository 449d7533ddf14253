"""What can be set, what is refused, and what a config file remembers."""

import json

import pytest
from builders import TINY_ENCODER, TINY_PREDICTOR
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from vjepa2_hf import (
    VJepa2EncoderConfig,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModelConfig,
)


MASKED_LATENT = {"encoder_config": TINY_ENCODER, **TINY_PREDICTOR}
WORLD_MODEL = {"encoder_config": TINY_ENCODER, "action_dim": 2, **TINY_PREDICTOR}
CLASSIFIER = {"encoder_config": TINY_ENCODER, "num_labels": 5, "pooler_num_attention_heads": 2}
ALL = [
    (VJepa2EncoderConfig, TINY_ENCODER),
    (VJepa2MaskedLatentPredictionConfig, MASKED_LATENT),
    (VJepa2WorldModelConfig, WORLD_MODEL),
    (VJepa2VideoClassificationConfig, CLASSIFIER),
]
every_config = pytest.mark.parametrize(("config_class", "fields"), ALL, ids=[c.__name__ for c, _ in ALL])


@every_config
def test_a_config_survives_a_folder(config_class, fields, tmp_path):
    config = config_class(**fields)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_class
    ours = {
        name: value
        for name, value in loaded.to_dict().items()
        if name not in ("transformers_version", "_name_or_path")
    }
    assert {name: config.to_dict().get(name) for name in ours} == ours
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == config_class.model_type and "vjepa2_hf_version" in written


@every_config
def test_defaults_are_vit_l_and_the_published_heads(config_class, fields):
    config = config_class()
    encoder = getattr(config, "encoder_config", config)
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads) == (1024, 24, 16)
    assert encoder.layer_norm_eps == 1e-6 and not encoder.rope_interleave


@every_config
def test_frames_per_clip_is_readable_as_num_frames_at_the_top_level(config_class, fields):
    assert config_class(**fields).num_frames == 4


def test_num_frames_sets_frames_per_clip():
    assert VJepa2EncoderConfig(num_frames=8).frames_per_clip == 8


@every_config
def test_a_misspelled_field_is_refused_with_the_nearest_known_one(config_class, fields):
    name = "hidden_sise" if config_class is VJepa2EncoderConfig else "encoder_confg"
    with pytest.raises(ValueError, match=f"{config_class.__name__} has no field '{name}' .*Did you mean '"):
        config_class(**{**fields, name: 3})


def test_a_misspelled_field_of_the_nested_encoder_is_refused():
    with pytest.raises(ValueError, match="VJepa2EncoderConfig has no field 'patchsize'.*'patch_size'"):
        VJepa2WorldModelConfig(**{**WORLD_MODEL, "encoder_config": {**TINY_ENCODER, "patchsize": 8}})


def test_a_misspelled_field_in_a_file_is_refused(tmp_path):
    VJepa2EncoderConfig(**TINY_ENCODER).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mlp_ration": 2}))
    with pytest.raises(ValueError, match="mlp_ration.*mlp_ratio"):
        VJepa2EncoderConfig.from_pretrained(tmp_path)


def test_fields_of_a_file_that_a_newer_version_wrote_warn():
    with pytest.warns(UserWarning, match="'brand_new'.*written by vjepa2_hf 99.0.0"):
        config = VJepa2EncoderConfig(**TINY_ENCODER, brand_new=1, vjepa2_hf_version="99.0.0")
    assert not hasattr(config, "brand_new")


def test_what_transformers_and_the_hub_write_is_kept():
    config = VJepa2EncoderConfig(
        **TINY_ENCODER, architectures=["VJepa2Encoder"], auto_map={}, _commit_hash=None, dtype="float32"
    )
    assert config.architectures == ["VJepa2Encoder"]


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (VJepa2EncoderConfig, {"patch_size": 0}, "patch_size is 0; expected a number above 0"),
        (VJepa2EncoderConfig, {"num_attention_heads": 5}, "num_attention_heads=5 must divide hidden_size=24"),
        (VJepa2EncoderConfig, {"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        (VJepa2EncoderConfig, {"position_embedding_type": "rop"}, "position_embedding_type is 'rop'; expected one of"),
        (VJepa2EncoderConfig, {"attention_type": "axial"}, "attention_type is 'axial'"),
        (VJepa2MaskedLatentPredictionConfig, {"loss_exponent": 3}, "loss_exponent is 3; expected one of 1, 2"),
        (VJepa2MaskedLatentPredictionConfig, {"normalize_targets": "layers"}, "normalize_targets is 'layers'"),
        (
            VJepa2MaskedLatentPredictionConfig,
            {"temporal_contrastive_negatives": "frames"},
            "temporal_contrastive_negatives is 'frames'; expected one of 'clips', 'times'",
        ),
        (VJepa2EncoderConfig, {"patch_stem": "convolution"}, "patch_stem is 'convolution'; expected one of 'linear'"),
        (VJepa2MaskedLatentPredictionConfig, {"num_mask_tokens": 0}, "num_mask_tokens is 0"),
        (VJepa2MaskedLatentPredictionConfig, {"predictor_num_attention_heads": 7}, "predictor_num_attention_heads=7"),
        (VJepa2WorldModelConfig, {"context_frames": 0}, "context_frames is 0"),
        (VJepa2WorldModelConfig, {"state_type": "token"}, "state_type is 'token'"),
        (VJepa2WorldModelConfig, {"action_fusion": "sum"}, "action_fusion is 'sum'"),
        (VJepa2WorldModelConfig, {"proprio_transition": "keep"}, "proprio_transition is 'keep'"),
        (VJepa2WorldModelConfig, {"action_low": [-1.0]}, "action_low has 1 numbers; expected 2, as action_dim says"),
        (VJepa2WorldModelConfig, {"action_std": [1.0, 0.0]}, "action_std is .*above 0"),
        (VJepa2WorldModelConfig, {"actions_per_step": 3}, "action_dim=2 .* multiple of actions_per_step=3"),
        (
            VJepa2WorldModelConfig,
            {"proprio_dim": 3, "proprio_transition": "add"},
            "proprio_dim=3 equal to action_dim=2",
        ),
        (VJepa2WorldModelConfig, {"proprio_transition": "pose_delta"}, "needs proprio_dim and action_dim 7"),
        (VJepa2EncoderConfig, {"hidden_act": "geluu"}, "hidden_act is 'geluu', .*; did you mean 'gelu'"),
        (VJepa2EncoderConfig, {"mlp_ratio": 0}, "mlp_ratio is 0; expected a number above 0"),
        (VJepa2EncoderConfig, {"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
        (VJepa2EncoderConfig, {"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
        (VJepa2EncoderConfig, {"initializer_range": -0.1}, "initializer_range is -0.1; expected a number above 0"),
        (VJepa2EncoderConfig, {"initializer_range": float("nan")}, "initializer_range is nan"),
        (VJepa2EncoderConfig, {"num_hidden_layers": -1}, "num_hidden_layers is -1; expected 0 or more"),
        (VJepa2EncoderConfig, {"attention_probs_dropout_prob": 1.0}, "attention_probs_dropout_prob is 1.0"),
        (VJepa2EncoderConfig, {"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1"),
        (VJepa2EncoderConfig, {"drop_path_rate": float("nan")}, "drop_path_rate is nan; expected 0 <= rate < 1"),
        (VJepa2MaskedLatentPredictionConfig, {"predictor_mlp_ratio": -1.0}, "predictor_mlp_ratio is -1.0"),
        (VJepa2MaskedLatentPredictionConfig, {"predictor_num_hidden_layers": -2}, "predictor_num_hidden_layers is -2"),
        (VJepa2MaskedLatentPredictionConfig, {"initializer_range": -1.0}, "initializer_range is -1.0"),
        (VJepa2WorldModelConfig, {"predictor_mlp_ratio": 0.0}, "predictor_mlp_ratio is 0.0"),
        (VJepa2WorldModelConfig, {"predictor_num_hidden_layers": -1}, "predictor_num_hidden_layers is -1"),
        (VJepa2WorldModelConfig, {"predictor_initializer_range": -0.02}, "predictor_initializer_range is -0.02"),
        (VJepa2WorldModelConfig, {"predictor_position_std": -1.0}, "predictor_position_std is -1.0"),
        (VJepa2WorldModelConfig, {"proprio_dim": -7}, "proprio_dim is -7"),
        (VJepa2WorldModelConfig, {"extrinsics_dim": -1}, "extrinsics_dim is -1"),
        (VJepa2WorldModelConfig, {"fps": 0}, "fps is 0; expected a number above 0"),
        (VJepa2WorldModelConfig, {"teacher_forcing_weight": -1}, "teacher_forcing_weight is -1; expected 0 or more"),
        (VJepa2WorldModelConfig, {"rollout_weight": float("nan")}, "rollout_weight is nan"),
        (VJepa2WorldModelConfig, {"rollout_discount": 0}, "rollout_discount is 0"),
        (VJepa2WorldModelConfig, {"rollout_discount": float("inf")}, "rollout_discount is inf"),
        (VJepa2WorldModelConfig, {"action_mean": []}, "action_mean has 0 numbers; expected 2"),
        (VJepa2WorldModelConfig, {"action_mean": [0.0, float("inf")]}, "action_mean holds inf; expected finite"),
        (VJepa2WorldModelConfig, {"action_high": [1.0, float("nan")]}, "action_high holds nan"),
        (VJepa2WorldModelConfig, {"action_std": [1.0, "wide"]}, "action_std holds 'wide'"),
        (
            VJepa2WorldModelConfig,
            {"action_low": [-1.0, 0.5], "action_high": [1.0, -0.5]},
            "action_low 0.5 exceeds action_high -0.5 in dimension 1",
        ),
        (VJepa2VideoClassificationConfig, {"num_labels": 0}, "num_labels is 0; expected an integer from 1"),
        (VJepa2VideoClassificationConfig, {"pooler_mlp_ratio": 0.0}, "pooler_mlp_ratio is 0.0"),
        (VJepa2VideoClassificationConfig, {"pooler_layer_norm_eps": -1e-5}, "pooler_layer_norm_eps is -1e-05"),
        (VJepa2VideoClassificationConfig, {"initializer_range": -1.0}, "initializer_range is -1.0"),
        (VJepa2VideoClassificationConfig, {"pooler_type": "mean"}, "pooler_type is 'mean'"),
        (VJepa2VideoClassificationConfig, {"problem_type": "x"}, "problem_type is 'x'"),
        (VJepa2VideoClassificationConfig, {"encoder_layers": [2]}, "encoder_layers is .2."),
        (VJepa2VideoClassificationConfig, {"encoder_layers": [0.0]}, "encoder_layers is .0.0."),
        (VJepa2VideoClassificationConfig, {"encoder_layers": [True]}, "encoder_layers is .True."),
        (VJepa2VideoClassificationConfig, {"encoder_layers": []}, "encoder_layers is .."),
        (VJepa2VideoClassificationConfig, {"num_pooler_layers": -1}, "num_pooler_layers is -1"),
        (VJepa2VideoClassificationConfig, {"pooler_num_attention_heads": 16}, "pooler_num_attention_heads=16"),
    ],
    ids=lambda value: "-".join(map(str, list(value.items())[-1])) if isinstance(value, dict) else None,
)
def test_a_wrong_value_is_refused_at_construction(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**{**dict(ALL)[config_class], **fields})


def test_a_dimension_that_never_moves_and_unbounded_actions_are_possible(tmp_path):
    """Equal bounds come from episodes whose gripper stays open; infinite ones suit a solver with its own deviation."""
    bounds = {"action_low": [0.5, float("-inf")], "action_high": [0.5, float("inf")]}
    VJepa2WorldModelConfig(**{**WORLD_MODEL, **bounds}).save_pretrained(tmp_path)
    loaded = VJepa2WorldModelConfig.from_pretrained(tmp_path)
    assert (loaded.action_low, loaded.action_high) == (bounds["action_low"], bounds["action_high"])


def test_statistics_of_no_proprio_states_may_be_empty():
    assert VJepa2WorldModelConfig(**WORLD_MODEL, proprio_mean=[], proprio_std=[]).proprio_std == []


def test_labels_with_a_gap_are_refused():
    with pytest.raises(ValueError, match="id2label names .0, 5.; expected every number from 0 to 1"):
        VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, pooler_type="linear", id2label={0: "a", 5: "b"})


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(StrictDataclassError, match="'hidden_size' expected int, got str .value: 'wide'"):
        VJepa2EncoderConfig(hidden_size="wide")


def test_fields_of_a_file_that_were_renamed_are_read_with_one_warning(tmp_path):
    config = VJepa2VideoClassificationConfig(**CLASSIFIER, pooler_space_positions=True, neighbor_temperature=0.5)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    old = {"neighbor_temperature": "neighbour_temperature", "pooler_space_positions": "pooler_place_positions"}
    path.write_text(json.dumps({old.get(name, name): value for name, value in json.loads(path.read_text()).items()}))
    with pytest.warns(FutureWarning, match="pooler_place_positions is now pooler_space_positions") as warned:
        loaded = VJepa2VideoClassificationConfig.from_pretrained(tmp_path)
    assert len(warned) == 1
    assert loaded.pooler_space_positions and loaded.neighbor_temperature == 0.5
    assert not hasattr(loaded, "pooler_place_positions")
