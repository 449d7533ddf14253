"""One sentence names every difference between a file and its settings."""

import pytest
import torch
from builders import TINY_2_1, TINY_ENCODER, TINY_PREDICTOR, same_weights

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.hub.mismatch import describe_mismatch, shapes_of


def encoder_shapes(**fields) -> dict:
    with torch.device("meta"):
        return shapes_of(VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, **fields})).state_dict())


def differences(found: dict, expected: dict, part: str = "encoder") -> str | None:
    return describe_mismatch({part: encoder_shapes(**found)}, {part: encoder_shapes(**expected)})


def test_equal_shapes_differ_in_nothing():
    assert differences({}, {}) is None


@pytest.mark.parametrize(("found", "expected"), [(3, 2), (2, 3), (2, 0)])
def test_a_wrong_depth_is_one_clause(found, expected):
    said = differences({"num_hidden_layers": found}, {"num_hidden_layers": expected})
    assert said == f"'encoder' has {found} blocks, not {expected} (num_hidden_layers)"


def test_a_wrong_width_is_one_clause():
    said = differences({"hidden_size": 24}, {"hidden_size": 36, "num_attention_heads": 3})
    assert said == "'encoder' is 24 wide, not 36 (hidden_size)"


def test_depth_width_and_what_they_do_not_explain():
    """Of four differences none hides another: the MLP is twice as wide, and the biases of q, k and v are missing."""
    found = {"hidden_size": 24, "num_hidden_layers": 2, "mlp_ratio": 8.0, "qkv_bias": False}
    said = differences(found, {"hidden_size": 48, "num_hidden_layers": 3}, part="")
    assert said.split("; ") == [
        "the model has 2 blocks, not 3 (num_hidden_layers)",
        "the model is 24 wide, not 48 (hidden_size)",
        "the model has MLP ratio 8, not 4 (mlp_ratio)",
        "layer.*.attention.qkv.bias (2 tensors) is missing",
    ]


def test_levels_of_v2_1():
    """One level under settings of four: its norms and the inputs that read them are not listed one by one."""
    levels = {f"norms_block.{i}.weight": (48,) for i in range(4)}
    found = {"encoder": {"norms_block.0.weight": (48,)}, "predictor": {"predictor_proj.weight": (48, 24)}}
    expected = {"encoder": levels, "predictor": {"predictor_proj.weight": (192, 24)}}
    assert describe_mismatch(found, expected) == "'encoder' has 1 level, not 4 (output_levels)"


def test_long_lists_are_cut():
    expected = {"": {f"weight_{i}": (1,) for i in "abcdefghijklmnop"}}
    said = describe_mismatch({"": {}}, expected)
    assert said.startswith("weight_a is missing; ") and said.endswith("; and 4 more") and said.count(";") == 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"encoder_config": TINY_ENCODER, **TINY_PREDICTOR, "predictor_num_hidden_layers": 2}
    VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig(**sizes)).save_pretrained(folder)
    return folder


class TestFromPretrained:
    @pytest.mark.parametrize(
        ("depth", "said"),
        [
            (4, "lacks 24 weights .*, the first of them predictor.layer.2"),
            (1, "holds 12 weights that a .* of this config lacks, the first of them predictor.layer.1"),
        ],
    )
    def test_another_number_of_predictor_blocks_is_one_sentence(self, folder, depth, said):
        with pytest.raises(ValueError, match=said) as refusal:
            VJepa2ForMaskedLatentPrediction.from_pretrained(folder, predictor_num_hidden_layers=depth)
        assert f"predictor has 2 blocks, not {depth} (predictor_num_hidden_layers)" in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_blocks_are_dropped_when_asked_for(self, folder):
        settings = {"predictor_num_hidden_layers": 1, "allow_missing": True}
        assert len(VJepa2ForMaskedLatentPrediction.from_pretrained(folder, **settings).predictor.layer) == 1

    def test_another_depth_of_an_encoder(self, folder):
        with pytest.raises(ValueError, match=r"the model has 2 blocks, not 1 \(num_hidden_layers\)"):
            VJepa2Encoder.from_pretrained(folder, num_hidden_layers=1)

    def test_a_whole_part_may_be_left_out(self, tmp_path):
        """A world model that trained its encoder holds a target encoder, which a frozen one does not have."""
        config = VJepa2WorldModelConfig(
            encoder_config=TINY_ENCODER, action_dim=2, freeze_encoder=False, **TINY_PREDICTOR
        )
        model = VJepa2WorldModel(config)
        model.save_pretrained(tmp_path)
        frozen = VJepa2WorldModel.from_pretrained(tmp_path, freeze_encoder=True)
        assert same_weights(frozen.encoder, model.encoder) and hasattr(model, "target_encoder")
        with pytest.raises(ValueError, match=r"encoder has 2 blocks, not 1 \(num_hidden_layers\)"):
            VJepa2WorldModel.from_pretrained(tmp_path, encoder_config={**TINY_ENCODER, "num_hidden_layers": 1})

    def test_other_levels(self, tmp_path):
        fields = {**TINY_ENCODER, "num_hidden_layers": 3, "output_levels": [0, 1, 2]}
        VJepa2Encoder(VJepa2EncoderConfig(**fields)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has 2 norms of earlier levels, not 1 \(output_levels\)\)"):
            VJepa2Encoder.from_pretrained(tmp_path, output_levels=[0, 2])

    def test_parts_that_the_config_turns_off(self, tmp_path):
        """The rest of the encoder would compute other tokens without them."""
        VJepa2Encoder(VJepa2EncoderConfig(**TINY_2_1)).save_pretrained(tmp_path)
        without = {"image_tubelet_size": None, "modality_embeddings": False}
        message = (
            "holds 4 weights that a VJepa2Encoder of this config lacks, .* image_modality_embedding: change the conf"
        )
        with pytest.raises(ValueError, match=message) as refusal:
            VJepa2Encoder.from_pretrained(tmp_path, **without)
        for name in ("image_patch_embeddings.proj.weight", "video_modality_embedding"):
            assert f"{name} is not expected" in str(refusal.value)
        dropped = VJepa2Encoder.from_pretrained(tmp_path, **without, allow_missing=True)
        assert dropped.image_patch_embeddings is None and dropped.video_modality_embedding is None

    def test_optional_heads_may_be_left_out(self, tmp_path):
        heads = {"reward_head": True, "stochastic_dim": 2, "distance_head": True}
        config = VJepa2WorldModelConfig(
            encoder_config=TINY_ENCODER, action_dim=2, proprio_dim=2, **heads, **TINY_PREDICTOR
        )
        model = VJepa2WorldModel(config)
        model.save_pretrained(tmp_path)
        plain = {"reward_head": False, "stochastic_dim": 0, "distance_head": False}
        assert same_weights(VJepa2WorldModel.from_pretrained(tmp_path, **plain).predictor, model.predictor)
        with pytest.raises(
            ValueError, match="holds 2 weights that .* lacks, the first of them predictor.proprio_encoder.bias"
        ):
            VJepa2WorldModel.from_pretrained(tmp_path, **plain, proprio_dim=0)

    def test_another_width(self, folder):
        with pytest.raises(ValueError, match=r"mismatches in all.*\(predictor is 24 wide, not 48"):
            VJepa2ForMaskedLatentPrediction.from_pretrained(folder, predictor_hidden_size=48)
