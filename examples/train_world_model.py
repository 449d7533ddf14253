"""Trains an action-conditioned world model on episodes, on top of a frozen encoder, and saves it with its processor.

    accelerate launch examples/train_world_model.py --config examples/configs/demo/world_model.yaml [key=value ...]

One process on a CPU, after `examples/record_episodes.py` and `examples/pretrain.py` of the demo:

    python examples/train_world_model.py --config examples/configs/demo/world_model.yaml
    encoder=runs/demo/pretrain/final

The encoder is frozen, so each frame is encoded once; its latents stay in `cache_dir`, where runs on the same encoder
and data find them (delete it when you like). With `world_model.freeze_encoder=false` frames are kept there instead. A
run that was stopped goes on with `resume=latest`, and an encoding that was stopped goes on by itself. Several CPU
processes: `torchrun --nproc_per_node 2 examples/train_world_model.py ...`.

`OUTPUT_DIR/rollout_error.json` compares rollouts on held-out episodes with copying the last state,
`OUTPUT_DIR/statistics.json` tells what the data holds. The result is `OUTPUT_DIR/final`:

    planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final")
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import has_file

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import EpisodeSource, EpisodeStream, split_episodes
from vjepa2_hf.data.feature_cache import CacheWriter, FeatureCache, data_fingerprint, finish_cache, is_finished
from vjepa2_hf.data.files import cache_key, locked, weights_fingerprint, write_json
from vjepa2_hf.data.importers import ImportOptions, import_episodes
from vjepa2_hf.data.windows import WindowBatches, WindowMixture
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores
from vjepa2_hf.modeling_world_model import VJepa2WorldModelOutput
from vjepa2_hf.training.monitor import gradient_norm
from vjepa2_hf.training.run import Run, check_run_settings, check_tracker
from vjepa2_hf.training.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    parameter_groups,
    set_learning_rate,
    set_weight_decay,
)
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


logger = logging.getLogger("train_world_model")

BASELINES = ("random", "pixels")  # in place of a trained encoder
RATE_SETTINGS = ("max_steps", "learning_rate", "rollout_start", "ema")
FIT_BYTES = 2**30  # of latents that a state is fitted on, spread over the training episodes
FIT_FRAMES = 64  # that follow one another
ENCODED_AT_ONCE = 64  # frames
EVALUATED_WINDOWS = 1024
# `loss` first, then its parts
LOSSES = [field.name for field in dataclasses.fields(VJepa2WorldModelOutput) if field.name.endswith("loss")]


@dataclass
class WorldModelTrainingConfig:
    """Settings of one run; published values are in configs/published/action_conditioned.yaml."""

    output_dir: str
    data: str | list[EpisodeSource]
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub; or several with weights:
    [{path: here, weight: 0.7}, {path: there, weight: 0.3, camera: wrist}]. HDF5 and npz files need their frames a
    second, [{path: robomimic, fps: 20, camera: obs/agentview_image}]; examples/import_episodes.py tells their layouts
    and has more options."""
    encoder: str
    """Folder or Hub id; "random" (sizes in `encoder_config`) and "pixels" (raw patches) are the baselines."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, for "random" and "pixels"."""
    crop_size: int | None = None
    """Pixels; null takes the encoder's."""

    # Length and speed. A step is one update of the weights.
    max_steps: int = 3000
    batch_size: int = 64
    """Windows a process and micro-batch."""
    gradient_accumulation_steps: int = 1
    max_episodes: int | None = None
    """Of each source; null: all."""
    validation_fraction: float = 0.07
    """Share of the episodes of each source held out, chosen by a hash of their ids; at least one of two or more, see
    `split_episodes`."""
    cache_dir: str | None = None
    """Where encoded episodes are kept; null: `latents` beside output_dir, for the runs there to share."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the latents there."""
    seed: int = 0
    num_workers: int = 0
    """Processes that decode videos while encoding, and that read batches while training."""
    num_threads: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: as `accelerate launch` says. Of the encoder, too."""
    log_every: int = 10
    save_every: int = 1000
    eval_every: int | None = None
    """Steps after which rollouts on held-out episodes are measured and logged; null: only at the end."""
    keep_last: int | None = 2
    resume: str | None = None
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None

    # Model
    world_model: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2WorldModelConfig; sizes, statistics and bounds of actions come from the data."""
    fit_state: bool = True
    """Fit the fixed map of the state once, on the training episodes: minus the mean at every position, over one
    deviation; and the linear map of merged and projected states."""
    normalize_actions: bool = True
    """Actions and proprio states are standardised by their statistics."""
    use_proprio: bool = False
    """Add a token for the proprio state."""

    # Objective
    frames_per_window: int = 4
    """Model steps in a window, plus one."""
    rollout_start: float = 0.0
    """Share of the steps with the one-step loss alone (on windows no longer than the model's context needs), before
    the model's own weights of teacher forcing and rollout hold."""

    # Optimiser: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04
    gradient_clipping: float | None = None

    # With world_model.freeze_encoder=false alone
    encoder_learning_rate: float = 0.1
    """Share of the learning rate that the encoder gets."""
    ema: MomentumSchedule = field(default_factory=lambda: MomentumSchedule(start=0.9999))
    """How much of itself the target encoder keeps at a step (seed 003: 0.9999)."""

    horizons: list[int] = field(default_factory=lambda: [1, 2, 4, 5, 8, 10])
    """Model steps at which rollouts are compared with copying, on held-out episodes."""

    def __post_init__(self):
        check_run_settings(self)
        for name in ("rollout_start", "validation_fraction", "encoder_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share, 0 to 1.")

    @property
    def sources(self) -> list[EpisodeSource]:
        return [EpisodeSource(self.data)] if isinstance(self.data, str) else self.data

    @property
    def freeze_encoder(self) -> bool:
        return self.world_model.get("freeze_encoder", True)

    @property
    def frame_skip(self) -> int:
        return self.world_model.get("frame_skip", 1)


def rates(config: WorldModelTrainingConfig, step: int) -> dict[str, Any]:
    """What the number of a step decides, from RATE_SETTINGS."""
    decided = {
        "learning_rate": config.learning_rate.at(step, config.max_steps),
        "one_step": step <= config.rollout_start * config.max_steps,
    }
    return decided if config.freeze_encoder else {**decided, "ema_momentum": config.ema.at(step, config.max_steps)}


def build_encoder(config: WorldModelTrainingConfig) -> VJepa2Encoder:
    """The trained encoder, or the one of a baseline."""
    if config.encoder in BASELINES:
        torch.manual_seed(config.seed)
        return VJepa2Encoder(VJepa2EncoderConfig(**config.encoder_config))
    if config.encoder_config:
        raise ValueError(f"encoder={config.encoder} brings its sizes; remove the fields of encoder_config.")
    return VJepa2Encoder.from_pretrained(config.encoder)


def build_processor(config: WorldModelTrainingConfig, encoder: VJepa2Encoder) -> VJepa2VideoProcessor:
    """The encoder's own processor where it was saved with one, else the whole frame at the model's size."""
    size = config.crop_size or encoder.config.crop_size
    processor = VJepa2VideoProcessor(size=size, crop_size=size)
    if config.crop_size is not None or config.encoder in BASELINES:
        return processor
    if any(has_file(config.encoder, name) for name in (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        return VJepa2VideoProcessor.from_pretrained(config.encoder)
    logger.warning(
        "%s has no video processor: whole frames are resized to %d x %d pixels and normalised with mean %s and "
        "deviation %s; is that what the encoder was trained on?",
        config.encoder, size, size, processor.image_mean, processor.image_std,
    )  # fmt: skip
    return processor


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------
def open_caches(config: WorldModelTrainingConfig, accelerator: Accelerator, encoder, processor) -> list[FeatureCache]:
    """The cache of every source, filled first where no run has done so."""
    depends_on = {
        "version": 1,
        "processor": processor.to_dict(),
        "max_episodes": config.max_episodes,
        "latents": describe_latents(config, accelerator, encoder) if config.freeze_encoder else None,
    }
    root = Path(config.cache_dir) if config.cache_dir else Path(config.output_dir).resolve().parent / "latents"
    columns = ["latents" if config.freeze_encoder else "frames", "actions"]
    columns += ["proprio_states"] if config.use_proprio else []
    columns += ["rewards"] if config.world_model.get("reward_head") else []
    caches, encode = [], None
    for source in config.sources:
        source = as_shards(source, root, accelerator)
        described = {"data": data_fingerprint(source.path), "camera": source.camera, **depends_on}
        folder = root / f"{Path(source.path).name}-{cache_key(described)}"
        with locked(folder, accelerator, wait=True):
            if not is_finished(folder):
                encode = encode or build_encode(config, accelerator, encoder, processor)
                fill_cache(config, accelerator, source, folder, processor, encode)
                if accelerator.is_main_process:
                    finish_cache(folder, {"path": source.path, **described})
            accelerator.wait_for_everyone()
        caches.append(FeatureCache(folder, columns))
        caches[-1].warn_of_skipped()
    return caches


def as_shards(source: EpisodeSource, root: Path, accelerator: Accelerator) -> EpisodeSource:
    """HDF5 and npz files as shards beside the caches, imported once; any other source as it is."""
    if source.fps is None:
        return source
    key = cache_key({"data": data_fingerprint(source.path), "fps": source.fps, "camera": source.camera})
    folder = root / f"{Path(source.path).stem}-{key}-shards"
    with locked(folder, accelerator, wait=True):
        if accelerator.is_main_process and not folder.exists():
            import_episodes(source.path, folder, ImportOptions(fps=source.fps, frames_key=source.camera))
        accelerator.wait_for_everyone()
    return dataclasses.replace(source, path=str(folder), camera=None, fps=None)


def describe_latents(config: WorldModelTrainingConfig, accelerator: Accelerator, encoder: VJepa2Encoder) -> dict:
    """What latents depend on, beside the pixels."""
    sizes = {name: value for name, value in encoder.config.to_diff_dict().items() if name != "transformers_version"}
    weights = None if config.encoder == "pixels" else weights_fingerprint(encoder)
    return {
        **arrangement(config),
        "encoder": sizes,
        "weights": weights,
        "dtype": config.cache_dtype,
        "precision": accelerator.mixed_precision,
    }


def fill_cache(config, accelerator: Accelerator, source: EpisodeSource, folder: Path, processor, encode) -> None:
    """Puts this process's share of a source's episodes into its cache; pictures are dropped as they go."""
    writer = CacheWriter(folder, accelerator.process_index)
    stream = EpisodeStream(
        source, processor, config.max_episodes, writer.done, accelerator.process_index, accelerator.num_processes
    )
    loader = DataLoader(stream, batch_size=None, num_workers=config.num_workers)
    title = f"encode {Path(source.path).name}"
    for episode in tqdm(loader, disable=not accelerator.is_main_process, desc=title, initial=len(writer.done)):
        if "skipped" in episode:
            writer.skip(episode["skipped"])
            continue
        name, fps = episode.pop("episode_id"), episode.pop("fps")
        frames = episode.pop("frames")
        column = {"latents": encode(frames)} if config.freeze_encoder else {"frames": frames}
        writer.add(name, fps, {**column, **episode})
    writer.flush()
    accelerator.wait_for_everyone()


def build_encode(config, accelerator: Accelerator, encoder, processor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the uint8 frames of an episode (T, C, H, W) to its latents (T, N, D), before any fitted map."""
    dtype = getattr(torch, config.cache_dtype)
    no_dynamics = {"predictor_hidden_size": 8, "predictor_num_attention_heads": 1, "predictor_num_hidden_layers": 0}
    no_dynamics |= {"predictor_position_embedding_type": "learned", "context_frames": 1}
    model = VJepa2WorldModel.from_encoder(encoder, **arrangement(config), **no_dynamics)
    model.to(accelerator.device).eval()

    def encode(frames: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in frames.split(ENCODED_AT_ONCE):
            with accelerator.autocast():
                latents = model.encode(processor.normalize_cropped(part.to(accelerator.device).unsqueeze(0)))
            parts.append(latents[0].to("cpu", dtype))
        return torch.cat(parts)

    return encode


def arrangement(config: WorldModelTrainingConfig) -> dict[str, Any]:
    """Fields of a world model on which latents before any fitted map depend."""
    kind = "pixels" if config.encoder == "pixels" else config.world_model.get("state_type", "tokens")
    fields = {"state_type": "tokens" if kind == "projected" else kind}  # projected states are mapped tokens
    return fields | {name: value for name, value in config.world_model.items() if name == "normalize_latents"}


def split_data(config: WorldModelTrainingConfig, caches: list[FeatureCache]) -> tuple[WindowMixture, WindowMixture]:
    """Training and held-out episodes of all sources."""
    held_out = [torch.tensor(split_episodes(cache.ids, config.validation_fraction)) for cache in caches]
    weights = [source.weight for source in config.sources]
    training, validation = (
        WindowMixture(caches, [mask.nonzero().squeeze(1) for mask in masks], weights)
        for masks in ([~mask for mask in held_out], held_out)
    )
    count = len(training) + len(validation)
    if not all(map(len, training.episodes)):
        raise ValueError(
            f"validation_fraction={config.validation_fraction} holds out every episode of a source ({count} in all): "
            "lower it, or record more."
        )
    if not len(validation):
        logger.warning(
            "validation_fraction=%s holds out none of the %d episodes: no rollout errors are measured",
            config.validation_fraction, count,
        )  # fmt: skip
    return training, validation


def measured_horizons(config: WorldModelTrainingConfig, held_out: WindowMixture) -> list[int]:
    """Those of `horizons` for which a held-out episode is long enough; a warning names the others."""
    if not len(held_out):
        return config.horizons
    lengths = torch.cat([cache.lengths[chosen] for cache, chosen in zip(held_out.caches, held_out.episodes)])
    steps = (int(lengths.max()) - 1) // config.frame_skip
    kept = [horizon for horizon in config.horizons if horizon <= steps]
    if not kept:
        raise ValueError(
            f"no held-out episode has {min(config.horizons) * config.frame_skip + 1} frames (the longest has "
            f"{lengths.max()}): lower horizons={config.horizons}."
        )
    if len(kept) < len(config.horizons):
        logger.warning(
            "no held-out episode is long enough for horizons %s: the longest has %d model steps; only %s are measured",
            [horizon for horizon in config.horizons if horizon > steps], steps, kept,
        )  # fmt: skip
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------
def mixed_statistics(mixture: WindowMixture, column: str) -> dict[str, Any]:
    """Mean, deviation and bounds of a column over the mixture that training draws, and those of each source."""
    sources = [cache.statistics(column, chosen) for cache, chosen in zip(mixture.caches, mixture.episodes)]
    sizes = {len(source["mean"]) for source in sources}
    if len(sizes) > 1:
        raise ValueError(f"The sources have {column} of sizes {sorted(sizes)}; one model needs one size.")
    mean, std, low, high = (np.array([source[key] for source in sources]) for key in ("mean", "std", "low", "high"))
    weights = mixture.weights[:, None]
    mixed = (weights * mean).sum(0)
    deviation = np.sqrt((weights * (std**2 + (mean - mixed) ** 2)).sum(0))
    return {
        "mean": mixed.tolist(),
        # what never varies says nothing: over a tiny deviation, its first change would drown everything else
        "std": np.where(deviation > 1e-6 * np.maximum(1.0, np.abs(mixed)), deviation, 1.0).tolist(),
        "low": low.min(0).tolist(),
        "high": high.max(0).tolist(),
        "sources": sources,
    }


def common_fps(training: WindowMixture) -> float:
    """Frames a second of the episodes; a warning where they differ."""
    rates_found = np.concatenate([np.asarray(cache.fps) for cache in training.caches])
    if rates_found.max() > 1.01 * rates_found.min():
        logger.warning(
            "episodes have %g to %g frames a second, so that a model step is no fixed time; the model is told %g",
            rates_found.min(), rates_found.max(), rates_found[0],
        )  # fmt: skip
    return float(rates_found[0])


def build_model(config: WorldModelTrainingConfig, encoder, statistics: dict, fps: float) -> VJepa2WorldModel:
    """A world model with new dynamics; sizes, statistics and bounds come from the data."""
    actions, skip = statistics["actions"], config.frame_skip
    fields = {"action_dim": len(actions["mean"]) * skip, "actions_per_step": skip, "fps": fps}
    if config.encoder == "pixels":
        fields["state_type"] = "pixels"
    if config.world_model.get("action_type") == "discrete":
        check_one_hot(actions)
    else:
        fields |= {"action_low": actions["low"] * skip, "action_high": actions["high"] * skip}
        if config.normalize_actions:
            fields |= {"action_mean": actions["mean"] * skip, "action_std": actions["std"] * skip}
    if config.use_proprio:
        states = statistics["proprio_states"]
        fields["proprio_dim"] = len(states["mean"])
        if config.normalize_actions:
            fields |= {"proprio_mean": states["mean"], "proprio_std": states["std"]}
    if "rewards" in statistics:  # a model step's reward is the sum over its frames
        fields |= {f"reward_{name}": statistics["rewards"][name][0] * skip for name in ("mean", "std")}
    set_seed(config.seed)
    return VJepa2WorldModel.from_encoder(encoder, **{**fields, **config.world_model})


def check_one_hot(actions: dict[str, Any]) -> None:
    """Refuses discrete actions that are stored as category numbers."""
    size, total = len(actions["mean"]), sum(actions["mean"])
    if size < 2 or min(actions["low"]) < 0 or max(actions["high"]) > 1 or abs(total - 1) > 1e-3:
        raise ValueError(
            f"action_type is discrete, but the data's actions have {size} numbers from {min(actions['low']):g} to "
            f"{max(actions['high']):g} that add up to {total:g}: store them one-hot, a number for every category."
        )


def model_inputs(batch: dict[str, torch.Tensor], model: VJepa2WorldModel, processor) -> dict[str, torch.Tensor]:
    """A batch of windows as the model takes it, on its device: the actions of a step one after the other, and its
    rewards' sum."""
    batch = {name: values.to(model.device, non_blocking=True) for name, values in batch.items()}
    batch["actions"] = batch["actions"].flatten(2)
    if "rewards" in batch:
        batch["rewards"] = batch["rewards"].sum(dim=(2, 3))
    if "frames" in batch:
        batch["pixel_values_videos"] = processor.normalize_cropped(batch.pop("frames"))
    else:
        batch["latents"] = model.standardize(batch["latents"].float())
    return batch


def fit_state(model: VJepa2WorldModel, training: WindowMixture, processor) -> None:
    """Fits the state's map on stretches of training episodes, evenly spread, as many as FIT_BYTES holds."""
    lengths = torch.cat([cache.lengths[chosen] for cache, chosen in zip(training.caches, training.episodes)])
    frames = min(FIT_FRAMES, int(lengths.float().quantile(0.1)))  # the shortest tenth may be left out

    def latents(places: torch.Tensor) -> torch.Tensor:
        inputs = model_inputs(training.read(places, frames, 1), model, processor)
        return inputs["latents"] if "latents" in inputs else model.encode(inputs["pixel_values_videos"])

    limit = max(1, FIT_BYTES // latents(training.tile(frames, 1, frames, limit=1)).nbytes)
    places = training.tile(frames, 1, frames, limit)
    model.fit_state(torch.cat([latents(part) for part in places.split(16)]))


def prepare_data(config: WorldModelTrainingConfig, accelerator: Accelerator):
    """Model, processor, the windows of training and held-out episodes, and what the data holds."""
    encoder = build_encoder(config)
    processor = build_processor(config, encoder)
    caches = open_caches(config, accelerator, encoder, processor)
    training, held_out = split_data(config, caches)
    measured = [name for name in caches[0].columns if name not in ("latents", "frames")]
    statistics = {name: mixed_statistics(training, name) for name in measured}
    model = build_model(config, encoder, statistics, common_fps(training)).to(accelerator.device).eval()
    if config.fit_state:
        fit_state(model, training, processor)
    horizon_room = config.frames_per_window - 1
    if config.rollout_start < 1 and model.config.rollout_weight and model.config.rollout_steps > horizon_room:
        raise ValueError(
            f"frames_per_window={config.frames_per_window} holds {horizon_room} steps; rollout_steps="
            f"{model.config.rollout_steps} needs {model.config.rollout_steps + 1} frames."
        )
    weights = model.config.teacher_forcing_weight, model.config.rollout_weight
    if config.rollout_start < 1 and not any(weights):
        raise ValueError("teacher_forcing_weight and rollout_weight are both 0: nothing is left to learn.")
    if model.config.context_frames > horizon_room:
        logger.warning(
            "context_frames=%d, but windows of frames_per_window=%d show the model %d frames at most: in longer "
            "rollouts it sees places that were never trained", model.config.context_frames,
            config.frames_per_window, horizon_room,
        )  # fmt: skip
    training.sample(1, config.frames_per_window, config.frame_skip, np.random.default_rng(0))  # refuses short data
    named = [dataclasses.asdict(source) for source in config.sources]
    return model, processor, training, held_out, {"data": named, **statistics}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring and training
# ---------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def rollout_errors(
    model: VJepa2WorldModel, held_out: WindowMixture, processor, horizons: list[int], batch_size: int = 64
) -> list[dict[str, float]]:
    """Mean squared error and cosine of rollouts by horizon, beside copying the last state, on held-out episodes."""
    skip, longest = model.config.frame_skip, max(horizons)
    places = held_out.tile(longest + 1, skip, longest, EVALUATED_WINDOWS)
    scores = RolloutScores()
    for part in places.split(batch_size):
        batch = model_inputs(held_out.read(part, longest + 1, skip), model, processor)
        if "latents" in batch:
            seen, true = batch["latents"][:, :1], batch["latents"]
        else:  # predictions start from the encoder that learns, and are compared with the target encoder's latents
            seen = model.encode(batch["pixel_values_videos"][:, :1])
            true = model.encode_targets(batch["pixel_values_videos"])
        states = batch.get("proprio_states")
        states = None if states is None else states[:, :1]  # those of the future are not known in planning either
        predicted = model.rollout(seen, batch["actions"], proprio_states=states)
        scores.add(predicted, true[:, 1:], copies=true[:, 0])
    return scores.rows(horizons)


def validation_metrics(accelerator: Accelerator, model, held_out: WindowMixture, processor, horizons) -> dict:
    """Rollout errors by horizon for the log, measured by the main process."""
    if not accelerator.is_main_process or not len(held_out):
        return {}
    rows = rollout_errors(model.eval(), held_out, processor, horizons)
    model.train()
    return {f"validation_error_{row['horizon']}": row["error"] for row in rows}


def optimizer_groups(config: WorldModelTrainingConfig, model: VJepa2WorldModel) -> list[dict[str, Any]]:
    """Decayed and other parameters; an encoder that learns along has groups with its own share of the rate."""
    groups = parameter_groups(model, config.weight_decay)
    if config.freeze_encoder:
        return groups
    slow = {id(parameter) for parameter in model.encoder.parameters()}
    split = []
    for group in groups:
        for share, wanted in ((1.0, False), (config.encoder_learning_rate, True)):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in slow) == wanted]
            split += [{**group, "params": parameters, "rate_share": share}] if parameters else []
    return split


def frames_at(config: WorldModelTrainingConfig, context_frames: int, step: int) -> int:
    """Frames of a step's windows: while the loss is of one step alone, no more than the model sees."""
    whole = config.frames_per_window
    return min(whole, context_frames + 1) if rates(config, step)["one_step"] else whole


def build_loader(config, model_config, training: WindowMixture, accelerator: Accelerator, start: int) -> DataLoader:
    """Batches from the step after `start` on."""

    micro_batches = config.gradient_accumulation_steps
    batches = WindowBatches(
        training,
        config.batch_size,
        functools.partial(frames_at, config, model_config.context_frames),
        model_config.frame_skip,
        config.seed,
        accelerator.process_index,
        accelerator.num_processes,
        micro_batches,
    )
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start * micro_batches, config.max_steps * micro_batches),
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
        # of its own: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


def train_step(run: Run, model, plain: VJepa2WorldModel, optimizer, batches, step: int) -> dict[str, Any]:
    """One update of the weights from `gradient_accumulation_steps` micro-batches, (names of windows, model inputs).

    `plain` is the model inside `model`, which Accelerate may have wrapped.

    Returns the losses by name, means over micro-batches and processes, None for one that is not computed, and
    `gradient_norm` (before clipping).

    Raises a ValueError instead of an update from a loss or gradient that is not finite, see `Run.check_finite`.
    """
    config, accelerator = run.config, run.accelerator
    now = rates(config, step)
    set_learning_rate(optimizer, now["learning_rate"])
    for group in optimizer.param_groups:
        group["lr"] *= group.get("rate_share", 1.0)
    weights = {"teacher_forcing_weight": 1.0, "rollout_weight": 0.0}
    if not now["one_step"]:
        weights = {name: getattr(plain.config, name) for name in weights}
    losses, names = [], []
    for _ in range(config.gradient_accumulation_steps):
        windows, batch = next(batches)
        names.append(windows)
        with accelerator.accumulate(model):
            output = model(**batch, **weights)
            losses.append(torch.stack([output[name].detach().float() for name in LOSSES if name in output]))
            accelerator.backward(output.loss)
            if accelerator.sync_gradients:
                # before the update, and over all processes: they stop together, with the weights still good
                means = accelerator.reduce(torch.stack(losses).mean(0), "mean").tolist()
                norm = gradient_norm(accelerator, model.parameters(), config.gradient_clipping)
                run.check_finite(step, means[0], norm, [part[0] for part in losses], names)
            optimizer.step()
            optimizer.zero_grad()
    if not config.freeze_encoder:
        plain.update_target_encoder(now["ema_momentum"])
    found = dict(zip([name for name in LOSSES if name in output], means, strict=True))
    return {**{name: found.get(name) for name in LOSSES}, "gradient_norm": norm, **now}


def train(config: WorldModelTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_tracker(config.log_with)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.log_with,
        project_dir=config.output_dir,
    )
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    accelerator.init_trackers("world_model")  # after the folder is this run's alone
    run.check(config.resume, rates, RATE_SETTINGS)  # before hours of encoding
    model, processor, training, held_out, statistics = prepare_data(config, accelerator)
    horizons = measured_horizons(config, held_out)  # said now, and not after the last step
    optimizer = torch.optim.AdamW(optimizer_groups(config, model), lr=config.learning_rate.peak, fused=True)
    model.train()
    # With several processes this gives all of them the weights and the fitted state of the first
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)
    start, _ = run.resume(config.resume, rates, RATE_SETTINGS)
    if accelerator.is_main_process:
        write_json(run.output_dir / "statistics.json", statistics)
    set_weight_decay(optimizer, config.weight_decay)  # the checkpoint's may be that of another run
    loader = build_loader(config, plain.config, training, accelerator, start)
    batches = ((training.names(batch.pop("windows")), model_inputs(batch, plain, processor)) for batch in loader)

    windows_a_step = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    clock, logged = time.perf_counter(), start
    steps = range(start + 1, config.max_steps + 1)
    with tqdm(
        steps, initial=start, total=config.max_steps, disable=not accelerator.is_main_process, desc="dynamics"
    ) as progress:
        for step in progress:
            numbers = train_step(run, model, plain, optimizer, batches, step)
            measured = {}
            if config.eval_every and step % config.eval_every == 0:
                measured = validation_metrics(accelerator, plain, held_out, processor, horizons)
            if measured or step % config.log_every == 0 or step == config.max_steps:
                speed = (step - logged) * windows_a_step / (time.perf_counter() - clock)
                run.log({"step": step, **numbers, **measured, "windows_per_second": speed})
                progress.set_postfix(loss=f"{numbers['loss']:.4f}")
                clock, logged = time.perf_counter(), step
            if step % config.save_every == 0 or step == config.max_steps:
                run.save_checkpoint(step)

    if accelerator.is_main_process and len(held_out):
        rows = rollout_errors(plain.eval(), held_out, processor, horizons)
        write_json(run.output_dir / "rollout_error.json", rows)
    final = run.save_final(model, processor)
    progress.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    train(parse_arguments(WorldModelTrainingConfig, __doc__, arguments))


if __name__ == "__main__":
    main()
