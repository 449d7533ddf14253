"""Pretrains an encoder on videos by masked latent prediction, and saves it with its processor.

    accelerate launch examples/pretrain.py --config examples/configs/demo/pretrain.yaml [key=value ...]

One process on a CPU, in two minutes (make shards of your own videos first):

    python examples/make_video_shards.py my_videos runs/shards --height 128
    python examples/pretrain.py --config examples/configs/demo/pretrain_videos.yaml data=runs/shards output_dir=runs/a

Several CPU processes: `torchrun --nproc_per_node 2 examples/pretrain.py ...` (`accelerate launch --cpu` starts one).
A stopped run continues with `resume=latest` and its original settings (`--help` lists them). The result is
`OUTPUT_DIR/final`:

    encoder = VJepa2Encoder.from_pretrained("runs/a/final")                # the target encoder

In `OUTPUT_DIR/metrics.jsonl` losses (`*loss*`) are means over the micro-batches and processes of a step, and `skipped`
is the sum over processes; `target_std`, `effective_rank` and `prediction_variation` are of the main process's last
micro-batch.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers.modeling_layers import GradientCheckpointingLayer

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig, VJepa2VideoProcessor
from vjepa2_hf.data.clips import Augmentation, ClipStream, DataSource, MaskCollator
from vjepa2_hf.data.sampling import FrameSampler, FramesCurriculum
from vjepa2_hf.data.skip_log import SkipLog
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.flops import batch_flops
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.monitor import CollapseWatch
from vjepa2_hf.training.run import read_metrics
from vjepa2_hf.training.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    WeightDecaySchedule,
    parameter_groups,
    set_weight_decay,
)
from vjepa2_hf.training.settings import check_known, exit_on_user_error, one_sentence, parse_arguments
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


logger = logging.getLogger(__name__)

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


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of one pretraining run; published values are in configs/published/."""

    data: str | list[DataSource]
    """Folder, glob or file of shards, videos or images, or a dataset on the Hub; or several with weights:
    [{path: videos, weight: 0.7}, {path: images, weight: 0.3}]. An image becomes a clip of equal frames."""
    max_skipped_fraction: float | None = 0.5
    """Largest fraction of unreadable rows of a source; above it the run stops. Each reader (a worker of a process)
    counts its own rows, from 20 on. null: no limit. Unreadable rows are logged to skipped.jsonl."""

    # Speed
    gradient_checkpointing: bool = False
    torch_compile: str | None = None
    """Backend of torch.compile for every block of both encoders and the predictor, like inductor; null: none."""

    # Clips
    frames_per_clip: int = 16
    frames_curriculum: list[tuple[int, int]] | None = None
    """Fewer frames at first, [steps done, frames] up to frames_per_clip: [[0, 8], [500, 12], [1000, 16]]."""
    frames_curriculum_by: Literal["step", "epoch"] = "step"
    fps: float | list[float] | None = 4.0
    """Frames per second, or several, one sampled for each clip; null: the rate of the video."""
    speed: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest factor of the playback speed."""
    frame_jitter: float = 0.0
    """Random shift of each frame's time, as a fraction of the interval between frames, at most 0.5."""
    motion_weight: float = 0.0
    """0: a clip begins at a uniformly random time of its video; 1: with a probability proportional to its motion."""
    short_videos: Literal["repeat", "skip"] = "repeat"
    """Handling of videos shorter than a clip."""
    crop_size: int = 256
    """Height and width in pixels."""
    clips_per_video: int = 1
    """Clips from each read of a video, which share its decoding."""
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    """null: the largest centered square of the frame."""

    # Model
    encoder: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, except frames_per_clip and crop_size, which are settings of the clips."""
    predictor: dict[str, Any] = field(default_factory=dict)
    """The other fields of VJepa2MaskedLatentPredictionConfig, without their prefix `predictor_`."""
    init_from: str | None = None
    """A saved model to start from (cooldown) instead of random weights; it determines `encoder` and `predictor`."""

    # Objective
    masks: list[dict[str, Any]] = field(default_factory=lambda: [dict(spec) for spec in PUBLISHED_MASKS])
    mask_token_index: int | None = None
    """The learned mask token of all mask sets (the published training uses token 0); null: set i has token i."""
    loss_exponent: int = 1
    normalize_targets: Literal["layer", "batch", "batch_channel", "clip", "none"] = "layer"
    target_type: Literal["ema", "online", "pixels"] = "ema"
    """Targets: the latents of the target encoder, those of the encoder itself (they collapse), or pixels."""
    temporal_diversity_weight: float = 0.0
    """Weight of -Var_t of the predictions (the temporal recipe: 0.1)."""
    temporal_contrastive_weight: float = 0.0
    """Weight of InfoNCE between predictions and targets of different clips (the temporal recipe)."""
    temporal_contrastive_temperature: float = 0.1
    variance_weight: float = 0.0
    """Weight of VICReg's variance term on the context encoder's tokens."""
    covariance_weight: float = 0.0
    """Weight of VICReg's covariance term on the context encoder's tokens."""
    variance_margin: float = 1.0
    """Standard deviation between clips below which the variance term acts."""
    ema: MomentumSchedule = field(default_factory=MomentumSchedule)

    # Optimizer: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: WeightDecaySchedule | float = 0.04
    """A number is a constant weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    decay_mask_tokens: bool = True
    """Weight decay on the predictor's mask tokens (published); biases and norms never have it."""

    schedule_settings = ("max_steps", "learning_rate", "ema", "weight_decay")

    def __post_init__(self):
        super().__post_init__()
        for name in {"crop_size", "frames_per_clip"} & self.encoder.keys():
            raise ValueError(f"encoder.{name} is the {name} of the clips; set {name}={self.encoder[name]} alone.")
        if not self.masks:
            raise ValueError("masks is empty; give at least one mask set, like {type: multi_block, num_blocks: 8}.")
        if self.frames_curriculum is not None:
            last = self.curriculum.stages[-1][1]
            if last != self.frames_per_clip:
                raise ValueError(
                    f"frames_curriculum ends with {last} frames, but frames_per_clip is {self.frames_per_clip}."
                )
        if self.torch_compile is not None:
            check_known(self.torch_compile, torch.compiler.list_backends(exclude_tags=()), "backend of torch_compile")
        if self.init_from and (self.encoder or self.predictor):
            raise ValueError("init_from determines the model's sizes; remove the fields of `encoder` and `predictor`.")

    @property
    def curriculum(self) -> FramesCurriculum:
        """Frames per clip by step or epoch. Workers count their batches, so they know the step."""
        stages = self.frames_curriculum or [(0, self.frames_per_clip)]
        return FramesCurriculum(
            stages, self.batch_size, self.gradient_accumulation_steps, by=self.frames_curriculum_by
        )

    def scheduled(self, step: int) -> dict[str, float]:
        """Learning rate, momentum of the target encoder, weight decay, and frames per clip of a curriculum by step."""
        decay = self.weight_decay
        decay = decay if isinstance(decay, WeightDecaySchedule) else WeightDecaySchedule(start=decay)
        values = {
            **super().scheduled(step),
            # an online encoder as target is an average that keeps nothing
            "ema_momentum": 0.0 if self.target_type == "online" else self.ema.at(step, self.max_steps),
            "weight_decay": decay.at(step, self.max_steps),
        }
        if self.frames_curriculum and self.frames_curriculum_by == "step":
            values["frames_per_clip"] = self.curriculum.frames_at(step - 1)
        return values


def build_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """A model with random weights, or the one of `init_from` under this run's objective."""
    if config.init_from:
        model = load_model(config)
    else:
        model = VJepa2ForMaskedLatentPrediction(build_model_config(config))
    check_model(config, model.config)
    return model


def load_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """The model of `init_from`; its encoder's config takes the size of this run's clips."""
    try:
        model = VJepa2ForMaskedLatentPrediction.from_pretrained(config.init_from, **objective(config))
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from={config.init_from} does not load: {one_sentence(error)}") from error
    for encoder in (model.config.encoder_config, model.encoder.config, model.target_encoder.config):
        encoder.frames_per_clip, encoder.crop_size = config.frames_per_clip, config.crop_size
    return model


def check_model(config: PretrainConfig, model_config: VJepa2MaskedLatentPredictionConfig) -> None:
    """Refuses clips that patches and tubelets do not divide, and mask sets without a mask token."""
    encoder, tokens = model_config.encoder_config, model_config.num_mask_tokens
    for name, value, unit in (
        ("crop_size", config.crop_size, encoder.patch_size),
        ("frames_per_clip", config.frames_per_clip, encoder.tubelet_size),
    ):
        if value < unit or value % unit:
            raise ValueError(f"{name}={value} must be a multiple of the encoder's {unit} (patch or tubelet), above 0.")
    index = config.mask_token_index
    if index is not None and not 0 <= index < tokens:
        raise ValueError(
            f"mask_token_index={index} is not one of the predictor's {tokens} mask tokens, 0 to {tokens - 1}."
        )
    if index is None and len(config.masks) > tokens:
        raise ValueError(
            f"{len(config.masks)} mask sets are more than the predictor's {tokens} mask tokens; set "
            f"predictor.num_mask_tokens={len(config.masks)}, or mask_token_index=0 to share one."
        )


def build_model_config(config: PretrainConfig) -> VJepa2MaskedLatentPredictionConfig:
    """The model's config; the encoder's part holds the size of the clips."""
    sizes = {"frames_per_clip": config.frames_per_clip, "crop_size": config.crop_size}
    for name in config.predictor:
        check_known(name, PREDICTOR_FIELDS, "key", "predictor.")
    return VJepa2MaskedLatentPredictionConfig(
        encoder_config={**sizes, **config.encoder},
        **{PREDICTOR_FIELDS[name]: value for name, value in config.predictor.items()},
        **objective(config),
    )


def objective(config: PretrainConfig) -> dict[str, Any]:
    """The settings of the objective, as fields of the model's config."""
    return {name: getattr(config, name) for name in OBJECTIVE_FIELDS}


def build_processor(config: PretrainConfig) -> VJepa2VideoProcessor:
    """The processor for users: the published center crop, or the whole square if nothing was augmented."""
    size = {} if config.augmentation else {"size": config.crop_size}
    return VJepa2VideoProcessor(crop_size=config.crop_size, **size)


def build_loader(config: PretrainConfig, model, processor, accelerator: Accelerator) -> StatefulDataLoader:
    """Batches of this process's own clips with their masks; its position is part of the checkpoint."""
    encoder = model.config.encoder_config
    crop = asdict(config.augmentation) if config.augmentation else {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    crop.setdefault("flip_probability", 0.0)
    stream = ClipStream(
        config.data,
        frames_per_clip=config.curriculum if config.frames_curriculum else config.frames_per_clip,
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
        # Its own generator: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


def read_batches(
    loop: TrainingLoop, loader: StatefulDataLoader, skipped: SkipLog
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Names and tensors of the loader's batches; unreadable rows before each batch are added to `skipped`."""
    for number, batch in enumerate(loader):
        step = loop.start + 1 + number // loop.config.gradient_accumulation_steps
        skipped.add(step, batch.pop("skipped"))
        names = batch.pop("clip_names")
        yield names, send_to_device(batch, loop.accelerator.device, non_blocking=True)
    raise ValueError("A process got no clips: the data has fewer shards and rows than processes and workers.")


class Objective:
    """The losses of a batch and their gradient, one mask set after the other.

    The loss is a mean over mask sets. Going backward after each set gives the same gradient, and memory holds the
    activations of one set at a time.

    Attributes:
        meters: `METERS` of the first mask set in the last micro-batch of a logged step.
    """

    def __init__(self, loop: TrainingLoop):
        self.loop, self.meters = loop, {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Adds the gradient of a batch.

        Returns:
            `loss`, `mask_loss_<i>` by mask set, and `<term>_loss` without its weight if the loss has several terms.
        """
        accelerator, model, config = self.loop.accelerator, self.loop.model, self.loop.config
        self.loop.throughput.flops += batch_flops(accelerator.unwrap_model(model).config, batch)
        clips, targets, parts = batch["pixel_values_videos"], None, []
        masks = list(zip(batch["context_mask"], batch["target_mask"], strict=True))
        for i, (context, target) in enumerate(masks):
            with_meters = i == 0 and accelerator.sync_gradients and self.loop.is_logged(self.loop.step)
            # DDP exchanges gradients after the last set; FSDP cannot wait, it holds no whole gradients
            wait = i + 1 < len(masks) and not accelerator.is_fsdp2
            with accelerator.no_sync(model) if wait else contextlib.nullcontext():
                token = i if config.mask_token_index is None else config.mask_token_index
                output = model(clips, context, target, token, with_meters, output_targets=True, targets=targets)
                accelerator.backward(output.loss / len(masks))
            targets = output.targets
            if with_meters:
                self.meters = {name: output[name].item() for name in METERS}
            parts.append((output.loss.detach(), output.mask_losses, output.losses or {}))
        losses, mask_losses, terms = zip(*parts, strict=True)
        return {
            "loss": torch.stack(losses).mean(),
            **{f"mask_loss_{i}": value for i, value in enumerate(torch.cat(mask_losses))},
            **{f"{name}_loss": torch.stack([of_set[name] for of_set in terms]).mean() for name in terms[0]},
        }


def compile_blocks(model, backend: str) -> None:
    """Compiles the blocks one by one, so that DDP and FSDP may wrap them; token counts differ by batch."""
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.compile(backend=backend, dynamic=True)


def restore_loader(loader: StatefulDataLoader, config: PretrainConfig, rank_state: dict[str, Any]) -> None:
    """Restores the position of a checkpoint's loader. With other workers or sources the data starts again from the
    beginning; a frames curriculum does not allow this, because each worker counts it in batches."""
    if "loader" not in rank_state:
        return
    was, now = rank_state.get("readers"), describe_readers(config)
    if was != now and config.frames_curriculum:
        raise ValueError(
            f"frames_curriculum is counted in the batches of {was} and would restart with {now}; set these back, or "
            "frames_curriculum=null."
        )
    if was != now:
        logger.warning("the data starts again from the beginning: it was read by %s and is now read by %s", was, now)
        return
    loader.load_state_dict(rank_state["loader"])


def describe_readers(config: PretrainConfig) -> dict[str, int]:
    """The settings that the state of a loader depends on."""
    return {"num_workers": config.num_workers, "sources": 1 if isinstance(config.data, str) else len(config.data)}


def train(config: PretrainConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    loop = TrainingLoop(config, "pretrain")
    accelerator = loop.accelerator

    # Every process starts from the same weights; processes differ in their data
    set_seed(config.seed)
    model = build_model(config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    processor = build_processor(config)
    loader = build_loader(config, model, processor, accelerator)
    if config.torch_compile is not None:
        compile_blocks(model, config.torch_compile)
    groups = parameter_groups(model, config.scheduled(1)["weight_decay"], config.decay_mask_tokens)
    optimizer = torch.optim.AdamW(groups, betas=config.adam_betas, fused=True)
    # The loader is not prepared: the stream splits itself among the processes, and Accelerate would write the
    # positions of all processes to one file
    model, optimizer = loop.prepare(model.train(), optimizer)
    plain = accelerator.unwrap_model(model)

    # Restore what Accelerate does not
    for group in optimizer.param_groups:
        group["betas"] = config.adam_betas  # a checkpoint of another run may bring its own
    restore_loader(loader, config, loop.rank_state)
    skipped = SkipLog(config.output_dir, loop.start, accelerator.process_index, accelerator.num_processes)
    watch = CollapseWatch()
    for line in read_metrics(config.output_dir) if loop.start and loop.run.metrics_path.exists() else []:
        watch.update(line, config.normalize_targets, line["ema_momentum"])

    batches, objective = read_batches(loop, loader, skipped), Objective(loop)
    for step in loop.steps():
        set_weight_decay(optimizer, loop.scheduled["weight_decay"])
        metrics = loop.update(batches, objective)
        plain.update_target_encoder(loop.scheduled["ema_momentum"])
        if loop.is_logged(step):
            everyones = accelerator.reduce(torch.tensor(len(skipped), device=accelerator.device), "sum").item()
            metrics |= {**objective.meters, "skipped": everyones, **loop.throughput.read("clips")}
            warning = watch.update({"step": step, **metrics}, config.normalize_targets, metrics["ema_momentum"])
            if warning and config.target_type != "pixels" and accelerator.is_main_process:
                logger.warning(warning)
                metrics["warning"] = warning
            loop.log(metrics, "loss", "target_std")
        loop.save_checkpoint(lambda: {"loader": loader.state_dict(), "readers": describe_readers(config)})

    loop.finish(model, processor)
    if accelerator.is_main_process:
        skipped.merge()


@exit_on_user_error
def main() -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", module="torchdata")  # 0.11 under torch 2.14
    train(parse_arguments(PretrainConfig, __doc__))


if __name__ == "__main__":
    main()
