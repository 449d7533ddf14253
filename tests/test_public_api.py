"""The names, registrations and signatures that API.md promises, and an import that drags nothing heavy in."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

import vjepa2_hf
from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2Planner,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)


MODELS = [
    ("vjepa2_hf_encoder", VJepa2EncoderConfig, VJepa2Encoder, TINY_ENCODER),
    (
        "vjepa2_hf_masked_latent_prediction",
        VJepa2MaskedLatentPredictionConfig,
        VJepa2ForMaskedLatentPrediction,
        {"encoder_config": TINY_ENCODER, **TINY_PREDICTOR},
    ),
    (
        "vjepa2_hf_world_model",
        VJepa2WorldModelConfig,
        VJepa2WorldModel,
        {"encoder_config": TINY_ENCODER, "action_dim": 2, **TINY_PREDICTOR},
    ),
    (
        "vjepa2_hf_video_classification",
        VJepa2VideoClassificationConfig,
        VJepa2ForVideoClassification,
        {"encoder_config": TINY_ENCODER, "pooler_num_attention_heads": 2, "num_pooler_layers": 1},
    ),
]


def test_all_names_are_there():
    promised = {f"VJepa2{name}" for name in ("Encoder", "WorldModel", "VideoProcessor", "Planner")}
    promised |= {f"VJepa2{name}Config" for name in ("Encoder", "MaskedLatentPrediction", "WorldModel")}
    promised |= {"VJepa2ForMaskedLatentPrediction", "VJepa2ForVideoClassification", "VJepa2VideoClassificationConfig"}
    promised |= {"VJepa2PixelDecoder", "VJepa2PixelDecoderConfig", "VJepa2FeatureExtractor", "VJepa2AnomalyDetector"}
    assert set(vjepa2_hf.__all__) == promised | {"register_custom_code"}
    assert all(hasattr(vjepa2_hf, name) for name in vjepa2_hf.__all__)


@pytest.mark.parametrize(("model_type", "config_class", "model_class", "fields"), MODELS)
def test_auto_classes(model_type, config_class, model_class, fields, tmp_path):
    config = config_class(**fields)
    assert config.model_type == model_type and type(AutoConfig.for_model(model_type, **fields)) is config_class
    model = AutoModel.from_config(config)
    assert type(model) is model_class
    model.save_pretrained(tmp_path)
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is config_class
    assert type(AutoModel.from_pretrained(tmp_path)) is model_class
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VJepa2VideoProcessor
    special = {
        VJepa2ForMaskedLatentPrediction: AutoModelForPreTraining,
        VJepa2ForVideoClassification: AutoModelForVideoClassification,
    }
    if model_class in special:
        assert type(special[model_class].from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize(
    ("task", "pipeline_class"),
    [
        ("latent-planning", VJepa2Planner),
        ("video-feature-extraction", vjepa2_hf.VJepa2FeatureExtractor),
        ("video-anomaly-detection", vjepa2_hf.VJepa2AnomalyDetector),
    ],
)
def test_pipeline_tasks(task, pipeline_class):
    assert task in PIPELINE_REGISTRY.get_supported_tasks()
    assert PIPELINE_REGISTRY.check_task(task)[1]["impl"] is pipeline_class


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (VJepa2Encoder.forward, "pixel_values_videos context_mask"),
        (VJepa2Encoder.encode, "video pool"),
        (VJepa2Encoder.encode_long, "video chunk_frames overlap stride output_dir"),
        (
            VJepa2ForMaskedLatentPrediction.forward,
            "pixel_values_videos context_mask target_mask mask_token_index",
        ),
        (VJepa2ForMaskedLatentPrediction.update_target_encoder, "momentum"),
        (
            VJepa2ForMaskedLatentPrediction.predict_future,
            "pixel_values_videos num_future_frames autoregressive",
        ),
        (VJepa2ForVideoClassification.forward, "pixel_values_videos labels"),
        (VJepa2WorldModel.encode, "pixel_values_videos"),
        (VJepa2WorldModel.forward, "pixel_values_videos latents actions proprio_states extrinsics"),
        (VJepa2WorldModel.rollout, "latents actions context_actions proprio_states extrinsics"),
        (VJepa2WorldModel.score, "observation goal actions"),
        (VJepa2WorldModel.fit_state, "latents"),
        (VJepa2Planner.__call__, "observation goal proprio_state context_actions seed warm_start"),
        (vjepa2_hf.planning.CEM, "horizon num_candidates num_iterations num_elites momentum init_std"),
        (
            vjepa2_hf.planning.CEM.__call__,
            "cost batch_size action_dim action_low action_high generator warm_start",
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_signatures_of_the_contract(function, names):
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    assert parameters[: len(names.split())] == names.split()


@pytest.mark.parametrize(("model_type", "config_class", "model_class", "fields"), MODELS)
def test_capabilities(model_type, config_class, model_class, fields):
    model = model_class(config_class(**fields))
    assert model.main_input_name == "pixel_values_videos" and model.supports_gradient_checkpointing
    assert model._supports_sdpa and model.config.num_frames == 4
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_import_is_light():
    """Heavy packages are imported where they are used. transformers' base classes, which a registered model needs,
    import most of what is loaded here; the package adds two small ones."""
    code = """if True:
        import sys
        heavy = {"datasets", "accelerate", "gymnasium", "matplotlib", "av", "pyarrow", "pandas", "tensorboard"}
        from transformers import Pipeline, PreTrainedModel, AutoModel, AutoVideoProcessor
        import transformers.models.vjepa2.video_processing_vjepa2, transformers.pipelines
        packages = lambda: {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
        before, packages_before = heavy & set(sys.modules), packages()
        import vjepa2_hf
        added = (heavy & set(sys.modules)) - before
        added |= packages() - packages_before - {"vjepa2_hf", "einops", "xxhash"}  # small ones
        rooms = ("training", "probing", "hub.model_card", "data.shards", "data.clips", "data.feature_cache")
        ours = tuple(f"vjepa2_hf.{name}" for name in rooms)
        added |= {name for name in sys.modules if name.startswith(ours)}
        sys.exit(f"import vjepa2_hf also imports {sorted(added)}" if added else 0)
    """
    source = str(Path(vjepa2_hf.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-500:]
