"""Inputs of a planner: images are processed, numbers become tensors, and shapes are checked.

Letters: B problems, T frames, V views (cameras), C channels, H W pixels, G goals in sequence, S proprio state.
"""

import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ..modeling_state import stack_views, view_indices, view_names
from ..specs import describe, is_integer, refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor


def process_views(
    config: Any, name: str, value: Any, single: bool, *processing: Any
) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Frames (B, T, C, H, W), or (B, T, V, C, H, W) for a model of several views, and the indices of the views.

    Args:
        config: of the world model.
        value: as in `process_frames`; of several cameras a dict of camera names -> images or clips, a list of them,
            or a processed tensor (B, T, V, C, H, W). Dicts may lack cameras, all the same ones.
        processing: other arguments of `process_frames`.
    """
    if isinstance(value, dict):
        cameras = {key: [part] if single else part for key, part in value.items()}
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        keys = [sorted(item, key=str) if isinstance(item, dict) else None for item in value]
        if any(each != keys[0] for each in keys):
            raise ValueError(f"the {name}s of the batch show different cameras: {keys}; expected the same of all.")
        cameras = {key: [item[key] for item in value] for key in keys[0]}
    elif isinstance(value, torch.Tensor) and is_processed(value) and config.num_views > 1:
        return stack_views(config, process_frames(name, value, single, *processing), None, f"the {name}", None)
    elif config.num_views > 1:
        names = ", ".join(map(repr, view_names(config)))
        expected = f"a dict of cameras ({names}) -> images or clips, a list of such dicts, or (B, T, V, C, H, W)"
        raise ValueError(
            f"the {name} is {describe(value)}; the model sees {config.num_views} views: expected {expected}."
        )
    else:
        return process_frames(name, value, single, *processing), None
    if not cameras:
        refuse(f"the {name}", value, f"a dict of at least one camera out of {', '.join(view_names(config))}")
    view_indices(config, list(cameras), f"the {name}")
    frames = {key: process_frames(f"{name} of {key!r}", part, False, *processing) for key, part in cameras.items()}
    return stack_views(config, frames, None, f"the {name}", None)


def process_frames(name: str, value: Any, single: bool, video_processor: Any, fps: float | None) -> torch.Tensor:
    """Frames (B, T, C, H, W) of one input, or of a list of inputs, or of a processed tensor.

    Args:
        video_processor: of the model; random crops (its training mode) are turned off.
        fps: the rate of the model's steps, per second, or `None`; files with another rate give a warning.
    """
    if is_processed(value):
        if not torch.isfinite(value).all():
            raise ValueError(f"the {name} has pixels that are not finite (NaN or infinite).")
        return value.float()
    values = [value] if single else value
    if not values:
        raise ValueError(f"the {name} is an empty list; expected at least one image.")
    frames = [_process(name, item, video_processor, fps) for item in values]
    shapes = sorted({tuple(item.shape) for item in frames})
    if len(shapes) > 1:
        raise ValueError(f"the {name}s of the batch differ in shape after processing: {shapes}.")
    return torch.stack(frames)


def _process(name: str, value: Any, video_processor: Any, model_fps: float | None) -> torch.Tensor:
    """One image or clip -> (T, C, H, W)."""
    options = {"return_tensors": "pt", "return_metadata": True}
    if isinstance(video_processor, VJepa2VideoProcessor):
        options["do_random_resized_crop"] = False
    batch = video_processor(value, **options)
    if len(batch["pixel_values_videos"]) != 1:
        raise ValueError(f"the {name} holds {len(batch['pixel_values_videos'])} videos: give a batch as a list.")
    frames, metadata = batch["pixel_values_videos"][0], batch.get("video_metadata")
    fps = metadata[0].fps if metadata and isinstance(value, (str, bytes, Path)) else None
    if model_fps and fps and len(frames) > 1 and abs(fps / model_fps - 1) > 0.01:
        warnings.warn(
            f"the {name} has {fps:g} frames per second, the model's steps are {model_fps:g} per second: its motion "
            "will look too slow or too fast to the model.",
            stacklevel=2,
        )
    return frames


def is_processed(value: Any) -> bool:
    """Whether it is a tensor (B, T, C, H, W), or (B, T, V, C, H, W), of floats, which is taken as processed; or a dict
    of such tensors."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(part, torch.Tensor) and is_processed(part) for part in value.values())
    return isinstance(value, torch.Tensor) and value.ndim in (5, 6) and value.is_floating_point()


def is_batch(value: Any) -> bool:
    """Whether it is a list or a processed tensor, and so several observations or goals."""
    return isinstance(value, list) or is_processed(value)


def check_pair(frames: torch.Tensor, goal: torch.Tensor, context_frames: int) -> None:
    """Refuses an observation (B, T, C, H, W) and a goal (B, 1, C, H, W) that do not fit together."""
    if len(frames) != len(goal):
        raise ValueError(f"{len(frames)} observations and {len(goal)} goals; expected the same number of both.")
    if frames.shape[1] > context_frames:
        raise ValueError(
            f"the observation has {frames.shape[1]} frames; the model looks back over {context_frames} "
            "(context_frames): give the last ones."
        )
    if goal.shape[1] != 1:
        raise ValueError(f"the goal has {goal.shape[1]} frames; expected one image.")
    if frames.shape[-2:] != goal.shape[-2:]:
        raise ValueError(
            f"the processed goal is {tuple(goal.shape[-2:])} pixels, the observation {tuple(frames.shape[-2:])}: "
            "process both to one size, or give raw images, which are resized."
        )


def warn_of_aspect_ratio(observation: Any, goal: Any) -> None:
    """Warns if the aspect ratios of an observation and its goal differ by more than a tenth; of dicts, for each camera
    of the goal."""
    if isinstance(observation, dict) and isinstance(goal, dict):
        for key in observation.keys() & goal.keys():
            warn_of_aspect_ratio(observation[key], goal[key])
        return
    ratios = [_aspect_ratio(item) for item in (observation, goal)]
    if None not in ratios and not 1 / 1.1 <= ratios[0] / ratios[1] <= 1.1:
        warnings.warn(
            f"observation and goal have aspect ratios {ratios[0]:.2f} and {ratios[1]:.2f}: resizing distorts or crops "
            "one of them, so that the same scene looks different.",
            stacklevel=2,
        )


def _aspect_ratio(image: Any) -> float | None:
    """Width over height of a raw image or an image file, or `None` where only decoding would show it."""
    if isinstance(image, str | Path):
        try:
            with PIL.Image.open(image) as opened:
                return opened.width / opened.height
        except OSError:
            return None
    if hasattr(image, "height"):
        return image.width / image.height
    shape = getattr(image, "shape", None)
    if shape is None or len(shape) < 3:
        return None
    channels_last = shape[-1] in (1, 3, 4)
    height, width = shape[-3:-1] if channels_last else shape[-2:]
    return width / height


def stack_numbers(name: str, value: Any, single: bool, batch_size: int) -> torch.Tensor | None:
    """Numbers of one problem or of a batch as a float32 tensor (B, …)."""
    if value is None:
        return None
    if not single and not hasattr(value, "__iter__"):
        raise ValueError(f"{name} is {value!r}; expected a list, with numbers for each problem.")
    rows = []
    for row in [value] if single else value:
        try:
            rows.append(torch.as_tensor(row, dtype=torch.float32).cpu())
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"{name} is, or holds, {describe(row)}; expected numbers.") from None
    if len(rows) != batch_size:
        raise ValueError(f"{name} was given for {len(rows)} problems; expected {batch_size}.")
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"{name} has shapes {shapes} in one batch; expected one shape.")
    stacked = torch.stack(rows)
    if not torch.isfinite(stacked).all():
        raise ValueError(f"{name} holds numbers that are not finite.")
    return stacked


def states_per_frame(name: str, value: torch.Tensor | None, frames: int, size: int) -> torch.Tensor | None:
    """A state (B, size) or (B, T, size) as (B, T, size); required exactly where the model has such states."""
    if value is not None and value.ndim == 2:
        value = value.unsqueeze(1)
    if size == 0:
        if value is not None:
            raise ValueError(f"{name} was given, but the model has none.")
        return None
    expected = f"({size},)" if frames == 1 else f"({frames}, {size})"
    if value is None:
        raise ValueError(f"{name} is missing: the model plans from it; give {name} of shape {expected}.")
    if tuple(value.shape[1:]) != (frames, size):
        raise ValueError(f"{name} has shape {tuple(value.shape[1:])}; expected {expected}.")
    return value


def states_per_goal(states: torch.Tensor | None, num_goals: int) -> torch.Tensor | None:
    """Proprio states (B, S) or (B, G, S) of goals as (B, G, S)."""
    if states is None:
        return None
    states = states.unsqueeze(1).expand(-1, max(1, num_goals), -1) if states.ndim == 2 else states
    if states.ndim != 3 or states.shape[1] != max(1, num_goals):
        given = tuple(states.shape[1:])
        raise ValueError(f"goal_proprio_state has shape {given}; expected (S,), or ({num_goals}, S), one per goal.")
    return states


def goal_indices(value: int | list[int], batch_size: int, num_goals: int) -> torch.Tensor:
    """Indices (B,) into a sequence of goals."""
    each = value.tolist() if hasattr(value, "tolist") else value
    each = each if isinstance(each, (list, tuple)) else [each]
    if not all(is_integer(one) and 0 <= one < max(num_goals, 1) for one in each):
        expected = f"0 to {num_goals - 1}, as there are {num_goals} goals" if num_goals else "0 without goals"
        raise ValueError(f"goal_index is {describe(value)}; expected {expected}.")
    index = torch.tensor(each, dtype=torch.int64)
    if index.numel() not in (1, batch_size):
        raise ValueError(f"goal_index is {describe(value)}; expected an index, or {batch_size} of them.")
    return index.reshape(-1).expand(batch_size)
