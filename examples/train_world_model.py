# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo,hdf5]"]
# ///
"""Trains an action-conditioned world model on episodes, on top of an encoder, and saves it with its processor.

    accelerate launch examples/train_world_model.py --config examples/configs/demo/world_model.yaml [key=value ...]

One process on a CPU, after `examples/record_episodes.py` and `examples/pretrain.py` of the demo:

    python examples/train_world_model.py --config examples/configs/demo/world_model.yaml \\
        encoder=runs/demo/pretrain/final

Several cameras, several robots, and another robot for a finished model whose other predictions stay as they are:

    python examples/train_world_model.py encoder=ENCODER output_dir=runs/two data="[{path: A, camera: [front, wrist]},
        {path: B, camera: [front, wrist], embodiment: 1, weight: 0.5}]"
    python examples/train_world_model.py from_model=runs/two/final train_only=embodiment output_dir=runs/three
        data="[{path: C, camera: [front, wrist], embodiment: 2}]"

Several CPU processes: `torchrun --nproc_per_node 2 examples/train_world_model.py ...`. A frozen encoder encodes each
frame once; later runs on the same encoder and data find the latents in `cache_dir`. You may delete them. Damaged ones
are computed again. Invalid episodes are skipped; every run logs how many its cache lacks. A stopped run continues with
`resume=latest`. `OUTPUT_DIR/rollout_error.json` compares rollouts on held-out episodes with copying the last state.
With `world_model.state_type=learned` a first stage trains the network of the state, in `OUTPUT_DIR/state`
(docs/states.md).
With `world_model.distance_head=true` it then trains a distance head, and `OUTPUT_DIR/distance.json` compares predicted
and true times. The result is `OUTPUT_DIR/final`:

    planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final")
"""

import dataclasses
import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import has_file

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.files import write_json
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores
from vjepa2_hf.modeling_learned_state import VJepa2LearnedState
from vjepa2_hf.modeling_world_model import VJepa2WorldModelOutput
from vjepa2_hf.training.cached_windows import (
    common_fps,
    log_skipped,
    measured_horizons,
    split_windows,
    window_loader,
)
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.episode_latents import (
    episode_sources,
    frozen_encoder,
    latent_layout,
    model_inputs,
    model_state,
    open_caches,
    with_views,
)
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    parameter_groups,
    set_weight_decay,
    slow_groups,
)
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.training.state_learning import encoder_of_stage, learned_network, train_state
from vjepa2_hf.training.state_settings import StateSettings, first_stage, stage_folder
from vjepa2_hf.training.temporal_distance import DistanceSettings, measure_distance_head, train_distance_head
from vjepa2_hf.training.time_scales import copy_state, set_macro_range
from vjepa2_hf.training.world_model_fields import (
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
from vjepa2_hf.video_io import ReadLimits


logger = logging.getLogger("train_world_model")

BASELINES = ("random", "pixels")  # in place of a trained encoder
# Fields that may change when a model is trained further
TRAINING_FIELDS = ("teacher_forcing_weight", "rollout_weight", "rollout_steps", "rollout_discount", "view_dropout")
EVALUATED_WINDOWS = 1024
# `loss` first, then its parts
LOSSES = [field.name for field in dataclasses.fields(VJepa2WorldModelOutput) if field.name.endswith("loss")]


@dataclass(kw_only=True)
class WorldModelTrainingConfig(TrainingConfig):
    """Settings of one run; published values are in configs/published/action_conditioned.yaml."""

    data: str | list[EpisodeSource]
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub; or several with weights:
    [{path: here, weight: 0.7}, {path: there, weight: 0.3, camera: wrist}]. HDF5 and npz files need their frames per
    second, [{path: robomimic, fps: 20, camera: obs/agentview_image}]; examples/import_episodes.py describes their
    layouts and has more options. `camera: [front, wrist]` takes several cameras of each episode, as views of the
    model. Sources of several robots name their `embodiment`, 0, 1, ...; each has its own size of actions, statistics
    and projections."""
    encoder: str | None = None
    """Folder or Hub id. The baselines are "random" (random weights, sizes in `encoder_config`) and "pixels" (raw
    patches). A learned state that reads pixels takes "pixels", too."""
    from_model: str | None = None
    """Folder or Hub id of a world model to train further, in place of `encoder`. Its encoder, sizes and statistics
    stay. Sources of the embodiment after its last one add a new robot."""
    train_only: Literal["embodiment"] | None = None
    """With from_model: train the projections of the data's one embodiment alone; all other weights stay."""
    new_embodiment: dict[str, Any] = field(default_factory=dict)
    """`name` and `proprio_transition` of the robot that is added to from_model."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, for "random" and "pixels"."""
    crop_size: int | None = None
    """Height and width in pixels; null: the encoder's."""
    max_episodes: int | None = None
    """Episodes of each source; null: all."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    validation_fraction: float = 0.07
    """Fraction of the episodes of each source held out, by a hash of their ids; at least one of two or more, see
    `split_episodes`."""
    cache_dir: str | None = None
    """Folder of the encoded episodes; null: `latents` beside output_dir, which the runs there share."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the cached latents."""

    # Length and speed
    max_steps: int = 3000
    batch_size: int = 64
    save_every: int = 1000
    eval_every: int | None = None
    """Steps between two measurements of rollouts on held-out episodes; null: only at the end."""
    horizons: list[int] = field(default_factory=lambda: [1, 2, 4, 5, 8, 10])
    """Model steps after which rollouts are measured."""

    # Model
    world_model: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2WorldModelConfig; sizes, statistics and bounds of actions come from the data."""
    fit_state: bool = True
    """Fit the fixed map of the state once, on the training episodes: subtract the mean at every position and divide by
    one global standard deviation; for merged and projected states also fit the linear map."""
    state_of: str | None = None
    """Folder of a world model on the same encoder whose fitted map, and network of a learned state, are used instead,
    so that the latents of both models are equal: for a second time scale (docs/planning.md). Of a first stage alone,
    OUTPUT_DIR/state/final, the network is used, and the map is fitted here."""
    state: StateSettings = field(default_factory=StateSettings)
    """For world_model.state_type=learned: training of the network of the state, before that of the dynamics."""
    normalize_actions: bool = True
    """Standardize actions and proprio states by their statistics."""
    use_proprio: bool = False
    """Add a token for the proprio state."""

    # Objective
    frames_per_window: int = 4
    """Model steps in a window, plus one."""
    rollout_start: float = 0.0
    """Fraction of the steps that use the one-step loss alone, on windows no longer than the model's context needs.
    Then the model's own weights of teacher forcing and rollout apply."""

    # Optimizer: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04

    # For world_model.distance_head=true
    distance: DistanceSettings = field(default_factory=DistanceSettings)
    """Training of the distance head, after that of the dynamics."""

    # For world_model.freeze_encoder=false
    encoder_learning_rate: float = 0.1
    """Learning rate of the encoder, as a fraction of the learning rate."""
    ema: MomentumSchedule = field(default_factory=lambda: MomentumSchedule(start=0.9999))
    """Momentum of the target encoder's moving average (the two-phase recipe: 0.9999)."""

    result_files = ("statistics.json", "rollout_error.json", "distance.json")
    schedule_settings = ("max_steps", "learning_rate", "rollout_start", "ema")

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("max_episodes", "eval_every")
        self.require_fraction("rollout_start", "validation_fraction", "encoder_learning_rate")
        self._check_start()
        self._check_learned_state()
        if self.distance_head and not self.freeze_encoder:
            raise ValueError(
                "world_model.distance_head=true needs cached latents, and world_model.freeze_encoder=false has none: "
                "train the head of the finished model with examples/train_distance_head.py."
            )

    def _check_start(self) -> None:
        """Refuses settings that a model to train further decides itself."""
        if (self.encoder is None) == (self.from_model is None):
            raise ValueError("Give either encoder, for a new world model, or from_model, to train one further.")
        if self.from_model is None:
            for name in ("train_only", "new_embodiment"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} needs from_model, the model that it is about.")
            return
        refused = {"encoder_config": self.encoder_config, "state_of": self.state_of, "crop_size": self.crop_size}
        refused["state"] = self.state != StateSettings()
        others = set(self.world_model) - set(TRAINING_FIELDS)
        refused |= {f"world_model.{name}": True for name in sorted(others)}
        for name, value in refused.items():
            if value:
                raise ValueError(f"{name} is set, but from_model={self.from_model} brings it: leave it out.")

    def _check_learned_state(self) -> None:
        """Refuses an encoder that the state does not read, and the other way round."""
        learned, reads = self.state_type == "learned", self.world_model.get("state_input", "pixels")
        if not learned and self.state != StateSettings():
            raise ValueError(f"state is for world_model.state_type=learned, not {self.state_type}: leave it out.")
        if self.state_of is not None and self.state != StateSettings():
            raise ValueError(f"state is set, but state_of={self.state_of} brings the network: leave it out.")
        if learned and self.from_model is None and (self.encoder == "pixels") != (reads == "pixels"):
            advice = "a state that reads pixels needs encoder=pixels, one that reads tokens an encoder"
            raise ValueError(f"encoder={self.encoder} with world_model.state_input={reads}: {advice}.")
        if self.state.train_encoder and reads == "pixels":
            raise ValueError("state.train_encoder=true needs world_model.state_input=tokens: pixels have no encoder.")

    @property
    def state_type(self) -> str:
        return self.world_model.get("state_type", "pixels" if self.encoder == "pixels" else "tokens")

    @property
    def learns_state(self) -> bool:
        """Whether the run has a first stage."""
        own = stage_folder(self).parent == Path(self.output_dir)
        return self.state_type == "learned" and self.from_model is None and self.state_of is None and own

    @property
    def sources(self) -> list[EpisodeSource]:
        return episode_sources(self.data)

    @property
    def freeze_encoder(self) -> bool:
        return self.world_model.get("freeze_encoder", True)

    @property
    def distance_head(self) -> bool:
        return self.world_model.get("distance_head", False)

    @property
    def frame_skip(self) -> int:
        return self.world_model.get("frame_skip", 1)

    def scheduled(self, step: int) -> dict[str, Any]:
        """Learning rate, whether the loss is of one step alone, momentum of the target encoder."""
        values = {**super().scheduled(step), "one_step": step <= self.rollout_start * self.max_steps}
        return values if self.freeze_encoder else {**values, "ema_momentum": self.ema.at(step, self.max_steps)}

    def frames_at(self, step: int, context_frames: int) -> int:
        """Frames of a step's windows; while the loss is of one step alone, no more than the model's context needs."""
        one_step = self.scheduled(step)["one_step"]
        return min(self.frames_per_window, context_frames + 1) if one_step else self.frames_per_window


def load_model(config: WorldModelTrainingConfig) -> VJepa2WorldModel | None:
    """The model to train further; None if there is none."""
    if config.from_model is None:
        return None
    model = VJepa2WorldModel.from_pretrained(config.from_model, **config.world_model)
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
    return VJepa2Encoder.from_pretrained(config.encoder)


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


@torch.no_grad()
def rollout_errors(
    model: VJepa2WorldModel, held_out: WindowMixture, processor, horizons: list[int], batch_size: int = 64
) -> list[dict[str, float]]:
    """Mean squared error and cosine of rollouts on held-out episodes by horizon, next to copying the last state."""
    skip, longest = model.config.frame_skip, max(horizons)
    windows = held_out.tile(longest + 1, skip, longest, EVALUATED_WINDOWS)
    scores = RolloutScores()
    for part in windows.split(batch_size):
        batch = model_inputs(held_out.read(part, longest + 1, skip), model, processor)
        if "latents" in batch:
            seen, true = batch["latents"][:, :1], batch["latents"]
        else:  # predictions start from the online encoder and are compared with the target encoder's latents
            seen = model.encode(batch["pixel_values_videos"][:, :1])
            true = model.encode_targets(batch["pixel_values_videos"])
        states = batch.get("proprio_states")
        states = None if states is None else states[:, :1]  # planning does not know future states either
        given = {"proprio_states": states, "embodiment_ids": batch.get("embodiment_ids")}
        predicted = model.rollout(seen, batch["actions"], **given)
        scores.add(predicted, true[:, 1:], copies=true[:, 0])
    return scores.rows(horizons)


def learn_state(config: WorldModelTrainingConfig) -> None:
    """The first of two stages, in OUTPUT_DIR/state: the network of a learned state."""
    state = config.state
    if isinstance(state.symmetries, str):
        from vjepa2_hf.environments import find_symmetries  # needs gymnasium

        state = dataclasses.replace(state, symmetries=find_symmetries(state.symmetries))
    encoder = build_encoder(config)
    train_state(first_stage(config, state), encoder, build_processor(config, encoder), following=config)


def train(config: WorldModelTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.learns_state:
        learn_state(config)
    loop = TrainingLoop(config, "world_model")
    accelerator, run = loop.accelerator, loop.run

    # Encode the data, then build a model for it
    model, processor, training, held_out, statistics = prepare_data(config, accelerator)
    horizons = measured_horizons(config.horizons, held_out, model.config.frame_skip)  # warns before training
    groups = parameter_groups(model, config.weight_decay)
    if not config.freeze_encoder:
        groups = slow_groups(groups, model.encoder, config.encoder_learning_rate)
    optimizer, plain = torch.optim.AdamW(groups, lr=config.learning_rate.peak, fused=True), model.train()
    # With several processes this gives all of them the weights and the fitted state of the first
    frozen = getattr(plain, "encoder", None) if config.freeze_encoder else None
    model, optimizer = loop.prepare(model, optimizer, processor, encoder=frozen)
    set_weight_decay(optimizer, config.weight_decay)  # a checkpoint of another run may bring its own
    if accelerator.is_main_process:
        write_json(run.output_dir / "statistics.json", statistics)
        log_skipped(training.caches, config.sources, run.output_dir)

    # Windows of random episodes
    frames = functools.partial(config.frames_at, context_frames=plain.config.context_frames)
    loader = window_loader(training, config, frames, plain.config.frame_skip, accelerator, loop.first_micro_batch)
    batches = ((training.names(batch.pop("windows")), model_inputs(batch, plain, processor)) for batch in loader)

    def forward_backward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = {"teacher_forcing_weight": 1.0, "rollout_weight": 0.0}
        if not loop.scheduled["one_step"]:
            weights = {name: getattr(plain.config, name) for name in weights}
        output = model(**batch, **weights)
        accelerator.backward(output.loss)
        return {name: output[name] for name in LOSSES if name in output}

    for step in loop.steps():
        metrics = dict.fromkeys(LOSSES) | loop.update(batches, forward_backward)
        if not config.freeze_encoder:
            plain.update_target_encoder(loop.scheduled["ema_momentum"])
        measured = {}
        if config.eval_every and step % config.eval_every == 0 and accelerator.is_main_process and len(held_out):
            rows = rollout_errors(plain.eval(), held_out, processor, horizons)
            measured = {f"validation_error_{row['horizon']}": row["error"] for row in rows}
            plain.train()
        if measured or loop.is_logged(step):
            speed = loop.throughput.read("windows")["windows_per_second"]
            loop.log({**metrics, **measured, "windows_per_second": speed})
        loop.save_checkpoint()

    # Results: the range of macro-actions, rollout errors on held-out episodes, and a distance head
    if plain.config.macro_action_dim is not None:
        set_macro_range(plain.eval(), training)
    if accelerator.is_main_process and len(held_out):
        write_json(run.output_dir / "rollout_error.json", rollout_errors(plain.eval(), held_out, processor, horizons))
    if config.distance_head and not run.is_complete:
        losses = train_distance_head(plain, training, config.distance, config.seed, accelerator)
        if accelerator.is_main_process:
            calibration = measure_distance_head(plain, held_out, config.seed) if len(held_out) else None
            write_json(run.output_dir / "distance.json", {"held_out": calibration, "losses": losses})
    loop.finish(model, processor)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    train(parse_arguments(WorldModelTrainingConfig, __doc__, arguments))


if __name__ == "__main__":
    main()
