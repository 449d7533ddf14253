"""Training of the network of a learned state, the first of two stages of a world model's training.

train_state(config, encoder, processor)          # into OUTPUT_DIR/final; resumes like every run

Its settings are in `state_settings`, its losses in `state_losses`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..configuration_world_model import VJepa2WorldModelConfig
from ..data.episodes import EpisodeStream
from ..data.files import weights_fingerprint
from ..data.windows import WindowMixture
from ..modeling_embodiments import normalize_actions
from ..modeling_encoder import VJepa2Encoder
from ..modeling_learned_state import VJepa2LearnedState
from ..modeling_world_model import VJepa2WorldModel
from .augmentation import augment, check_symmetries
from .cached_windows import as_shards, cache_root, common_fps, split_windows, window_loader
from .episode_latents import (
    NO_DYNAMICS,
    count_views,
    episode_sources,
    latent_layout,
    load_network,
    model_inputs,
    model_state,
    open_caches,
)
from .loop import TrainingLoop
from .run import Run
from .schedules import parameter_groups, set_weight_decay, slow_groups
from .state_losses import StateLearner, encoder_tokens
from .state_settings import StateTrainingConfig, finished_stage
from .world_model_fields import check_windows, data_fields, embodiments_of, measure_column


def learned_network(config: Any, model: VJepa2WorldModel | None) -> VJepa2LearnedState | None:
    """The network of a learned state: of a model to train further, of the model in `config.state_of`, or of the first
    stage; None for other states."""
    if model is None and config.state_type == "learned":
        folder = config.state_of or finished_stage(config)
        return _network_of(folder, config.world_model)
    return getattr(model, "state_network", None)


def encoder_of_stage(config: Any) -> VJepa2Encoder:
    """The encoder that the first stage of a run trained along."""
    return VJepa2WorldModel.from_pretrained(finished_stage(config)).encoder


def _network_of(folder: str | Path, fields: dict[str, Any]) -> VJepa2LearnedState:
    """The network of the world model in a folder; refuses one whose state is not that of `fields`."""
    model = VJepa2WorldModel.from_pretrained(folder)
    wanted, found = latent_layout("learned", fields), model_state(model.config)
    if found != wanted:
        raise ValueError(f"The state of {folder} is {found}, but world_model asks for {wanted}: use one state.")
    return model.state_network


# --- Training


def train_state(
    config: StateTrainingConfig, encoder: VJepa2Encoder, processor: Any, following: Any | None = None
) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`, a world model with the trained network and
    without dynamics.

    Args:
        encoder: of a state that reads tokens; of one that reads pixels, only its sizes count.
        following: settings of the run of `train_world_model.py` that comes next; its folder and what it makes of the
            data are checked before the first step of this one.

    Raises:
        ValueError: the folders or settings do not allow this run or the next one, or the episodes are of several
            robots or cameras.
    """
    loop = TrainingLoop(config, "state")
    if following is not None:
        Run(following, loop.accelerator).check(following.resume)  # before the hours of this run
    model, training = _prepare(config, loop, encoder, processor, following)
    learner = StateLearner(model, config.state).to(loop.accelerator.device).train()
    groups = parameter_groups(learner, config.state.weight_decay)
    if config.state.train_encoder:
        groups = slow_groups(groups, learner.encoder, config.state.encoder_learning_rate)
    optimizer = torch.optim.AdamW(groups, lr=config.state.learning_rate, fused=True)
    prepared, optimizer = loop.prepare(learner, optimizer, processor)
    set_weight_decay(optimizer, config.state.weight_decay)  # a checkpoint of another run may bring its own

    def forward_backward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = prepared(**batch)
        loop.accelerator.backward(losses["loss"])
        return losses

    loop.run_steps(_batches(config, loop, model, processor, training), forward_backward)
    loop.finish_stage(model.eval(), processor)


def _prepare(
    config: StateTrainingConfig, loop: TrainingLoop, encoder: VJepa2Encoder, processor: Any, following: Any | None
) -> tuple[VJepa2WorldModel, WindowMixture]:
    """A world model whose network is new, and the training episodes."""
    sources = episode_sources(config.data)
    if embodiments_of(sources) is not None:
        raise ValueError("state_type='learned' learns from the actions of one robot; data names several embodiments.")
    if count_views(sources) > 1:
        raise ValueError(f"state_type='learned' reads one camera; camera is {sources[0].views}: name one of them.")
    tokens, columns = latent_layout("tokens", config.world_model), config.columns
    if following is not None and config.state.data is not None:
        _check_other_data(following, encoder, processor, loop.accelerator)
        following = None
    if following is not None:
        columns = columns + _further_columns(following)
    caches = open_caches(config, loop.accelerator, encoder, processor, tokens, columns, frames_only=config.frames_only)
    training, _ = split_windows(caches, [source.weight for source in sources], config.validation_fraction)
    skip, discrete = config.world_model.get("frame_skip", 1), config.world_model.get("action_type") == "discrete"
    statistics = {name: measure_column(training, name) for name in columns if name not in ("latents", "frames")}
    fields: dict[str, Any] = {"action_dim": skip, "actions_per_step": skip, "fps": common_fps(training)}
    if not config.frames_only:
        fields |= data_fields({"actions": statistics["actions"]}, skip, discrete, config.normalize_actions)
    if config.state.symmetries is not None and config.state.use_actions:
        check_symmetries(config.state.symmetries, fields["action_dim"] // skip)
    torch.manual_seed(config.seed)
    model = VJepa2WorldModel.from_encoder(encoder, **{**fields, **config.world_model, **NO_DYNAMICS})
    if config.state.start_from is not None:
        _start_from(model, config)
    training.sample(1, config.state.frames, skip, np.random.default_rng(0))  # raises if no episode is long enough
    if following is not None:
        fields |= data_fields(statistics, skip, discrete, config.normalize_actions)
        _check_following(following, encoder, fields)
        training.sample(1, following.frames_per_window, skip, np.random.default_rng(0))
    return model.to(loop.accelerator.device).eval(), training


def _start_from(model: VJepa2WorldModel, config: StateTrainingConfig) -> None:
    """Takes over the network of another model, on the same encoder."""
    folder = config.state.start_from
    load_network(model, _network_of(folder, config.world_model))
    if not model.config.reads_pixels:
        other = VJepa2WorldModel.from_pretrained(folder).encoder
        if weights_fingerprint(other) != weights_fingerprint(model.encoder):
            found = f"state.start_from={folder} has another encoder than encoder={config.encoder}"
            raise ValueError(f"{found}: give encoder={folder}, and leave encoder_config out.")


def _further_columns(following: Any) -> list[str]:
    """Columns that the next run reads besides actions."""
    wanted = {"proprio_states": following.use_proprio, "rewards": following.world_model.get("reward_head")}
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _check_other_data(following: Any, encoder: VJepa2Encoder, processor: Any, accelerator: Accelerator) -> None:
    """`_check_following` for a next run on other data, by the first readable episode of every source."""
    sources, columns, found = following.sources, ["actions", *_further_columns(following)], []
    for source in sources:
        shards = as_shards(source, cache_root(following, "latents"), accelerator)
        stream = EpisodeStream(shards, processor, limits=following.limits)
        found.append(next((episode for episode in stream if "skipped" not in episode), None))
        if found[-1] is None:
            raise ValueError(f"No episode could be read from {source.path!r}.")
    fields = {"num_views": count_views(sources)}
    if embodiments_of(sources) is None:
        for name in columns:
            if name not in found[0]:
                raise ValueError(f"The episodes of {sources[0].path!r} have no {name!r}.")
        values = {name: found[0][name].numpy() for name in columns}
        statistics = {
            name: {"mean": each.mean(0).tolist(), "low": each.min(0).tolist(), "high": each.max(0).tolist()}
            | {"std": [1.0] * each.shape[1]}
            for name, each in values.items()
        }
        discrete = following.world_model.get("action_type") == "discrete"
        fields |= data_fields(statistics, following.frame_skip, discrete, normalize=False)
    _check_following(following, encoder, fields)


def _check_following(following: Any, encoder: VJepa2Encoder, fields: dict[str, Any]) -> None:
    """Refuses settings of the next run that its model or its windows do not allow; `fields` are those of the data."""
    fields = {**fields, **following.world_model}
    config = VJepa2WorldModelConfig(encoder_config=encoder.config.to_dict(), **fields)
    check_windows(config, following.frames_per_window, following.rollout_start)


def _batches(
    config: StateTrainingConfig, loop: TrainingLoop, model: VJepa2WorldModel, processor: Any, training: WindowMixture
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Names and inputs of a [`StateLearner`] of every micro-batch that is left. An augmentation depends on the seed
    and on the micro-batch alone."""
    first, rank = loop.first_micro_batch, loop.accelerator.process_index
    loader = window_loader(training, config, config.frames_at, model.config.frame_skip, loop.accelerator, first)
    for number, batch in enumerate(loader, start=first):
        names = training.names(batch.pop("windows"))
        if not config.state.use_actions:
            batch.pop("actions", None)
        if config.state.augment:
            rng = np.random.default_rng((config.seed, number, rank))
            drawn = augment(batch["frames"], batch.get("actions"), config.state.symmetries or {}, rng)
            batch |= {name: values for name, values in zip(("frames", "actions"), drawn) if values is not None}
        yield names, _learner_inputs(model, processor, batch, config.state.train_encoder)


def _learner_inputs(
    model: VJepa2WorldModel, processor: Any, batch: dict[str, torch.Tensor], train_encoder: bool
) -> dict[str, torch.Tensor]:
    """What a [`StateLearner`] reads of a batch of windows, and standardized actions if it has them."""
    inputs = model_inputs(batch, model, processor)
    frames = inputs["latents"] if "latents" in inputs else inputs["pixel_values_videos"]
    if "latents" not in inputs and not model.config.reads_pixels and not train_encoder:
        with torch.no_grad():
            frames = encoder_tokens(model.config, model.encoder, frames)
    if "actions" not in inputs:
        return {"frames": frames}
    return {"frames": frames, "actions": normalize_actions(model.config, frames, inputs["actions"])}
