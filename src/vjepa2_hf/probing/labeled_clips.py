"""Labeled clips for probes: views of a video, their cache, and labels as tensors.

    LabeledClips (views by ClipViews) -> (an encoder) -> fill_cache -> a cache: one "episode" per clip
    Labels.describe(rows) -> labels.targets(rows) -> labels for a loss

Legend: E clips, V views of a clip, T frames, T' tubelets, C labels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..data.feature_cache import CacheWriter, FeatureCache
from ..data.labels import describe_files, known_splits, split_of, split_of_shard
from ..data.sampling import FrameSampler
from ..data.shard_files import ShardNames
from ..data.shards import ShardSource
from ..data.typed_fields import check_fields
from ..specs import check_count
from ..training.cached_windows import uncached_items
from ..video_io import ReadLimits, VideoReader, read_image


logger = logging.getLogger(__name__)

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PIXEL_COLUMNS = ("video", "image")  # columns without labels


@dataclasses.dataclass(frozen=True)
class ClipViews:
    """Views of a video: `segments` clips spread evenly over it, each in `crops` crops.

    One clip lies in the middle of its video, several span it from start to end.
    """

    frames_per_clip: int = 16  # T; an image is repeated T times (the published protocol for images)
    fps: float | None = None  # frames per second of a clip; None: the rate of the video
    speed: float = 1.0  # factor of the playback speed; with fps=None, 4 takes every fourth frame
    segments: int = 1
    crops: int = 1  # squares along the longer side of the frame, from end to end; 1: the processor's crop
    # `scale`, `ratio` and `flip_probability` of RandomResizedClip, for `segments` x `crops` views at random times
    random_crop: dict[str, Any] | None = None
    shuffle_time: bool = False  # shuffle the frames of each clip: a control that shows how much their order matters
    seed: int = 0  # of the random views
    # Frames (at the clip's rate) from the end of a view to the end of the video; short videos and images are refused
    anticipate_frames: int | None = None

    def __post_init__(self):
        check_fields(self)
        check_count("seed", self.seed, 0, 2**64 - 1)
        for name in ("frames_per_clip", "segments", "crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but at least 1 is expected.")
        several = self.segments > 1 and self.random_crop is None
        if self.anticipate_frames is not None and (self.anticipate_frames < 0 or several):
            raise ValueError(
                f"anticipate_frames is {self.anticipate_frames} and a video has {self.segments} clips, but "
                "at least 0 frames and one clip are expected (several only with random crops)."
            )
        self._sampler(0)

    def __len__(self) -> int:
        """V."""
        return self.segments * self.crops

    def _sampler(self, segment: int) -> FrameSampler:
        position = 0.5 if self.segments == 1 else segment / (self.segments - 1)
        options = {"position": None if self.random_crop else position}
        if self.anticipate_frames is not None:
            options = {"position": 1.0, "short_videos": "skip"}
        return FrameSampler(self.fps, (self.speed, self.speed), min_frames=1, **options)

    def cut(
        self, row: dict[str, Any], name: str, processor: Any, limits: ReadLimits | None = None
    ) -> dict[str, torch.Tensor]:
        """The views of a row: `frames` uint8 (V, T, C, H, W), cropped, not normalized, and `frame_indices` (V, T)."""
        if row["video"] is None:
            if self.anticipate_frames is not None:
                raise ValueError("it is an image, which has no later frames (anticipate_frames)")
            image = read_image(row["image"], limits)
            return self._cut(lambda _: image[None], lambda *_: np.zeros(self.frames_per_clip, int), name, processor)
        frames = self.frames_per_clip + (self.anticipate_frames or 0)
        with VideoReader(row["video"], limits) as reader:

            def sample(segment: int, generator: torch.Generator) -> np.ndarray:
                return self._sampler(segment)(reader, frames, generator)[: self.frames_per_clip]

            return self._cut(reader.frames, sample, name, processor)

    def _cut(self, read: Callable, sample: Callable, name: str, processor: Any) -> dict[str, torch.Tensor]:
        views, indices, frames = [], [], None
        for view in range(len(self)):
            key = hashlib.sha256(repr((self.seed, name, view)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)  # below 2**63
            segment, crop = divmod(view, self.crops)
            if crop == 0 or self.random_crop:
                found = sample(segment, generator)
                if self.shuffle_time:
                    found = found[torch.randperm(len(found), generator=generator).numpy()]
                frames = read(found)
            cropped = self._crop(torch.from_numpy(frames).permute(0, 3, 1, 2), crop, generator, processor)
            views.append(cropped.expand(self.frames_per_clip, -1, -1, -1))  # an image is one frame
            indices.append(torch.from_numpy(np.asarray(found, np.int64)))
        return {"frames": torch.stack(views), "frame_indices": torch.stack(indices)}

    def _crop(self, frames: torch.Tensor, crop: int, generator: torch.Generator, processor: Any) -> torch.Tensor:
        """uint8 (T, C, H, W) -> uint8 of the size the model takes."""
        options: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        if self.random_crop is not None:
            names = {"scale": "random_crop_scale", "ratio": "random_crop_ratio"}
            options |= {names.get(key, f"random_{key}"): value for key, value in self.random_crop.items()}
            options |= {"do_random_resized_crop": True, "generator": generator}
        elif self.crops > 1:
            side = min(frames.shape[-2:])
            top, left = (round((length - side) * crop / (self.crops - 1)) for length in frames.shape[-2:])
            frames = frames[..., top : top + side, left : left + side]
            size = {name: processor.crop_size[name] for name in ("height", "width")}
            options |= {"size": size, "do_center_crop": False}  # the whole square
        return processor(frames, **options)["pixel_values_videos"][0]


class LabeledClips(torch.utils.data.IterableDataset):
    """Rows of shards, videos or images as views, for any number of processes and DataLoader workers.

    Each is a dict: `frames` uint8 (V, T, C, H, W), `frame_indices` int64 (V, T), `name`, and `row`, the columns that
    JSON can hold. A plain file has the `label` of `describe_files`. Data of several splits has them as `split`
    ("train", "validation", "test" or None), by `describe_files`, the names of shards, or a table's column. If rows
    were unreadable, the last item is `{"skipped": reasons by name}`. Clips that are `done`, or whose name and split
    are not `wanted`, are left out; `data` and `limits` are as for `ShardSource`.
    """

    def __init__(
        self,
        data: str | os.PathLike,
        views: ClipViews,
        processor: Any,
        wanted: Callable[[str, str | None], bool] | None = None,
        done: Collection[str] = (),
        rank: int = 0,
        world_size: int = 1,
        limits: ReadLimits | None = None,
    ):
        self.data, self.views, self.processor, self.limits = os.fspath(data), views, processor, limits
        self.wanted, self.done, self.rank, self.world_size = wanted, done, rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        source = ShardSource(self.data, self.limits)
        described = ClipDescriptions(source)
        if described.problem and self.rank == number == 0:
            logger.warning(described.problem)
        rows = source.read_all(self.rank * workers + number, self.world_size * workers)
        for shard, row_number, row in rows:
            name, split = described.name(shard, row_number), described.split(shard, row)
            if name in self.done or (self.wanted is not None and not self.wanted(name, split)):
                continue
            try:
                views = self.views.cut(row, name, self.processor, self.limits)
            except (ValueError, OSError, MemoryError) as error:
                source.skip(name, str(error) or "out of memory")
                continue
            yield {**views, "name": name, "row": described.columns(shard, row, split)}
        if source.skipped:
            yield {"skipped": source.skipped}

    def label_rule(self) -> dict[str, Any]:
        """What labels and splits of this data depend on beside its files, for the description of a cache: nothing for
        tables of one split, whose caches of version 0.1 hold the same."""
        described = ClipDescriptions(ShardSource(self.data, self.limits))
        return {"label_rule": 2, "splits": described.splits} if described.is_files or described.splits else {}


class ClipDescriptions:
    """Names, splits and columns of the clips of a source, by shard and row. Names stay the same if the data moves.

    Attributes:
        files: what metadata and folders say, if the data is a folder of files.
        splits: those of the data, or none if there is only one.
        problem: why clips have no label, in a sentence, or None.
    """

    def __init__(self, source: ShardSource):
        self.source, self.files = source, None
        self.is_files = source.kind in ("videos", "images")
        names = [_inside(shard, source) for shard in source.shards]
        self._names = ShardNames(_unique(names) if self.is_files else names)
        if not self.is_files:
            found = known_splits([split_of_shard(name) for name in names])
        elif source.is_list:
            found = known_splits([_split_of_row(source.listed(shard)) for shard in range(len(names))])
        else:
            self.files = describe_files(source.root, names, source.limits)
            found = self.files.splits
        self.problem = self.files.problem if self.files else None
        self._shard_splits = found if any(found) else None
        self.splits, odd = sorted(set(found) - {None}), []
        if not self.splits:
            self.splits, odd = _column_splits(source)
        if odd and not self.problem:
            self.problem = (
                f"The split {odd[0]!r} of {source.data!r} is not known, so its clips are in no split: name it train, "
                "validation or test."
            )

    def name(self, shard: int, row: int) -> str:
        """What logs and results call a row: its file, or its shard and number."""
        return self._names[shard] if self.is_files else f"{self._names[shard]}, row {row}"

    def split(self, shard: int, row: dict[str, Any]) -> str | None:
        """The split that a row belongs to ("train", "validation", "test"), or `None` where the data has none."""
        if not self.splits:
            return None
        if self._shard_splits is not None:
            return self._shard_splits[shard]
        split = _split_of_row(row)
        return "test" if split == "validation" and "validation" not in self.splits else split

    def columns(self, shard: int, row: dict[str, Any], split: str | None) -> dict[str, Any]:
        """The columns of a row that JSON can hold with its split, and of a plain file its metadata and label."""
        found = {name: value for name, value in row.items() if name not in PIXEL_COLUMNS and _is_plain(value)}
        if self.files is not None:
            label = self.files.labels[shard]
            if not self.files.classes:
                label = _last_class_folder(self.source.root)  # of data like videos/test/cat
            found |= {**self.files.columns[shard], **({} if label is None else {"label": label})}
        if _split_of_row(found):
            del found["split"]
        return {**found, "split": split} if self.splits else found


def _inside(shard: str, source: ShardSource) -> str:
    """A shard's path in the data; the whole path of a listed file elsewhere."""
    inside = os.path.relpath(shard, source.root) if "://" not in shard else shard.removeprefix(source.root + "/")
    return shard if inside.startswith("..") else inside


def _unique(names: Sequence[str]) -> list[str]:
    """Names with the number of the row at those that occur before: a list may name a file twice."""
    seen, found = set(), []
    for number, name in enumerate(names):
        found.append(f"{name}, row {number}" if name in seen else name)
        seen.add(name)
    return found


def _split_of_row(row: dict[str, Any]) -> str | None:
    return split_of(row["split"]) if isinstance(row.get("split"), str) else None


def _column_splits(source: ShardSource) -> tuple[list[str], list[str]]:
    """The splits in the column `split` of parquet shards, which is read alone, and beside known ones the others."""
    found: set[str | None] = set()
    odd: set[str] = set()
    for shard in source.shards if source.kind == "parquet" else ():
        values = source.values_of(shard, "split")
        if values is None:
            break
        found |= {_split_of_row({"split": value}) for value in values}
        odd |= {value for value in values if isinstance(value, str) and split_of(value) is None}
    return sorted(set(known_splits(list(found))) - {None}), sorted(odd) if found - {None} else []


def _last_class_folder(root: str) -> str:
    folders = [part for part in os.path.abspath(root).split(os.sep) if part and split_of(part) is None]
    return folders[-1] if folders else ""


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


def fill_cache(
    folder: str | os.PathLike,
    stream: LabeledClips,
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    accelerator: Any,
    num_workers: int = 0,
    batch_size: int = 16,
) -> None:
    """Writes this process's clips into an unfinished cache; clips that are there already are left out. `encode` maps
    about `batch_size` uint8 views (B, T, C, H, W) to columns by name, (B, ...) each."""
    writer, views = CacheWriter(folder, accelerator.process_index), len(stream.views)
    items = uncached_items(writer, stream, accelerator, num_workers, Path(stream.data).name)
    while clips := list(itertools.islice(items, math.ceil(batch_size / views))):
        columns = encode(torch.cat([clip["frames"] for clip in clips]))
        for clip, *values in zip(clips, *(values.split(views) for values in columns.values()), strict=True):
            own = dict(zip(columns, values))
            writer.add(clip["name"], 0.0, {**own, "frame_indices": clip["frame_indices"]}, row=clip["row"])
    writer.flush()
    accelerator.wait_for_everyone()


@dataclasses.dataclass(frozen=True)
class Labels:
    """A column of labels, and its conversion to tensors."""

    column: str
    problem_type: ProblemType
    names: tuple[str, ...]  # of the labels; for a regression, the indices of its numbers
    per_frame: bool = False  # a row has one label per frame of its video

    @classmethod
    def describe(
        cls, rows: Sequence[dict], column: str, problem_type: ProblemType | None = None, per_frame: bool = False
    ) -> Labels:
        """Finds the classes of a column in the rows of all data.

        Args:
            problem_type: None: single labels, which are ints or strings (bools count as ints).
            per_frame: every value is a list with one label per frame.

        Raises:
            ValueError: a row without the column, a single class, or values that do not fit `problem_type`.
        """
        for row in rows:
            if row.get(column) is None:
                raise ValueError(f"A row has no label {column!r}, only {', '.join(sorted(row))}; set label=... .")
        kind = problem_type or "single_label_classification"
        values = [value for row in rows for value in (row[column] if per_frame else [row[column]])]
        if kind == "multi_label_classification":
            values = [one for value in values for one in _as_list(value, column)]
        if kind == "regression":
            sizes = {len(_as_list(value, column, lenient=True)) for value in values}
            if len(sizes) != 1:
                raise ValueError(f"The labels {column!r} have {sorted(sizes)} numbers, but each must have as many.")
            odd = [value for value in values if not np.isfinite(np.asarray(value, np.float64)).all()]
            if odd:
                raise ValueError(f"A label {column!r} is {odd[0]!r:.80}, but a regression needs finite numbers.")
            return cls(column, kind, tuple(str(i) for i in range(sizes.pop())), per_frame)
        texts = all(isinstance(value, str) for value in values)
        odd = [value for value in values if not (texts or (isinstance(value, int) and value >= 0))]
        if odd:
            raise ValueError(
                f"A label {column!r} is {odd[0]!r}, but classes are strings or ints from 0; set "
                "problem_type=regression or multi_label_classification, or labels_per_frame=true."
            )
        if kind == "single_label_classification" and len(set(map(str, values))) == 1:
            raise ValueError(
                f"All {len(rows)} clips have the label {values[0]!r}, but a probe separates two classes or more; give "
                "each class a folder, or set label=... to another column."
            )
        names = sorted(set(values)) if texts else map(str, range(max(values) + 1))
        return cls(column, kind, tuple(names), per_frame)

    def targets(self, rows: Sequence[dict], frames: torch.Tensor | None = None) -> torch.Tensor:
        """Labels for a loss: int64 classes (E,), or floats (E, C). With `per_frame` those of `frames`, int64 indices
        (E, V, T') in the videos: (E, V, T') or (E, V, T', C)."""
        if not self.per_frame:
            return self._numbers([row[self.column] for row in rows])
        found = [self._numbers(row[self.column]) for row in rows]
        for row, values, wanted in zip(rows, found, frames):
            if int(wanted.max()) >= len(values):
                raise ValueError(
                    f"A video has at least {int(wanted.max()) + 1} frames, but {len(values)} labels {self.column!r} "
                    f"({row[self.column]!r:.60}); give one per frame."
                )
        return torch.stack([values[wanted] for values, wanted in zip(found, frames)])

    def _numbers(self, values: Sequence[Any]) -> torch.Tensor:
        if self.problem_type == "regression":
            return torch.tensor([_as_list(value, self.column, lenient=True) for value in values], dtype=torch.float32)
        indices = {name: index for index, name in enumerate(self.names)}
        if self.problem_type == "single_label_classification":
            return torch.tensor([self._index(indices, value) for value in values])
        hot = torch.zeros(len(values), len(self.names))
        for row, value in zip(hot, values):
            row[[self._index(indices, one) for one in value]] = 1
        return hot

    def _index(self, indices: dict[str, int], value: int | str) -> int:
        if _name(value) not in indices:
            raise ValueError(
                f"A label {self.column!r} is {value!r}, which no clip of the probe's own data has; its classes are "
                f"{', '.join(self.names)}."
            )
        return indices[_name(value)]


def _name(value: int | str) -> str:
    return value if isinstance(value, str) else str(int(value))


def _as_list(value: Any, column: str, lenient: bool = False) -> list:
    if isinstance(value, (list, tuple)):
        return list(value)
    if not lenient or isinstance(value, str):
        wanted = "a number or a list of numbers" if lenient else "a list of classes"
        raise ValueError(f"A label {column!r} is {value!r}, but {wanted} is expected.")
    return [value]


class LabeledPart:
    """The clips of one part: a cache, int64 indices of its `clips` there, and their `targets` (see `Labels`) by index
    in the cache."""

    def __init__(self, cache: FeatureCache, clips: torch.Tensor, labels: Labels, tubelet: int):
        self.cache, self.clips, self.labels, self.tubelet = cache, clips, labels, tubelet
        rows = [cache.notes["row"][i] for i in clips.tolist()]
        frames = self.read(clips, "frame_indices") if labels.per_frame else None
        if frames is not None:  # the last frame of each tubelet, or of a shorter clip
            frames = frames[:, :, min(tubelet, frames.shape[2]) - 1 :: tubelet]
        found = labels.targets(rows, frames)
        self.targets = found.new_zeros((len(cache.ids), *found.shape[1:]))
        self.targets[clips] = found

    @staticmethod
    def labeled(cache: FeatureCache, clips: torch.Tensor, column: str) -> torch.Tensor:
        """The clips (n,), int64, whose rows have a label, or all if none has. The others are counted and logged."""
        missing = [cache.notes["row"][i].get(column) is None for i in clips.tolist()]
        if not any(missing) or all(missing):
            return clips
        first = cache.ids[clips[missing.index(True)]]
        logger.warning("%d of %d clips have no %r, like %s: left out", sum(missing), len(clips), column, first)
        return clips[~torch.tensor(missing)]

    def read(self, clips: torch.Tensor, column: str) -> torch.Tensor:
        """A column of all views, (E, V, ...)."""
        views = int(self.cache.lengths[0])
        return self.cache.windows(clips, torch.zeros_like(clips), views)[column]

    def feature_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (D,) of the column `features` over all views."""
        values = torch.cat([self.read(part, "features").float().flatten(0, -2) for part in self.clips.split(1024)])
        return values.mean(0), values.std(0).clamp(min=1e-6)

    def label_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (C,) of the labels of a regression; a constant label keeps its unit."""
        values = self.targets[self.clips].flatten(0, -2)
        deviation = values.std(0)
        return values.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    @property
    def flat_targets(self) -> np.ndarray:
        """The labels of `clips`, concatenated: (E,) or (E, C), with labels per frame E · V · T' of them."""
        return self.targets[self.clips].flatten(0, 2 if self.labels.per_frame else 0).numpy()
