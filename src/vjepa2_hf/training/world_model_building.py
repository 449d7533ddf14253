"""What the training of a world model starts from: encoder, processor, model, and windows of training and held-out
episodes.

model, processor, training, held_out, statistics = prepare_data(config, accelerator)
"""

import dataclasses
import logging

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import has_file

from ..configuration_vjepa2 import VJepa2EncoderConfig
from ..data.feature_cache import FeatureCache
from ..modeling_encoder import VJepa2Encoder
from ..modeling_learned_state import VJepa2LearnedState
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .cached_windows import common_fps, split_windows
from .episode_latents import frozen_encoder, latent_layout, model_state, open_caches, with_views
from .state_learning import encoder_of_stage, learned_network
from .time_scales import copy_state
from .world_model_fields import (
    check_windows,
    data_fields,
    embodiments_of,
    extend_model,
    fit_embodiments,
    freeze_others,
    latents_to_fit,
    measure_column,
    warn_of_short_windows,
)
from .world_model_settings import BASELINES, WorldModelTrainingConfig


logger = logging.getLogger(__name__)


def load_model(config: WorldModelTrainingConfig) -> VJepa2WorldModel | None:
    """The model to train further; None if there is none."""
    if config.from_model is None:
        return None
    model = VJepa2WorldModel.from_pretrained(config.from_model, dtype=torch.float32, **config.world_model)
    if not model.config.freeze_encoder:
        raise ValueError(f"from_model={config.from_model} trains its encoder too, which cannot be continued this way.")
    return model


def build_encoder(config: WorldModelTrainingConfig) -> VJepa2Encoder:
    """The trained encoder, or the one of a baseline."""
    if config.encoder in BASELINES:
        torch.manual_seed(config.seed)
        with torch.device("meta" if config.encoder == "pixels" else "cpu"):  # of raw pixels only its sizes count
            return VJepa2Encoder(VJepa2EncoderConfig(**config.encoder_config))
    if config.encoder_config:
        raise ValueError(f"encoder={config.encoder} brings its sizes; remove the fields of encoder_config.")
    return VJepa2Encoder.from_pretrained(config.encoder, dtype=torch.float32)


def build_processor(config: WorldModelTrainingConfig, encoder: VJepa2Encoder) -> VJepa2VideoProcessor:
    """That of `from_model`, or the encoder's own if one was saved with it, else whole frames at the model's size."""
    if config.from_model is not None:
        return VJepa2VideoProcessor.from_pretrained(config.from_model)
    size = config.crop_size or encoder.config.crop_size
    processor = VJepa2VideoProcessor(size=size, crop_size=size)
    if config.crop_size is not None or config.encoder in BASELINES:
        return processor
    if any(has_file(config.encoder, name) for name in (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        return VJepa2VideoProcessor.from_pretrained(config.encoder)
    logger.warning(
        "%s has no video processor: whole frames are resized to %d x %d pixels and normalized with mean %s and "
        "standard deviation %s; check that the encoder was trained on such frames",
        config.encoder, size, size, processor.image_mean, processor.image_std,
    )  # fmt: skip
    return processor


def open_data(
    config: WorldModelTrainingConfig,
    accelerator: Accelerator,
    model: VJepa2WorldModel | None,
    network: VJepa2LearnedState | None,
) -> tuple[list[FeatureCache], VJepa2Encoder, VJepa2VideoProcessor]:
    """The cache of every source, latents of a frozen encoder or frames, with that encoder and its processor."""
    known = 0 if model is None else model.config.num_embodiments
    if model is None:
        encoder = encoder_of_stage(config) if config.state.train_encoder else build_encoder(config)
        state = latent_layout(config.state_type, config.world_model)
        wanted = {"proprio_states": config.use_proprio, "rewards": config.world_model.get("reward_head")}
    else:
        encoder, state = frozen_encoder(model), model_state(model.config)
        has_states = model.config.proprio_dim or config.use_proprio
        wanted = {"proprio_states": has_states, "rewards": model.config.reward_head}
        config = dataclasses.replace(config, data=with_views(config.sources, model.config))
    processor = build_processor(config, encoder)
    columns = ["latents" if config.freeze_encoder else "frames", "actions"]
    columns += [name for name, is_wanted in wanted.items() if is_wanted]
    several = embodiments_of(config.sources, known) is not None
    optional = ["proprio_states"] if several else []  # a robot may lack them
    caches = open_caches(config, accelerator, encoder, processor, state, columns, optional, network)
    return caches, encoder, processor


def build_model(
    config: WorldModelTrainingConfig, encoder, network: VJepa2LearnedState | None, statistics: dict, fps: float
) -> VJepa2WorldModel:
    """A world model with new dynamics; sizes, statistics and bounds come from the data."""
    discrete = config.world_model.get("action_type") == "discrete"
    fields = data_fields(statistics, config.frame_skip, discrete, config.normalize_actions) | {"fps": fps}
    fields["state_type"] = config.state_type
    views = config.sources[0].views
    if views != [None]:
        fields |= {"num_views": len(views), "view_names": views}
    set_seed(config.seed)
    later = {"distance_head": False}  # added after the dynamics, which it does not change
    model = VJepa2WorldModel.from_encoder(encoder, **{**fields, **config.world_model, **later})
    if network is not None:
        model.state_network.load_state_dict(network.state_dict())
    return model


def prepare_data(config: WorldModelTrainingConfig, accelerator: Accelerator):
    """Model, processor, windows of training and held-out episodes, and statistics of the data."""
    model = load_model(config)
    network = learned_network(config, model)
    caches, encoder, processor = open_data(config, accelerator, model, network)
    weights, known = [source.weight for source in config.sources], 0 if model is None else model.config.num_embodiments
    embodiments = embodiments_of(config.sources, known)
    training, held_out = split_windows(caches, weights, config.validation_fraction, embodiments)
    columns = {name: None for cache in caches for name in cache.columns if name not in ("latents", "frames")}
    statistics = {name: measure_column(training, name) for name in columns}
    if model is not None:
        set_seed(config.seed)
        ids = sorted(set(embodiments))
        extend_model(model, ids, statistics, config.new_embodiment, config.normalize_actions)
        if config.train_only is not None:
            freeze_others(model, ids)
        model.to(accelerator.device).eval()
    else:
        model = build_model(config, encoder, network, statistics, common_fps(training))
        model.to(accelerator.device).eval()
        copied = config.state_of is not None and copy_state(model, config.state_of)
        if config.fit_state and not copied:
            model.fit_state(latents_to_fit(model, training, processor))
    fit_embodiments(model, training, processor, known)
    for mixture in (training, held_out):
        mixture.fit_widths(model.config.action_dim // model.config.frame_skip, model.config.proprio_dim)
    check_windows(model.config, config.frames_per_window, config.rollout_start)
    warn_of_short_windows(model.config, config.frames_per_window)
    training.sample(1, config.frames_per_window, model.config.frame_skip, np.random.default_rng(0))  # raises if none
    named = [dataclasses.asdict(source) for source in config.sources]
    return model, processor, training, held_out, {"data": named, **statistics}
