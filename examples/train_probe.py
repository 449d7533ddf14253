"""Trains probes on an encoder's frozen features, or the encoder with them, and reports what they know of the labels.

    accelerate launch examples/train_probe.py --config examples/configs/demo/probe.yaml [key=value ...]

One process on a CPU, in a few minutes, after the demo (or with any folder of videos, one folder a class):

    python examples/record_moving_digits.py --output runs/digits/train --split train --videos 1500 --frames 8
    python examples/train_probe.py --config examples/configs/demo/probe.yaml encoder=runs/demo/pretrain/final

`kind` is linear (a map of the tokens' average), attentive (published: self-attention blocks, then a query), knn, or
finetune (the encoder learns too, lower blocks slower). Features are computed once and kept in `cache_dir`, where later
runs on the same encoder, views and data find them (delete it when you like); then all heads of the sweep
`learning_rates` x `weight_decays` learn at once from the same batches. A stopped run goes on with `resume=latest`.

The best head is chosen on training clips held out for that, and `OUTPUT_DIR/results.json` reports it on the validation
clips, with all others. `choose_on=validation`, as published numbers are chosen, is optimistic, and the report says so.
The result is `OUTPUT_DIR/final` (of k-NN it holds the training clips' features):

    pipeline("video-classification", model="runs/probe/final")("clip.mp4")       # after `import vjepa2_hf`
"""

import functools
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2VideoProcessor,
)
from vjepa2_hf.data.clips import Augmentation
from vjepa2_hf.data.episodes import split_episodes
from vjepa2_hf.data.feature_cache import FeatureCache, data_fingerprint, finish_cache, is_finished
from vjepa2_hf.data.files import cache_key, locked, weights_fingerprint, write_json
from vjepa2_hf.data.windows import WindowBatches, WindowMixture
from vjepa2_hf.modeling_predictor import VJepa2Predictor
from vjepa2_hf.probing.labeled_clips import ClipViews, LabelledClips, LabelledPart, Labels, ProblemType, fill_cache
from vjepa2_hf.probing.scores import SCORES, draw_confusion_picture, guess_without_looking, measure
from vjepa2_hf.probing.sweep import FineTuning, ProbeSweep
from vjepa2_hf.training.monitor import gradient_norm
from vjepa2_hf.training.run import Run, check_run_settings, check_tracker
from vjepa2_hf.training.schedules import warmup_cosine
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


logger = logging.getLogger("train_probe")

RATE_SETTINGS = ("max_steps", "warmup_steps")
PARTS = ("training", "held_out", "validation")
HEAD_SETTINGS = ("learning_rate", "weight_decay", "neighbours")  # in results.json beside the scores of each part


@dataclass
class ProbeConfig:
    """Settings of one run; published values are in configs/published/probe_*.yaml."""

    output_dir: str
    data: str
    """Labelled clips: folder, glob or file of shards, videos or images, or a dataset on the Hub. Plain files have the
    name of their folder as label."""
    encoder: str
    """Folder or Hub id of a model."""
    validation_data: str | None = None
    """Clips that the result is reported on; null: `validation_fraction` of `data`."""
    validation_fraction: float = 0.2
    """Share of the clips of `data` that are validation where there is no validation_data, by a hash of their names."""
    evaluate_on: dict[str, str] = field(default_factory=dict)
    """More labelled clips, by a name of your own, that heads are scored on; they choose nothing. A finished run only
    scores them, with `resume=latest`."""
    kind: Literal["linear", "attentive", "knn", "finetune"] = "attentive"
    random_weights: bool = False
    """The encoder's architecture alone: what is known without pretraining."""

    # Labels
    label: str = "label"
    """The column."""
    problem_type: ProblemType | None = None
    """null: one class a clip, ints or strings."""
    labels_per_frame: bool = False
    """The column holds a list with a label for each frame; a tubelet has that of its last one."""
    label_fraction: float = 1.0
    """Share of the training clips that are used, drawn by the seed: what few labels are worth."""
    selection_fraction: float = 0.1
    """Share of the training clips held out to choose the head, by a hash of their names."""
    choose_on: Literal["held_out", "validation"] = "held_out"
    """validation, as published numbers are chosen, is optimistic: they are the best of many on the reported clips."""

    # Views
    frames_per_clip: int = 16
    fps: float | None = None
    """Frames a second of a clip; null: the video's own."""
    speed: float = 1.0
    """Clips are played so many times faster; with fps=null, 4 takes every fourth frame."""
    segments: int = 1
    """Clips of a video, spread evenly, whose probabilities are averaged."""
    crops: int = 1
    """Squares along the longer side of the frame, averaged too; 1: what the processor sees."""
    training_views: int = 1
    """Views of a training clip: clips spread evenly, or drawn with `augmentation`. Each is encoded once."""
    augmentation: Augmentation | None = None
    shuffle_time: bool = False
    """The frames of every clip in random order: a control for what their order tells."""
    crop_size: int | None = None
    """Pixels; null: the encoder's own processor."""

    # Anticipation
    anticipate_frames: int | None = None
    """A clip ends so many frames before its video does, and the label is of the video's end; null: a clip lies in the
    middle of its video."""
    predicted_frames: int = 0
    """Attentive probes also read the tokens that the predictor expects of the last so many of these frames (`encoder`
    is then a masked-latent model), as the published evaluation of anticipation does with one tubelet."""

    # Features
    cache_dir: str | None = None
    """null: `features` beside output_dir."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    encode_batch_size: int = 16
    """Views encoded at once."""

    # Heads
    head: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2VideoClassificationConfig, such as num_pooler_layers, pooler_num_attention_heads and
    encoder_layers; of finetune also pooler_type."""
    learning_rates: list[float] = field(default_factory=lambda: [5e-3, 3e-3, 1e-3, 3e-4, 1e-4])
    """Peaks; with weight_decays the sweep. finetune takes one of each."""
    weight_decays: list[float] = field(default_factory=lambda: [0.01, 0.1, 0.4, 0.8])
    warmup_steps: int = 0
    layer_decay: float = 0.75
    """Of finetune: each block learns so many times slower than the one above it."""
    standardize: bool = False
    """Linear and k-NN: features minus their mean over their deviation, on the training clips; folded into the head."""
    neighbours: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    """Of knn: the numbers of neighbours to choose from."""

    # Length and speed
    max_steps: int = 1000
    batch_size: int = 64
    """Views a process."""
    seed: int = 0
    num_workers: int = 0
    num_threads: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: as `accelerate launch` says."""
    gradient_checkpointing: bool = False
    gradient_clipping: float | None = None
    """Largest norm of the gradient of all heads together; null: any."""
    log_every: int = 10
    save_every: int = 500
    keep_last: int | None = 2
    resume: str | None = None
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None

    def __post_init__(self):
        check_run_settings(self)
        taken = [name for name in self.evaluate_on if name in PARTS + HEAD_SETTINGS]
        if taken:
            raise ValueError(f"evaluate_on has {taken[0]!r}, a name that this script uses itself; give another.")
        for name in ("validation_fraction", "selection_fraction", "label_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share, 0 to 1.")
        if not self.learning_rates or not self.weight_decays or min(*self.learning_rates, *self.weight_decays, 0) < 0:
            raise ValueError("learning_rates and weight_decays must each hold at least one number, none below 0.")
        if self.kind == "finetune" and len(self.sweep) > 1:
            raise ValueError(
                f"finetune trains one model, but there are {len(self.sweep)} settings; give one of learning_rates and "
                "one of weight_decays."
            )
        if self.kind == "knn" and (not self.neighbours or min(self.neighbours) < 1 or self.labels_per_frame):
            raise ValueError("knn needs neighbours, at least 1 each, and one label a clip (labels_per_frame=false).")
        possible = self.anticipate_frames if self.kind in ("attentive", "finetune") else 0
        if not 0 <= self.predicted_frames <= (possible or 0):
            raise ValueError(
                f"predicted_frames is {self.predicted_frames}, but 0 to anticipate_frames, with kind attentive or "
                f"finetune, are expected; these are {self.anticipate_frames} and {self.kind}."
            )
        if self.kind in ("linear", "attentive", "knn") and "pooler_type" in self.head:
            raise ValueError(f"head.pooler_type is what kind={self.kind} says; remove it.")

    @property
    def sweep(self) -> list[tuple[float, float]]:
        return [(rate, decay) for decay in self.weight_decays for rate in self.learning_rates]

    def steps(self, tubelet: int) -> int:
        """T' of what heads read; the encoder takes a clip shorter than a tubelet as one."""
        return max(1, self.frames_per_clip // tubelet) + self.predicted_frames // tubelet

    @property
    def pooled(self) -> bool:
        """Whether averages are kept instead of tokens."""
        return self.kind in ("linear", "knn")


def rates(config: ProbeConfig, step: int) -> dict[str, float]:
    """What the number of a step decides, from RATE_SETTINGS: the share of its peak that every learning rate has."""
    return {"share": warmup_cosine(step, config.max_steps, peak=1.0, warmup_steps=config.warmup_steps)}


# ---------------------------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class Backbone:
    """What is frozen: an encoder, and with predicted_frames the predictor that was trained with it."""

    encoder: VJepa2Encoder
    predictor: VJepa2Predictor | None = None


def build_backbone(config: ProbeConfig) -> Backbone:
    """The trained parts, or those of their architecture with random weights; the encoder remembers the clips it sees
    here."""
    kind = VJepa2ForMaskedLatentPrediction if config.predicted_frames else VJepa2Encoder
    model = kind.from_pretrained(config.encoder)
    if config.random_weights:
        torch.manual_seed(config.seed)
        model = kind(model.config)
    model = model.float().eval()
    found = Backbone(model.target_encoder, model.predictor) if config.predicted_frames else Backbone(model)
    found.encoder.config.frames_per_clip = config.frames_per_clip
    return found


def build_classifier(
    config: ProbeConfig, backbone: Backbone, labels: Labels | None, **more: int
) -> VJepa2ForVideoClassification:
    """The classifier that the settings, and `more` fields, describe; without labels, for its features alone."""
    pooler = {"linear": "linear", "knn": "linear", "attentive": "attentive"}.get(config.kind)
    fields = {**config.head, **more, "labels_per_frame": config.labels_per_frame}
    fields |= {"pooler_type": pooler} if pooler else {}
    if labels is not None:
        names = dict(enumerate(labels.names))
        fields |= {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        fields |= {"problem_type": labels.problem_type}
    if backbone.predictor is not None:
        fields["predicted_frames"] = config.predicted_frames
        fields["skipped_frames"] = config.anticipate_frames - config.predicted_frames
    return VJepa2ForVideoClassification.from_encoder(backbone.encoder, backbone.predictor, **fields)


def build_encode(config: ProbeConfig, accelerator: Accelerator, backbone: Backbone, processor):
    """A function from uint8 views (B, T, C, H, W) to the cache's column: features, or for fine-tuning the frames."""
    if config.kind == "finetune":
        return lambda frames: {"frames": frames}
    model = build_classifier(config, backbone, None).to(accelerator.device).eval()
    dtype = getattr(torch, config.cache_dtype)

    @torch.no_grad()
    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = []
        for part in frames.split(config.encode_batch_size):
            with accelerator.autocast():
                tokens, steps = model.encode_tokens(processor.normalize_cropped(part.to(accelerator.device)))
                parts.append((model.pool(tokens, steps) if config.pooled else tokens).to("cpu", dtype))
        return {"features": torch.cat(parts)}

    return encode


def evaluation_views(config: ProbeConfig) -> ClipViews:
    """The views that probabilities are averaged over."""
    views = (config.frames_per_clip, config.fps, config.speed, config.segments, config.crops, None)
    return ClipViews(*views, config.shuffle_time, anticipate_frames=config.anticipate_frames)


def training_views(config: ProbeConfig) -> ClipViews:
    """The views that heads learn from."""
    random = asdict(config.augmentation) if config.augmentation else None
    seed = config.seed if random else 0
    views = (config.frames_per_clip, config.fps, config.speed, config.training_views, 1, random, config.shuffle_time)
    return ClipViews(*views, seed, anticipate_frames=config.anticipate_frames)


def falls_to(config: ProbeConfig, name: str) -> str:
    """Which part a clip of `data` belongs to, by a hash of its name alone."""
    if config.validation_data is None and split_episodes([f"validation {name}"], config.validation_fraction)[0]:
        return "validation"
    return "held_out" if split_episodes([f"selection {name}"], config.selection_fraction)[0] else "training"


def is_evaluated(config: ProbeConfig, name: str) -> bool:
    return falls_to(config, name) != "training"


def is_training(config: ProbeConfig, name: str) -> bool:
    return falls_to(config, name) == "training"


def open_caches(config, accelerator, backbone: Backbone, processor) -> tuple[dict[str, FeatureCache], float]:
    """The cache of each part, filled first where no run has done so, and the seconds that took. Parts with the same
    views of the same data share one."""
    learned, evaluated = training_views(config), evaluation_views(config)
    same = learned == evaluated
    fractions = (config.validation_data is None and config.validation_fraction, config.selection_fraction)
    wanted = {
        "training": (config.data, learned, None if same else is_training),
        "held_out": (config.data, evaluated, None if same else is_evaluated),
    }
    wanted["validation"] = wanted["held_out"] if config.validation_data is None else None
    wanted["validation"] = wanted["validation"] or (config.validation_data, evaluated, None)
    wanted |= {name: (data, evaluated, None) for name, data in config.evaluate_on.items()}
    depends_on = {"version": 1, "processor": processor.to_dict(), **describe_features(config, accelerator, backbone)}
    root = Path(config.cache_dir) if config.cache_dir else Path(config.output_dir).resolve().parent / "features"
    caches, started, encode = {}, time.perf_counter(), None
    for part, (data, views, filter_) in wanted.items():
        described = {"data": data_fingerprint(data), "views": asdict(views), **depends_on}
        described |= {"part": None if filter_ is None else (filter_.__name__, fractions)}
        folder = root / f"{Path(data).name}-{cache_key(described)}"
        with locked(folder, accelerator, wait=True):
            if not is_finished(folder):
                encode = encode or build_encode(config, accelerator, backbone, processor)
                select = None if filter_ is None else functools.partial(filter_, config)
                rank, processes = accelerator.process_index, accelerator.num_processes
                stream = LabelledClips(data, views, processor, select, rank=rank, world_size=processes)
                fill_cache(folder, stream, encode, accelerator, config.num_workers, config.encode_batch_size)
                if accelerator.is_main_process:
                    finish_cache(folder, {"path": data, **described})
            accelerator.wait_for_everyone()
        caches[part] = FeatureCache(folder, ("frames" if config.kind == "finetune" else "features", "frame_indices"))
        caches[part].warn_of_skipped()
    return caches, time.perf_counter() - started


def describe_features(config: ProbeConfig, accelerator: Accelerator, backbone: Backbone) -> dict[str, Any]:
    """What features depend on, beside the views."""
    if config.kind == "finetune":
        return {"frames": True}
    encoder, predictor = backbone.encoder, backbone.predictor
    sizes = {name: value for name, value in encoder.config.to_diff_dict().items() if name != "transformers_version"}
    kept = f"averages{' a tubelet' if config.labels_per_frame else ''}" if config.pooled else "tokens"
    return {
        "encoder": sizes,
        "weights": weights_fingerprint(encoder),
        "layers": config.head.get("encoder_layers"),
        "predictor": predictor and [weights_fingerprint(predictor), config.predicted_frames, config.anticipate_frames],
        "kept": kept,
        "dtype": config.cache_dtype,
        "precision": accelerator.mixed_precision,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Clips and labels
# ---------------------------------------------------------------------------------------------------------------------
def split_clips(config: ProbeConfig, caches: dict[str, FeatureCache]) -> dict[str, torch.Tensor]:
    """Numbers of each part's clips in its cache; of the training clips only the labelled share.

    Raises:
        ValueError: a part has no clip.
    """
    clips = {}
    for part, cache in caches.items():
        ids = cache.ids
        if part in config.evaluate_on or (part == "validation" and config.validation_data is not None):
            clips[part] = torch.arange(len(ids))
            continue
        mine = torch.tensor([falls_to(config, name) == part for name in ids])
        if part != "validation":
            labelled = [f"label {config.seed} {name}" for name in ids]
            # one by one: by its hash alone, as the parts are
            mine &= torch.tensor([split_episodes([name], config.label_fraction)[0] for name in labelled])
        clips[part] = mine.nonzero().squeeze(1)
    needed = [part for part in caches if part != "held_out" or config.choose_on == "held_out"]
    empty = [part for part in needed if not len(clips[part])]
    if empty:
        counts = ", ".join(f"{len(chosen)} {part}" for part, chosen in clips.items())
        raise ValueError(
            f"There is no {' and no '.join(empty)} clip (there are {counts}): give more data, or change "
            "validation_fraction, selection_fraction or label_fraction."
        )
    return clips


def open_parts(config, caches: dict[str, FeatureCache], tubelet: int) -> tuple[dict[str, LabelledPart], Labels]:
    """The parts with their labels, whose classes are those of all `PARTS` together."""
    clips = split_clips(config, caches)
    rows = [caches[part].notes["row"][i] for part in PARTS for i in clips[part].tolist()]
    labels = Labels.describe(rows, config.label, config.problem_type, config.labels_per_frame)
    return {
        part: LabelledPart(caches[part], clips[part], labels, tubelet) for part in caches if len(clips[part])
    }, labels


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------
def one_view(step: int) -> int:
    """The views of a training window, whatever the step."""
    return 1


def build_loader(config: ProbeConfig, training: LabelledPart, accelerator: Accelerator, start: int) -> DataLoader:
    """Batches of views from the step after `start` on."""
    mixture = WindowMixture([training.cache], [training.clips], [1.0])
    rank, processes = accelerator.process_index, accelerator.num_processes
    batches = WindowBatches(mixture, config.batch_size, one_view, 1, config.seed, rank, processes)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, config.max_steps),
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
        # of its own: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


def model_inputs(config: ProbeConfig, values: torch.Tensor, processor, device) -> torch.Tensor:
    """A column's rows (B, ...) as the heads take them."""
    values = values.to(device)
    return processor.normalize_cropped(values) if config.kind == "finetune" else values.float()


def feature_statistics(config: ProbeConfig, training: LabelledPart) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation (D,) of the training clips' averages."""
    if not (config.standardize and config.pooled):
        return None
    values = torch.cat([training.read(part, "features").float().flatten(0, -2) for part in training.clips.split(1024)])
    return values.mean(0), values.std(0).clamp(min=1e-6)


def label_statistics(labels: Labels, training: LabelledPart) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation (C,) of the labels of a regression."""
    if labels.problem_type != "regression":
        return None
    values = training.targets[training.clips].flatten(0, -2)
    deviation = values.std(0)
    return values.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def build_sweep(
    config: ProbeConfig, model: VJepa2ForVideoClassification, labels: Labels, training: LabelledPart
) -> ProbeSweep:
    """All heads, or the classifier that is fine-tuned."""
    scale = label_statistics(labels, training)
    if config.kind == "finetune":
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return FineTuning(model, config.sweep[0], config.layer_decay, scale)
    return ProbeSweep(model, config.sweep, feature_statistics(config, training), scale, config.gradient_checkpointing)


def train_step(run: Run, sweep, optimizer, batch, training: LabelledPart, processor, step: int) -> dict[str, Any]:
    """One update of all heads. Returns the mean and the lowest of their losses, means over processes."""
    config, accelerator = run.config, run.accelerator
    share = rates(config, step)["share"]
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    windows = batch["windows"]
    targets = training.targets[windows[:, 1]]
    if config.labels_per_frame:
        targets = targets[torch.arange(len(windows)), windows[:, 2]]
    column = "frames" if config.kind == "finetune" else "features"
    inputs = model_inputs(config, batch[column].squeeze(1), processor, accelerator.device)
    losses = sweep(inputs, targets.to(accelerator.device), config.steps(training.tubelet))
    accelerator.backward(losses.sum())  # each head's gradient is of its own loss alone
    means = accelerator.reduce(losses.detach().float(), "mean")
    norm = gradient_norm(accelerator, sweep.parameters(), config.gradient_clipping)
    names = [f"{training.cache.ids[clip]}, view {view}" for _, clip, view in windows.tolist()]
    run.check_finite(step, means.mean().item(), norm, [losses.mean().item()], [names])
    optimizer.step()
    optimizer.zero_grad()
    learning_rate = max(config.learning_rates) * share
    loss, best = means.mean().item(), means.min().item()
    return {"loss": loss, "best_loss": best, "gradient_norm": norm, "learning_rate": learning_rate}


def train_heads(run: Run, sweep, optimizer, training: LabelledPart, processor, start: int) -> None:
    """The steps from `start` to the end, with logs and checkpoints."""
    config, accelerator = run.config, run.accelerator
    batches = iter(build_loader(config, training, accelerator, start))
    clock, logged = time.perf_counter(), start
    steps = range(start + 1, config.max_steps + 1)
    with tqdm(
        steps, initial=start, total=config.max_steps, disable=not accelerator.is_main_process, desc=config.kind
    ) as progress:
        for step in progress:
            numbers = train_step(run, sweep, optimizer, next(batches), training, processor, step)
            if step % config.log_every == 0 or step == config.max_steps:
                clips = (step - logged) * config.batch_size * accelerator.num_processes
                run.log({"step": step, **numbers, "clips_per_second": clips / (time.perf_counter() - clock)})
                progress.set_postfix(loss=f"{numbers['loss']:.4f}")
                clock, logged = time.perf_counter(), step
            if step % config.save_every == 0 or step == config.max_steps:
                run.save_checkpoint(step)


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def score_clips(config: ProbeConfig, sweep: ProbeSweep, model, part: LabelledPart, processor, device) -> torch.Tensor:
    """What each head says of a part's clips, float32 (H, E, C): probabilities, the mean over views, or numbers. With
    labels per frame every view's tubelets stand one after the other, (H, E · V · T', C)."""
    column = "frames" if config.kind == "finetune" else "features"
    found = []
    for clips in part.clips.split(max(1, config.batch_size // int(part.cache.lengths[0]))):
        values = part.read(clips, column)
        inputs = model_inputs(config, values.flatten(0, 1), processor, device)
        logits = sweep.predictions(sweep.logits(inputs, config.steps(part.tubelet))).float()
        if not config.labels_per_frame:
            by_view = logits.unflatten(1, values.shape[:2])
            logits = model.mean_over_views(by_view.flatten(0, 1)).unflatten(0, by_view.shape[:2])
        found.append(logits.flatten(1, -2).cpu())
    logits = torch.cat(found, dim=1)
    kind = model.config.problem_type
    if kind == "regression":
        return logits
    return logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(dim=-1)


def report(
    config: ProbeConfig, parts: dict[str, LabelledPart], labels: Labels, scores: dict, settings: list[dict]
) -> dict:
    """What is written to results.json: the chosen setting on validation, and all others.

    Args:
        scores: of "held_out" (where there are such clips), "validation" and each of `evaluate_on`, (H, E, C).
        settings: what differs between the H rows.
    """
    targets = {part: parts[part].flat_targets for part in parts}
    heads = [
        {**setting, **{part: measure(labels, values[i].numpy(), targets[part]) for part, values in scores.items()}}
        for i, setting in enumerate(settings)
    ]
    name = SCORES[labels.problem_type]
    best = max(range(len(heads)), key=lambda i: heads[i][config.choose_on][name])
    where = "validation (optimistic: the best of all on the clips that are reported)"
    if config.choose_on == "held_out":
        where = f"{config.selection_fraction:g} of the training clips, held out"
    return {
        "kind": config.kind,
        "encoder": config.encoder,
        "random_weights": config.random_weights,
        "label": config.label,
        "problem_type": labels.problem_type,
        "labels": len(labels.names),
        "score": name,
        "validation": heads[best]["validation"],
        "same_answer_for_all": guess_without_looking(labels, targets["training"], targets["validation"]),
        "evaluate_on": {name: heads[best][name] for name in config.evaluate_on},
        "chosen": best,
        "chosen_by": f"{name} on {where}",
        "heads": heads,
        "clips": {part: len(found.clips) for part, found in parts.items()},
        "skipped": {part: len(found.cache.skipped) for part, found in parts.items() if found.cache.skipped},
    }


def write_results(
    config: ProbeConfig, results: dict, labels: Labels, parts: dict[str, LabelledPart], scores: dict
) -> None:
    """results.json, confusion.png, and a line for people."""
    folder = Path(config.output_dir)
    if labels.problem_type == "single_label_classification":
        chosen = scores["validation"][results["chosen"]].numpy()
        draw_confusion_picture(folder / "confusion.png", labels, chosen, parts["validation"].flat_targets)
    write_json(folder / "results.json", results)
    name = results["score"]
    tqdm.write(
        f"{name} {results['validation'][name]:.3f} on {results['clips']['validation']} validation clips (the same "
        f"answer for all: {results['same_answer_for_all']:.3f}); chosen by {results['chosen_by']}"
    )
    for part, found in results["evaluate_on"].items():
        tqdm.write(f"{name} {found[name]:.3f} on {results['clips'][part]} clips of {part}")


def build_neighbours(
    config, backbone: Backbone, labels: Labels, training: LabelledPart
) -> VJepa2ForVideoClassification:
    """A classifier that stores all views of the training clips."""
    features = training.read(training.clips, "features").float()
    targets = training.targets[training.clips]
    if labels.problem_type == "single_label_classification":
        targets = torch.nn.functional.one_hot(targets, len(labels.names))
    stored = {"num_neighbors": max(config.neighbours), "num_stored_views": features.shape[0] * features.shape[1]}
    model = build_classifier(config, backbone, labels, **stored)
    targets = targets.float().repeat_interleave(features.shape[1], dim=0)
    model.classifier.store(features.flatten(0, 1), targets, config.standardize)
    return model


@torch.no_grad()
def neighbour_scores(config: ProbeConfig, model, part: LabelledPart, device) -> torch.Tensor:
    """What each number of `neighbours` says of a part's clips, (H, E, C): the mean over views."""
    features = part.read(part.clips, "features").float()
    scores = model.classifier.scores(features.flatten(0, 1).to(device), config.neighbours)
    return scores.unflatten(1, features.shape[:2]).mean(dim=2).cpu()


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------
def train(config: ProbeConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `results.json` and `final/`."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_tracker(config.log_with)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.log_with, project_dir=config.output_dir
    )
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    accelerator.init_trackers("probe")  # after the folder is this run's alone
    run.check(config.resume, rates, RATE_SETTINGS)  # before hours of encoding
    backbone = build_backbone(config)
    size = config.crop_size
    processor = VJepa2VideoProcessor.from_pretrained(config.encoder, **({"crop_size": size} if size else {}))
    caches, feature_seconds = open_caches(config, accelerator, backbone, processor)
    parts, labels = open_parts(config, caches, backbone.encoder.config.tubelet_size)

    set_seed(config.seed)
    started = time.perf_counter()
    evaluated = {name: part for name, part in parts.items() if name != "training"}
    if config.kind == "knn":
        run.resume(config.resume, rates, RATE_SETTINGS)
        settings = [{"neighbours": count} for count in config.neighbours]
        model = build_neighbours(config, backbone, labels, parts["training"]).to(accelerator.device).eval()
        scores = {name: neighbour_scores(config, model, part, accelerator.device) for name, part in evaluated.items()}
    else:
        settings = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in config.sweep]
        model = build_classifier(config, backbone, labels)
        sweep = build_sweep(config, model, labels, parts["training"])
        optimizer = torch.optim.AdamW(sweep.optimizer_groups(), fused=True)
        sweep, optimizer = accelerator.prepare(sweep.train(), optimizer)
        start, _ = run.resume(config.resume, rates, RATE_SETTINGS)
        train_heads(run, sweep, optimizer, parts["training"], processor, start)
        plain = accelerator.unwrap_model(sweep).eval()
        model.to(accelerator.device)
        scores = {
            name: score_clips(config, plain, model, part, processor, accelerator.device)
            for name, part in evaluated.items()
        }
    seconds = {"features": feature_seconds, "heads": time.perf_counter() - started}

    results = report(config, parts, labels, scores, settings) | {"seconds": seconds}
    if accelerator.is_main_process:
        write_results(config, results, labels, parts, scores)
    if config.kind == "knn":
        model.config.num_neighbors = config.neighbours[results["chosen"]]
    else:
        model.load_state_dict(plain.head_weights(results["chosen"]), strict=False)
    final = run.save_final(model.eval(), processor)
    tqdm.write(f"saved {final}")
    accelerator.end_training()


@exit_on_user_error
def main() -> None:
    train(parse_arguments(ProbeConfig, __doc__))


if __name__ == "__main__":
    main()
