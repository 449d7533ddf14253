"""Settings of `examples/pretrain.py`, and the model config that they describe.

config = load_config(PretrainConfig, "examples/configs/demo/pretrain.yaml")
model = VJepa2ForMaskedLatentPrediction(build_model_config(config))
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig
from ..data.clips import Augmentation, DataSource
from ..data.sampling import FramesCurriculum
from ..data.shuffle import SHUFFLE_BYTES, SHUFFLE_ROWS
from ..data.typed_fields import check_fields
from ..masking import PUBLISHED_IMAGE_MASKS, PUBLISHED_MASKS, build_mask_samplers
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..specs import check_known
from ..video_io import ReadLimits
from .config import TrainingConfig
from .schedules import LearningRateSchedule, MomentumSchedule, WeightDecaySchedule, linear


# By their names in `PretrainConfig.predictor`
PREDICTOR_FIELDS = {
    name.removeprefix("predictor_"): name
    for name in (
        "predictor_hidden_size", "predictor_num_hidden_layers", "predictor_num_attention_heads", "predictor_mlp_ratio",
        "predictor_query_key_bias", "num_mask_tokens", "zero_init_mask_tokens", "initializer_range",
        "predictor_levels", "predictor_modality_embeddings", "predict_context", "teacher_hidden_size",
    )
}  # fmt: skip


@dataclass(kw_only=True)
class ImageSettings:
    """Single images beside the clips, with masks of their own; other settings of clips hold for them too."""

    data: str | list[DataSource]
    """As `data` of the clips. A video gives one random frame."""
    fraction: float = 0.5
    """Weight of the loss of images, above 0 and below 1; with by=process also the fraction of the processes."""
    by: Literal["process", "batch"] = "process"
    """process: a process trains on images or on clips (published). batch: each micro-batch has both. A single process
    always does the latter; the gradient is the same."""
    batch_size: int | None = None
    """Images per process and micro-batch; null: batch_size of the clips."""
    crop_size: int | None = None
    """Height and width in pixels; null: crop_size of the clips."""
    masks: list[dict[str, Any]] = field(default_factory=lambda: [dict(spec) for spec in PUBLISHED_IMAGE_MASKS])

    def __post_init__(self):
        check_fields(self)
        if not 0 < self.fraction < 1:
            raise ValueError(f"images.fraction is {self.fraction}, expected a fraction above 0 and below 1.")
        for name in ("batch_size", "crop_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"images.{name} must be at least 1, got {getattr(self, name)}.")
        if not self.masks:
            raise ValueError("images.masks is empty; give at least one mask set, like {type: multi_block}.")


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of one pretraining run; published values are in configs/published/."""

    data: str | list[DataSource]
    """Folder, glob or file of shards, videos or images, or a dataset on the Hub; or several with weights:
    [{path: videos, weight: 0.7}, {path: images, weight: 0.3}]. An image becomes a clip of equal frames."""
    max_skipped_fraction: float | None = 0.5
    """Largest fraction of unreadable rows of a source; above it the run stops. Each reader (a worker of a process)
    counts its own rows, from 20 on. null: no limit. Unreadable rows are logged to skipped.jsonl."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""

    shuffle_buffer: int = SHUFFLE_ROWS
    """Rows of undecoded videos that each reader keeps and samples the next one from. 0: rows keep their order within
    shards, of which only the order is random. See docs/pretraining.md."""
    shuffle_bytes: int = SHUFFLE_BYTES
    """Largest size of these rows together, in bytes."""
    video_cache_bytes: int = 0
    """Memory in bytes in which each reader keeps decoded videos, so that later epochs do not decode them again. The
    clips are the same. 0: none is kept. See docs/pretraining.md."""

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

    images: ImageSettings | None = None
    """Images beside the clips, see docs/pretraining.md; null: none."""

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
    normalize_targets: Literal["layer", "batch", "batch_channel", "clip", "position", "none"] = "layer"
    target_type: Literal["ema", "online", "pixels", "teacher"] = "ema"
    """Targets: the latents of the target encoder, those of the encoder itself (they collapse), pixels, or the latents
    of `teacher`."""
    teacher: str | None = None
    """With target_type=teacher: the folder or Hub id of a frozen encoder to learn from, which checkpoints do not hold.
    Its width is predictor.teacher_hidden_size."""
    context_loss_weight: float | None = None
    """Weight of the loss of the context's own tokens, with predictor.predict_context (V-JEPA 2.1: 0.5); null: that of
    init_from, otherwise 0."""
    context_loss_warmup: tuple[int, int] | None = None
    """Steps between which that weight rises linearly from 0 (V-JEPA 2.1: [15000, 30000]); null: it is constant."""
    weight_context_by_distance: bool = False
    """Weight 1 / √d of a context token, d its distance in tokens to the nearest hidden one."""
    temporal_diversity_weight: float = 0.0
    """Weight of -Var_t of the predictions (the temporal recipe: 0.1)."""
    temporal_contrastive_weight: float = 0.0
    """Weight of InfoNCE between predictions and targets of different clips (the temporal recipe)."""
    temporal_contrastive_temperature: float = 0.1
    temporal_contrastive_negatives: Literal["clips", "times"] = "clips"
    """Negatives: other clips, or other times of the same clip, which what a clip always shows does not separate."""
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
    skip_loss_spikes: float | None = None
    """A step is skipped if its loss is this many standard deviations above the mean of the last 300; null: none is."""

    # Evaluation; it does not change what is learned
    eval_every: int | None = None
    """Steps between two evaluations, with one more at the end; null: none."""
    eval_data: str | None = None
    """Held-out clips, as in `data`. Their loss is logged as eval_loss."""
    eval_clips: int = 256
    """Largest number of clips of eval_data, over all processes."""
    eval_probe_data: str | None = None
    """Labeled clips, one folder per class or a column `label`; all are used. The accuracy of nearest neighbors on the
    target encoder's features is logged as eval_probe_accuracy."""

    schedule_settings = (
        "max_steps", "learning_rate", "ema", "weight_decay", "context_loss_weight", "context_loss_warmup",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        for name in {"crop_size", "frames_per_clip"} & self.encoder.keys():
            raise ValueError(f"encoder.{name} is the {name} of the clips; set {name}={self.encoder[name]} alone.")
        self.require_positive("eval_every", "eval_clips")
        if (self.eval_every is None) != (self.eval_data is None and self.eval_probe_data is None):
            raise ValueError(
                f"eval_every is {self.eval_every}, eval_data {self.eval_data!r} and eval_probe_data "
                f"{self.eval_probe_data!r}; set eval_every and at least one of the others, or none of them."
            )
        if not self.masks:
            raise ValueError("masks is empty; give at least one mask set, like {type: multi_block, num_blocks: 8}.")
        last = self.curriculum.stages[-1][1] if self.frames_curriculum is not None else self.frames_per_clip
        if last != self.frames_per_clip:
            raise ValueError(
                f"frames_curriculum ends with {last} frames, but frames_per_clip is {self.frames_per_clip}."
            )
        if self.torch_compile is not None:
            check_known(self.torch_compile, torch.compiler.list_backends(exclude_tags=()), "backend of torch_compile")
        self._check_context_loss()
        if (self.target_type == "teacher") != (self.teacher is not None):
            raise ValueError(f"target_type is {self.target_type} and teacher {self.teacher!r}; set both, or neither.")
        if self.skip_loss_spikes is not None and not self.skip_loss_spikes > 0:
            raise ValueError(f"skip_loss_spikes is {self.skip_loss_spikes}, expected a number above 0, or null.")
        if self.init_from and (self.encoder or self.predictor):
            raise ValueError("init_from determines the model's sizes; remove the fields of `encoder` and `predictor`.")

    def _check_context_loss(self) -> None:
        weight, warmup = self.context_loss_weight, self.context_loss_warmup
        if weight is not None and not weight >= 0:
            raise ValueError(f"context_loss_weight is {weight}, expected a number of at least 0, or null.")
        if warmup is not None and (weight is None or not 0 <= warmup[0] < warmup[1]):
            raise ValueError(
                f"context_loss_warmup is {warmup} and context_loss_weight {weight}; expected two rising steps and the "
                "weight that the second one reaches, or null."
            )

    @property
    def curriculum(self) -> FramesCurriculum:
        """Frames per clip by step or epoch. Workers count their batches, so they know the step."""
        stages, micro_batches = self.frames_curriculum or [(0, self.frames_per_clip)], self.gradient_accumulation_steps
        return FramesCurriculum(stages, self.batch_size, micro_batches, by=self.frames_curriculum_by)

    @property
    def by_modality(self) -> dict[str, "PretrainConfig"]:
        """The settings of the batches of each modality, "video" and, with `images`, "image": clips of one frame."""
        if self.images is None:
            return {"video": self}
        own = {name: value for name, value in vars(self.images).items() if name not in ("fraction", "by")}
        given = {name: value for name, value in own.items() if value is not None}
        still = {"fps": None, "speed": (1.0, 1.0), "frame_jitter": 0.0, "motion_weight": 0.0, "clips_per_video": 1}
        # Images must not be cropped and masked by the random numbers of the clips
        still |= {"frames_per_clip": 1, "frames_curriculum": None, "seed": self.seed ^ 2**31, "images": None}
        still["video_cache_bytes"] = 0  # one frame is no reason to decode a whole video
        return {"video": self, "image": dataclasses.replace(self, **still, **given)}

    def divide(self, rank: int, processes: int) -> dict[str, "Part"]:
        """What a process trains on, by modality: "video", "image", or both.

        Raises:
            ValueError: the fraction of images is no whole number of processes.
        """
        images = self.images
        if images is None:
            return {"video": Part(rank, processes, 1.0)}
        if images.by == "batch" or processes == 1:
            weights = {"video": 1 - images.fraction, "image": images.fraction}
            return {modality: Part(rank, processes, weight) for modality, weight in weights.items()}
        wanted = images.fraction * processes
        number = round(wanted)
        if not math.isclose(number, wanted) or not 0 < number < processes:
            raise ValueError(
                f"images.fraction={images.fraction:g} of {processes} processes is {wanted:g}, expected a whole number "
                "that leaves processes for clips; change the fraction or the number of processes, or set "
                "images.by=batch."
            )
        clips = processes - number  # they come first: the main process logs the meters of clips
        return {"video": Part(rank, clips, 1.0)} if rank < clips else {"image": Part(rank - clips, number, 1.0)}

    def samples_per_step(self, num_processes: int) -> int:
        """Clips and images per step over all processes and micro-batches."""
        parts = [self.divide(rank, num_processes) for rank in range(num_processes)]
        sizes = {"video": self.batch_size, "image": self.images and self.images.batch_size or self.batch_size}
        return self.gradient_accumulation_steps * sum(sizes[modality] for part in parts for modality in part)

    @property
    def split_settings(self) -> tuple[str, ...]:
        """A frames curriculum counts micro-batches, which then have to stay. Images with a batch size of their own
        keep the ratio of both."""
        if self.frames_curriculum:
            return ()
        if self.images is None:
            return super().split_settings
        return (
            "gradient_accumulation_steps",
            "images.by",
            *(["batch_size"] if self.images.batch_size is None else []),
        )

    def scheduled(self, step: int) -> dict[str, float]:
        """Learning rate, momentum of the target encoder, weight decay, weight of the context's loss, and frames per
        clip of a curriculum by step."""
        decay = self.weight_decay
        decay = decay if isinstance(decay, WeightDecaySchedule) else WeightDecaySchedule(start=decay)
        values = {
            **super().scheduled(step),
            # an online encoder as target is an average that keeps nothing
            "ema_momentum": 0.0 if self.target_type == "online" else self.ema.at(step, self.max_steps),
            "weight_decay": decay.at(step, self.max_steps),
        }
        if self.context_loss_weight is not None:
            first, last = self.context_loss_warmup or (-1, 0)
            rise = linear(max(step - first, 0), last - first, start=0.0, final=self.context_loss_weight)
            values["context_loss_weight"] = rise
        if self.frames_curriculum and self.frames_curriculum_by == "step":
            values["frames_per_clip"] = self.curriculum.frames_at(step - 1)
        return values


@dataclass(frozen=True)
class Part:
    """What a process trains on of one modality.

    Attributes:
        rank, processes: its number among the processes that read this modality, and theirs.
        weight: of the loss in that of the process.
    """

    rank: int
    processes: int
    weight: float


def check_model(config: PretrainConfig, model_config: VJepa2MaskedLatentPredictionConfig) -> None:
    """Refuses clips and images that patches and tubelets do not divide, clips too short for the normalization of
    targets, mask sets without a mask token, and masks of images that need several frames."""
    encoder, tokens = model_config.encoder_config, model_config.num_mask_tokens
    image = config.by_modality.get("image", config)
    for name, value, unit in (
        ("crop_size", config.crop_size, encoder.patch_size),
        ("images.crop_size", image.crop_size, encoder.patch_size),
        ("frames_per_clip", config.frames_per_clip, encoder.tubelet_size),
    ):
        if value < unit or value % unit:
            raise ValueError(f"{name}={value} must be a multiple of the encoder's {unit} (patch or tubelet), above 0.")
    if model_config.normalize_targets == "position":
        fewest = min(frames for _, frames in config.curriculum.stages) // encoder.tubelet_size
        found = f"clips of {fewest} time step" if fewest < 2 else "images" if config.images is not None else None
        if found is not None:
            raise ValueError(
                f"normalize_targets=position subtracts the mean over time, which leaves nothing of {found}; train on "
                "clips of at least 2 tubelets alone, or set another normalize_targets."
            )
    index = config.mask_token_index
    if index is not None and not 0 <= index < tokens:
        raise ValueError(
            f"mask_token_index={index} is not one of the predictor's {tokens} mask tokens, 0 to {tokens - 1}."
        )
    most = max(len(config.masks), len(image.masks))
    if index is None and most > tokens:
        raise ValueError(
            f"{most} mask sets are more than the predictor's {tokens} mask tokens; set "
            f"predictor.num_mask_tokens={most}, or mask_token_index=0 to share one."
        )
    if config.images is not None:
        side = image.crop_size // encoder.patch_size
        for sampler in build_mask_samplers(image.masks):
            sampler(1, (1, side, side), torch.Generator().manual_seed(0))


def freeze_idle_weights(model: VJepa2ForMaskedLatentPrediction, config: PretrainConfig) -> None:
    """Freezes the weights of V-JEPA 2.1 that no batch of this run reads: those of images in a run on videos, and the
    norms of levels that the predictor does not read. FSDP cannot resume without optimizer states."""
    encoder, predictor = model.encoder, model.predictor
    idle = [] if model.config.predictor_levels else [encoder.level_norms]
    if config.images is None:
        idle += [encoder.image_patch_embeddings, encoder.image_modality_embedding, predictor.image_modality_embedding]
    for part in idle:
        if part is not None:
            part.requires_grad_(False)


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
    """The settings of the objective, which are fields of the model's config too; one that is null stays as it is."""
    names = {field.name for field in dataclasses.fields(VJepa2MaskedLatentPredictionConfig)}
    return {name: value for name, value in vars(config).items() if name in names and value is not None}
