"""V-JEPA 2 in the Hugging Face ecosystem: pretraining, world models, planning and probing."""

import sys


if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("vjepa2_hf."):
    import vjepa2_cli  # noqa: F401 (a quick --help)

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_classification import VJepa2VideoClassificationConfig
from .configuration_decoder import VJepa2PixelDecoderConfig
from .configuration_vjepa2 import VERSION, VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_classification import VJepa2ForVideoClassification
from .modeling_decoder import VJepa2PixelDecoder
from .modeling_encoder import VJepa2Encoder
from .modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from .modeling_world_model import VJepa2WorldModel
from .pipelines.anomaly_detection import VJepa2AnomalyDetector
from .pipelines.latent_planning import VJepa2Planner
from .pipelines.video_features import VJepa2FeatureExtractor
from .video_processing_vjepa2 import VJepa2VideoProcessor


__version__ = VERSION

# Config, model, and its Auto class, beside `AutoModel`
_MODELS = [
    (VJepa2EncoderConfig, VJepa2Encoder, AutoModel),
    (VJepa2MaskedLatentPredictionConfig, VJepa2ForMaskedLatentPrediction, AutoModelForPreTraining),
    (VJepa2WorldModelConfig, VJepa2WorldModel, AutoModel),
    (VJepa2VideoClassificationConfig, VJepa2ForVideoClassification, AutoModelForVideoClassification),
    (VJepa2PixelDecoderConfig, VJepa2PixelDecoder, AutoModel),
]

_PIPELINES = {
    "latent-planning": VJepa2Planner,
    "video-feature-extraction": VJepa2FeatureExtractor,
    "video-anomaly-detection": VJepa2AnomalyDetector,
}


def register_custom_code() -> None:
    """Makes `save_pretrained` of our models, configs and processor copy our code into the folder.

    Such a folder loads without this package: `AutoModel.from_pretrained(folder, trust_remote_code=True)`. Where the
    package is installed, the code in the folder is ignored. This calls transformers' `register_for_auto_class` for all
    classes, until the process ends.
    """
    for config_class, model_class, auto_class in _MODELS:
        config_class.register_for_auto_class()
        model_class.register_for_auto_class(auto_class)
    VJepa2VideoProcessor.register_for_auto_class()


def _register() -> None:
    for config_class, model_class, auto_class in _MODELS:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for known_to in {AutoModel, auto_class}:
            known_to.register(config_class, model_class, exist_ok=True)
        AutoVideoProcessor.register(config_class, VJepa2VideoProcessor, exist_ok=True)
    for task, pipeline_class in _PIPELINES.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=AutoModel, type="video")


_register()

# fmt: off
__all__ = [
    "VJepa2EncoderConfig", "VJepa2Encoder", "VJepa2MaskedLatentPredictionConfig", "VJepa2ForMaskedLatentPrediction",
    "VJepa2WorldModelConfig", "VJepa2WorldModel", "VJepa2VideoClassificationConfig", "VJepa2ForVideoClassification",
    "VJepa2PixelDecoderConfig", "VJepa2PixelDecoder", "VJepa2VideoProcessor", "VJepa2Planner",
    "VJepa2FeatureExtractor", "VJepa2AnomalyDetector", "register_custom_code",
]  # fmt: skip
