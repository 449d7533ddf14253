"""Training clips, streamed from shards of videos and images, and their batches.

    [DataSource, ...] -> ClipStream (frames by FrameSampler, FramesCurriculum) -> DataLoader -> MaskCollator -> batches

Every random choice about a clip comes from (seed, epoch, shard, row, clip), and where a stream stands is a few
numbers: resumed anywhere, it gives the same clips. What does not read is passed over, and named with the next clip.

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

from ..video_io import VideoReader, read_image
from ..video_processing_vjepa2 import RandomResizedClip
from .sampling import FrameSampler, FramesCurriculum
from .shards import ShardSource, Skip, open_stream


logger = logging.getLogger(__name__)

_FEWEST_ROWS = 20  # below these, a share of bad rows says nothing
_EMPTY_EPOCHS = 10  # of a reader in a row; one may be bad luck, for its shards change with the epoch


@dataclass(frozen=True)
class DataSource:
    """Data with its share in a mixture."""

    path: str
    """Folder, glob or file of shards, videos or images, or a dataset on the Hub."""
    weight: float = 1.0
    """Share of the rows drawn, relative to the other sources'."""


@dataclass
class Augmentation:
    """Random resized crop and flip, the same for all frames of a clip; the published values."""

    scale: tuple[float, float] = (0.3, 1.0)
    """Area of the crop as a fraction of the frame's."""
    ratio: tuple[float, float] = (0.75, 1.35)
    """Width over height of the crop."""
    flip_probability: float = 0.5
    """Of a horizontal flip."""


class ClipStream(torch.utils.data.IterableDataset):
    """Clips of streamed videos, for any number of processes and DataLoader workers, resumable to the clip.

    Each clip is a dict: `pixel_values_videos` float32 (T, C, H, W); `clip_name`; `draw`, the int that all its
    randomness came from; `frame_indices` int64 (T,) in the video; `skipped`, a text with a JSON line for each row or
    shard passed over since the clip before; and `label` where the row has one. Shards are dealt to (process, worker)
    by themselves, so the DataLoader must not be split again (no `accelerator.prepare`). Use it with torchdata's
    `StatefulDataLoader`, whose state then holds the place of every worker.

    An image is a clip that stands still. Of several sources one is drawn for each row, by their weights; all are read
    again when they end. Readers that are more than a source's rows take turns at them, so that the weights hold for
    any number of readers. Skipped are rows and shards that do not read, and videos that `frame_sampler` refuses.

    Args:
        data: as for `ShardSource`, or several `DataSource`s.
        frames_per_clip: T, or a `FramesCurriculum`, whose `batch_size` must be the DataLoader's.
        crop_size: of `RandomResizedClip` with the published settings; not needed with `transform`.
        frame_sampler: which frames of a video a clip takes.
        transform: (uint8 frames (T, C, H, W), torch.Generator) -> float frames. An image's T is 1: the result is
            repeated.
        clips_per_video: clips drawn from a video each time it is decoded; they follow one another.
        max_skipped_fraction: of the rows of a source (at least 20) that a reader may skip; None has no bound.
        seed: with the epoch it sets the order of the shards and every draw.
        rank, world_size: of the process.
        epochs: None never ends.

    Raises:
        ValueError: a setting out of range, or (while reading) an epoch of a source without a single clip, or more
            rows skipped than `max_skipped_fraction`.
        FileNotFoundError: there is no data.
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
    ):
        counts = {"clips_per_video": clips_per_video, "world_size": world_size, "epochs": epochs}
        counts |= {} if isinstance(frames_per_clip, FramesCurriculum) else {"frames_per_clip": frames_per_clip}
        for name, value in counts.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, but it must be positive.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but with world_size {world_size} it must lie in 0 to {world_size - 1}.")
        if seed < 0:
            raise ValueError(f"seed is {seed}, but it must not be negative.")
        if transform is None and crop_size is None:
            raise ValueError("ClipStream got neither crop_size nor transform; give one, so that clips have one size.")
        if max_skipped_fraction is not None and not 0 <= max_skipped_fraction <= 1:
            raise ValueError(f"max_skipped_fraction is {max_skipped_fraction}, but a fraction lies in 0 to 1.")
        self.sources, self.weights = _open_sources(data)
        if len(self.sources) > 1 and isinstance(frames_per_clip, FramesCurriculum) and frames_per_clip.by == "epoch":
            raise ValueError(
                "A frames curriculum by epoch needs one source: several have epochs of their own; use steps."
            )
        self.frames_per_clip, self.frame_sampler = frames_per_clip, frame_sampler or FrameSampler()
        self.clips_per_video, self.max_skipped_fraction = clips_per_video, max_skipped_fraction
        self.transform = transform or RandomResizedClip(crop_size)
        self.seed, self.rank, self.world_size, self.epochs = seed, rank, world_size, epochs
        self._state = self._start = self._first_state()

    def _first_state(self) -> dict[str, Any]:
        place = {"epoch": 0, "place": 0, "row": 0, "clip": 0, "used": 0, "skipped": 0}
        sources = [{**place, "fingerprint": source.fingerprint} for source in self.sources]
        return {"batch": 0, "slot": 0, "batch_epoch": 0, "rows": 0, "sources": sources}

    def state_dict(self) -> dict[str, Any]:
        """The place of the next clip; in a DataLoader worker, of that worker's next clip."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration begins at this place. Nothing is decoded on the way.

        If a source has other shards than then, its epoch begins anew with those there are now, which the log says.
        """
        state = copy.deepcopy(state)
        if len(state["sources"]) != len(self.sources):
            raise ValueError(f"The state is of {len(state['sources'])} sources, but the data has {len(self.sources)}.")
        for source, place in zip(self.sources, state["sources"]):
            if place["fingerprint"] != source.fingerprint:
                logger.warning(
                    "%s has other shards than when its place was saved (%d now): no exact continuation, epoch %d "
                    "begins anew", source.data, len(source.shards), place["epoch"],
                )  # fmt: skip
                place.update(place=0, row=0, clip=0, fingerprint=source.fingerprint)
        self._state = self._start = state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        # Kept here, so that state_dict sees the place move; the next iteration begins anew
        self._state, self._start = copy.deepcopy(self._start), self._first_state()
        yield from _Reader(self, self._state, *((worker.id, worker.num_workers) if worker else (0, 1))).clips()


def _open_sources(data: str | os.PathLike | Sequence[DataSource]) -> tuple[list[ShardSource], list[float]]:
    if isinstance(data, (str, os.PathLike)):
        data = [DataSource(os.fspath(data))]
    if not data:
        raise ValueError("There is no data source; give a folder, or a list with at least one path and weight.")
    for source in data:
        if not 0 < source.weight < math.inf:
            raise ValueError(f"The weight of {source.path!r} is {source.weight}, but it must be positive and finite.")
    return [ShardSource(source.path) for source in data], [source.weight for source in data]


class _Reader:
    """One worker of one process going through a `ClipStream`; moves `state`, the place of the next clip, along."""

    def __init__(self, stream: ClipStream, state: dict[str, Any], worker: int, num_workers: int):
        self.stream, self.state, self.worker, self.num_workers = stream, state, worker, num_workers
        self.number = stream.rank * num_workers + worker
        self.readers = stream.world_size * num_workers
        self.skips: list[str] = []  # since the last clip, as JSON lines

    def clips(self) -> Iterator[dict[str, Any]]:
        rows = [self._rows(number) for number in range(len(self.stream.sources))]
        ended: set[int] = set()
        while len(ended) < len(rows):
            number = self._choose_source(ended)
            clips = next(rows[number], None)
            if clips is None:
                ended.add(number)
                continue
            for place, sample in clips:
                self._move(number, place)
                sample["skipped"], self.skips = "\n".join(self.skips), []
                yield sample

    def _choose_source(self, ended: set[int]) -> int:
        """The source of the next row, drawn by weight from (seed, reader, rows so far); a row begun is finished."""
        places = self.state["sources"]
        begun = [number for number, place in enumerate(places) if place["clip"] and number not in ended]
        if begun or len(places) == 1:
            return begun[0] if begun else 0
        upto = np.cumsum(self.stream.weights) / np.sum(self.stream.weights)
        # Drawn again while it hits a source that has ended: no matter when that was noticed, the draws are the same
        for attempt in itertools.count():
            share = _draw(self.stream.seed, self.number, self.state["rows"], attempt) / 2**63
            number = min(int(np.searchsorted(upto, share, side="right")), len(places) - 1)
            if number not in ended:
                return number

    def _move(self, number: int, place: dict[str, int]) -> None:
        """The place after a clip of a source."""
        state, curriculum = self.state, self.stream.frames_per_clip
        if state["slot"] == 0:
            state["batch_epoch"] = place["epoch"]
        state["sources"][number] = place
        state["rows"] += place["clip"] == 0
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
            epoch = self.state["batch_epoch"]  # the batch has begun
        return curriculum.frames_of_batch(self.state["batch"] + batches, self.worker, self.num_workers, epoch)

    def _rows(self, number: int) -> Iterator[Iterator[tuple[dict[str, int], dict]]]:
        """For each row of a source that reads: its clips, each with the place after it."""
        stream, source = self.stream, self.stream.sources[number]
        now, empty = dict(self.state["sources"][number]), 0
        for epoch in itertools.count(now["epoch"]) if stream.epochs is None else range(now["epoch"], stream.epochs):
            whole = not (now["place"] or now["row"] or now["clip"])
            used, first = now["used"], (now["place"], now["row"])
            for place, shard, row_number, row in open_stream(
                source, self.number, self.readers, stream.seed, epoch, first
            ):
                first_clip, now["clip"] = now["clip"], 0
                now |= {"epoch": epoch, "place": place, "row": row_number + 1}
                name = source.row_name(shard, row_number, row.get("path"))
                # The first source's draws are those of a stream that has no other
                key = (stream.seed, epoch, shard, row_number), (number,) if number else ()
                try:
                    drawn = self._decode(row, epoch, key, first_clip)
                except (ValueError, OSError) as error:
                    source.skip(name, str(error))
                    drawn = None
                now["used"] += drawn is not None and first_clip == 0
                self._count_skips(source, now)
                if drawn is not None:
                    yield self._finish(drawn, row, name, dict(now), first_clip)
            self._count_skips(source, now)
            empty = empty + 1 if whole and now["used"] == used else 0
            self._check_empty(source, empty)
            now |= {"epoch": epoch + 1, "place": 0, "row": 0, "clip": 0}

    def _count_skips(self, source: ShardSource, now: dict[str, int]) -> None:
        """Notes what was passed over since the last call, and stops when it is too much."""
        skips = source.take_skips()
        for skip in skips:
            line = {"source": source.data, "name": skip.name, "reason": skip.reason}
            self.skips.append(json.dumps(line))
            now["skipped"] += skip.rows / self.readers if skip.is_shard and self._shares_shards(source) else skip.rows
        self._check_skipped(source, now, skips)

    def _check_skipped(self, source: ShardSource, now: dict[str, int], skips: list[Skip]) -> None:
        bound, tried = self.stream.max_skipped_fraction, now["used"] + now["skipped"]
        if skips and bound is not None and now["skipped"] > bound * max(tried, _FEWEST_ROWS):
            raise ValueError(
                f"About {now['skipped']:.0f} of {tried:.0f} rows of {source.data!r} had to be skipped, more than "
                f"max_skipped_fraction={bound:g} allows; the last was {skips[-1].name}: {skips[-1].reason}; mend the "
                "data or raise max_skipped_fraction."
            )

    def _shares_shards(self, source: ShardSource) -> bool:
        """Whether every reader reads every shard, and takes its part of the rows, see `open_stream`."""
        return len(source.shards) < self.readers

    def _check_empty(self, source: ShardSource, empty: int) -> None:
        """Raises after so many epochs without a clip that there is none to come."""
        # In as many epochs as there are readers, each has met every row of shards that they share
        if empty and empty == (self.readers if self._shares_shards(source) or self.readers == 1 else _EMPTY_EPOCHS):
            reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
            told = f" ({len(reasons)} skipped, the first {reasons[0]})" if reasons else ""
            raise ValueError(f"No clip could be read from {source.data!r}{told}; look at the data.")

    def _decode(self, row: dict, epoch: int, key: tuple, first_clip: int) -> list[tuple]:
        """(draw, generator, its frames uint8 (T, C, H, W), frame numbers) of the row's clips, decoded in one pass."""
        place, source = key
        clips = range(first_clip, self.stream.clips_per_video)
        draws = [_draw(*place, clip, *source) for clip in clips]
        generators = [torch.Generator().manual_seed(draw) for draw in draws]
        lengths = [self._num_frames(ahead, epoch) for ahead in range(len(clips))]
        if row["video"] is None and row.get("image") is not None:
            frames = torch.from_numpy(read_image(row["image"])).permute(2, 0, 1)[None]
            numbers = [torch.zeros(length, dtype=torch.int64) for length in lengths]
            return list(zip(draws, generators, [frames] * len(clips), numbers))
        with VideoReader(row["video"]) as reader:
            sampler = self.stream.frame_sampler
            indices = [sampler(reader, length, generator) for length, generator in zip(lengths, generators)]
            wanted, inverse = np.unique(np.concatenate(indices), return_inverse=True)
            frames = torch.from_numpy(reader.frames(wanted)).permute(0, 3, 1, 2)
        places = np.split(inverse.reshape(-1), np.cumsum(lengths)[:-1])
        return [
            # Frames are gathered when the clip is wanted: all clips of a video at once would be a copy of it
            (draw, generator, (frames, torch.from_numpy(which)), torch.from_numpy(np.ascontiguousarray(chosen)))
            for draw, generator, which, chosen in zip(draws, generators, places, indices)
        ]

    def _finish(
        self, drawn: list[tuple], row: dict, name: str, after: dict[str, int], first_clip: int
    ) -> Iterator[tuple[dict[str, int], dict]]:
        """(place after the clip, clip) of a decoded row; `after` is the place after the row."""
        for clip, (draw, generator, frames, indices) in enumerate(drawn, start=first_clip):
            if isinstance(frames, tuple):
                pixels = self.stream.transform(frames[0][frames[1]], generator)
            else:  # a picture, transformed once
                pixels = self.stream.transform(frames, generator).expand(len(indices), -1, -1, -1)
            sample = {
                "pixel_values_videos": pixels,
                "clip_name": name,
                "draw": draw,
                "frame_indices": indices,
            }
            if row.get("label") is not None:
                sample["label"] = row["label"]
            last = clip + 1 == self.stream.clips_per_video
            yield after if last else {**after, "row": after["row"] - 1, "clip": clip + 1}, sample


def _draw(*key: int) -> int:
    """63 random bits of a place in the data."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class MaskCollator:
    """Batches clips and draws their masks: what a masked-latent model's forward takes, and no more.

    Args:
        mask_samplers: as of `vjepa2_hf.masking`; one (context, target) pair per sampler.
        patch_size: pixels of a patch, height and width.
        tubelet_size: frames of a token.
        seed: masks come from it and the draw of the batch's first clip, so a resumed run draws the same.
        with_names: adds what a training loop needs beside: `clip_names`, and `skipped`, JSON lines of what was passed
            over (see `ClipStream`), both lists of strings.
    """

    def __init__(
        self,
        mask_samplers: Sequence[Callable],
        patch_size: int,
        tubelet_size: int = 2,
        seed: int = 0,
        with_names: bool = False,
    ):
        self.mask_samplers, self.patch_size, self.tubelet_size = list(mask_samplers), patch_size, tubelet_size
        self.seed, self.with_names = seed, with_names

    def __call__(self, clips: list[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values_videos` (B, T, C, H, W); `context_mask` and `target_mask`, lists of int64 (B, K).

        Raises:
            ValueError: the clips are smaller than a token.
        """
        pixels = torch.stack([clip["pixel_values_videos"] for clip in clips])
        grid = (pixels.shape[1] // self.tubelet_size, *(size // self.patch_size for size in pixels.shape[-2:]))
        if min(grid) < 1:
            raise ValueError(
                f"A clip of {pixels.shape[1]} frames of {pixels.shape[3]} x {pixels.shape[4]} pixels holds no token "
                f"of tubelet_size={self.tubelet_size} frames and patch_size={self.patch_size} pixels; raise "
                "frames_per_clip or crop_size."
            )
        generator = torch.Generator().manual_seed(_draw(self.seed, clips[0]["draw"]))
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
