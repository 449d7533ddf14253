# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains a linear head at each position of an encoder's frozen features: segmentation (mIoU) or regression (RMSE).

    python examples/dense_probe.py encoder=runs/demo/pretrain/final data=runs/demo/episodes source=episodes
    output_dir=runs/dense/pushing [key=value ...]

With `source=episodes`, labels are rendered from the recorded states of the package's environments: what each pixel
shows, or with `task=regression` its distance in pixels to the nearest object. With `source=images`, DATA is a dataset
of images with a mask column (a folder with `metadata.jsonl`, parquet files, a dataset on the Hub), or a folder of
images with `masks=FOLDER`:

    python examples/dense_probe.py encoder=MODEL data=images masks=depths task=regression label_scale=0.001
    output_dir=runs/dense/depth

Features are computed once. `OUTPUT_DIR/results.json` has the scores on held-out images or clips, which the learning
rate is not chosen on; `OUTPUT_DIR/predictions.png` shows some of them; `OUTPUT_DIR/head` is the trained head:

    DenseHead.from_pretrained("runs/dense/pushing/head")     # from vjepa2_hf.probing.dense_heads
"""

import dataclasses
import functools
import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.episodes import split_episodes
from vjepa2_hf.data.feature_cache import FeatureCache, data_fingerprint
from vjepa2_hf.data.files import plain_numbers, staged_folder, write_json, write_text
from vjepa2_hf.environments.label_images import LabeledEpisodes
from vjepa2_hf.metrics.mean_iou.mean_iou import IGNORED
from vjepa2_hf.probing.dense_clips import LabeledImages, fill_dense_cache, step_frames
from vjepa2_hf.probing.dense_heads import MAIN_SCORE, DenseHead, DenseTraining, score_dense_head, train_dense_heads
from vjepa2_hf.specs import check_at_least, check_number
from vjepa2_hf.training.cached_windows import cache_root, describe_encoder, open_cache
from vjepa2_hf.training.processes import build_accelerator
from vjepa2_hf.training.settings import dump_yaml, exit_on_user_error, parse_arguments
from vjepa2_hf.video_io import ReadLimits
from vjepa2_hf.visualization.dense_figures import plot_dense_predictions
from vjepa2_hf.visualization.figures import write_figure
from vjepa2_hf.visualization.measures import grid_features
from vjepa2_hf.visualization.video_clips import frame_size, load_processor


SHOWN = 6  # clips in the figure


@dataclass(kw_only=True)
class DenseProbeConfig:
    """Settings of one run."""

    encoder: str
    """Folder or Hub id of a model with an encoder."""
    data: str
    """Episodes of record_episodes.py, a dataset of images with masks, or a folder of images."""
    output_dir: str
    """New folder of the result."""
    source: Literal["images", "episodes"] = "images"
    """What `data` is."""
    masks: str | None = None
    """Folder of masks with the names of the images in `data`; null: the column `mask_column` of a dataset."""
    validation_data: str | None = None
    """Data for the reported scores; null: `validation_split`, else `validation_fraction` of `data`."""
    validation_masks: str | None = None
    """As `masks`, for validation_data."""
    split: str = "train"
    """Of a dataset."""
    validation_split: str | None = None
    """Split of the dataset for the reported scores."""
    validation_fraction: float = 0.2
    """Fraction of images or episodes held out for the reported scores, by a hash of their names."""
    selection_fraction: float = 0.1
    """Fraction of the others held out to choose the learning rate."""
    image_column: str = "image"
    mask_column: str = "mask"
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    task: Literal["segmentation", "regression"] = "segmentation"
    """Labels are classes, or numbers such as depths."""
    label_scale: float = 1.0
    """The numbers of a regression are those of the masks times this: 0.001 for millimeters as meters."""
    unknown_label: int | None = None
    """Number in masks for pixels without a label; null: 255 for a segmentation, 0 for a regression."""
    size: list[int] | int | None = None
    """Height and width to which frames are resized, or one number for both; null: the encoder's crop_size."""
    label_size: list[int] | int | None = None
    """Height and width at which heads are trained and scored; null: `size`."""
    frames_per_clip: int | None = None
    """Of episodes; null: the encoder's. 1: single images."""
    clips_per_episode: int = 1
    levels: Literal["last", "all"] = "last"
    """Features of the last block, or of all output levels of the encoder, concatenated."""
    random_weights: bool = False
    """Use the encoder's architecture with random weights: the baseline without pretraining."""
    learning_rates: list[float] = field(default_factory=lambda: [1e-2, 1e-3])
    """One head each; the best on the held-out training data is kept."""
    training: DenseTraining = field(default_factory=DenseTraining)
    encode_batch_size: int = 16
    cache_dir: str | None = None
    """Folder of the features; null: `features` beside output_dir, which the runs there share."""
    num_threads: int | None = None

    def __post_init__(self):
        check_at_least(self, encode_batch_size=1, num_threads=1, clips_per_episode=1, frames_per_clip=1)
        if not self.learning_rates:
            raise ValueError("learning_rates is empty; give at least one.")
        for rate in self.learning_rates:
            check_number("a number in learning_rates", rate, above=0)
        if self.source == "episodes" and (self.masks or self.validation_masks):
            raise ValueError("masks are given with source=episodes, whose labels are rendered; use source=images.")


def find_size(config: DenseProbeConfig, encoder: VJepa2Encoder) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of frames and of label images."""
    size = encoder.config.crop_size if config.size is None else config.size
    label_size = size if config.label_size is None else config.label_size
    return frame_size("size", size, encoder.config.patch_size), frame_size("label_size", label_size)


def read_labels(config: DenseProbeConfig, labels: np.ndarray) -> np.ndarray:
    """Stored labels as classes (255: none), or as numbers (NaN: none)."""
    if config.task == "segmentation":
        if labels.dtype.kind == "f":
            raise ValueError("the mask holds floats, not classes; use task=regression")
        unknown = IGNORED if config.unknown_label is None else config.unknown_label
        classes = np.where(labels == unknown, IGNORED, labels)
        if classes.min() < 0:
            raise ValueError(
                f"a mask holds the label {classes.min()}; expected 0 and above, or set unknown_label to it"
            )
        return classes
    unknown = config.unknown_label
    if unknown is None and config.source == "images":
        unknown = 0
    numbers = labels.astype(np.float32)
    return np.where(numbers == unknown, np.nan, numbers * config.label_scale) if unknown is not None else numbers


class Probe:
    """The encoder and what one run needs of it."""

    def __init__(self, config: DenseProbeConfig):
        self.config, self.accelerator = config, build_accelerator()
        if self.accelerator.num_processes > 1:
            raise ValueError(f"{self.accelerator.num_processes} processes were started; a dense probe runs in one.")
        encoder = VJepa2Encoder.from_pretrained(config.encoder)
        if config.random_weights:
            torch.manual_seed(config.training.seed)
            encoder = VJepa2Encoder(encoder.config)
        self.encoder = encoder.to(self.accelerator.device).eval()
        self.size, self.label_size = find_size(config, encoder)
        self.processor = load_processor(config.encoder, encoder, self.size)
        self.frames = config.frames_per_clip or encoder.config.frames_per_clip

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, T, C, H, W) -> features (B, T', H', W', D) on the CPU."""
        return grid_features(self.encoder, pixels.to(self.accelerator.device), self.config.levels).cpu()

    def open_clips(self, data: str, masks: str | None, split: str) -> LabeledImages | LabeledEpisodes:
        config = self.config
        if config.source == "images":
            columns = (config.image_column, config.mask_column)
            return LabeledImages(data, masks, *columns, split=split, limits=config.limits)
        target = "labels" if config.task == "segmentation" else "distance"
        return LabeledEpisodes(data, self.frames, config.clips_per_episode, target, config.limits)

    def open(self, data: str, masks: str | None, split: str) -> FeatureCache:
        """The features and labels of some data, computed by the first run that needs them."""
        config = self.config
        files = [data_fingerprint(path) if Path(path).exists() else path for path in filter(None, (data, masks))]
        names = ("source", "split", "image_column", "mask_column", "task", "label_scale", "unknown_label", "levels")
        names += ("clips_per_episode",) if config.source == "episodes" else ()
        description = {name: getattr(config, name) for name in names} | {"split": split, "data": files}
        description |= {"sizes": [self.size, self.label_size], "processor": self.processor.to_dict(), "version": 1}
        description |= {"frames": self.frames} if config.source == "episodes" else {}
        description |= describe_encoder(self.encoder)

        def fill(folder: Path) -> None:
            clips = self.open_clips(data, masks, split)
            to_labels = functools.partial(read_labels, config)
            fill_dense_cache(
                folder, clips, self.encode, self.processor, self.label_size, to_labels, config.encode_batch_size
            )

        root = cache_root(config, "features")
        return open_cache(data, description, root, ("features", "labels"), self.accelerator, fill)


def split_clips(config: DenseProbeConfig, probe: Probe) -> dict[str, tuple[FeatureCache, torch.Tensor]]:
    """The cache and the clips (indices) of each part: training, held_out and validation."""
    cache = probe.open(config.data, config.masks, config.split)
    groups = cache.notes["group"]
    apart = config.validation_data or config.validation_split
    validation = torch.zeros(len(groups), dtype=torch.bool)
    if not apart:
        validation = torch.tensor(split_episodes(groups, config.validation_fraction))
    others = [f"selection {group}" for group, held_out in zip(groups, validation.tolist()) if not held_out]
    selection = torch.zeros_like(validation)
    selection[~validation] = torch.tensor(split_episodes(others, config.selection_fraction), dtype=torch.bool)
    parts = {"training": ~validation & ~selection, "held_out": ~validation & selection, "validation": validation}
    found = {name: (cache, mask.nonzero().squeeze(1)) for name, mask in parts.items()}
    if apart:
        split = config.validation_split or config.split
        masks = config.validation_masks if config.validation_data else config.masks
        other = probe.open(config.validation_data or config.data, masks, split)
        found["validation"] = other, torch.arange(len(other.ids))
    empty = [name for name, (_, clips) in found.items() if not len(clips)]
    if empty:
        counts = ", ".join(f"{len(clips)} {name}" for name, (_, clips) in found.items())
        raise ValueError(
            f"There is no clip for {' and '.join(empty)} ({counts}): give more data, or change validation_fraction or "
            "selection_fraction."
        )
    return found


def find_names(config: DenseProbeConfig, probe: Probe, caches: list[FeatureCache]) -> list[str] | None:
    """Names of the labels of a segmentation, from the environment, or numbers up to the largest label."""
    if config.task == "regression":
        return None
    if config.source == "episodes":
        clips = probe.open_clips(config.data, None, config.split)
        next(iter(clips), None)
        return list(clips.names)
    largest = 0
    for cache in caches:
        for clip in range(len(cache.ids)):
            length = int(cache.lengths[clip])
            labels = cache.windows(torch.tensor([clip]), torch.tensor([0]), length)["labels"]
            largest = max(largest, int(labels[labels != IGNORED].max()) if (labels != IGNORED).any() else 0)
    return [f"label {number}" for number in range(max(largest, 1) + 1)]


def train(config: DenseProbeConfig) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    probe = Probe(config)
    with staged_folder(config.output_dir) as folder:
        parts = split_clips(config, probe)
        cache, clips = parts["training"]
        names = find_names(config, probe, [each for each, _ in parts.values()])
        first = cache.windows(clips[:1], torch.zeros(1, dtype=torch.int64), 1)["features"]
        torch.manual_seed(config.training.seed)
        heads = [
            DenseHead(first.shape[-1], config.task, len(names or [0]), names, config.levels).to(
                probe.accelerator.device
            )
            for _ in config.learning_rates
        ]
        losses = train_dense_heads(cache, clips, heads, config.learning_rates, config.training)
        metric, sign = MAIN_SCORE[config.task]
        chosen = [score_dense_head(head, *parts["held_out"])[metric] for head in heads]
        best = max(range(len(heads)), key=lambda number: sign * chosen[number])
        scores = score_dense_head(heads[best], *parts["validation"])
        rows = [
            {"learning_rate": rate, "loss": loss, f"held_out_{metric}": score}
            for rate, loss, score in zip(config.learning_rates, losses, chosen, strict=True)
        ]
        results = {"task": config.task, "labels": names, "validation": scores, "heads": rows, "best": rows[best]}
        results |= {"clips": {name: len(clips) for name, (_, clips) in parts.items()}}
        heads[best].save_pretrained(folder / "head")
        write_json(folder / "results.json", plain_numbers(results))  # a label that no pixel has scores NaN
        write_text(folder / "config.yaml", dump_yaml(dataclasses.asdict(config)))
        cache, clips = parts["validation"]
        wanted = {cache.ids[clip] for clip in clips.tolist()}
        show_predictions(config, probe, heads[best], wanted, folder / "predictions.png")
    print(f"{metric} {scores[metric]:.4f} on {results['clips']['validation']} clips; saved {config.output_dir}")


def show_predictions(config: DenseProbeConfig, probe: Probe, head: DenseHead, wanted: set[str], path: Path) -> None:
    """Plots the last step of the first clips whose names are wanted, all of one size."""
    masks = config.validation_masks if config.validation_data else config.masks
    split = config.validation_split or config.split
    clips = probe.open_clips(config.validation_data or config.data, masks, split)
    columns: list[tuple[np.ndarray, ...]] = []
    for clip in clips:
        if clip.name not in wanted or (columns and clip.labels.shape[1:] != columns[0][1].shape):
            continue
        pixels = probe.processor([clip.frames], return_tensors="pt")["pixel_values_videos"]
        features = probe.encode(pixels).to(probe.accelerator.device)
        last = int(step_frames(len(clip.frames), features.shape[1])[-1])
        predicted = head.predict(features, clip.labels.shape[1:])[0, -1].cpu().numpy()
        columns.append((clip.frames[last], read_labels(config, clip.labels)[last], predicted))
        if len(columns) == SHOWN:
            break
    images = [np.stack(part) for part in zip(*columns, strict=True)]
    write_figure(path, lambda shown: plot_dense_predictions(*images))


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    train(parse_arguments(DenseProbeConfig, __doc__, arguments))


if __name__ == "__main__":
    main()
