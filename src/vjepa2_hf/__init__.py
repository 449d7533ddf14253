"""V-JEPA 2 in the Hugging Face ecosystem: pretraining, world models, planning and probing."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_vjepa2 import (
    VERSION,
    VJepa2EncoderConfig,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModelConfig,
)
from .modeling_classification import VJepa2ForVideoClassification
from .modeling_encoder import VJepa2Encoder
from .modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from .modeling_world_model import VJepa2WorldModel
from .pipeline_latent_planning import VJepa2Planner
from .video_processing_vjepa2 import VJepa2VideoProcessor


__version__ = VERSION

_MODELS = {
    VJepa2EncoderConfig: VJepa2Encoder,
    VJepa2MaskedLatentPredictionConfig: VJepa2ForMaskedLatentPrediction,
    VJepa2WorldModelConfig: VJepa2WorldModel,
    VJepa2VideoClassificationConfig: VJepa2ForVideoClassification,
}


def _register() -> None:
    for config_class, model_class in _MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoVideoProcessor.register(config_class, VJepa2VideoProcessor, exist_ok=True)
    AutoModelForPreTraining.register(
        VJepa2MaskedLatentPredictionConfig, VJepa2ForMaskedLatentPrediction, exist_ok=True
    )
    AutoModelForVideoClassification.register(
        VJepa2VideoClassificationConfig, VJepa2ForVideoClassification, exist_ok=True
    )
    if "latent-planning" not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            "latent-planning", pipeline_class=VJepa2Planner, pt_model=AutoModel, type="video"
        )


_register()

__all__ = [
    "VJepa2EncoderConfig",
    "VJepa2Encoder",
    "VJepa2MaskedLatentPredictionConfig",
    "VJepa2ForMaskedLatentPrediction",
    "VJepa2WorldModelConfig",
    "VJepa2WorldModel",
    "VJepa2VideoClassificationConfig",
    "VJepa2ForVideoClassification",
    "VJepa2VideoProcessor",
    "VJepa2Planner",
]
