"""Pretrains an encoder on videos by masked latent prediction, and saves it with its processor.

    accelerate launch examples/pretrain.py --config examples/configs/demo/pretrain.yaml [key=value ...]

One process on a CPU, in two minutes (make shards of your own videos first):

    python examples/make_video_shards.py my_videos runs/shards --height 128
    python examples/pretrain.py --config examples/configs/demo/pretrain.yaml data=runs/shards output_dir=runs/mine

Several CPU processes: `torchrun --nproc_per_node 2 examples/pretrain.py ...` (`accelerate launch --cpu` starts one).
A run that was stopped goes on with `resume=latest` and the settings it began with (`--help` lists them). The result is
`OUTPUT_DIR/final`:

    encoder = VJepa2Encoder.from_pretrained("runs/mine/final")              # the target encoder
"""

import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig, VJepa2VideoProcessor
from vjepa2_hf.data import ClipStream, MaskCollator
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    cosine,
    parameter_groups,
    set_learning_rate,
    set_weight_decay,
)
from vjepa2_hf.settings import check_known, exit_on_user_error, parse_arguments
from vjepa2_hf.training import Run, check_finite_loss
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


RATE_SETTINGS = ("max_steps", "learning_rate", "ema", "weight_decay", "final_weight_decay")
METERS = ("target_std", "effective_rank", "prediction_variation")
PREDICTOR_FIELDS = {
    **{name: f"predictor_{name}" for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")},
    **{name: name for name in ("num_mask_tokens", "zero_init_mask_tokens", "initializer_range")},
}


@dataclass
class Augmentation:
    """Random resized crop and flip, the same for all frames of a clip; the published values."""

    scale: tuple[float, float] = (0.3, 1.0)
    """Area of the crop as a fraction of the frame's."""
    ratio: tuple[float, float] = (0.75, 1.35)
    """Width over height of the crop."""
    flip_probability: float = 0.5
    """Of a horizontal flip."""


@dataclass
class PretrainConfig:
    """Settings of one pretraining run; published values are in configs/published/."""

    output_dir: str
    data: str
    """Folder, glob or file of parquet shards, or a dataset on the Hub, with a `Video` column."""

    # Length and speed. A step is one update of the weights.
    max_steps: int = 1000
    batch_size: int = 16
    """Clips a process and micro-batch."""
    gradient_accumulation_steps: int = 1
    seed: int = 0
    num_workers: int = 0
    num_threads: int | None = None
    """Threads of torch; None leaves its choice."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: as `accelerate launch` says."""
    gradient_checkpointing: bool = False
    log_every: int = 10
    save_every: int = 500
    keep_last: int | None = 2
    """Checkpoints kept; null keeps all."""
    resume: str | None = None
    """"latest", a checkpoint, or null for a new run."""
    log_with: Literal["tensorboard"] | None = None

    # Clips
    frames_per_clip: int = 16
    fps: float | None = 4.0
    """Frames a second; null takes the video's own."""
    crop_size: int = 256
    """Pixels, height and width."""
    clips_per_video: int = 1
    """Clips cut from a video each time it is read: decoding is shared."""
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    """null: the largest centred square of the frame."""

    # Model
    encoder: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig."""
    predictor: dict[str, Any] = field(default_factory=dict)
    """The other fields of VJepa2MaskedLatentPredictionConfig, without their prefix `predictor_`."""
    init_from: str | None = None
    """A saved model to start from (cooldown) instead of random weights; it brings `encoder` and `predictor`."""

    # Objective
    masks: list[dict[str, Any]] = field(default_factory=lambda: [dict(spec) for spec in PUBLISHED_MASKS])
    loss_exponent: int = 1
    normalize_targets: Literal["layer", "batch", "batch_channel", "none"] = "layer"
    ema: MomentumSchedule = field(default_factory=MomentumSchedule)

    # Optimiser: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    """Weight decay at the end of half a cosine; null: constant."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    gradient_clipping: float | None = None
    """Largest norm of the gradient; null: none."""

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.masks:
            raise ValueError("masks is empty; give at least one mask set, like {type: multi_block, num_blocks: 8}.")
        if self.final_weight_decay is not None and not self.weight_decay:
            raise ValueError(
                f"final_weight_decay={self.final_weight_decay} needs a weight_decay above 0 to start from."
            )
        if self.init_from and (self.encoder or self.predictor):
            raise ValueError("init_from brings the model's sizes; remove the fields of `encoder` and `predictor`.")


def rates(config: PretrainConfig, step: int) -> dict[str, float]:
    """What the number of a step decides, from RATE_SETTINGS."""
    weight_decay = config.weight_decay
    if config.final_weight_decay is not None:
        weight_decay = cosine(step, config.max_steps, start=weight_decay, final=config.final_weight_decay)
    return {
        "learning_rate": config.learning_rate.at(step, config.max_steps),
        "ema_momentum": config.ema.at(step, config.max_steps),
        "weight_decay": weight_decay,
    }


def build_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """A model with random weights, or the one of `init_from` under this run's objective."""
    if config.init_from:
        objective = {"loss_exponent": config.loss_exponent, "normalize_targets": config.normalize_targets}
        model = VJepa2ForMaskedLatentPrediction.from_pretrained(config.init_from, **objective)
        for encoder in (model.config.encoder_config, model.encoder.config, model.target_encoder.config):
            encoder.frames_per_clip, encoder.crop_size = config.frames_per_clip, config.crop_size
        return model
    return VJepa2ForMaskedLatentPrediction(build_model_config(config))


def build_model_config(config: PretrainConfig) -> VJepa2MaskedLatentPredictionConfig:
    """The model that the settings describe; the encoder remembers the clips it is trained on."""
    sizes = {"frames_per_clip": config.frames_per_clip, "crop_size": config.crop_size}
    for name in config.predictor:
        check_known(name, PREDICTOR_FIELDS, "key", "predictor.")
    return VJepa2MaskedLatentPredictionConfig(
        encoder_config={**sizes, **config.encoder},
        **{PREDICTOR_FIELDS[name]: value for name, value in config.predictor.items()},
        loss_exponent=config.loss_exponent,
        normalize_targets=config.normalize_targets,
    )


def build_processor(config: PretrainConfig) -> VJepa2VideoProcessor:
    """What users put videos through: the published centre crop, or the whole square if nothing was augmented."""
    size = {} if config.augmentation else {"size": config.crop_size}
    return VJepa2VideoProcessor(crop_size=config.crop_size, **size)


def build_loader(config: PretrainConfig, model, processor, accelerator: Accelerator) -> StatefulDataLoader:
    """Batches of this process's own clips with their masks; its position is part of the checkpoint."""
    encoder = model.config.encoder_config
    crop = asdict(config.augmentation) if config.augmentation else {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    crop.setdefault("flip_probability", 0.0)
    stream = ClipStream(
        config.data,
        frames_per_clip=config.frames_per_clip,
        fps=config.fps,
        transform=RandomResizedClip(
            config.crop_size, **crop, image_mean=processor.image_mean, image_std=processor.image_std
        ),
        tubelet_size=encoder.tubelet_size,
        clips_per_video=config.clips_per_video,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    side = config.crop_size // encoder.patch_size
    grid = (config.frames_per_clip // encoder.tubelet_size, side, side)
    return StatefulDataLoader(
        stream,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        collate_fn=MaskCollator(build_mask_samplers(config.masks), grid, seed=config.seed),
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        # of its own: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


class Clock:
    """Clips a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self):
        self.clips, self.waited, self.started = 0, 0.0, time.perf_counter()

    def next_batch(self, batches):
        """The next batch, with the wait for it counted."""
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            raise ValueError("A process got no clips: the data has fewer shards and rows than processes and workers.")
        self.waited += time.perf_counter() - before
        return batch

    def read(self, num_processes: int) -> dict[str, float]:
        """`clips_per_second` over all processes and `data_wait` (0 to 1) of this one; starts over."""
        elapsed = time.perf_counter() - self.started
        reading = {"clips_per_second": self.clips * num_processes / elapsed, "data_wait": self.waited / elapsed}
        self.__init__()
        return reading


def train_step(config, accelerator, model, optimizer, batches, clock, step, with_meters):
    """One update of the weights from `gradient_accumulation_steps` micro-batches.

    Returns the mean loss over micro-batches and processes, and the model's output of the last micro-batch.
    """
    losses = []
    for _ in range(config.gradient_accumulation_steps):
        batch = clock.next_batch(batches)
        clock.clips += len(batch["pixel_values_videos"])
        batch = {name: move(value, accelerator.device) for name, value in batch.items()}
        with accelerator.accumulate(model):
            output = model(**batch, output_meters=with_meters)
            accelerator.backward(output.loss)
            losses.append(output.loss.detach().float())
            if accelerator.sync_gradients:
                # before the update, and over all processes: they stop together, with the weights still good
                loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                check_finite_loss(loss, step)
                if config.gradient_clipping is not None:
                    accelerator.clip_grad_norm_(model.parameters(), config.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad()
    return loss, output


def move(value: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    """A tensor or a list of tensors on the device, without waiting for the copy."""
    if isinstance(value, list):
        return [item.to(device, non_blocking=True) for item in value]
    return value.to(device, non_blocking=True)


def train(config: PretrainConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.log_with,
        project_dir=config.output_dir,
    )
    accelerator.init_trackers("pretrain")
    run = Run(config.output_dir, config, accelerator, config.keep_last)

    # Every process starts from the same weights; what differs between processes is the data
    set_seed(config.seed)
    model = build_model(config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    processor = build_processor(config)
    loader = build_loader(config, model, processor, accelerator)
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.adam_betas, fused=True)
    model.train()
    # The loader is not prepared: the stream splits itself among the processes, and Accelerate would write the
    # positions of all processes to one file
    model, optimizer = accelerator.prepare(model, optimizer)

    # Go on where the run was
    start, rank_state = run.resume(config.resume, rates, RATE_SETTINGS)
    for group in optimizer.param_groups:
        group["betas"] = config.adam_betas  # the checkpoint's may be those of another run
    if "loader" in rank_state:
        loader.load_state_dict(rank_state["loader"])
    batches = iter(loader)

    clock = Clock()
    steps = range(start + 1, config.max_steps + 1)
    with tqdm(
        steps, initial=start, total=config.max_steps, disable=not accelerator.is_main_process, desc="pretrain"
    ) as progress:
        for step in progress:
            # Schedules are functions of the step alone, so that a resumed run needs no state of them
            now = rates(config, step)
            set_learning_rate(optimizer, now["learning_rate"])
            set_weight_decay(optimizer, now["weight_decay"])

            log_now = step % config.log_every == 0 or step == config.max_steps
            loss, output = train_step(config, accelerator, model, optimizer, batches, clock, step, with_meters=log_now)
            accelerator.unwrap_model(model).update_target_encoder(now["ema_momentum"])

            if log_now:
                meters = {name: output[name] for name in METERS}
                run.log({"step": step, "loss": loss, **now, **meters, **clock.read(accelerator.num_processes)})
                progress.set_postfix(loss=f"{loss:.3f}", target_std=f"{meters['target_std'].item():.3f}")
            if step % config.save_every == 0 or step == config.max_steps:
                run.save_checkpoint(step, {"loader": loader.state_dict()})

    final = run.save_final(model, processor)
    progress.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main() -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", module="torchdata")  # 0.11 under torch 2.14
    train(parse_arguments(PretrainConfig, __doc__))


if __name__ == "__main__":
    main()
