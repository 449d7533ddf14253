"""Label propagation: a mask of the first frame follows the video by nearest neighbors of features.

    labels = label_video(encoder, pixels, first_labels, num_labels)     # (T', H, W)
    region_similarity(labels, references, num_labels)["mean"]           # J mean

The protocol of DINO (arXiv 2104.14294, video object segmentation) for any encoder: each position takes the labels of
the positions most similar to it, in the first frame and in a few frames before.

Shapes: T frames, H W pixels, (T', H', W') grid of tokens, D width, C labels with 0 the background, P = H'·W'.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..modeling_encoder import VJepa2Encoder
from ..modeling_state import as_numbers
from ..specs import as_settings, check_choice, check_count, check_flag, check_number, check_tensor, is_integer, refuse
from ..visualization.measures import Levels, grid_features


By = Literal["frame", "clip"]
FRAMES_AT_ONCE = 16  # frames that are encoded together, each alone


@dataclasses.dataclass(frozen=True)
class Propagation:
    """How labels are propagated; the defaults are those of DINO."""

    top_k: int = 5
    """Nearest positions whose labels are averaged."""
    context_frames: int = 7
    """Frames before, beside the first one."""
    radius: float | None = 12.0
    """How far the positions may be in rows and in columns; null: anywhere."""
    temperature: float = 0.1
    """The weights are exp(cosine / temperature)."""
    center: bool = True
    """Subtract the mean feature of the video first. DINO does not; features of V-JEPA have a large common part."""

    def __post_init__(self):
        check_count("top_k", self.top_k)
        check_count("context_frames", self.context_frames, lowest=0)
        if self.radius is not None:
            check_number("radius", self.radius, at_least=0)
        check_number("temperature", self.temperature, above=0)
        check_flag("center", self.center)


@torch.no_grad()
def propagate_labels(features: torch.Tensor, first: torch.Tensor, settings: Propagation | None = None) -> torch.Tensor:
    """Propagates the labels of the first step to all others.

    Args:
        features: (T', H', W', D).
        first: soft labels of the first step, (C, H', W'); each position sums to 1.

    Returns:
        Soft labels (T', C, H', W'); those of the first step are `first`.
    """
    settings = as_settings("settings", settings, Propagation)
    check_tensor("features", features, "(T', H', W', D)")
    check_tensor("first", first, "(C, H', W')")
    steps, rows, columns = features.shape[:3]
    if tuple(first.shape[1:]) != (rows, columns):
        refuse("first", first, f"soft labels (C, {rows}, {columns}), on the grid of the features")
    if not features.isfinite().all():
        refuse("features", features, "finite numbers; compute in float32")
    tokens = features.float().flatten(1, 2)  # (T', P, D)
    tokens = tokens - tokens.mean(dim=(0, 1)) if settings.center else tokens
    tokens = nn.functional.normalize(tokens, dim=-1)
    near = _near(rows, columns, settings.radius, tokens.device)
    labels = [first.float().flatten(1).T.to(tokens.device)]  # (P, C) of each step
    for step in range(1, steps):
        context = list(dict.fromkeys([0, *range(max(0, step - settings.context_frames), step)]))
        cosines = torch.einsum("pd,tqd->ptq", tokens[step], tokens[context])
        if near is not None:
            cosines = cosines.masked_fill(~near.unsqueeze(1), -torch.inf)
        cosines = cosines.flatten(1)
        nearest, indices = cosines.topk(min(settings.top_k, cosines.shape[1]), dim=1)
        weights = ((nearest - nearest[:, :1]) / float(settings.temperature)).exp()  # 0 beyond the radius
        known = torch.cat([labels[number] for number in context])  # (t·P, C)
        labels.append((weights.unsqueeze(-1) * known[indices]).sum(1) / weights.sum(1, keepdim=True))
    return torch.stack(labels).transpose(1, 2).unflatten(-1, (rows, columns))


def _near(rows: int, columns: int, radius: float | None, device: Any) -> torch.Tensor | None:
    """Which positions (P, P) are at most `radius` apart in rows and in columns; None: all are."""
    if radius is None or radius >= max(rows, columns) - 1:
        return None
    row, column = (part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return (apart <= radius).to(device)


@torch.no_grad()
def video_features(
    encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor, by: By = "frame", levels: Levels = "last"
) -> torch.Tensor:
    """Features of one clip (T, C, H, W) for propagation: (T, H', W', D) by frame, each encoded alone as an image, or
    (T', H', W', D) by clip, one step for each tubelet, which sees the whole clip."""
    if not isinstance(encoder, VJepa2Encoder):
        refuse("encoder", encoder, "a VJepa2Encoder: VJepa2Encoder.from_pretrained(folder)")
    check_choice("by", by, ("frame", "clip"))
    check_tensor("pixel_values_videos", pixel_values_videos, "(T, C, H, W)")
    if by == "clip":
        return grid_features(encoder, pixel_values_videos.unsqueeze(0), levels)[0]
    parts = pixel_values_videos.unsqueeze(1).split(FRAMES_AT_ONCE)
    return torch.cat([grid_features(encoder, part, levels)[:, 0] for part in parts])


def to_grid(labels: torch.Tensor, num_labels: int, grid: tuple[int, int]) -> torch.Tensor:
    """Soft labels (C, H', W') of a label image (H, W): the fraction of each label in a position."""
    check_tensor("labels", labels, "(H, W)", floating=False)
    num_labels = check_count("num_labels", num_labels, lowest=2)
    whole = labels.long()  # torch has no minimum of unsigned 16 bits
    if labels.is_floating_point() or not 0 <= whole.min() <= whole.max() < num_labels:
        refuse("labels", labels, f"integers from 0 to {num_labels - 1}, num_labels={num_labels}")
    one_hot = nn.functional.one_hot(whole, num_labels).movedim(-1, 0).float()
    return nn.functional.adaptive_avg_pool2d(one_hot, grid)


def to_pixels(soft: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label images int64 (T', H, W) of soft labels (T', C, H', W'): upsampled bilinearly, each label stretched to 0 to
    1 in its image as in DINO (else small objects lose to the background), then the largest."""
    scaled = nn.functional.interpolate(soft, size, mode="bilinear", align_corners=False)
    low, high = (value[..., None, None] for value in (scaled.flatten(2).amin(-1), scaled.flatten(2).amax(-1)))
    stretched = torch.where(high > 0, (scaled - low) / (high - low).clamp(min=1e-9), scaled)
    return torch.where((high - low) > 1e-9, stretched, scaled).argmax(dim=1)


def label_video(
    encoder: VJepa2Encoder,
    pixel_values_videos: torch.Tensor,
    first: torch.Tensor | np.ndarray,
    num_labels: int,
    settings: Propagation | None = None,
    by: By = "frame",
    levels: Levels = "last",
) -> torch.Tensor:
    """Propagates the label image of a clip's first frame.

    Args:
        pixel_values_videos: one clip (T, C, H, W), of any size that the patch divides.
        first: label image (h, w) of the first frame, integers; its size may be another.
        num_labels: C, with the background 0.
        by, levels: see `video_features`. By clip, a step is a tubelet, and the labels of the first frame are those of
            the first tubelet.

    Returns:
        Label images int64 (T', h, w) on the CPU, T' = T by frame.
    """
    settings, first = as_settings("settings", settings, Propagation), as_numbers(first, "first")
    features = video_features(encoder, pixel_values_videos, by, levels)
    soft = to_grid(first, num_labels, tuple(features.shape[1:3]))
    found = to_pixels(propagate_labels(features, soft, settings), tuple(first.shape)).cpu()
    found[0] = first
    return found


def region_similarity(
    predictions: torch.Tensor | np.ndarray, references: Mapping[int, np.ndarray] | np.ndarray, num_labels: int
) -> dict[str, Any]:
    """J of DAVIS: intersection over union of each object, averaged over frames. The first frame, which is given, does
    not count; where an object is in neither image, its J is 1.

    Args:
        predictions: label images (T, H, W).
        references: true label images (T, H, W), or those of some frames by number.
        num_labels: C, with the background 0, which is no object.

    Returns:
        `mean` over objects, `by_label` (C - 1 numbers), and `by_frame` (mean over objects, by frame number).
    """
    predictions = np.asarray(predictions)
    known = dict(references) if isinstance(references, Mapping) else dict(enumerate(np.asarray(references)))
    if not all(is_integer(number) for number in known):
        refuse("references", sorted(known, key=str), "label images by the number of their frame, integers")
    known = {number: np.asarray(image) for number, image in sorted(known.items()) if number > 0}
    if not known or max(known) >= len(predictions):
        raise ValueError(
            f"references are given for the frames {sorted(known)}, but the video has {len(predictions)} frames; "
            "expected at least one after the first."
        )
    values = np.empty((len(known), check_count("num_labels", num_labels, lowest=2) - 1))
    for row, (number, image) in enumerate(known.items()):
        if image.shape != predictions[number].shape:
            raise ValueError(
                f"the reference of frame {number} has shape {image.shape}, but the prediction "
                f"{predictions[number].shape}; expected one shape."
            )
        for label in range(1, num_labels):
            found, true = predictions[number] == label, image == label
            union = (found | true).sum()
            values[row, label - 1] = (found & true).sum() / union if union else 1.0
    by_frame = {int(number): float(value) for number, value in zip(known, values.mean(axis=1), strict=True)}
    return {"mean": float(values.mean()), "by_label": values.mean(axis=0).tolist(), "by_frame": by_frame}
