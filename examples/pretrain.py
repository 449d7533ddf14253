"""Pretrains an encoder on videos by masked latent prediction, and saves it with its processor.

    accelerate launch examples/pretrain.py --config examples/configs/demo/pretrain.yaml [key=value ...]

One process on a CPU, in two minutes (make shards of your own videos first):

    python examples/make_video_shards.py my_videos runs/shards --height 128
    python examples/pretrain.py --config examples/configs/demo/pretrain_videos.yaml data=runs/shards output_dir=runs/a

Several CPU processes: `torchrun --nproc_per_node 2 examples/pretrain.py ...` (`accelerate launch --cpu` starts one).
A run that was stopped goes on with `resume=latest` and the settings it began with (`--help` lists them). The result is
`OUTPUT_DIR/final`:

    encoder = VJepa2Encoder.from_pretrained("runs/mine/final")              # the target encoder

In `OUTPUT_DIR/metrics.jsonl` losses (`*loss*`) are means over the micro-batches and processes of a step, and `skipped`
is the sum over processes; `target_std`, `effective_rank` and `prediction_variation` are of the main process's last
micro-batch.
"""

import contextlib
import logging
import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig, VJepa2VideoProcessor
from vjepa2_hf.data.clips import Augmentation, ClipStream, DataSource, MaskCollator
from vjepa2_hf.data.sampling import FrameSampler, FramesCurriculum
from vjepa2_hf.data.skip_log import SkipLog
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.modeling_masked_latent import VJepa2MaskedLatentPredictionOutput
from vjepa2_hf.training.capacity import batch_flops, peak_flops
from vjepa2_hf.training.monitor import CollapseWatch, gradient_norm
from vjepa2_hf.training.run import Run, check_run_settings, check_tracker, read_metrics
from vjepa2_hf.training.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    WeightDecaySchedule,
    parameter_groups,
    set_learning_rate,
    set_weight_decay,
)
from vjepa2_hf.training.settings import check_known, exit_on_user_error, one_sentence, parse_arguments
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


logger = logging.getLogger(__name__)

RATE_SETTINGS = ("max_steps", "learning_rate", "ema", "weight_decay")
METERS = ("target_std", "effective_rank", "prediction_variation")
# Settings that VJepa2MaskedLatentPredictionConfig has under the same name
OBJECTIVE_FIELDS = (
    "loss_exponent", "normalize_targets", "target_type", "temporal_diversity_weight", "temporal_contrastive_weight",
    "temporal_contrastive_temperature", "variance_weight", "covariance_weight", "variance_margin",
)  # fmt: skip
PREDICTOR_FIELDS = {
    **{
        name: f"predictor_{name}"
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "query_key_bias")
    },
    **{name: name for name in ("num_mask_tokens", "zero_init_mask_tokens", "initializer_range")},
}


@dataclass
class PretrainConfig:
    """Settings of one pretraining run; published values are in configs/published/."""

    output_dir: str
    data: str | list[DataSource]
    """Folder, glob or file of shards, videos or images, or a dataset on the Hub; or several with weights:
    [{path: videos, weight: 0.7}, {path: images, weight: 0.3}]. An image is a clip that stands still."""
    max_skipped_fraction: float | None = 0.5
    """Share of a source's rows that may fail to read before the run stops, counted by each reader (a worker of a
    process) of its own rows, from 20 on; null: any. See skipped.jsonl."""

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
    torch_compile: str | None = None
    """Backend of torch.compile for every block of both encoders and the predictor, like inductor; null: none."""
    log_every: int = 10
    save_every: int = 500
    keep_last: int | None = 2
    """Checkpoints kept, at least 1; null keeps all."""
    resume: str | None = None
    """"latest", a checkpoint, or null for a new run."""
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Tracker that gets the numbers too, where its package is installed."""

    # Clips
    frames_per_clip: int = 16
    frames_curriculum: list[tuple[int, int]] | None = None
    """Fewer frames at first, [steps done, frames] up to frames_per_clip: [[0, 8], [500, 12], [1000, 16]]."""
    frames_curriculum_by: Literal["step", "epoch"] = "step"
    fps: float | list[float] | None = 4.0
    """Frames a second, or several, one drawn for each clip; null takes the video's own."""
    speed: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest factor by which a clip is played faster."""
    frame_jitter: float = 0.0
    """Share of the interval between frames by which each one's time moves, at most 0.5."""
    motion_weight: float = 0.0
    """0: a clip begins anywhere in its video; 1: in proportion to the motion that it would hold."""
    short_videos: Literal["repeat", "skip"] = "repeat"
    """What happens to videos shorter than a clip."""
    crop_size: int = 256
    """Pixels, height and width."""
    clips_per_video: int = 1
    """Clips cut from a video each time it is read: decoding is shared."""
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    """null: the largest centred square of the frame."""

    # Model
    encoder: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, but for frames_per_clip and crop_size, which stand above."""
    predictor: dict[str, Any] = field(default_factory=dict)
    """The other fields of VJepa2MaskedLatentPredictionConfig, without their prefix `predictor_`."""
    init_from: str | None = None
    """A saved model to start from (cooldown) instead of random weights; it brings `encoder` and `predictor`."""

    # Objective
    masks: list[dict[str, Any]] = field(default_factory=lambda: [dict(spec) for spec in PUBLISHED_MASKS])
    mask_token_index: int | None = None
    """The learned mask token of all mask sets (the published training shares token 0); null: set i has token i."""
    loss_exponent: int = 1
    normalize_targets: Literal["layer", "batch", "batch_channel", "clip", "none"] = "layer"
    target_type: Literal["ema", "online", "pixels"] = "ema"
    """What is predicted: the target encoder's latents, the encoder's own (they collapse), or pixels."""
    temporal_diversity_weight: float = 0.0
    """Of -Var_t of the predictions (seed 000: 0.1)."""
    temporal_contrastive_weight: float = 0.0
    """Of InfoNCE between the predictions and the targets of different clips (seed 000)."""
    temporal_contrastive_temperature: float = 0.1
    variance_weight: float = 0.0
    """Of VICReg's variance term on the context encoder's tokens."""
    covariance_weight: float = 0.0
    """Of VICReg's covariance term on the context encoder's tokens."""
    variance_margin: float = 1.0
    """Deviation between clips below which the variance term acts."""
    ema: MomentumSchedule = field(default_factory=MomentumSchedule)

    # Optimiser: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: WeightDecaySchedule | float = 0.04
    """A number is a constant one."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    decay_mask_tokens: bool = True
    """Weight decay on the predictor's mask tokens (published); biases and norms never have it."""
    gradient_clipping: float | None = None
    """Largest norm of the gradient, above 0; null: any."""

    def __post_init__(self):
        check_run_settings(self)
        weight_decay_schedule(self)
        for name in {"crop_size", "frames_per_clip"} & self.encoder.keys():
            raise ValueError(f"encoder.{name} is the {name} of the clips; set {name}={self.encoder[name]} alone.")
        if not self.masks:
            raise ValueError("masks is empty; give at least one mask set, like {type: multi_block, num_blocks: 8}.")
        if self.frames_curriculum is not None:
            last = build_curriculum(self).stages[-1][1]
            if last != self.frames_per_clip:
                raise ValueError(
                    f"frames_curriculum ends with {last} frames, but frames_per_clip is {self.frames_per_clip}."
                )
        if self.torch_compile is not None:
            check_known(self.torch_compile, torch.compiler.list_backends(exclude_tags=()), "backend of torch_compile")
        if self.init_from and (self.encoder or self.predictor):
            raise ValueError("init_from brings the model's sizes; remove the fields of `encoder` and `predictor`.")


def rates(config: PretrainConfig, step: int) -> dict[str, float]:
    """What the number of a step decides, from RATE_SETTINGS."""
    decided = {
        "learning_rate": config.learning_rate.at(step, config.max_steps),
        # the online encoder is its own target: an average that keeps nothing
        "ema_momentum": 0.0 if config.target_type == "online" else config.ema.at(step, config.max_steps),
        "weight_decay": weight_decay_schedule(config).at(step, config.max_steps),
    }
    if config.frames_curriculum and config.frames_curriculum_by == "step":
        decided["frames_per_clip"] = build_curriculum(config).frames_at(step - 1)
    return decided


def weight_decay_schedule(config: PretrainConfig) -> WeightDecaySchedule:
    """`weight_decay` as a schedule; a number is a constant one."""
    given = config.weight_decay
    return given if isinstance(given, WeightDecaySchedule) else WeightDecaySchedule(start=given)


def build_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """A model with random weights, or the one of `init_from` under this run's objective."""
    if config.init_from:
        model = load_model(config)
    else:
        model = VJepa2ForMaskedLatentPrediction(build_model_config(config))
    check_model(config, model.config)
    return model


def load_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """The model of `init_from`; its encoder remembers the clips it is trained on from now on."""
    try:
        model = VJepa2ForMaskedLatentPrediction.from_pretrained(config.init_from, **objective(config))
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from={config.init_from} does not load: {one_sentence(error)}") from error
    for encoder in (model.config.encoder_config, model.encoder.config, model.target_encoder.config):
        encoder.frames_per_clip, encoder.crop_size = config.frames_per_clip, config.crop_size
    return model


def check_model(config: PretrainConfig, model_config: VJepa2MaskedLatentPredictionConfig) -> None:
    """Refuses clips that hold no whole patch or tubelet, and mask sets without a mask token of their own."""
    encoder, tokens = model_config.encoder_config, model_config.num_mask_tokens
    for name, value, unit in (
        ("crop_size", config.crop_size, encoder.patch_size),
        ("frames_per_clip", config.frames_per_clip, encoder.tubelet_size),
    ):
        if value < unit or value % unit:
            raise ValueError(f"{name}={value} is no multiple of the encoder's {unit} (patch or tubelet) above 0.")
    index = config.mask_token_index
    if index is not None and not 0 <= index < tokens:
        raise ValueError(
            f"mask_token_index={index} is none of the predictor's {tokens} mask tokens, 0 to {tokens - 1}."
        )
    if index is None and len(config.masks) > tokens:
        raise ValueError(
            f"{len(config.masks)} mask sets are more than the predictor's {tokens} mask tokens; set "
            f"predictor.num_mask_tokens={len(config.masks)}, or mask_token_index=0 to share one."
        )


def build_model_config(config: PretrainConfig) -> VJepa2MaskedLatentPredictionConfig:
    """The model that the settings describe; the encoder remembers the clips it is trained on."""
    sizes = {"frames_per_clip": config.frames_per_clip, "crop_size": config.crop_size}
    for name in config.predictor:
        check_known(name, PREDICTOR_FIELDS, "key", "predictor.")
    return VJepa2MaskedLatentPredictionConfig(
        encoder_config={**sizes, **config.encoder},
        **{PREDICTOR_FIELDS[name]: value for name, value in config.predictor.items()},
        **objective(config),
    )


def objective(config: PretrainConfig) -> dict[str, Any]:
    """What the model is to minimise, as fields of its config."""
    return {name: getattr(config, name) for name in OBJECTIVE_FIELDS}


def build_processor(config: PretrainConfig) -> VJepa2VideoProcessor:
    """What users put videos through: the published centre crop, or the whole square if nothing was augmented."""
    size = {} if config.augmentation else {"size": config.crop_size}
    return VJepa2VideoProcessor(crop_size=config.crop_size, **size)


def build_curriculum(config: PretrainConfig) -> FramesCurriculum:
    """Frames per clip by step or epoch; the workers count their batches, so they know the step."""
    stages = config.frames_curriculum or [(0, config.frames_per_clip)]
    return FramesCurriculum(
        stages, config.batch_size, config.gradient_accumulation_steps, by=config.frames_curriculum_by
    )


def build_loader(config: PretrainConfig, model, processor, accelerator: Accelerator) -> StatefulDataLoader:
    """Batches of this process's own clips with their masks; its position is part of the checkpoint."""
    encoder = model.config.encoder_config
    crop = asdict(config.augmentation) if config.augmentation else {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    crop.setdefault("flip_probability", 0.0)
    stream = ClipStream(
        config.data,
        frames_per_clip=build_curriculum(config) if config.frames_curriculum else config.frames_per_clip,
        frame_sampler=FrameSampler(
            fps=config.fps,
            speed=config.speed,
            frame_jitter=config.frame_jitter,
            motion_weight=config.motion_weight,
            short_videos=config.short_videos,
            min_frames=encoder.tubelet_size,
        ),
        transform=RandomResizedClip(
            config.crop_size, **crop, image_mean=processor.image_mean, image_std=processor.image_std
        ),
        clips_per_video=config.clips_per_video,
        max_skipped_fraction=config.max_skipped_fraction,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    samplers = build_mask_samplers(config.masks)
    collator = MaskCollator(samplers, encoder.patch_size, encoder.tubelet_size, seed=config.seed, with_names=True)
    return StatefulDataLoader(
        stream,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        collate_fn=collator,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        # of its own: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


def read_batches(config: PretrainConfig, loader: StatefulDataLoader, skipped: SkipLog, start: int):
    """The loader's batches from step `start` on; what was passed over on the way goes to the run's list."""
    for number, batch in enumerate(loader):
        skipped.add(start + 1 + number // config.gradient_accumulation_steps, batch.pop("skipped"))
        yield batch


class Clock:
    """Clips a second, and the shares of the time spent waiting and of the device's peak, since the last reading."""

    def __init__(self):
        self.clips, self.flops, self.waited, self.started = 0, 0, 0.0, time.perf_counter()

    def next_batch(self, batches):
        """The next batch, with the wait for it counted."""
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            raise ValueError("A process got no clips: the data has fewer shards and rows than processes and workers.")
        self.waited += time.perf_counter() - before
        return batch

    def count(self, batch, model_config) -> None:
        """Counts a batch's clips and arithmetic."""
        self.clips += len(batch["pixel_values_videos"])
        self.flops += batch_flops(model_config, batch)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """`clips_per_second` over all processes; `data_wait` (0 to 1) and, where the peak is known,
        `model_flops_utilization` (0 to 1) of this one. Starts over."""
        elapsed = time.perf_counter() - self.started
        clips = self.clips * accelerator.num_processes
        reading = {"clips_per_second": clips / elapsed, "data_wait": self.waited / elapsed}
        peak = peak_flops(accelerator.device, accelerator.mixed_precision)
        if peak is not None:
            reading["model_flops_utilization"] = self.flops / elapsed / peak
        self.__init__()
        return reading


def train_step(run, model, optimizer, batches, clock, step, with_meters=False):
    """One update of the weights from `gradient_accumulation_steps` micro-batches.

    Returns its numbers, means over micro-batches and processes: `loss`, `mask_loss_<i>` by mask set, where the loss
    has several terms `<term>_loss` without its weight, and `gradient_norm` (before clipping); and the model's output
    of the last micro-batch.

    Raises a ValueError instead of an update from a loss or gradient that is not finite, see `Run.check_finite`.
    """
    config, accelerator = run.config, run.accelerator
    model_config = accelerator.unwrap_model(model).config
    losses, names = [], []
    for micro_batch in range(1, config.gradient_accumulation_steps + 1):
        batch = clock.next_batch(batches)
        clock.count(batch, model_config)
        names.append(batch.pop("clip_names"))
        batch = {name: move(value, accelerator.device) for name, value in batch.items()}
        with accelerator.accumulate(model):
            last = micro_batch == config.gradient_accumulation_steps
            output = forward_backward(accelerator, model, batch, config.mask_token_index, with_meters and last)
            parts = loss_parts(output)
            losses.append(torch.stack(list(parts.values())).float())
            if accelerator.sync_gradients:
                # before the update, and over all processes: they stop together, with the weights still good
                means = accelerator.reduce(torch.stack(losses).mean(0), "mean").tolist()
                norm = gradient_norm(accelerator, model.parameters(), config.gradient_clipping)
                run.check_finite(step, means[0], norm, [part[0] for part in losses], names)
            optimizer.step()
            optimizer.zero_grad()
    return {**dict(zip(parts, means, strict=True)), "gradient_norm": norm}, output


def loss_parts(output) -> dict[str, torch.Tensor]:
    """A micro-batch's loss, then the losses it is made of, by the names they are logged under."""
    parts = {"loss": output.loss}
    parts |= {f"mask_loss_{i}": value for i, value in enumerate(output.mask_losses)}
    return parts | {f"{name}_loss": value for name, value in output.losses.items()}


def forward_backward(
    accelerator: Accelerator, model, batch, mask_token_index: int | None, with_meters: bool
) -> VJepa2MaskedLatentPredictionOutput:
    """Adds a batch's gradients, going backward after each mask set: the loss is a mean over sets, so the gradients are
    the same, and memory holds the activations of one set at a time. Returns the losses of all sets without their
    graph, and the meters of the first set."""
    clips, masks = batch["pixel_values_videos"], list(zip(batch["context_mask"], batch["target_mask"], strict=True))
    targets, meters, parts = None, {}, []
    for i, (context, target) in enumerate(masks):
        meters_now = with_meters and i == 0
        more = i + 1 < len(masks) and not accelerator.is_fsdp2  # DDP exchanges gradients once, FSDP keeps none whole
        with accelerator.no_sync(model) if more else contextlib.nullcontext():
            token = i if mask_token_index is None else mask_token_index
            output = model(clips, context, target, token, meters_now, output_targets=True, targets=targets)
            accelerator.backward(output.loss / len(masks))
        targets = output.targets
        meters |= {name: output[name] for name in METERS if meters_now}
        parts.append((output.loss.detach(), output.mask_losses, output.losses or {}))
    losses, mask_losses, terms = zip(*parts, strict=True)
    return VJepa2MaskedLatentPredictionOutput(
        loss=torch.stack(losses).mean(),
        mask_losses=torch.cat(mask_losses),
        losses={name: torch.stack([of_set[name] for of_set in terms]).mean() for name in terms[0]},
        **meters,
    )


def move(value: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    """A tensor or a list of tensors on the device, without waiting for the copy."""
    if isinstance(value, list):
        return [item.to(device, non_blocking=True) for item in value]
    return value.to(device, non_blocking=True)


def compile_blocks(model, backend: str) -> None:
    """Compiles the blocks one by one, so that DDP and FSDP may wrap them; token counts differ by batch."""
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.compile(backend=backend, dynamic=True)


def restore_loader(loader: StatefulDataLoader, config: PretrainConfig, rank_state: dict[str, Any]) -> None:
    """Goes on where a checkpoint's loader stood. With other workers or sources there is no such place: the data then
    starts anew, which a frames curriculum, counted in the batches of each worker, does not survive."""
    if "loader" not in rank_state:
        return
    was, now = rank_state.get("readers"), describe_readers(config)
    if was != now and config.frames_curriculum:
        raise ValueError(
            f"frames_curriculum is counted in the batches of {was} and would begin again with {now}; set these back, "
            "or frames_curriculum=null."
        )
    if was != now:
        logger.warning("the data starts anew: it was read by %s then and is read by %s now", was, now)
        return
    loader.load_state_dict(rank_state["loader"])


def describe_readers(config: PretrainConfig) -> dict[str, int]:
    """What the state of a loader belongs to."""
    return {"num_workers": config.num_workers, "sources": 1 if isinstance(config.data, str) else len(config.data)}


def train(config: PretrainConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_tracker(config.log_with)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.log_with,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # no second copy of them
    )
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    accelerator.init_trackers("pretrain")  # after the folder is this run's alone

    # Every process starts from the same weights; what differs between processes is the data
    set_seed(config.seed)
    model = build_model(config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    processor = build_processor(config)
    loader = build_loader(config, model, processor, accelerator)
    if config.torch_compile is not None:
        compile_blocks(model, config.torch_compile)
    groups = parameter_groups(model, rates(config, 1)["weight_decay"], config.decay_mask_tokens)
    optimizer = torch.optim.AdamW(groups, betas=config.adam_betas, fused=True)
    model.train()
    # The loader is not prepared: the stream splits itself among the processes, and Accelerate would write the
    # positions of all processes to one file
    model, optimizer = accelerator.prepare(model, optimizer)

    # Go on where the run was
    start, rank_state = run.resume(config.resume, rates, RATE_SETTINGS)
    for group in optimizer.param_groups:
        group["betas"] = config.adam_betas  # the checkpoint's may be those of another run
    restore_loader(loader, config, rank_state)
    skipped = SkipLog(config.output_dir, start, accelerator.process_index, accelerator.num_processes)
    batches = read_batches(config, loader, skipped, start)

    watch = CollapseWatch()
    for line in read_metrics(run.output_dir) if start and run.metrics_path.exists() else []:
        watch.update(line, config.normalize_targets, line["ema_momentum"])
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
            numbers, output = train_step(run, model, optimizer, batches, clock, step, with_meters=log_now)
            accelerator.unwrap_model(model).update_target_encoder(now["ema_momentum"])

            if log_now:
                everyones = accelerator.reduce(torch.tensor(len(skipped), device=accelerator.device), "sum").item()
                metrics = {"step": step, **numbers, **now, **{name: output[name].item() for name in METERS}}
                metrics |= {"skipped": everyones, **clock.read(accelerator)}
                warning = watch.update(metrics, config.normalize_targets, now["ema_momentum"])
                if warning and config.target_type != "pixels" and accelerator.is_main_process:
                    logger.warning(warning)
                    metrics["warning"] = warning
                run.log(metrics)
                progress.set_postfix(loss=f"{numbers['loss']:.3f}", target_std=f"{metrics['target_std']:.3f}")
            if step % config.save_every == 0 or step == config.max_steps:
                run.save_checkpoint(step, {"loader": loader.state_dict(), "readers": describe_readers(config)})

    final = run.save_final(model, processor)
    if accelerator.is_main_process:
        skipped.merge()
    progress.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main() -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", module="torchdata")  # 0.11 under torch 2.14
    train(parse_arguments(PretrainConfig, __doc__))


if __name__ == "__main__":
    main()
