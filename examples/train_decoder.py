# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains a pixel decoder on the frozen latents of a world model, to visualize its predictions.

    accelerate launch examples/train_decoder.py --config examples/configs/demo/decoder.yaml [key=value ...]

One process on a CPU, after the demo:

    python examples/train_decoder.py --config examples/configs/demo/decoder.yaml

World model and encoder do not change. Results on held-out episodes are `OUTPUT_DIR/reconstruction_error.json` and
`reconstruction.png` (true frames above decoded ones). Use the decoder in `OUTPUT_DIR/final` on predicted latents:

    decoder = VJepa2PixelDecoder.from_pretrained("runs/demo/decoder/final")
    images = decoder.decode(wm.rollout(latents, actions))  # (B, P, C, H, W) in 0 to 1
"""

import dataclasses
import itertools
import math
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torchvision.utils import save_image
from tqdm import tqdm

from vjepa2_hf import VJepa2PixelDecoder, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.cameras import count_frames, process_frames, take_frames
from vjepa2_hf.data.episodes import episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.files import write_aside, write_json
from vjepa2_hf.modeling_decoder import side_by_side
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.episode_latents import find_cameras
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.schedules import LearningRateSchedule, parameter_groups, set_weight_decay
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.video_io import ReadLimits


@dataclass(kw_only=True)
class DecoderTrainingConfig(TrainingConfig):
    """Settings of one run."""

    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    world_model: str
    """Folder or Hub id of the trained world model, with its video processor."""
    camera: str | list[str] | None = None
    """Camera of episodes with several; null for a world model of several views: their names."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    decoder: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2PixelDecoderConfig; the sizes of latents and frames come from the world model."""

    # Frames
    max_episodes: int | None = 1000
    """Number of episodes, the first of the data; null: all. Their frames are held in memory, one byte per channel."""
    frames_per_episode: int | None = 20
    """Frames spread over the episode; null: all."""
    validation_fraction: float = 0.1
    """Fraction of the episodes held out, by a hash of their ids."""

    # Optimizer: AdamW
    max_steps: int = 2000
    batch_size: int = 64
    save_every: int = 1000
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04
    gradient_clipping: float | None = 1.0

    result_files = ("reconstruction_error.json", "reconstruction.png")

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("max_episodes", "frames_per_episode")


def read_frames(
    config: DecoderTrainingConfig, processor: VJepa2VideoProcessor, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of this process's training episodes and of all held-out ones, of the model's size, uint8
    (F, V, C, H, W)."""
    training, held_out, read = [], [], 0
    names = itertools.islice(episode_ids(config.data, config.camera), config.max_episodes)
    is_held_out = held_out_of(names, config.validation_fraction)
    episodes = read_episodes(config.data, max_episodes=config.max_episodes, camera=config.camera, limits=config.limits)
    for episode in tqdm(episodes, disable=not accelerator.is_main_process, desc="read"):
        frames, count = episode["frames"], count_frames(episode["frames"])
        if config.frames_per_episode is not None and count > config.frames_per_episode:
            chosen = torch.linspace(0, count - 1, config.frames_per_episode).long().numpy()
            frames = take_frames(frames, chosen)
        pixels = process_frames(processor, frames, normalize=False)
        pixels = pixels if isinstance(frames, dict) else pixels.unsqueeze(1)
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


def sample_batches(
    config: DecoderTrainingConfig, frames: torch.Tensor, rank: int, first: int
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Random frames (B, V, C, H, W). The same in a resumed run: they depend on seed, micro-batch and process."""
    for number in itertools.count(first + 1):
        generator = torch.Generator().manual_seed(hash((config.seed, number, rank)) % 2**63)
        yield [], frames[torch.randint(len(frames), (config.batch_size,), generator=generator)]


def encode(world_model: VJepa2WorldModel, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (B, V·N, D) of frames (B, V, C, H, W), with which predictions are compared."""
    return world_model.encode_targets(pixels.unsqueeze(1))[:, 0]


@torch.no_grad()
def write_reconstruction(
    output_dir: Path, model: VJepa2PixelDecoder, world_model, processor, frames: torch.Tensor, mean: torch.Tensor
) -> None:
    """Decodes uint8 frames (F, V, C, H, W) from their latents. Writes the error, that of the images `mean`
    (V, C, H, W) in 0 to 1, and an image of eight decoded frames, whose views are side by side."""
    parts = (processor.normalize_cropped(part).to(world_model.device) for part in frames.split(64))
    decoded = torch.cat([model.decode_views(encode(world_model, part)).cpu() for part in parts])
    true, mean = (side_by_side(images) for images in (frames / 255, mean))
    error, mean_error = ((true - guess).square().mean().item() for guess in (decoded, mean))
    numbers = {"error": error, "mean_picture_error": mean_error, "psnr": -10 * math.log10(error), "frames": len(true)}
    write_json(output_dir / "reconstruction_error.json", numbers)
    shown = torch.linspace(0, len(true) - 1, min(len(true), 8)).long()
    with write_aside(output_dir / "reconstruction.png") as partial:
        save_image(torch.cat([true[shown], decoded[shown]]), partial, nrow=len(shown), format="png")


def train(config: DecoderTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    loop = TrainingLoop(config, "decoder")
    accelerator = loop.accelerator
    world_model = VJepa2WorldModel.from_pretrained(config.world_model).to(accelerator.device).eval()
    processor = VJepa2VideoProcessor.from_pretrained(config.world_model)
    config = dataclasses.replace(config, camera=find_cameras(config.data, config.camera, world_model.config))
    # Encoded in every batch: latents of a large encoder take more memory than the bytes of frames
    frames, held_out = read_frames(config, processor, accelerator)

    # Only the decoder learns; every process starts from the same weights
    set_seed(config.seed)
    normalization = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    model = VJepa2PixelDecoder.from_world_model(world_model, **{**normalization, **config.decoder})
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate.peak, fused=True)
    model, optimizer = loop.prepare(model.train(), optimizer, processor)
    set_weight_decay(optimizer, config.weight_decay)  # a checkpoint of another run may bring its own

    def forward_backward(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = processor.normalize_cropped(frames).to(accelerator.device)
        output = model(world_model.split_views(encode(world_model, pixels)), pixels)
        accelerator.backward(output.loss)
        return {"loss": output.loss}

    batches = sample_batches(config, frames, accelerator.process_index, loop.first_micro_batch)
    loop.run_steps(batches, forward_backward)

    # Errors on held-out episodes
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model).eval()
        mean = sum(part.sum(0, dtype=torch.float64) for part in frames.split(256)).float() / (255 * len(frames))
        write_reconstruction(loop.run.output_dir, trained, world_model, processor, held_out, mean)
    loop.finish(model, processor)


@exit_on_user_error
def main() -> None:
    train(parse_arguments(DecoderTrainingConfig, __doc__))


if __name__ == "__main__":
    main()
