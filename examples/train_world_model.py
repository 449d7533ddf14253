"""Trains an action-conditioned world model on episodes, on top of a frozen encoder, and saves it with its processor.

    accelerate launch examples/train_world_model.py --config examples/configs/demo/world_model.yaml [key=value ...]

One process on a CPU, after `examples/record_episodes.py` and `examples/pretrain.py` of the demo:

    python examples/train_world_model.py --config examples/configs/demo/world_model.yaml
    encoder=runs/demo/pretrain/final

The encoder is frozen, so each frame is encoded once, at the start; the dynamics trains on those latents. A run that
was stopped goes on with `resume=latest`. `OUTPUT_DIR/rollout_error.json` compares rollouts on held-out episodes with
copying the last state. The result is `OUTPUT_DIR/final`:

    planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final")
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from tqdm import tqdm
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import has_file

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.episodes import read_episodes
from vjepa2_hf.schedules import LearningRateSchedule, parameter_groups, set_learning_rate, set_weight_decay
from vjepa2_hf.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.training import Run, check_finite_loss


logger = logging.getLogger("train_world_model")

BASELINES = ("random", "pixels")  # in place of a trained encoder
RATE_SETTINGS = ("max_steps", "learning_rate", "rollout_start")


@dataclass
class WorldModelTrainingConfig:
    """Settings of one run; published values are in configs/published/action_conditioned.yaml."""

    output_dir: str
    data: str
    """Folder, glob or file of episode shards, or a dataset on the Hub."""
    encoder: str
    """Folder or Hub id; "random" (sizes in `encoder_config`) and "pixels" (raw patches) are the baselines."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, for "random" and "pixels"."""
    crop_size: int | None = None
    """Pixels; null takes the encoder's."""

    # Length and speed
    max_steps: int = 3000
    batch_size: int = 64
    """Windows a process."""
    max_episodes: int | None = None
    """null: all."""
    validation_episodes: int = 40
    """Held out, the first of the data."""
    seed: int = 0
    num_workers: int = 0
    """Unused while latents are cached: batches are cut from memory."""
    num_threads: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: as `accelerate launch` says."""
    log_every: int = 10
    save_every: int = 1000
    keep_last: int | None = 2
    resume: str | None = None
    log_with: Literal["tensorboard"] | None = None

    # Model
    world_model: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2WorldModelConfig; sizes, statistics and bounds of actions come from the data."""
    fit_state: bool = True
    """Standardise latents per position (minus the mean, over one deviation), fitted once on the training episodes."""
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

    horizons: list[int] = field(default_factory=lambda: [1, 2, 4, 5, 8, 10])
    """Model steps at which rollouts are compared with copying, on held-out episodes."""

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "log_every", "save_every", "validation_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.rollout_start <= 1:
            raise ValueError(f"rollout_start is {self.rollout_start}, expected a share of the steps, 0 to 1.")


@dataclass
class Episodes:
    """Cached episodes: latents (T, N, D), actions (T-1, a) and proprio states (T, S) or None, one of each an
    episode."""

    latents: list[torch.Tensor]
    actions: list[torch.Tensor]
    proprio_states: list[torch.Tensor] | None
    fps: float

    def windows(self, starts: list[tuple[int, int]], frames: int, skip: int) -> dict[str, torch.Tensor]:
        """Windows of `frames` frames, `skip` apart, that start at (episode, frame): a batch for the world model."""
        spans = [(episode, start, start + (frames - 1) * skip) for episode, start in starts]
        batch = {
            "latents": torch.stack([self.latents[e][start : stop + 1 : skip] for e, start, stop in spans]),
            "actions": torch.stack([self.actions[e][start:stop].unflatten(0, (-1, skip)) for e, start, stop in spans]),
        }
        batch["actions"] = batch["actions"].flatten(2)  # the actions of a step one after the other
        if self.proprio_states is not None:
            states = [self.proprio_states[e][start : stop + 1 : skip] for e, start, stop in spans]
            batch["proprio_states"] = torch.stack(states)
        return batch

    def draw(self, count: int, frames: int, skip: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random windows, every window of every episode equally likely."""
        room = torch.tensor([max(0, len(latents) - (frames - 1) * skip) for latents in self.latents])
        if room.sum() == 0:
            raise ValueError(f"No episode has the {(frames - 1) * skip + 1} frames of a window; record longer ones.")
        ends = room.cumsum(0)
        draws = torch.randint(int(ends[-1]), (count,), generator=generator)
        episodes = torch.searchsorted(ends, draws, right=True)
        starts = draws - (ends - room)[episodes]
        return self.windows(list(zip(episodes.tolist(), starts.tolist(), strict=True)), frames, skip)


def rates(config: WorldModelTrainingConfig, step: int) -> dict[str, Any]:
    """What the number of a step decides, from RATE_SETTINGS."""
    return {
        "learning_rate": config.learning_rate.at(step, config.max_steps),
        "one_step": step <= config.rollout_start * config.max_steps,
    }


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


def build_model(config: WorldModelTrainingConfig, encoder: VJepa2Encoder, episodes: list[dict]) -> VJepa2WorldModel:
    """A world model with new dynamics; sizes, statistics and bounds come from the episodes."""
    actions = np.concatenate([episode["actions"] for episode in episodes])
    skip = config.world_model.get("frame_skip", 1)
    fields = {
        "action_dim": actions.shape[1] * skip,
        "actions_per_step": skip,
        "action_low": actions.min(0).tolist() * skip,
        "action_high": actions.max(0).tolist() * skip,
        "fps": episodes[0]["fps"],
        "state_type": "pixels" if config.encoder == "pixels" else "tokens",
    }
    if config.normalize_actions:
        fields["action_mean"] = actions.mean(0).tolist() * skip
        fields["action_std"] = np.maximum(actions.std(0), 1e-6).tolist() * skip
    if config.use_proprio:
        if episodes[0]["proprio_states"] is None:
            raise ValueError("use_proprio is true, but the episodes have no proprio_states.")
        states = np.concatenate([episode["proprio_states"] for episode in episodes])
        fields["proprio_dim"] = states.shape[1]
        if config.normalize_actions:
            fields["proprio_mean"] = states.mean(0).tolist()
            fields["proprio_std"] = np.maximum(states.std(0), 1e-6).tolist()
    set_seed(config.seed)
    return VJepa2WorldModel.from_encoder(encoder, **{**fields, **config.world_model})


@torch.no_grad()
def encode_episodes(
    config: WorldModelTrainingConfig, model: VJepa2WorldModel, processor, episodes: list[dict], quiet: bool
) -> Episodes:
    """Encodes each frame once; pictures are dropped as they go."""
    latents, device = [], model.device
    for episode in tqdm(episodes, disable=quiet, desc="encode"):
        frames = processor(episode.pop("frames"), return_tensors="pt")["pixel_values_videos"]
        latents.append(torch.cat([model.encode(part.to(device)).cpu()[0] for part in frames.split(64, dim=1)]))
    states = [torch.from_numpy(episode["proprio_states"]) for episode in episodes] if config.use_proprio else None
    actions = [torch.from_numpy(np.array(episode["actions"])) for episode in episodes]
    return Episodes(latents, actions, states, episodes[0]["fps"])


def fit_state(model: VJepa2WorldModel, episodes: Episodes, accelerator: Accelerator) -> None:
    """Fits the state's map; the main process's is everyone's."""
    model.fit_state(torch.cat(episodes.latents).to(model.device))
    broadcast([model.state_mean, model.state_scale])
    accelerator.wait_for_everyone()


def prepare_data(config: WorldModelTrainingConfig, accelerator: Accelerator):
    """Model, processor, and the cached training and validation episodes of this process."""
    encoder = build_encoder(config)
    processor = build_processor(config, encoder)
    rows = list(read_episodes(config.data, max_episodes=config.max_episodes))
    if len(rows) < config.validation_episodes + accelerator.num_processes:
        raise ValueError(
            f"{config.data} holds {len(rows)} episodes, of which validation_episodes={config.validation_episodes} are "
            "held out: record more, or hold out fewer (validation_episodes=2)."
        )
    held_out, training = rows[: config.validation_episodes], rows[config.validation_episodes :]
    model = build_model(config, encoder, training).to(accelerator.device).eval()
    training = training[accelerator.process_index :: accelerator.num_processes]
    quiet = not accelerator.is_main_process
    training = encode_episodes(config, model, processor, training, quiet)
    held_out = encode_episodes(config, model, processor, held_out, quiet=True)
    longest = max(config.horizons) * model.config.frame_skip + 1
    if max(map(len, held_out.latents)) < longest:  # said now, and not after the last step
        raise ValueError(f"no held-out episode has {longest} frames: lower horizons={config.horizons}.")
    if config.fit_state:
        fit_state(model, training, accelerator)
        for episodes in (training, held_out):
            episodes.latents = [model.standardize(part.to(model.device)).cpu() for part in episodes.latents]
    return model, processor, training, held_out


@torch.no_grad()
def rollout_errors(model: VJepa2WorldModel, episodes: Episodes, horizons: list[int]) -> list[dict[str, float]]:
    """Mean squared error and cosine of rollouts by horizon, beside copying the last state, on held-out episodes."""
    skip, longest = model.config.frame_skip, max(horizons)
    starts = [
        (episode, start)
        for episode, latents in enumerate(episodes.latents)
        for start in range(0, len(latents) - longest * skip, longest)
    ]
    batch = {name: part.to(model.device) for name, part in episodes.windows(starts, longest + 1, skip).items()}
    first, true = batch["latents"][:, :1], batch["latents"][:, 1:]
    predicted = model.rollout(first, batch["actions"], proprio_states=batch.get("proprio_states"))
    rows = []
    for horizon in horizons:
        truth, guess, copy = true[:, horizon - 1], predicted[:, horizon - 1], first[:, 0]
        rows.append(
            {
                "horizon": horizon,
                "error": (guess - truth).square().mean().item(),
                "copy_error": (copy - truth).square().mean().item(),
                "cosine": torch.cosine_similarity(guess, truth, dim=-1).mean().item(),
                "copy_cosine": torch.cosine_similarity(copy, truth, dim=-1).mean().item(),
                "windows": len(starts),
            }
        )
    return rows


def train(config: WorldModelTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.log_with, project_dir=config.output_dir
    )
    accelerator.init_trackers("world_model")
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    model, processor, episodes, held_out = prepare_data(config, accelerator)
    horizon_room = config.frames_per_window - 1
    if config.rollout_start < 1 and model.config.rollout_weight and model.config.rollout_steps > horizon_room:
        raise ValueError(
            f"frames_per_window={config.frames_per_window} holds {horizon_room} steps; rollout_steps="
            f"{model.config.rollout_steps} needs {model.config.rollout_steps + 1} frames."
        )

    # Only the dynamics learns; every process starts from the same weights
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate.peak, fused=True)
    model_config = model.config
    model.train()
    model, optimizer = accelerator.prepare(model, optimizer)
    start, _ = run.resume(config.resume, rates, RATE_SETTINGS)
    set_weight_decay(optimizer, config.weight_decay)  # the checkpoint's may be that of another run

    clock = time.perf_counter()
    progress = tqdm(total=config.max_steps, initial=start, disable=not accelerator.is_main_process, desc="dynamics")
    for step in range(start + 1, config.max_steps + 1):
        learning_rate, one_step = rates(config, step).values()
        set_learning_rate(optimizer, learning_rate)
        weights = {"teacher_forcing_weight": 1.0, "rollout_weight": 0.0}
        if not one_step:
            weights = {name: getattr(model_config, name) for name in weights}
        frames = config.frames_per_window
        frames = min(frames, model_config.context_frames + 1) if one_step else frames

        # Windows depend on the step and the process alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(hash((config.seed, step, accelerator.process_index)) % 2**63)
        batch = episodes.draw(config.batch_size, frames, model_config.frame_skip, generator)
        batch = {name: part.to(accelerator.device, non_blocking=True) for name, part in batch.items()}

        output = model(**batch, **weights)
        # over all processes, so that they stop together
        loss = check_finite_loss(accelerator.reduce(output.loss.detach().float(), "mean").item(), step)
        accelerator.backward(output.loss)
        if config.gradient_clipping is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

        if step % config.log_every == 0 or step == config.max_steps:
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            run.log(
                {
                    "step": step,
                    "loss": loss,
                    "teacher_forcing_loss": output.teacher_forcing_loss,
                    "rollout_loss": output.rollout_loss,
                    "learning_rate": learning_rate,
                    "windows_per_second": config.log_every * config.batch_size * accelerator.num_processes / elapsed,
                }
            )
            progress.set_postfix(loss=f"{loss:.4f}")
        if step % config.save_every == 0 or step == config.max_steps:
            run.save_checkpoint(step)
        progress.update()
    progress.close()

    if accelerator.is_main_process:
        rows = rollout_errors(accelerator.unwrap_model(model).eval(), held_out, config.horizons)
        partial = Path(config.output_dir) / "rollout_error.json.tmp"
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        partial.replace(partial.with_suffix(""))
    final = run.save_final(model, processor)
    progress.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main() -> None:
    train(parse_arguments(WorldModelTrainingConfig, __doc__))


if __name__ == "__main__":
    main()
