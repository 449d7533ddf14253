# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains probes on the frozen features of an encoder, or fine-tunes the encoder with them, and reports their scores.

    accelerate launch examples/train_probe.py --config examples/configs/demo/probe.yaml [key=value ...]

One process on a CPU, in a few minutes, after the demo (or with any folder of videos that has one folder per class):

    python examples/record_moving_digits.py --output runs/digits/train --split train --videos 1500 --frames 8
    python examples/train_probe.py --config examples/configs/demo/probe.yaml encoder=runs/demo/pretrain/final

Features are computed once; later runs on the same encoder, views and data find them in `cache_dir`. You may delete
them. A stopped run continues with `resume=latest`.

The best head is chosen on held-out training clips; `OUTPUT_DIR/results.json` reports its score and those of all others
on the validation clips. The result is `OUTPUT_DIR/final` (for k-NN it holds the features of the training clips):

    pipeline("video-classification", model="runs/probe/final")("clip.mp4")       # after `import vjepa2_hf`
"""

import functools
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2VideoProcessor,
)
from vjepa2_hf.data.clips import Augmentation
from vjepa2_hf.data.episodes import split_episodes
from vjepa2_hf.data.feature_cache import FeatureCache, data_fingerprint
from vjepa2_hf.data.files import weights_fingerprint
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.modeling_predictor import VJepa2Predictor
from vjepa2_hf.probing.labeled_clips import ClipViews, LabeledClips, LabeledPart, Labels, ProblemType, fill_cache
from vjepa2_hf.probing.scores import compare_heads, score_clips, score_neighbors, write_results
from vjepa2_hf.probing.sweep import FineTuning, ProbeSweep
from vjepa2_hf.training.cached_windows import cache_root, describe_encoder, open_cache, window_loader
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.schedules import LearningRateSchedule
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.video_io import ReadLimits


PARTS = ("training", "held_out", "validation")
HEAD_SETTINGS = ("learning_rate", "weight_decay", "num_neighbors")  # in results.json next to the scores of each part


@dataclass(kw_only=True)
class ProbeConfig(TrainingConfig):
    """Settings of one run; published values are in configs/published/probe_*.yaml."""

    data: str
    """Labeled clips: folder, glob or file of shards, videos or images, a list of "path label" lines, or a dataset on
    the Hub. Plain files are labeled by metadata.csv, or by the last folder that names classes. If the data has splits
    (train/, test/, a column `split`), only `train` is trained on."""
    encoder: str
    """Folder or Hub id of a model."""
    validation_data: str | None = None
    """Clips for the reported scores; null: `validation_fraction` of `data`."""
    validation_fraction: float = 0.2
    """Fraction of the clips of `data` used for validation, by a hash of their names, without validation_data or a
    test split."""
    evaluate_on: dict[str, str] = field(default_factory=dict)
    """More labeled clips, by a name of your choice. Heads are scored on them but not chosen. With `resume=latest` a
    finished run is only scored."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    kind: Literal["linear", "attentive", "knn", "finetune"] = "attentive"
    """linear: a linear layer on the average of the tokens; attentive (published): self-attention blocks, then a query;
    finetune trains the encoder too, lower blocks slower."""
    random_weights: bool = False
    """Use the encoder's architecture with random weights: the baseline without pretraining."""

    # Labels
    label: str = "label"
    """The column."""
    problem_type: ProblemType | None = None
    """null: one class per clip, given as an int or a string."""
    labels_per_frame: bool = False
    """The column holds a list with one label per frame; the label of a tubelet is that of its last frame."""
    label_fraction: float = 1.0
    """Fraction of the training clips that are used, a random subset by seed: measures learning from few labels."""
    selection_fraction: float = 0.1
    """Fraction of the training clips held out to choose the head, by a hash of their names."""
    choose_on: Literal["held_out", "validation"] = "held_out"
    """validation, as for published numbers, is optimistic: it reports the best of many scores on the same clips."""

    # Views
    frames_per_clip: int = 16
    fps: float | None = None
    """Frames per second of a clip; null: the rate of the video."""
    speed: float = 1.0
    """Factor of the playback speed; with fps=null, 4 takes every fourth frame."""
    segments: int = 1
    """Clips spread evenly over a video, whose probabilities are averaged."""
    crops: int = 1
    """Squares along the longer side of the frame, averaged too; 1: the processor's crop."""
    training_views: int = 1
    """Views of a training clip: spread evenly, or random with `augmentation`. Each is encoded once."""
    augmentation: Augmentation | None = None
    shuffle_time: bool = False
    """Shuffle the frames of every clip: a control that shows how much their order matters."""
    crop_size: int | None = None
    """Height and width in pixels; null: those of the encoder's processor."""

    # Anticipation
    anticipate_frames: int | None = None
    """Frames from a clip's end to the end of its video, which the label belongs to; null: clips lie in the middle."""
    predicted_frames: int = 0
    """Attentive probes also take the tokens that the predictor computes for the last of these frames. `encoder` is
    then a masked-latent model; the published evaluation of anticipation uses one tubelet."""

    # Features
    cache_dir: str | None = None
    """null: `features` beside output_dir."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    encode_batch_size: int = 16
    """Views encoded at once."""

    # Heads
    head: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2VideoClassificationConfig, such as num_pooler_layers, pooler_num_attention_heads and
    encoder_layers; for finetune also pooler_type."""
    learning_rates: list[float] = field(default_factory=lambda: [5e-3, 3e-3, 1e-3, 3e-4, 1e-4])
    """Peaks. With weight_decays they form the sweep; finetune needs exactly one of each."""
    weight_decays: list[float] = field(default_factory=lambda: [0.01, 0.1, 0.4, 0.8])
    warmup_steps: int = 0
    layer_decay: float = 0.75
    """For finetune: ratio of the learning rates of a block and of the block above it."""
    standardize: bool = False
    """For linear and knn: standardize features by the statistics of the training clips, folded into the head."""
    num_neighbors: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    """For knn: the numbers of neighbors to choose from."""

    # Length and memory
    batch_size: int = 64
    gradient_checkpointing: bool = False

    schedule_settings = ("max_steps", "warmup_steps")
    renamed_settings = {"neighbours": "num_neighbors"}
    result_files = ("results.json", "confusion.png")

    def __post_init__(self):
        super().__post_init__()
        self.require_fraction("validation_fraction", "selection_fraction", "label_fraction")
        taken = [name for name in self.evaluate_on if name in PARTS + HEAD_SETTINGS]
        if taken:
            raise ValueError(f"evaluate_on has the name {taken[0]!r}, which results.json uses itself; choose another.")
        if not self.learning_rates or not self.weight_decays or min(*self.learning_rates, *self.weight_decays, 0) < 0:
            raise ValueError("learning_rates and weight_decays must each hold at least one number, none below 0.")
        if self.kind == "finetune" and len(self.sweep) > 1:
            raise ValueError(
                f"finetune trains one model, but there are {len(self.sweep)} settings; give one of learning_rates and "
                "one of weight_decays."
            )
        if self.kind == "knn" and (not self.num_neighbors or min(self.num_neighbors) < 1 or self.labels_per_frame):
            raise ValueError("knn needs num_neighbors of at least 1 and one label per clip (labels_per_frame=false).")
        possible = self.anticipate_frames if self.kind in ("attentive", "finetune") else 0
        if not 0 <= self.predicted_frames <= (possible or 0):
            raise ValueError(
                f"predicted_frames is {self.predicted_frames}; expected 0 to anticipate_frames "
                f"({self.anticipate_frames}), and 0 for kinds other than attentive and finetune (kind={self.kind})."
            )
        if self.kind != "finetune" and "pooler_type" in self.head:
            raise ValueError(f"head.pooler_type is determined by kind={self.kind}; remove it.")

    @property
    def sweep(self) -> list[tuple[float, float]]:
        return [(rate, decay) for decay in self.weight_decays for rate in self.learning_rates]

    @property
    def column(self) -> str:
        """The cache's column that heads are trained on."""
        return "frames" if self.kind == "finetune" else "features"

    @property
    def pooled(self) -> bool:
        """Whether averages are cached instead of tokens."""
        return self.kind in ("linear", "knn")

    def num_tubelets(self, tubelet_size: int) -> int:
        """T' of the heads' input; the encoder treats a clip shorter than a tubelet as one tubelet."""
        return max(1, self.frames_per_clip // tubelet_size) + self.predicted_frames // tubelet_size

    def scheduled(self, step: int) -> dict[str, float]:
        """The learning rate as a fraction of each head's peak."""
        schedule = LearningRateSchedule(peak=1.0, warmup_steps=self.warmup_steps)
        return {"learning_rate": schedule.at(step, self.max_steps)}

    def views_at(self, step: int) -> int:
        """Views in a training window."""
        return 1

    def part_of(self, name: str, split: str | None = None) -> str | None:
        """The part that a clip of `data` belongs to, by its split, or by a hash of its name alone; None for a test
        clip beside validation_data."""
        if split == "test":
            return "validation" if self.validation_data is None else None
        own = split is None and self.validation_data is None
        if own and split_episodes([f"validation {name}"], self.validation_fraction)[0]:
            return "validation"
        held_out = split == "validation" or split_episodes([f"selection {name}"], self.selection_fraction)[0]
        return "held_out" if held_out else "training"

    def is_training(self, name: str, split: str | None = None) -> bool:
        return self.part_of(name, split) == "training"

    def is_evaluated(self, name: str, split: str | None = None) -> bool:
        return self.part_of(name, split) in ("held_out", "validation")


class Backbone(NamedTuple):
    """The frozen parts: an encoder and, with predicted_frames, the predictor that was trained with it."""

    encoder: VJepa2Encoder
    predictor: VJepa2Predictor | None = None


def build_backbone(config: ProbeConfig) -> Backbone:
    """The trained parts, or their architecture with random weights. The encoder's config takes frames_per_clip."""
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
    """The classifier that the settings and `more` fields describe; without labels it only computes features."""
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
    """A function from uint8 views (B, T, C, H, W) to the cache's column: features, or frames for fine-tuning."""
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
    """The views whose probabilities are averaged."""
    shared = ("frames_per_clip", "fps", "speed", "segments", "crops", "shuffle_time", "anticipate_frames")
    return ClipViews(**{name: getattr(config, name) for name in shared})


def training_views(config: ProbeConfig) -> ClipViews:
    """The views that heads are trained on."""
    random = {"random_crop": asdict(config.augmentation), "seed": config.seed} if config.augmentation else {}
    return replace(evaluation_views(config), segments=config.training_views, crops=1, **random)


def open_caches(config, accelerator, backbone: Backbone, processor) -> dict[str, FeatureCache]:
    """The cache of each part. Parts with the same views of the same data share one."""
    learned, evaluated = training_views(config), evaluation_views(config)
    same = learned == evaluated
    fractions = (config.validation_data is None and config.validation_fraction, config.selection_fraction)
    wanted = {
        "training": (config.data, learned, None if same else config.is_training),
        "held_out": (config.data, evaluated, None if same else config.is_evaluated),
    }
    own = config.validation_data is None
    wanted["validation"] = wanted["held_out"] if own else (config.validation_data, evaluated, None)
    wanted |= {name: (data, evaluated, None) for name, data in config.evaluate_on.items()}
    depends_on = {"version": 1, "processor": processor.to_dict(), **describe_features(config, accelerator, backbone)}
    encode = functools.cache(functools.partial(build_encode, config, accelerator, backbone, processor))

    def open_part(data: str, views: ClipViews, select: Callable[[str], bool] | None) -> FeatureCache:
        rank, processes = accelerator.process_index, accelerator.num_processes
        stream = LabeledClips(data, views, processor, select, (), rank, processes, config.limits)

        def fill(folder: Path) -> None:
            fill_cache(folder, stream, encode(), accelerator, config.num_workers, config.encode_batch_size)

        part = None if select is None else (select.__name__, fractions)
        description = {"data": data_fingerprint(data), "views": asdict(views), **depends_on, "part": part}
        description |= stream.label_rule()
        columns = (config.column, "frame_indices")
        return open_cache(data, description, cache_root(config, "features"), columns, accelerator, fill)

    return {part: open_part(*arguments) for part, arguments in wanted.items()}


def describe_features(config: ProbeConfig, accelerator: Accelerator, backbone: Backbone) -> dict[str, Any]:
    """Everything that features depend on, except the views."""
    if config.kind == "finetune":
        return {"frames": True}
    predictor = backbone.predictor
    return {
        **describe_encoder(backbone.encoder),
        "layers": config.head.get("encoder_layers"),
        "predictor": predictor and [weights_fingerprint(predictor), config.predicted_frames, config.anticipate_frames],
        "kept": f"averages{' a tubelet' if config.labels_per_frame else ''}" if config.pooled else "tokens",
        "dtype": config.cache_dtype,
        "precision": accelerator.mixed_precision,
    }


def split_clips(config: ProbeConfig, caches: dict[str, FeatureCache]) -> dict[str, torch.Tensor]:
    """Indices of each part's clips in its cache; of the training clips only `label_fraction`."""
    clips = {}
    for part, cache in caches.items():
        ids, splits = cache.ids, [row.get("split") for row in cache.notes["row"]]
        if part in config.evaluate_on or (part == "validation" and config.validation_data is not None):
            clips[part] = torch.tensor([split != "train" for split in splits]).nonzero().squeeze(1)
            continue
        mine = torch.tensor([config.part_of(name, split) == part for name, split in zip(ids, splits)])
        if part != "validation":
            keys = [f"label {config.seed} {name}" for name in ids]
            # One by one, so that each clip depends on its own hash alone
            mine &= torch.tensor([split_episodes([key], config.label_fraction)[0] for key in keys])
        clips[part] = mine.nonzero().squeeze(1)
    needed = [part for part in caches if part != "held_out" or config.choose_on == "held_out"]
    empty = [part for part in needed if not len(clips[part])]
    if empty:
        counts = ", ".join(f"{len(chosen)} {part}" for part, chosen in clips.items())
        raise ValueError(
            f"There is no {' and no '.join(empty)} clip (there are {counts}): give more data, or change "
            "validation_fraction, selection_fraction or label_fraction."
        )
    return {part: LabeledPart.labeled(caches[part], chosen, config.label) for part, chosen in clips.items()}


def open_parts(config, caches: dict[str, FeatureCache], tubelet: int) -> tuple[dict[str, LabeledPart], Labels]:
    """The parts with their labels. The classes are those of all `PARTS` together."""
    clips = split_clips(config, caches)
    rows = [caches[part].notes["row"][i] for part in PARTS for i in clips[part].tolist()]
    labels = Labels.describe(rows, config.label, config.problem_type, config.labels_per_frame)
    parts = {part: LabeledPart(caches[part], chosen, labels, tubelet) for part, chosen in clips.items() if len(chosen)}
    return parts, labels


def model_inputs(config: ProbeConfig, values: torch.Tensor, processor, device) -> torch.Tensor:
    """A column's rows (B, ...) as the heads take them."""
    values = values.to(device)
    return processor.normalize_cropped(values) if config.kind == "finetune" else values.float()


def build_sweep(config: ProbeConfig, model: VJepa2ForVideoClassification, training: LabeledPart) -> ProbeSweep:
    """All heads, or the classifier to be fine-tuned."""
    scale = training.label_statistics() if training.labels.problem_type == "regression" else None
    if config.kind == "finetune":
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return FineTuning(model, config.sweep[0], config.layer_decay, scale)
    features = training.feature_statistics() if config.standardize and config.pooled else None
    return ProbeSweep(model, config.sweep, features, scale, config.gradient_checkpointing)


def read_batches(loop: TrainingLoop, training: LabeledPart, processor) -> Iterator[tuple[list[str], tuple]]:
    """Names of random views, and the inputs and labels of the heads."""
    config, accelerator = loop.config, loop.accelerator
    mixture = WindowMixture([training.cache], [training.clips], [1.0])
    for batch in window_loader(mixture, config, config.views_at, 1, accelerator, loop.first_micro_batch):
        windows = batch["windows"]
        targets = training.targets[windows[:, 1]]
        if config.labels_per_frame:
            targets = targets[torch.arange(len(windows)), windows[:, 2]]
        inputs = model_inputs(config, batch[config.column].squeeze(1), processor, accelerator.device)
        names = [f"{training.cache.ids[clip]}, view {view}" for _, clip, view in windows.tolist()]
        yield names, (inputs, targets.to(accelerator.device))


def train_heads(loop: TrainingLoop, sweep: ProbeSweep, training: LabeledPart, processor) -> ProbeSweep:
    """The steps that are left; returns the trained heads."""
    config = loop.config
    optimizer = torch.optim.AdamW(sweep.optimizer_groups(), fused=True)
    sweep, optimizer = loop.prepare(sweep.train(), optimizer, processor)

    def forward_backward(batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = sweep(*batch, config.num_tubelets(training.tubelet))
        loop.accelerator.backward(losses.sum())  # the gradient of each head is that of its own loss
        return {"loss": losses.mean(), **{f"head_{i}": loss for i, loss in enumerate(losses)}}

    batches = read_batches(loop, training, processor)
    for step in loop.steps():
        metrics = loop.update(batches, forward_backward)
        if loop.is_logged(step):
            best = min(metrics[f"head_{i}"] for i in range(len(config.sweep)))
            learning_rate = max(config.learning_rates) * metrics["learning_rate"]
            numbers = {"loss": metrics["loss"], "best_loss": best, "gradient_norm": metrics["gradient_norm"]}
            speed = loop.throughput.read("clips")["clips_per_second"]
            loop.log({**numbers, "learning_rate": learning_rate, "clips_per_second": speed})
        loop.save_checkpoint()
    return loop.accelerator.unwrap_model(sweep).eval()


def build_neighbors(config, backbone: Backbone, labels: Labels, training: LabeledPart) -> VJepa2ForVideoClassification:
    """A classifier that stores all views of the training clips."""
    features = training.read(training.clips, "features").float()
    targets = training.targets[training.clips]
    if labels.problem_type == "single_label_classification":
        targets = torch.nn.functional.one_hot(targets, len(labels.names))
    stored = {"num_neighbors": max(config.num_neighbors), "num_stored_views": features.shape[0] * features.shape[1]}
    model = build_classifier(config, backbone, labels, **stored)
    targets = targets.float().repeat_interleave(features.shape[1], dim=0)
    model.classifier.store(features.flatten(0, 1), targets, config.standardize)
    return model


def train(config: ProbeConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `results.json` and `final/`."""
    loop = TrainingLoop(config, "probe")
    accelerator = loop.accelerator

    # Compute features, once for all runs
    backbone = build_backbone(config)
    size = {"crop_size": config.crop_size} if config.crop_size else {}
    processor = VJepa2VideoProcessor.from_pretrained(config.encoder, **size)
    started = time.perf_counter()
    caches = open_caches(config, accelerator, backbone, processor)
    seconds = {"features": time.perf_counter() - started}
    parts, labels = open_parts(config, caches, backbone.encoder.config.tubelet_size)
    training, evaluated = parts["training"], {name: part for name, part in parts.items() if name != "training"}

    # Train all heads, and score each on all parts
    set_seed(config.seed)
    started = time.perf_counter()
    if config.kind == "knn":
        loop.run.resume(config.resume)
        settings = [{"num_neighbors": count} for count in config.num_neighbors]
        model = build_neighbors(config, backbone, labels, training).to(accelerator.device).eval()
        scores = {name: score_neighbors(model, part, config.num_neighbors) for name, part in evaluated.items()}
    else:
        settings = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in config.sweep]
        model = build_classifier(config, backbone, labels)
        sweep = train_heads(loop, build_sweep(config, model, training), training, processor)
        model.to(accelerator.device)
        inputs_of = functools.partial(model_inputs, config, processor=processor, device=accelerator.device)
        num_tubelets = config.num_tubelets(training.tubelet)
        scores = {
            name: score_clips(sweep, model, part, config.column, inputs_of, num_tubelets, config.batch_size)
            for name, part in evaluated.items()
        }
    seconds["heads"] = time.perf_counter() - started

    # Report and save the best head
    run = {key: getattr(config, key) for key in ("kind", "encoder", "random_weights", "label")}
    where = "validation (optimistic: the best of all on the clips that are reported)"
    if config.choose_on == "held_out":
        where = f"{config.selection_fraction:g} of the training clips, held out"
    results = run | compare_heads(parts, labels, scores, settings, config.choose_on, where) | {"seconds": seconds}
    results["evaluate_on"] = {name: results["heads"][results["chosen"]][name] for name in config.evaluate_on}
    if accelerator.is_main_process:
        write_results(loop.run.output_dir, results, labels, parts, scores)
    if config.kind == "knn":
        model.config.num_neighbors = config.num_neighbors[results["chosen"]]
    else:
        model.load_state_dict(sweep.head_weights(results["chosen"]), strict=False)
    loop.finish(model.eval(), processor)


@exit_on_user_error
def main() -> None:
    train(parse_arguments(ProbeConfig, __doc__))


if __name__ == "__main__":
    main()
