"""Trains a pixel decoder on the frozen latents of a world model, for looking at what it predicts.

    accelerate launch examples/train_decoder.py --config examples/configs/demo/decoder.yaml [key=value ...]

One process on a CPU, after the demo:

    python examples/train_decoder.py --config examples/configs/demo/decoder.yaml

World model and encoder stay as they are. Frames are kept as bytes and encoded anew in every batch, because latents of
a large encoder take more memory than the frames. Besides `OUTPUT_DIR/final` the run leaves, of held-out episodes,
`reconstruction_error.json` and `reconstruction.png` (true frames above painted ones). Imagined futures are painted by

    decoder = VJepa2PixelDecoder.from_pretrained("runs/demo/decoder/final")
    pictures = decoder.decode(wm.rollout(latents, actions))  # (B, P, C, H, W) in 0 to 1
"""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torchvision.utils import save_image
from tqdm import tqdm

from vjepa2_hf import VJepa2PixelDecoder, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.files import write_aside, write_json
from vjepa2_hf.training.monitor import gradient_norm
from vjepa2_hf.training.run import Run, check_run_settings, check_tracker
from vjepa2_hf.training.schedules import LearningRateSchedule, parameter_groups, set_learning_rate, set_weight_decay
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


RATE_SETTINGS = ("max_steps", "learning_rate")


@dataclass
class DecoderTrainingConfig:
    """Settings of one run."""

    output_dir: str
    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    world_model: str
    """Folder or Hub id of the trained world model, with its video processor."""
    camera: str | None = None
    """Of a LeRobot dataset with several."""
    decoder: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2PixelDecoderConfig; the sizes of latents and frames come from the world model."""

    # Frames
    max_episodes: int | None = 1000
    """The first of the data; null: all. Their frames are held in memory, one byte a channel."""
    frames_per_episode: int | None = 20
    """Spread over the episode; null: all."""
    validation_fraction: float = 0.1
    """Share of the episodes held out, by a hash of their ids."""

    # Length and speed
    max_steps: int = 2000
    batch_size: int = 64
    """Frames a process."""
    seed: int = 0
    num_threads: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: as `accelerate launch` says."""
    log_every: int = 10
    save_every: int = 1000
    keep_last: int | None = 2
    resume: str | None = None
    log_with: Literal["tensorboard"] | None = None

    # Optimiser: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04
    gradient_clipping: float | None = 1.0

    def __post_init__(self):
        check_run_settings(self)


def rates(config: DecoderTrainingConfig, step: int) -> dict[str, float]:
    """What the number of a step decides, from RATE_SETTINGS."""
    return {"learning_rate": config.learning_rate.at(step, config.max_steps)}


def read_frames(
    config: DecoderTrainingConfig, processor: VJepa2VideoProcessor, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of this process's training episodes and of all held-out ones: uint8 (F, C, H, W) of the model's size."""
    training, held_out, read = [], [], 0
    names = itertools.islice(episode_ids(config.data, config.camera), config.max_episodes)
    is_held_out = held_out_of(names, config.validation_fraction)
    episodes = read_episodes(config.data, max_episodes=config.max_episodes, camera=config.camera)
    for episode in tqdm(episodes, disable=not accelerator.is_main_process, desc="read"):
        frames = episode["frames"]
        if config.frames_per_episode is not None and len(frames) > config.frames_per_episode:
            frames = frames[torch.linspace(0, len(frames) - 1, config.frames_per_episode).long().numpy()]
        bytes_only = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        pixels = processor(frames, **bytes_only)["pixel_values_videos"][0]
        if is_held_out(episode["episode_id"]):
            held_out.append(pixels)
            continue
        if read % accelerator.num_processes == accelerator.process_index:
            training.append(pixels)
        read += 1
    if not training or not held_out:
        raise ValueError(
            f"{config.data} gave {read} training episodes and {len(held_out)} held-out ones to "
            f"{accelerator.num_processes} processes: record more, or change "
            f"validation_fraction={config.validation_fraction}."
        )
    return torch.cat(training), torch.cat(held_out)


def normalized(processor: VJepa2VideoProcessor, frames: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W) -> (B, 1, C, H, W), as the encoder takes frames on their own."""
    return processor.normalize_cropped(frames).unsqueeze(1)


@torch.no_grad()
def reconstruct(
    model: VJepa2PixelDecoder, world_model: VJepa2WorldModel, processor: VJepa2VideoProcessor, frames: torch.Tensor
) -> torch.Tensor:
    """uint8 frames (F, C, H, W) -> painted from their latents, float32 (F, C, H, W) in 0 to 1."""
    parts = [normalized(processor, part).to(world_model.device) for part in frames.split(64)]
    return torch.cat([model.decode(world_model.encode_targets(part))[:, 0].cpu() for part in parts])


def write_reconstruction(output_dir: Path, painted: torch.Tensor, true: torch.Tensor, mean: torch.Tensor) -> None:
    """The errors of painted frames, beside those of the mean training picture, and eight of them as a picture."""
    error, mean_error = ((true - guess).square().mean().item() for guess in (painted, mean))
    numbers = {"error": error, "mean_picture_error": mean_error, "psnr": -10 * math.log10(error), "frames": len(true)}
    write_json(output_dir / "reconstruction_error.json", numbers)
    shown = torch.linspace(0, len(true) - 1, min(len(true), 8)).long()
    with write_aside(output_dir / "reconstruction.png") as partial:
        save_image(torch.cat([true[shown], painted[shown]]), partial, nrow=len(shown), format="png")


def train(config: DecoderTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_tracker(config.log_with)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.log_with, project_dir=config.output_dir
    )
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    accelerator.init_trackers("decoder")  # after the folder is this run's alone
    run.check(config.resume, rates, RATE_SETTINGS)
    world_model = VJepa2WorldModel.from_pretrained(config.world_model).to(accelerator.device).eval()
    processor = VJepa2VideoProcessor.from_pretrained(config.world_model)
    frames, held_out = read_frames(config, processor, accelerator)

    # Only the decoder learns; every process starts from the same weights
    set_seed(config.seed)
    normalization = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    model = VJepa2PixelDecoder.from_world_model(world_model, **{**normalization, **config.decoder})
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate.peak, fused=True)
    model.train()
    model, optimizer = accelerator.prepare(model, optimizer)
    start, _ = run.resume(config.resume, rates, RATE_SETTINGS)
    set_weight_decay(optimizer, config.weight_decay)  # the checkpoint's may be that of another run

    progress = tqdm(total=config.max_steps, initial=start, disable=not accelerator.is_main_process, desc="decoder")
    for step in range(start + 1, config.max_steps + 1):
        learning_rate = rates(config, step)["learning_rate"]
        set_learning_rate(optimizer, learning_rate)

        # Frames depend on the step and the process alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(hash((config.seed, step, accelerator.process_index)) % 2**63)
        drawn = torch.randint(len(frames), (config.batch_size,), generator=generator)
        pixels = normalized(processor, frames[drawn]).to(accelerator.device)

        output = model(world_model.encode_targets(pixels), pixels)  # predictions are compared with these
        accelerator.backward(output.loss)
        # before the update, and over all processes, so that they stop together
        loss = accelerator.reduce(output.loss.detach().float(), "mean").item()
        norm = gradient_norm(accelerator, model.parameters(), config.gradient_clipping)
        run.check_finite(step, loss, norm)
        optimizer.step()
        optimizer.zero_grad()

        if step % config.log_every == 0 or step == config.max_steps:
            run.log({"step": step, "loss": loss, "gradient_norm": norm, "learning_rate": learning_rate})
            progress.set_postfix(loss=f"{loss:.4f}")
        if step % config.save_every == 0 or step == config.max_steps:
            run.save_checkpoint(step)
        progress.update()
    progress.close()

    if accelerator.is_main_process:
        painted = reconstruct(accelerator.unwrap_model(model).eval(), world_model, processor, held_out)
        mean = sum(part.sum(0, dtype=torch.float64) for part in frames.split(256)).float() / (255 * len(frames))
        write_reconstruction(run.output_dir, painted, held_out / 255, mean)
    final = run.save_final(model, processor)
    progress.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main() -> None:
    train(parse_arguments(DecoderTrainingConfig, __doc__))


if __name__ == "__main__":
    main()
