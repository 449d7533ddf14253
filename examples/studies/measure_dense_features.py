"""Dense features of one encoder: segmentation, positions, and masks that follow a video.

    python examples/studies/measure_dense_features.py MODEL EPISODES OUT.json [--video VIDEO --masks MASKS]

EPISODES are recordings of one of the package's environments, whose labels are rendered. Three quarters of them, in
their order, are training data. OUT.json has, for the features of the last block and, if the encoder has output levels,
for `all` of them:

- `miou`: mean IoU of a linear head at each position (`vjepa2_hf.probing.dense_heads`), on the last quarter.
- `position`: R² of the centers of the discs in the last frame, read by a ridge regression from all tokens of the last
  time step; the mean over coordinates, at least 0.
- `j_frame`, `j_clip`: J of labels that are propagated through the episodes of the last quarter, each frame encoded
  alone, and the clip as a whole; at `--size` pixels.
- `j_video`: J of `--masks` (polygons) that are propagated through every `--every`-th frame of VIDEO, each encoded
  alone, at `--video_size`.
"""

import argparse
import tempfile
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.feature_cache import FeatureCache, finish_cache
from vjepa2_hf.data.files import write_json
from vjepa2_hf.environments.label_images import LabeledEpisodes
from vjepa2_hf.probing.dense_clips import DenseClip, fill_dense_cache, step_frames
from vjepa2_hf.probing.dense_heads import DenseHead, DenseTraining, score_dense_head, train_dense_heads
from vjepa2_hf.probing.label_files import LabelFrames, check_mask_size, first_labels, read_label_frames
from vjepa2_hf.probing.label_propagation import (
    Propagation,
    propagate_labels,
    region_similarity,
    to_grid,
    to_pixels,
    video_features,
)
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.measures import Levels, grid_features
from vjepa2_hf.visualization.video_clips import load_processor


LEARNING_RATES = [3e-2, 3e-3]
PENALTIES = np.logspace(0, 6, 13)


class Clips(list):
    """Clips in memory, as `fill_dense_cache` reads them."""

    skipped: dict[str, str] = {}


def read_clips(episodes: str, frames: int) -> tuple[list[DenseClip], list[str]]:
    """The first frames of all episodes, (T, H, W, 3) each, with labels and their names."""
    source = LabeledEpisodes(episodes, frames)
    clips = list(source)
    if len(clips) < 8:
        raise ValueError(f"{episodes!r} has {len(clips)} episodes of {frames} frames; expected at least 8.")
    return clips, list(source.names)


def cut(clip: DenseClip, frames: int) -> DenseClip:
    """The first frames of a clip."""
    return DenseClip(clip.name, clip.frames[:frames], clip.labels[:frames])


def segment(
    encoder: VJepa2Encoder,
    processor: Any,
    parts: Sequence[list[DenseClip]],
    names: list[str],
    levels: Levels,
    steps: int,
) -> dict[str, float]:
    """`miou` and `position` of training and test clips (T, H, W, 3)."""
    size = parts[0][0].labels.shape[1:]
    clips, counts = Clips(parts[0] + parts[1]), [len(part) for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        fill_dense_cache(folder, clips, lambda pixels: grid_features(encoder, pixels, levels), processor, size)
        finish_cache(folder, {})
        cache = FeatureCache(folder, ("features", "labels"))
        known = {name: index for index, name in enumerate(cache.ids)}
        order = torch.tensor([known[clip.name] for clip in clips])
        fitted, unseen = order.split(counts)
        # The last eighth of the training clips chooses the learning rate
        chosen = max(1, counts[0] // 8)
        features = cache.windows(order, torch.zeros_like(order), int(cache.lengths[0]))["features"]
        torch.manual_seed(0)
        heads = [DenseHead(features.shape[-1], "segmentation", len(names), names) for _ in LEARNING_RATES]
        train_dense_heads(cache, fitted[:-chosen], heads, LEARNING_RATES, DenseTraining(steps=steps))
        held_out = [score_dense_head(head, cache, fitted[-chosen:], cache_dir=folder)["mean_iou"] for head in heads]
        best = heads[int(np.argmax(held_out))]
        miou = score_dense_head(best, cache, unseen, cache_dir=folder)["mean_iou"]
    last = features[:, -1].flatten(1).numpy()
    centers = np.stack([disc_centers(clip, names) for clip in clips])
    position = position_score(last[: counts[0]], centers[: counts[0]], last[counts[0] :], centers[counts[0] :])
    return {"miou": miou, "position": position}


def disc_centers(clip: DenseClip, names: list[str]) -> np.ndarray:
    """The mean row and column of each disc's pixels in the last frame, (2 discs,)."""
    discs = [number for number, name in enumerate(names) if name not in ("floor", "wall")]
    return np.concatenate([np.argwhere(clip.labels[-1] == number).mean(axis=0) for number in discs])


def position_score(features: np.ndarray, centers: np.ndarray, unseen: np.ndarray, wanted: np.ndarray) -> float:
    """R² of a ridge regression fitted on features (N, F) and centers (N, C), on unseen ones (M, F) and (M, C)."""
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES)).fit(features, centers)
    return max(0.0, float(r2_score(wanted, model.predict(unseen))))


def propagate_episodes(
    encoder: VJepa2Encoder, processor: Any, clips: list[DenseClip], names: list[str], levels: Levels
) -> dict[str, float]:
    """`j_frame` and `j_clip`, means over clips (T, H, W, 3)."""
    found: dict[str, list[float]] = {"frame": [], "clip": []}
    for clip in clips:
        pixels = processor(clip.frames, return_tensors="pt")["pixel_values_videos"][0]
        for by, scores in found.items():
            features = video_features(encoder, pixels, by, levels)
            frames = step_frames(len(clip.frames), len(features)).numpy()
            frames[0] = 0  # whose labels are given
            labels = follow(features, clip.labels[0], len(names))
            scores.append(region_similarity(labels, clip.labels[frames], len(names))["mean"])
    return {f"j_{by}": float(np.mean(scores)) for by, scores in found.items()}


def propagate_video(
    encoder: VJepa2Encoder, processor: Any, frames: np.ndarray, masks: LabelFrames, every: int, levels: Levels
) -> float:
    """J of a video's frames (T, H, W, 3), which are every `every`-th, at the frames with masks."""
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"][0]
    labels = follow(video_features(encoder, pixels, "frame", levels), first_labels(masks), len(masks.names))
    known = {number // every: image for number, image in masks.frames.items() if number % every == 0}
    return region_similarity(labels, known, len(masks.names))["mean"]


def follow(features: torch.Tensor, first: np.ndarray, num_labels: int) -> np.ndarray:
    """Label images (T', H, W) from that of the first step (H, W)."""
    image = torch.from_numpy(first.astype(np.int64))
    soft = propagate_labels(features, to_grid(image, num_labels, tuple(features.shape[1:3])), Propagation())
    return to_pixels(soft, tuple(first.shape)).numpy()


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The scores by levels, "last" and "all"."""
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    frames = encoder.config.frames_per_clip
    clips, names = read_clips(options.episodes, max(options.frames, frames))
    first = len(clips) * 3 // 4
    parts = [[cut(clip, frames) for clip in part] for part in (clips[:first], clips[first:])]
    followed = [cut(clip, options.frames) for clip in clips[first:][: options.videos]]
    small = load_processor(options.model, encoder, clips[0].frames.shape[1:3])
    large = load_processor(options.model, encoder, options.size)
    results = {}
    for levels in ("last", "all") if encoder.config.output_levels is not None else ("last",):
        with torch.enable_grad():
            scores: dict[str, Any] = segment(encoder, small, parts, names, levels, options.steps)
        scores |= propagate_episodes(encoder, large, followed, names, levels)
        if options.video:
            masks = read_label_frames(options.masks)
            with VideoReader(options.video) as reader:
                video = reader.frames(np.arange(0, max(masks.frames) + 1, options.every))
            check_mask_size(masks, video.shape[1:3])
            processor = load_processor(options.model, encoder, options.video_size)
            scores["j_video"] = propagate_video(encoder, processor, video, masks, options.every, levels)
        results[levels] = scores
    return results


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a model with an encoder")
    parser.add_argument("episodes", help="shards of record_episodes.py, in one of the package's environments")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=200, help="of the linear head (default: 200)")
    parser.add_argument("--frames", type=int, default=16, help="through which labels are propagated (default: 16)")
    parser.add_argument("--videos", type=int, default=24, help="episodes to propagate labels in (default: 24)")
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="height and width there (default: 128)")
    parser.add_argument("--video", help="a video")
    parser.add_argument("--masks", default=str(Path(__file__).parent / "masks" / "carphone.json"), help="its polygons")
    parser.add_argument("--every", type=int, default=4, help="N-th frame of the video (default: 4)")
    parser.add_argument("--video_size", type=int, nargs="+", default=[192, 232], help="default: 192 232")
    parser.add_argument("--num_threads", type=int, help="of torch")
    options = parser.parse_args(arguments)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    refuse_missing_model(options.model)
    results = measure(options)
    write_json(options.output, results)
    for levels, scores in results.items():
        print(levels, ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
