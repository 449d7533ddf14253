"""Training clips, streamed from shards of videos and images, and their masked batches.

    [DataSource, ...] -> ClipStream (frames by FrameSampler, FramesCurriculum) -> DataLoader -> MaskCollator -> batches

Every random choice for a clip is seeded by (seed, epoch, shard, row, clip), and the state of a stream is a few
numbers: a resumed run reads the same clips. Unreadable rows are skipped and reported with the next clip.

Legend: B batch, T frames, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..configuration_vjepa2 import check
from ..specs import check_count, check_flag, check_fraction, check_number, refuse
from ..video_io import ReadLimits, read_image
from ..video_processing_vjepa2 import RandomResizedClip
from .elastic import deal_out, describe, restart_epoch, upgrade
from .sampling import FrameSampler, FramesCurriculum
from .shards import ShardSource
from .shuffle import SHUFFLE_BYTES, SHUFFLE_ROWS, Row, RowOrder, seed_of
from .video_cache import VideoCache


logger = logging.getLogger(__name__)

_FEWEST_ROWS = 20  # below this, the fraction of skipped rows means little


@dataclass(frozen=True)
class DataSource:
    """Data and its weight in a mixture."""

    path: str
    """Folder, glob or file of shards, videos or images, or a dataset on the Hub."""
    weight: float = 1.0
    """Fraction of the sampled rows, relative to the other sources."""


@dataclass
class Augmentation:
    """Random resized crop and flip of all frames of a clip, with the published values."""

    scale: tuple[float, float] = (0.3, 1.0)
    """Area of the crop as a fraction of the frame's."""
    ratio: tuple[float, float] = (0.75, 1.35)
    """Aspect ratio (width / height) of the crop."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""


class ClipStream(torch.utils.data.IterableDataset):
    """Clips of streamed videos, for any number of processes and DataLoader workers, resumable to the clip.

    Each clip is a dict: `pixel_values_videos` float32 (T, C, H, W); `clip_name`; `seed`, the int that seeds all its
    randomness; `frame_indices` int64 (T,) in the video; `skipped`, JSON lines of the rows and shards skipped since the
    previous clip; and `label` where the row has one. The stream splits shards among processes and workers itself, so
    the DataLoader must not be split again (no `accelerator.prepare`). Use torchdata's `StatefulDataLoader`, whose
    state holds the position of every worker.

    An image is a clip of equal frames. With several sources, the source of each row is sampled by weight, and sources
    are read again when they end. Readers that outnumber the rows of a source take turns, so that the weights hold for
    any number of readers. Unreadable rows and shards, and videos that `frame_sampler` refuses, are skipped.

    Args:
        data: as for `ShardSource`, or several `DataSource`s.
        frames_per_clip: T, or a `FramesCurriculum`, whose `batch_size` must be the DataLoader's.
        crop_size: of `RandomResizedClip` with the published settings; not needed with `transform`.
        frame_sampler: samples the frames of a clip.
        transform: (uint8 frames (T, C, H, W), torch.Generator) -> float frames. For an image T is 1.
        clips_per_video: consecutive clips sampled from a video each time it is decoded.
        max_skipped_fraction: limit on the fraction of a source's rows (at least 20) that a reader skips; None: no
            limit.
        seed: with the epoch, it determines the order of shards and all randomness.
        rank, world_size: of the process.
        epochs: None never ends.
        limits: what rows may cost and reach; None: the defaults of `ReadLimits`.
        shuffle_buffer: rows that each reader (a worker of a process) keeps, of all sources together, and samples the
            next one from; 0 keeps the order of rows within shards. See `vjepa2_hf.data.shuffle`.
        shuffle_bytes: limit on the bytes of these rows.
        video_cache_bytes: memory in which each reader keeps decoded videos for its next epochs; 0: none. The clips
            are the same. See `vjepa2_hf.data.video_cache`.

    Raises:
        ValueError: a setting out of range; while reading, an epoch of a source without a single clip, or more rows
            skipped than `max_skipped_fraction`.
    """

    def __init__(
        self,
        data: str | os.PathLike | Sequence[DataSource],
        frames_per_clip: int | FramesCurriculum,
        crop_size: int | tuple[int, int] | None = None,
        frame_sampler: FrameSampler | None = None,
        transform: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        clips_per_video: int = 1,
        max_skipped_fraction: float | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        limits: ReadLimits | None = None,
        shuffle_buffer: int = SHUFFLE_ROWS,
        shuffle_bytes: int = SHUFFLE_BYTES,
        video_cache_bytes: int = 0,
    ):
        curriculum = frames_per_clip if isinstance(frames_per_clip, FramesCurriculum) else None
        counts = {"clips_per_video": clips_per_video, "world_size": world_size, "shuffle_bytes": shuffle_bytes}
        counts |= {} if curriculum else {"frames_per_clip": frames_per_clip}
        counts |= {} if epochs is None else {"epochs": epochs}
        for name, value in counts.items():
            check_count(name, value, highest=2**63 - 1)
        check_count("rank", rank, 0, world_size - 1)
        check_count("seed", seed, 0, 2**64 - 1)
        check_count("shuffle_buffer", shuffle_buffer, 0)
        check_count("video_cache_bytes", video_cache_bytes, 0, 2**63 - 1)
        has_size = transform is not None or crop_size is not None
        check(has_size, "ClipStream got neither crop_size nor transform; give one, so that clips have one size.")
        for name, value in {"transform": transform, "frame_sampler": frame_sampler}.items():
            if value is not None and not callable(value):
                refuse(name, value, "a function, or None")
        if max_skipped_fraction is not None:
            check_fraction("max_skipped_fraction", max_skipped_fraction)
        self.sources, self.weights = _open_sources(data, limits)
        self.limits = limits
        if len(self.sources) > 1 and curriculum and curriculum.by == "epoch":
            raise ValueError("A frames curriculum by epoch needs one source: several count epochs apart; use steps.")
        self.frames_per_clip, self.frame_sampler = frames_per_clip, frame_sampler or FrameSampler()
        self.clips_per_video, self.max_skipped_fraction = clips_per_video, max_skipped_fraction
        self.transform = transform or RandomResizedClip(crop_size)
        self.seed, self.rank, self.world_size, self.epochs = seed, rank, world_size, epochs
        self.shuffle_buffer, self.shuffle_bytes = shuffle_buffer, shuffle_bytes
        self.video_cache_bytes = video_cache_bytes
        self._reader, self._start = None, self._first_state()

    def _first_state(self) -> dict[str, Any]:
        sources = [
            {"clip": 0, "used": 0, "skipped": 0, "unread": 0, "fingerprint": source.fingerprint, "order": None}
            for source in self.sources
        ]
        return {"batch": 0, "first_batch": 0, "slot": 0, "batch_epoch": 0, "rows": 0, "sources": sources}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None}  # a DataLoader worker has its own

    def state_dict(self) -> dict[str, Any]:
        """The position of the next clip; in a DataLoader worker, of that worker's next clip."""
        return self._reader.state_dict() if self._reader else copy.deepcopy(self._start)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Starts the next iteration at this position, without decoding earlier clips.

        If the shards of a source have changed, its epoch starts again, with a warning. A state of `redistribute`
        continues with any number of readers. A state that was saved without a shuffle buffer, as by version 0.1,
        continues without one.
        """
        if not isinstance(state, dict) or not {"sources", "readers"} & state.keys():
            refuse("The state of a ClipStream", state, "what its `state_dict` or `redistribute` returned")
        state = copy.deepcopy(state)
        for reader in state.get("readers", [state]):
            saved, given = len(reader["sources"]), len(self.sources)
            check(saved == given, f"The state is of {saved} sources, but the data has {given}.")
            for number, (source, position) in enumerate(zip(self.sources, reader["sources"])):
                if not source.has_fingerprint(position["fingerprint"]):
                    restarted = restart_epoch(position, source.fingerprint)
                    logger.warning(
                        "the shards of %s have changed since the checkpoint (%d now): this is no exact continuation, "
                        "epoch %d starts again", source.data, len(source.shards), restarted["order"]["epoch"],
                    )  # fmt: skip
                    reader["sources"][number] = restarted
        if "readers" in state and self.rank == 0:
            logger.warning("%s", describe(state["readers"]))
        self._reader, self._start = None, state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Kept here, so that state_dict sees it change; the next iteration starts from the beginning
        self._reader, self._start = _Reader(self, self._start, number, workers), self._first_state()
        yield from self._reader.clips()


def _open_sources(
    data: str | os.PathLike | Sequence[DataSource], limits: ReadLimits | None
) -> tuple[list[ShardSource], list[float]]:
    if isinstance(data, (str, os.PathLike)):
        data = [DataSource(os.fspath(data))]
    if not isinstance(data, (list, tuple)) or not all(isinstance(source, DataSource) for source in data):
        refuse("data", data, "a path, or a list of DataSource(path, weight)")
    check(data, "There is no data source; give a folder, or a list with at least one path and weight.")
    for source in data:
        if not isinstance(source.path, (str, os.PathLike)):
            refuse("The path of a DataSource", source.path, "a folder, a file, a glob or a dataset on the Hub")
        check_number(f"The weight of {os.fspath(source.path)!r}", source.weight, above=0)
    return [ShardSource(source.path, limits) for source in data], [source.weight for source in data]


class _Reader:
    """One worker of one process reading a `ClipStream`, from `state` on."""

    def __init__(self, stream: ClipStream, state: dict[str, Any], worker: int, num_workers: int):
        self.stream, self.worker, self.num_workers = stream, worker, num_workers
        self.number = stream.rank * num_workers + worker
        self.readers = stream.world_size * num_workers
        self.skips: list[str] = []  # since the last clip, as JSON lines
        self.cache = VideoCache(stream.video_cache_bytes)
        state = deal_out(state["readers"], self.number, self.readers) if "readers" in state else state
        self.state = {"first_batch": 0, **state}
        self.positions = [upgrade(position, self.number, self.readers) for position in state["sources"]]
        parts = [weight / sum(stream.weights) for weight in stream.weights]
        self.orders = [
            RowOrder(
                source, self.number, self.readers, stream.seed, stream.epochs, math.ceil(stream.shuffle_buffer * part),
                math.ceil(stream.shuffle_bytes * part), position.pop("order"),
            )
            for source, position, part in zip(stream.sources, self.positions, parts)
        ]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        orders = [order.state_dict(position["clip"] > 0) for position, order in zip(self.positions, self.orders)]
        sources = [{**position, "order": order} for position, order in zip(self.positions, orders)]
        return {**self.state, "sources": sources}

    def clips(self) -> Iterator[dict[str, Any]]:
        rows = [self._rows(number) for number in range(len(self.stream.sources))]
        ended: set[int] = set()
        while len(ended) < len(rows):
            number = self._choose_source(ended)
            clips = next(rows[number], None)
            if clips is None:
                ended.add(number)
                continue
            for clip, epoch, sample in clips:
                self._advance(number, clip, epoch)
                sample["skipped"], self.skips = "\n".join(self.skips), []
                yield sample

    def _choose_source(self, ended: set[int]) -> int:
        """The source of the next row: that of a started row, else sampled by (seed, reader, rows so far)."""
        positions = self.positions
        begun = [number for number, position in enumerate(positions) if position["clip"] and number not in ended]
        if begun or len(positions) == 1:
            return begun[0] if begun else 0
        cumulative = np.cumsum(self.stream.weights) / np.sum(self.stream.weights)
        # Sampled again when the source has ended: the choices do not depend on when its end was noticed
        for attempt in itertools.count():
            fraction = seed_of(self.stream.seed, self.number, self.state["rows"], attempt) / 2**63
            number = min(int(np.searchsorted(cumulative, fraction, side="right")), len(positions) - 1)
            if number not in ended:
                return number

    def _advance(self, number: int, clip: int, epoch: int) -> None:
        """Moves behind a clip of a source; `clip` is the next clip of its row, 0 after the last one."""
        state, curriculum = self.state, self.stream.frames_per_clip
        if state["slot"] == 0:
            state["batch_epoch"] = epoch
        self.positions[number]["clip"] = clip
        state["rows"] += clip == 0
        state["slot"] += 1
        if isinstance(curriculum, FramesCurriculum) and state["slot"] == curriculum.batch_size:
            state["batch"], state["slot"] = state["batch"] + 1, 0

    def _num_frames(self, ahead: int, epoch: int) -> int:
        """T of the clip that is `ahead` clips after the next one, and is read in `epoch`."""
        curriculum = self.stream.frames_per_clip
        if not isinstance(curriculum, FramesCurriculum):
            return curriculum
        batches, slot = divmod(self.state["slot"] + ahead, curriculum.batch_size)
        if not batches and self.state["slot"]:
            epoch = self.state["batch_epoch"]  # the batch has started
        batch, first = self.state["batch"] + batches, self.state["first_batch"]
        return curriculum.frames_of_batch(batch, self.worker, self.num_workers, epoch, first)

    def _rows(self, number: int) -> Iterator[Iterator[tuple[int, int, dict]]]:
        """For each readable row of a source: its clips, each with the next clip of the row and the epoch."""
        stream, order, now = self.stream, self.orders[number], self.positions[number]
        source = order.source
        used, empty = now["used"], 0
        for row in order.rows():
            self._count_skips(order, now, in_reading=True)
            if row is None:  # the end of an epoch
                empty = empty + 1 if order.is_whole and now["used"] == used else 0
                self._check_empty(order, empty)
                used = now["used"]
                continue
            first_clip, now["clip"] = now["clip"], 0
            # The first source is seeded like a stream with a single source
            key = (stream.seed, *row[:3]), (number,) if number else ()
            name = source.row_name(row.shard, row.number, row.values.get("path"))
            try:
                decoded = self._decode(row.values, row.epoch, key, first_clip)
            except (ValueError, OSError, MemoryError) as error:
                source.skip(name, str(error) or "it does not fit into memory")
                decoded = None
            now["used"] += decoded is not None and first_clip == 0
            self._count_skips(order, now)
            if decoded is not None:
                yield self._finish(decoded, row, name, first_clip)

    def _count_skips(self, order: RowOrder, now: dict[str, float], in_reading: bool = False) -> None:
        """Counts the rows skipped since the last call, and stops when they are too many."""
        source, is_shared = order.source, order.layout.shares_rows(self.readers)
        skips, bound = source.take_skips(), self.stream.max_skipped_fraction
        for skip in skips:
            self.skips.append(json.dumps({"source": source.data, "name": skip.name, "reason": skip.reason}))
            rows = skip.rows / self.readers if skip.is_shard and is_shared else skip.rows
            now["skipped"] += rows
            now["unread"] += rows * in_reading
        # Rows are read before they are decoded: of the unread ones, those that belong to the decoded ones count
        decoded = now["used"] + now["skipped"] - now["unread"]
        unread = now["unread"] * (decoded / (decoded + order.buffered) if order.buffered else 1)
        skipped, tried = now["skipped"] - now["unread"] + unread, decoded + unread
        if skips and bound is not None and skipped > bound * max(tried, _FEWEST_ROWS):
            found = f"About {skipped:.0f} of {tried:.0f} rows of {source.data!r} had to be skipped"
            allowed = f"more than max_skipped_fraction={bound:g} allows; repair the data or raise it"
            raise ValueError(f"{found}, {allowed}. The last was {skips[-1].name}: {skips[-1].reason.rstrip('.')}.")

    def _check_empty(self, order: RowOrder, empty: int) -> None:
        """Raises after enough consecutive epochs without a clip."""
        if empty and empty == order.layout.epochs_to_see_all(self.readers):
            source = order.source
            reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
            details = f" ({len(reasons)} skipped, the first {reasons[0]})" if reasons else ""
            raise ValueError(f"No clip could be read from {source.data!r}{details}; check the data.")

    def _decode(self, row: dict, epoch: int, key: tuple, first_clip: int) -> list[tuple]:
        """(seed, generator, (video, rows of it), frame indices) of the row's clips, decoded in one pass.

        Frames uint8 (T, C, H, W) are gathered later, clip by clip: all clips at once would be a copy of the video.
        """
        position, source = key
        clips = range(first_clip, self.stream.clips_per_video)
        seeds = [seed_of(*position, clip, *source) for clip in clips]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        lengths = [self._num_frames(ahead, epoch) for ahead in range(len(clips))]
        if row["video"] is None and row.get("image") is not None:
            frames = torch.from_numpy(read_image(row["image"], self.stream.limits)).permute(2, 0, 1)[None]
            indices = [torch.zeros(length, dtype=torch.int64) for length in lengths]
            return list(zip(seeds, generators, [(frames, None)] * len(clips), indices))
        with self.cache.open((source, *position[2:]), row["video"], self.stream.limits) as reader:
            sampler = self.stream.frame_sampler
            indices = [sampler(reader, length, generator) for length, generator in zip(lengths, generators)]
            wanted, inverse = np.unique(np.concatenate(indices), return_inverse=True)
            frames = torch.from_numpy(reader.frames(wanted)).permute(0, 3, 1, 2)
        rows = np.split(inverse.reshape(-1), np.cumsum(lengths)[:-1])
        videos = [(frames, torch.from_numpy(which)) for which in rows]
        return list(zip(seeds, generators, videos, [torch.from_numpy(np.ascontiguousarray(one)) for one in indices]))

    def _finish(
        self, decoded: list[tuple], row: Row, name: str, first_clip: int
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(next clip of the row or 0, epoch, clip) for the clips of a decoded row."""
        for clip, (seed, generator, (frames, which), indices) in enumerate(decoded, start=first_clip):
            pixels = self.stream.transform(frames if which is None else frames[which], generator)
            if which is None:  # an image
                pixels = pixels.expand(len(indices), -1, -1, -1)
            sample = {"pixel_values_videos": pixels, "clip_name": name, "seed": seed, "frame_indices": indices}
            if row.values.get("label") is not None:
                sample["label"] = row.values["label"]
            yield (clip + 1) % self.stream.clips_per_video, row.epoch, sample


class MaskCollator:
    """Batches clips and samples their masks, as a masked-latent model's forward takes them.

    Each of the `mask_samplers` (of `vjepa2_hf.masking`) gives one pair of masks. `seed` and the seed of the batch's
    first clip determine them, so that a resumed run samples the same. `with_names` adds `clip_names` and `skipped`
    (JSON lines, see `ClipStream`), both lists of strings.
    """

    def __init__(
        self,
        mask_samplers: Sequence[Callable],
        patch_size: int,
        tubelet_size: int = 2,
        seed: int = 0,
        with_names: bool = False,
    ):
        if not isinstance(mask_samplers, (list, tuple)) or not mask_samplers or not all(map(callable, mask_samplers)):
            refuse("mask_samplers", mask_samplers, "a list of mask samplers, see `vjepa2_hf.masking`")
        self.mask_samplers, self.patch_size = list(mask_samplers), check_count("patch_size", patch_size)
        self.tubelet_size, self.seed = (
            check_count("tubelet_size", tubelet_size),
            check_count("seed", seed, 0, 2**64 - 1),
        )
        self.with_names = check_flag("with_names", with_names)

    def __call__(self, clips: list[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values_videos` (B, T, C, H, W); `context_mask` and `target_mask`, lists of int64 (B, K)."""
        check(clips, "MaskCollator got no clips; give a list of at least one.")
        pixels = torch.stack([clip["pixel_values_videos"] for clip in clips])
        grid = (pixels.shape[1] // self.tubelet_size, *(size // self.patch_size for size in pixels.shape[-2:]))
        found = f"A clip of {pixels.shape[1]} frames of {pixels.shape[3]} x {pixels.shape[4]} pixels"
        token = f"a token of tubelet_size={self.tubelet_size} frames and patch_size={self.patch_size} pixels"
        check(min(grid) > 0, f"{found} is smaller than {token}; raise frames_per_clip or crop_size.")
        generator = torch.Generator().manual_seed(seed_of(self.seed, clips[0]["seed"]))
        masks = [sampler(len(clips), grid, generator) for sampler in self.mask_samplers]
        batch = {
            "pixel_values_videos": pixels,
            "context_mask": [context for context, _ in masks],
            "target_mask": [target for _, target in masks],
        }
        if self.with_names:
            batch["clip_names"] = [clip["clip_name"] for clip in clips]
            batch["skipped"] = [line for clip in clips for line in clip["skipped"].splitlines()]
        return batch
