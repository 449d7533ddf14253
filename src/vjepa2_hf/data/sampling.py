"""Frame sampling for training clips: rates, speed, jitter, motion, and a curriculum of clip lengths.

Legend: T frames of a clip.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..configuration_vjepa2 import check
from ..specs import check_count
from ..video_io import VideoReader
from .typed_fields import check_fields


logger = logging.getLogger(__name__)

_FASTER = 1.01  # times the video's own rate; 30 frames per second of a video with 29.97 are no mistake
_warned_rates: set[float] = set()
_SLACK = 5e-4  # seconds, so that rounding makes no video too short for a clip


def _warn_of_repeated_frames(rate: float, reader: VideoReader) -> None:
    if rate not in _warned_rates:
        _warned_rates.add(rate)
        logger.warning(
            "fps=%g is above the %.4g frames per second of %s, so its clips repeat frames; lower fps, or set it to "
            "null for consecutive frames (other videos may repeat frames too)", rate, reader.fps, reader.name,
        )  # fmt: skip


@dataclass(frozen=True)
class FrameSampler:
    """Samples the frames of a clip. The clip starts at any frame from which it fits into the video.

    Args:
        fps: frames per second of a clip. Of several rates, one is sampled per clip among those at which the video is
            long enough (the temporal recipe: 1, 2, 4). None: the video's consecutive frames.
        speed: range of the playback speed, sampled log-uniformly; at 2, frames are twice as far apart. This is the
            temporal rescaling of the temporal recipe, with the nearest frame instead of a blend of two.
        frame_jitter: each frame's time moves by up to this fraction of the interval between frames, in either
            direction. At most 0.5, which keeps the order of frames (the temporal recipe moves them by up to two).
        motion_weight: 0 samples the start uniformly, 1 in proportion to the motion in the clip (`VideoReader.motion`),
            other values mix both (the temporal recipe's motion-based sampling). Nothing is decoded for it. Videos
            that hold key frames alone are sampled uniformly.
        short_videos: repeat a video that is shorter than the clip from its start, or refuse it ("skip").
        min_frames: fewest frames, at the clip's rate, of a video that is repeated: the tubelet size.
        position: where the clip starts, from 0 (the first frame) to 1 (the last possible start), for evaluation. None
            samples it.
    """

    fps: float | Sequence[float] | None = None
    speed: tuple[float, float] = (1.0, 1.0)
    frame_jitter: float = 0.0
    motion_weight: float = 0.0
    short_videos: Literal["repeat", "skip"] = "repeat"
    min_frames: int = 2
    position: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        speed, rates = self.speed, self._rates
        rules = {
            "fps": (
                self.fps is None or rates and 0 < min(rates) <= max(rates) < math.inf,
                "a positive number, several of them, or None",
            ),
            "speed": (0 < speed[0] <= speed[1] < 1e6, "two factors, 0 < low <= high"),
            "frame_jitter": (0 <= self.frame_jitter <= 0.5, "0 to 0.5 of the interval"),
            "motion_weight": (0 <= self.motion_weight <= 1, "0 to 1"),
            "short_videos": (self.short_videos in ("repeat", "skip"), "'repeat' or 'skip'"),
            "min_frames": (self.min_frames > 0, "at least 1"),
            "position": (self.position is None or 0 <= self.position <= 1, "0 to 1, or None"),
        }
        for name, (is_valid, expected) in rules.items():
            check(is_valid, f"{name} is {getattr(self, name)!r}; expected {expected}.")

    @property
    def _rates(self) -> tuple[float, ...]:
        fps = () if self.fps is None else self.fps
        return tuple(fps) if isinstance(fps, Sequence) else (fps,)

    def __call__(self, reader: VideoReader, num_frames: int, generator: torch.Generator) -> np.ndarray:
        """Frame indices, int64 (T,), of one clip of `num_frames`."""
        check_count("num_frames", num_frames)
        interval = self._sample_interval(reader, num_frames, generator)
        steps = np.arange(num_frames)
        offsets, times = (steps, np.arange(len(reader))) if interval is None else (steps * interval, reader.times)
        starts = int(np.searchsorted(times + offsets[-1], times[-1] + _SLACK, side="right"))
        if not starts:
            return self._repeat(reader, offsets, interval)
        start = self._sample_start(reader, times, starts, offsets[-1], generator)
        if interval is None:
            return start + offsets
        moments = times[start] + offsets
        if self.frame_jitter:
            moved = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy() * 2 - 1
            moments = (moments + moved * self.frame_jitter * interval).clip(0, times[-1])
        return reader.indices_at(moments)

    def _sample_interval(self, reader: VideoReader, num_frames: int, generator: torch.Generator) -> float | None:
        """Seconds between two frames of the clip; None for consecutive frames."""
        low, high = self.speed
        if self.fps is None and high == low == 1 and not self.frame_jitter:
            return None
        rates, length, intervals = self._rates or (reader.fps,), reader.times[-1] + _SLACK, num_frames - 1
        if len(rates) > 1:
            fitting = [rate for rate in rates if intervals * low / rate <= length] or [max(rates)]
            rates = (fitting[int(torch.randint(len(fitting), (), generator=generator))],)
        if self._rates and rates[0] > _FASTER * reader.fps:
            _warn_of_repeated_frames(rates[0], reader)
        speed = low
        if high > low:
            highest = min(high, length * rates[0] / intervals) if intervals else high  # the highest that fits
            fraction = torch.rand((), generator=generator, dtype=torch.float64).item()
            speed = low * max(highest / low, 1) ** fraction
        return speed / rates[0]

    def _sample_start(
        self, reader: VideoReader, times: np.ndarray, starts: int, length: float, generator: torch.Generator
    ) -> int:
        """The clip's first frame, among the first `starts`; `length` is the clip's, in the units of `times`."""
        if self.position is not None:
            return round(self.position * (starts - 1))
        motion = reader.motion() if self.motion_weight and starts > 1 else None
        if motion is None:
            return int(torch.randint(starts, (), generator=generator))
        # Motion after the first frame of a clip up to its last one: differences of the cumulative sum
        total = np.cumsum(motion)
        ends = np.searchsorted(times, times[:starts] + length + _SLACK, side="right") - 1
        scores = total[ends] - total[:starts]
        if not scores.sum() > 0:
            return int(torch.randint(starts, (), generator=generator))
        probabilities = (1 - self.motion_weight) / starts + self.motion_weight * scores / scores.sum()
        fraction = torch.rand((), generator=generator, dtype=torch.float64).item()
        return min(int(np.searchsorted(np.cumsum(probabilities), fraction, side="right")), starts - 1)

    def _repeat(self, reader: VideoReader, offsets: np.ndarray, interval: float | None) -> np.ndarray:
        """The frames of a video shorter than the clip, repeated from its start."""
        end = (len(reader) - 1 if interval is None else reader.times[-1]) + _SLACK
        available = offsets[offsets <= end]
        rate = "" if self.fps is None else f" at {1 / interval:g} fps"
        if len(available) < self.min_frames:
            raise ValueError(f"it has {len(available)} frames{rate}, fewer than a tubelet of {self.min_frames}")
        if self.short_videos == "skip":
            raise ValueError(f"it has {len(available)} frames{rate}, fewer than the {len(offsets)} of a clip")
        return np.resize(available if interval is None else reader.indices_at(available), len(offsets))


@dataclass(frozen=True)
class FramesCurriculum:
    """Clip lengths that grow during training, equal for all clips of a batch (the temporal recipe: 8, 12, 16).

    A worker that decodes ahead knows its own batches, not the training step. Batches come from the workers in turn,
    so the k-th batch of worker w of W is the (k W + w)-th of its process, and belongs to step
    (k W + w) // gradient_accumulation_steps. The number of batches is part of a worker's state.

    Args:
        stages: (position, frames) in order; the first position is 0. From this position on, clips have this many
            frames.
        batch_size: of the DataLoader.
        gradient_accumulation_steps: batches per step.
        by: positions count optimizer "step"s, or "epoch"s: how often the reader of the batch's first clip has read
            its part of the data.
    """

    stages: Sequence[tuple[int, int]]
    batch_size: int
    gradient_accumulation_steps: int = 1
    by: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("batch_size of the frames curriculum", self.batch_size)
        check_count("gradient_accumulation_steps of the frames curriculum", self.gradient_accumulation_steps)
        positions = [position for position, _ in self.stages]
        check(self.by in ("step", "epoch"), f"The frames curriculum counts {self.by!r}; expected 'step' or 'epoch'.")
        in_order = positions and positions[0] == 0 and sorted(set(positions)) == positions
        expected = f"[{self.by}, frames] with {self.by}s that begin at 0 and grow, like [[0, 8], [500, 16]]"
        check(in_order, f"The frames curriculum is {list(self.stages)}; expected {expected}.")
        has_frames = min(frames for _, frames in self.stages) > 0
        check(has_frames, f"The frames curriculum is {list(self.stages)}, but a clip has at least 1 frame.")

    def frames_at(self, position: int) -> int:
        """Frames per clip after `position` steps (or epochs)."""
        check_count("position", position, 0, 2**63 - 1)
        return next(frames for first, frames in reversed(self.stages) if first <= position)

    def frames_of_batch(self, batch: int, worker: int, num_workers: int, epoch: int, first_batch: int = 0) -> int:
        """Frames per clip of a worker's `batch`-th batch (from 0), whose first clip is read in `epoch`. `first_batch`
        is the number of batches that the process had read with another number of workers."""
        if self.by == "epoch":
            return self.frames_at(epoch)
        return self.frames_at((first_batch + batch * num_workers + worker) // self.gradient_accumulation_steps)
