"""Episodes for the world model, from shards: frames, actions and proprio states.

Legend: T frames, A action size, S proprio size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .shards import ShardSource, open_stream
from .video_io import VideoDecodeError, VideoReader


def read_episodes(
    data: str | os.PathLike, frame_skip: int = 1, max_episodes: int | None = None
) -> Iterator[dict[str, Any]]:
    """Episodes in the order of the shards, each `frame_skip`-th frame kept.

    An episode whose video does not decode, or that is too short for one step, is skipped and named in the log.

    Args:
        data: as for `ShardSource`, with rows as in API.md ("Data on disk").
        frame_skip: k; the k actions between two kept frames are joined to one of size k*A, the earliest first, and a
            rest that does not fill a step is dropped.
        max_episodes: stop after so many.

    Yields:
        `frames` uint8 (T, H, W, 3), `actions` float32 (T-1, k*A) in environment units, `proprio_states` float32
        (T, S) or None, `fps` of the kept frames, `episode_id`.

    Raises:
        ValueError: an episode, named, whose actions or states have a wrong length or size or are not finite; or no
            episode at all.
    """
    if frame_skip < 1:
        raise ValueError(f"frame_skip is {frame_skip}, but at least every frame (1) is kept.")
    source, count, sizes = ShardSource(data), 0, None
    for _, shard, row_number, row in open_stream(source, seed=None):
        if count == max_episodes:
            return
        name = str(row.get("episode_id") or source.row_name(shard, row_number))
        try:
            with VideoReader(row["video"]) as reader:
                actions, states = _episode_arrays(row, name, len(reader))
                frames = reader.frames(np.arange(0, len(reader), frame_skip))
                video_fps = reader.fps
        except (VideoDecodeError, OSError) as error:
            source.skip(name, str(error))
            continue
        steps = len(actions) // frame_skip
        if steps < 1:
            source.skip(name, f"{len(actions)} actions do not fill one step of {frame_skip}")
            continue
        found = (actions.shape[1], None if states is None else states.shape[1])
        sizes = sizes or found
        if found != sizes:
            raise ValueError(f"Episode {name} has (action, proprio) sizes {found}, but the ones before had {sizes}.")
        count += 1
        yield {
            "frames": frames[: steps + 1],
            "actions": actions[: steps * frame_skip].reshape(steps, -1),
            "proprio_states": None if states is None else states[: steps * frame_skip + 1 : frame_skip],
            "fps": float(row.get("fps") or video_fps) / frame_skip,
            "episode_id": name,
        }
    if not count:
        reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
        raise ValueError(f"No episode could be read from {source.data!r}{f' ({reasons[0]})' if reasons else ''}.")


def _episode_arrays(row: dict, name: str, num_frames: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Actions (T-1, A) and proprio states (T, S) of a row, checked."""
    arrays = []
    for column, length in (("actions", num_frames - 1), ("proprio_states", num_frames)):
        values = row.get(column)
        if values is None:
            if column == "actions":
                raise ValueError(f"Episode {name} has no actions; record it with examples/record_episodes.py.")
            arrays.append(None)
            continue
        try:
            array = np.asarray(values, np.float32)
        except (ValueError, TypeError):
            raise ValueError(
                f"Episode {name} has {column} whose rows differ in size; give each step as many."
            ) from None
        if array.ndim != 2 or len(array) != length or array.shape[1] == 0:
            wanted = f"{length} rows for {num_frames} frames"
            raise ValueError(f"Episode {name} has {column} of shape {array.shape}, but {wanted} are needed.")
        if not np.isfinite(array).all():
            raise ValueError(f"Episode {name} has {column} that are not finite (NaN or infinite).")
        arrays.append(array)
    return arrays[0], arrays[1]
