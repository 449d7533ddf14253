"""transformers' V-JEPA 2 checkpoints load here as they are, give the same numbers, and go back."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch
from builders import ENCODER, TINY_ENCODER, TINY_PREDICTOR, golden, loaded, our_names, transformers_names
from safetensors import safe_open
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.hub.transformers_format import config_to_transformers, to_transformers_state_dict


SIZES = {
    "head of 16": {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "crop_size": 64},
    "g's ratio, no qkv bias": {
        "hidden_size": 44,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "crop_size": 32,
        "mlp_ratio": 48 / 11,
        "qkv_bias": False,
    },
    "odd head of 11, patch 8, tubelet 4": {
        "hidden_size": 33,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "crop_size": 32,
        "patch_size": 8,
        "tubelet_size": 4,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
PREDICTOR_SIZES = {
    "pred_hidden_size": 24,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 3,
    "pred_zero_init_mask_tokens": False,
}


def transformers_model(model_class, folder, **fields):
    """A random model of transformers, saved: every parameter has its own values, norms and biases too."""
    torch.manual_seed(0)
    model = model_class(VJEPA2Config(frames_per_clip=8, **PREDICTOR_SIZES, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def load(model_class, folder, **kwargs):
    """A model of ours, with nothing missing, nothing left over and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return loaded(model_class, folder, **kwargs).eval()


def clips(model, frames=8, batch_size=2):
    side = model.config.crop_size
    return torch.randn(batch_size, frames, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [4, 8, 12])
@torch.no_grad()
def test_encoder_equals_transformers(size, frames, tmp_path):
    reference = transformers_model(VJEPA2Model, tmp_path, **SIZES[size])
    video = clips(reference, frames)
    expected = reference(video, skip_predictor=True).last_hidden_state
    ours = load(VJepa2Encoder, tmp_path)(video).last_hidden_state
    assert expected.std() > 0.1 and torch.allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_predictor_equals_transformers(size, tmp_path):
    reference = transformers_model(VJEPA2Model, tmp_path, **SIZES[size])
    model = load(VJepa2ForMaskedLatentPrediction, tmp_path)
    video = clips(reference)
    grid = model.encoder.get_grid(video)
    ids = torch.randperm(grid[0] * grid[1] * grid[2], generator=torch.Generator().manual_seed(2)).expand(2, -1)
    context_ids, target_ids = ids[:, :5].contiguous(), ids[:, 5:12].contiguous()
    output = reference(video, context_mask=[context_ids], target_mask=[target_ids])
    # transformers takes the context from the encoded clip, which has seen the targets: the predictors are compared on
    # the same tokens. It always uses mask token 1.
    context, expected = output.masked_hidden_state, output.predictor_output.last_hidden_state
    ours = model.predictor(context, context_ids, target_ids, grid, mask_token_index=1)
    assert expected.std() > 0.1 and torch.allclose(ours, expected, atol=1e-5, rtol=0)
    assert model.config.num_mask_tokens == 3


@torch.no_grad()
def test_target_encoder_starts_as_the_encoder_of_a_transformers_checkpoint(tmp_path):
    reference = transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    model = load(VJepa2ForMaskedLatentPrediction, tmp_path)
    expected = reference(clips(reference), skip_predictor=True).last_hidden_state
    assert torch.allclose(model.encode_targets(clips(reference)), expected, atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.train().target_encoder.parameters())
    parameter = next(model.target_encoder.parameters())
    assert parameter.data_ptr() != next(model.encoder.parameters()).data_ptr()  # a copy, or EMA would move both


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_classifier_equals_transformers(size, tmp_path):
    labels = {i: f"action {i}" for i in range(5)}
    fields = {**SIZES[size], "num_pooler_layers": 2, "id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    reference = transformers_model(VJEPA2ForVideoClassification, tmp_path, **fields)
    video = clips(reference)
    model = load(VJepa2ForVideoClassification, tmp_path)
    expected = reference(video).logits
    assert expected.std() > 0.01 and torch.allclose(model(video).logits, expected, atol=1e-5, rtol=0)
    assert model.config.id2label == labels and model.config.num_frames == 8


@torch.no_grad()
def test_encoder_and_predictor_load_from_a_transformers_classifier(tmp_path):
    reference = transformers_model(VJEPA2ForVideoClassification, tmp_path, **SIZES["head of 16"])
    video = clips(reference)
    expected = reference.vjepa2(video, skip_predictor=True).last_hidden_state
    assert torch.allclose(load(VJepa2Encoder, tmp_path)(video).last_hidden_state, expected, atol=1e-5, rtol=0)
    model, info = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.allclose(model.eval().encoder(video).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert not info["missing_keys"]
    assert all(name.startswith(("pooler.", "classifier.")) for name in info["unexpected_keys"])  # and reported


def test_classifier_from_an_encoder_checkpoint_reports_its_new_head(tmp_path):
    transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    _, info = VJepa2ForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    missing = info["missing_keys"] - {name for name in info["missing_keys"] if name.startswith("pooler.")}
    assert not info["unexpected_keys"] and info["missing_keys"] - missing
    assert missing == {"classifier.weight", "classifier.bias"}


@torch.no_grad()
def test_views_and_encoder_layers_of_a_loaded_classifier(tmp_path):
    reference = transformers_model(VJEPA2ForVideoClassification, tmp_path, **SIZES["head of 16"])
    video = clips(reference)
    model = load(VJepa2ForVideoClassification, tmp_path)
    views = torch.stack([video, video.flip(-1)], dim=1)
    expected = torch.stack([reference(view).logits.softmax(-1) for view in views.unbind(1)]).mean(dim=0)
    assert torch.allclose(model(views).logits.softmax(-1), expected, atol=1e-5, rtol=0)
    both = load(VJepa2ForVideoClassification, tmp_path, encoder_layers=[0, 1])
    hidden = reference.vjepa2.encoder(video, output_hidden_states=True)
    first = reference.vjepa2.encoder.layer[0](reference.vjepa2.encoder.embeddings(video))[0]
    tokens = torch.cat([reference.vjepa2.encoder.layernorm(first), hidden.last_hidden_state], dim=1)
    expected = reference.classifier(reference.pooler(tokens))
    assert torch.allclose(both(video).logits, expected, atol=1e-5, rtol=0)


def transformers_golden() -> tuple[VJEPA2Model, VJepa2Encoder]:
    """The published code's weights in transformers' model and in ours."""
    state = our_names(golden("encoder_rope"), "state/")
    ours = VJepa2Encoder(VJepa2EncoderConfig(**ENCODER)).eval()
    ours.load_state_dict(state)
    theirs = VJEPA2Model(VJEPA2Config(**ENCODER, **PREDICTOR_SIZES)).eval()
    missing, unexpected = theirs.load_state_dict(transformers_names(state), strict=False)
    assert not unexpected and all(name.startswith("predictor.") for name in missing)
    return theirs, ours


@torch.no_grad()
def test_transformers_is_wrong_on_a_non_square_clip_where_ours_is_published():
    theirs, ours = transformers_golden()
    video, expected = golden("encoder_rope")["wide_pixel_values"].transpose(1, 2), golden("encoder_rope")["wide"]
    assert torch.allclose(ours(video).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert (theirs(video, skip_predictor=True).last_hidden_state - expected).abs().max() > 0.01


@torch.no_grad()
def test_transformers_is_wrong_at_another_resolution():
    """On a clip of another size transformers takes rows and columns from the configured size. The published code
    takes them from the clip, as ours does: a config of that size must not change the result."""
    theirs, ours = transformers_golden()
    video = torch.randn(1, 8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    right = VJEPA2Model(VJEPA2Config(**{**ENCODER, "crop_size": 96}, **PREDICTOR_SIZES)).eval()
    right.load_state_dict(theirs.state_dict())
    expected = right(video, skip_predictor=True).last_hidden_state
    assert torch.allclose(ours(video).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert (theirs(video, skip_predictor=True).last_hidden_state - expected).abs().max() > 0.01


def test_config_translation_names_what_it_drops(tmp_path, caplog):
    transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    file = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**file, "use_SiLU": False, "image_size": 256}))
    with caplog.at_level(logging.INFO, logger="vjepa2_hf"):
        encoder = load(VJepa2Encoder, tmp_path)
    assert "pred_hidden_size=24" in caplog.text and "use_SiLU=False" in caplog.text and "image_size" in caplog.text
    assert encoder.config.hidden_size == 48 and encoder.config.crop_size == 64
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vjepa2_hf"):
        config = VJepa2MaskedLatentPredictionConfig.from_pretrained(tmp_path)
    assert config.predictor_hidden_size == 24 and config.num_mask_tokens == 3 and not config.zero_init_mask_tokens
    assert config.predictor_num_hidden_layers == 2 and config.predictor_num_attention_heads == 2
    assert "pred_hidden_size" not in caplog.text


def test_loaded_model_saves_in_our_names(tmp_path):
    transformers_model(VJEPA2Model, tmp_path / "theirs", **SIZES["head of 16"])
    encoder = load(VJepa2Encoder, tmp_path / "theirs")
    encoder.save_pretrained(tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(encoder.state_dict())
    again = load(VJepa2Encoder, tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values()))


def test_vit_g_classifier_warns_of_its_heads(tmp_path):
    fields = {"hidden_size": 44, "num_attention_heads": 22, "num_hidden_layers": 1, "crop_size": 32}
    transformers_model(VJEPA2ForVideoClassification, tmp_path, **fields)
    with pytest.warns(UserWarning, match="trained with 16"):
        model = VJepa2ForVideoClassification.from_pretrained(tmp_path)
    assert model.config.pooler_num_attention_heads == 22


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("multi_label_classification", [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        ("regression", [[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]]),
        ("single_label_classification", [2, 0]),
        (None, [2, 0]),
    ],
)
@torch.no_grad()
def test_loss_is_transformers(problem_type, labels, tmp_path):
    fields = {**SIZES["head of 16"], "num_labels": 3, "problem_type": problem_type}
    reference = transformers_model(VJEPA2ForVideoClassification, tmp_path, **fields)
    model, video, labels = load(VJepa2ForVideoClassification, tmp_path), clips(reference), torch.tensor(labels)
    assert torch.allclose(model(video, labels=labels).loss, reference(video, labels=labels).loss, atol=1e-5, rtol=0)
    views = torch.stack([video, video.flip(-1)], dim=1)
    one, two, both = (model(v).logits for v in (video, video.flip(-1), views))
    probabilities = {"multi_label_classification": torch.sigmoid, "regression": lambda scores: scores}
    to = probabilities.get(problem_type, lambda scores: scores.softmax(-1))
    assert torch.allclose(to(both), (to(one) + to(two)) / 2, atol=1e-5, rtol=0)


def test_classifier_gives_hidden_states_attentions_and_tuples(tmp_path):
    transformers_model(VJEPA2ForVideoClassification, tmp_path, **SIZES["head of 16"])
    model = load(VJepa2ForVideoClassification, tmp_path, attn_implementation="eager")
    video = torch.randn(1, 4, 3, 64, 64)
    output = model(video, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    assert torch.equal(model(video, return_dict=False)[0], output.logits)


@torch.no_grad()
def test_key_mapping_config_and_subfolder_of_the_caller_are_used(tmp_path):
    reference = transformers_model(VJEPA2Model, tmp_path / "hub" / "inner", **SIZES["head of 16"])
    expected = load(VJepa2Encoder, tmp_path / "hub" / "inner")(clips(reference)).last_hidden_state
    by_subfolder = load(VJepa2Encoder, tmp_path / "hub", subfolder="inner")
    by_config = load(VJepa2Encoder, tmp_path / "hub" / "inner", config=reference.config)
    mapping = {r"^nothing\.": "nowhere."}
    by_mapping = load(VJepa2Encoder, tmp_path / "hub" / "inner", key_mapping=mapping)
    (tmp_path / "hub" / "inner" / "config.json").unlink()
    weights_alone = load(VJepa2Encoder, tmp_path / "hub" / "inner", config=reference.config)
    for encoder in (by_subfolder, by_config, by_mapping, weights_alone):
        assert torch.equal(encoder(clips(reference)).last_hidden_state, expected)


def test_wrong_shapes_are_kept_out_on_request(tmp_path):
    transformers_model(VJEPA2ForVideoClassification, tmp_path, **SIZES["head of 16"])
    with pytest.raises(ValueError, match="classifier"):
        VJepa2ForVideoClassification.from_pretrained(tmp_path, num_labels=7)
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 7


def test_dropout_of_a_transformers_pooler_is_not_left_out_in_silence(tmp_path):
    transformers_model(VJEPA2ForVideoClassification, tmp_path, attention_dropout=0.1, **SIZES["head of 16"])
    with pytest.warns(UserWarning, match="attention_dropout=0.1"):
        VJepa2ForVideoClassification.from_pretrained(tmp_path)


def test_target_encoder_is_no_copy_of_offloaded_weights(tmp_path):
    transformers_model(VJEPA2Model, tmp_path / "theirs", **SIZES["head of 16"])
    places = {"encoder": "disk", "predictor": "cpu", "target_encoder": "cpu"}
    with pytest.raises(ValueError, match="offloaded to disk"):
        VJepa2ForMaskedLatentPrediction.from_pretrained(
            tmp_path / "theirs", device_map=places, offload_folder=tmp_path / "offload"
        )


# ------------------------------------------------------------------------------------------------ the way back


def models_of_ours():
    torch.manual_seed(0)
    encoder = {**TINY_ENCODER, "num_attention_heads": 2}
    masked = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder, zero_init_mask_tokens=False, **TINY_PREDICTOR)
    classifier = VJepa2VideoClassificationConfig(
        encoder_config=encoder, pooler_num_attention_heads=2, pooler_layer_norm_eps=1e-6, num_pooler_layers=2
    )
    return {
        "encoder": (VJepa2Encoder(VJepa2EncoderConfig(**encoder)), VJEPA2Model),
        "masked latent": (VJepa2ForMaskedLatentPrediction(masked), VJEPA2Model),
        "classifier": (VJepa2ForVideoClassification(classifier), VJEPA2ForVideoClassification),
    }


@pytest.mark.parametrize("kind", ["encoder", "masked latent", "classifier"])
@torch.no_grad()
def test_what_is_ours_computes_the_same_in_transformers(kind):
    model, reference_class = models_of_ours()[kind]
    model.eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("target_encoder.")}
    reference = reference_class(VJEPA2Config(**config_to_transformers(model.config))).eval()
    names = to_transformers_state_dict(state, model.config.model_type)
    missing, unexpected = reference.load_state_dict(names, strict=False)
    assert not unexpected and all(".predictor." in f".{name}" for name in missing)
    assert kind != "masked latent" or not missing
    video = torch.randn(2, 4, 3, 32, 32)
    if kind == "classifier":
        assert torch.allclose(model(video).logits, reference(video).logits, atol=1e-5, rtol=0)
    else:
        encoder = model if kind == "encoder" else model.encoder
        expected = reference(video, skip_predictor=True).last_hidden_state
        assert torch.allclose(encoder(video).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (VJepa2EncoderConfig(**TINY_ENCODER, rope_interleave=True), "rope_interleave"),
        (VJepa2EncoderConfig(**TINY_ENCODER, position_embedding_type="sincos"), "position_embedding_type"),
        (VJepa2EncoderConfig(**TINY_ENCODER, attention_type="factorized"), "attention_type"),
        (VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, pooler_type="linear"), "pooler_type"),
        (
            VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, pooler_num_attention_heads=4),
            "pooler_num_attention_heads",
        ),
        (
            VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, pooler_num_attention_heads=2),
            "pooler_layer_norm_eps",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_transformers_cannot_compute_is_refused(config, name):
    with pytest.raises(ValueError, match=name):
        config_to_transformers(config)


# ------------------------------------------------------------------------------------------------ bad folders


def test_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    for model_class in (VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2WorldModel):
        with pytest.raises(ValueError, match="holds a model of type 'bert'"):
            model_class.from_pretrained(tmp_path)


def test_transformers_checkpoint_holds_no_world_model(tmp_path):
    transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    with pytest.raises(ValueError, match="from_encoder"):
        VJepa2WorldModel.from_pretrained(tmp_path)
    assert VJepa2WorldModel.from_encoder(tmp_path, action_dim=2, predictor_num_hidden_layers=1).latent_size == 48


def test_missing_folder_is_called_missing():
    with pytest.raises(FileNotFoundError, match="no folder './nowhere'"):
        VJepa2Encoder.from_pretrained("./nowhere")


def test_a_published_file_is_sent_to_the_converter(tmp_path):
    torch.save({}, tmp_path / "vitl.pt")
    with pytest.raises(ValueError, match="convert_checkpoints .*vitl.pt OUT_DIR"):
        VJepa2Encoder.from_pretrained(tmp_path / "vitl.pt")


def test_truncated_weights_are_one_sentence(tmp_path):
    transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated"):
        VJepa2Encoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "code"])
def test_damaged_bin_file_is_one_sentence(damage, tmp_path):
    model = transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        torch.save({"encoder": Code(tmp_path / "ran")}, file)
    with pytest.raises(ValueError, match="unreadable as tensors"):
        VJepa2Encoder.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


class Code:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("it ran",)


def test_config_that_is_no_object_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a JSON object"):
        VJepa2Encoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["intermediate", "query"])
def test_one_wrong_shape_is_one_sentence(name, tmp_path):
    transformers_model(VJEPA2Model, tmp_path, **SIZES["head of 16"])
    file = json.loads((tmp_path / "config.json").read_text())
    changed = {"intermediate": {"mlp_ratio": 2.0}, "query": {"hidden_size": 96}}[name]
    (tmp_path / "config.json").write_text(json.dumps({**file, **changed}))
    with pytest.raises(ValueError, match="has shape .* in the weights, .* in the config"):
        VJepa2Encoder.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------ presets and size


@pytest.mark.parametrize(("name", "millions"), [("large", 304), ("huge", 632), ("giant", 1012)])
def test_released_encoders_have_their_parameter_counts(name, millions):
    with torch.device("meta"):
        encoder = VJepa2Encoder(VJepa2EncoderConfig.from_preset(name))
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6) == millions


@pytest.mark.parametrize("name", ["vitg", "ViT-g", "g", "giant"])
def test_presets_know_their_other_names(name):
    config = VJepa2VideoClassificationConfig.from_preset(name, num_labels=174)
    assert config.encoder_config.hidden_size == 1408 and config.pooler_num_attention_heads == 16
    assert VJepa2EncoderConfig.from_preset(name, crop_size=384).crop_size == 384


def test_published_arm_plans_by_its_config():
    config = VJepa2WorldModelConfig.from_preset("giant")
    assert config.action_high == [0.05, 0.05, 0.05, 0, 0, 0, 0.75] and config.planner["num_candidates"] == 400
    with pytest.raises(ValueError, match=r"encoder_config=\{'crop_size'"):
        VJepa2WorldModelConfig.from_preset("giant", crop_size=384)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'enormous'.*'giant'"):
        VJepa2EncoderConfig.from_preset("enormous")


LEAN = """if True:
    import os, sys, torch
    from vjepa2_hf import VJepa2Encoder

    def peak():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    imports = peak()
    encoder = VJepa2Encoder.from_pretrained(sys.argv[1])
    sum(float(parameter.sum()) for parameter in encoder.parameters())
    print((peak() - imports) / os.path.getsize(os.path.join(sys.argv[1], "model.safetensors")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_loading_vit_l_is_lean(tmp_path):
    """At most 1.3 times the file in memory, at full size (random weights: 1.3 GB)."""
    with torch.device("meta"):
        model = VJEPA2Model(VJEPA2Config())
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(tmp_path)
    del model
    result = subprocess.run([sys.executable, "-c", LEAN, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.3
