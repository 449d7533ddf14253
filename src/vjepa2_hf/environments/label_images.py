"""Label images of the environments, and labeled clips of recorded episodes: targets for dense probes.

An episode's row holds the states of all frames and the settings of its environment, so labels are rendered when they
are needed; any recorded episodes of the package's environments have them. Labels are those of the view `top`.

Shapes: T frames, H W pixels, S state size.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ..data.cameras import video_columns
from ..data.shards import ShardSource
from ..probing.dense_clips import DenseClip
from ..specs import check_choice, check_count
from ..video_io import ReadLimits, VideoReader
from .appearance import IMAGE_SIZE
from .plane import VIEWS, PlaneEnv
from .tasks import make_plain


Target = Literal["labels", "distance"]
TOP = VIEWS[0]  # the camera that labels are of
_CENTERS = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE  # of pixels, in field units


def label_names(env: PlaneEnv) -> tuple[str, ...]:
    """Names of the labels of `render_labels`: the floor, the wall if there is one, and the discs."""
    return ("floor", *(["wall"] if _walls(env).any() else []), *env.discs)


def render_labels(env: PlaneEnv, state: np.ndarray) -> np.ndarray:
    """What each pixel of a state (S,) shows, uint8 (64, 64), an index of `label_names`. A pixel belongs to a disc if
    its center does; an upper disc hides a lower one."""
    labels = _walls(env).astype(np.uint8)
    first = 1 + int(labels.any())
    for index in env.layers or range(len(env.radii)):
        labels[_disc_distance(env, state, index) <= 0] = first + index
    return labels


def render_distances(env: PlaneEnv, state: np.ndarray) -> np.ndarray:
    """The distance in pixels from each pixel's center to the nearest disc or wall of a state (S,), float32 (64, 64);
    0 within them. It is no depth: the camera looks straight down."""
    distances = [_disc_distance(env, state, index) for index in range(len(env.radii))]
    for low, high in getattr(env, "walls", ()):
        x, y = (np.maximum(np.maximum(low[i] - _CENTERS, _CENTERS - high[i]), 0) for i in (0, 1))
        distances.append(np.hypot(x[None, :], y[:, None]))
    return (np.maximum(np.min(distances, axis=0), 0) * IMAGE_SIZE).astype(np.float32)


def _disc_distance(env: PlaneEnv, state: np.ndarray, index: int) -> np.ndarray:
    """Field units from each pixel's center to a disc, (64, 64); negative within it."""
    x, y = np.asarray(state, np.float64)[2 * index : 2 * index + 2]
    return np.hypot(_CENTERS[None, :] - x, _CENTERS[:, None] - y) - env.radii[index]


def _walls(env: PlaneEnv) -> np.ndarray:
    """Pixels of walls, bool (64, 64)."""
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    env.render_walls(canvas, np.ones(3, np.float32))
    return canvas[..., 0] > 0


class LabeledEpisodes:
    """Clips of recorded episodes with labels of every frame; iterate over it.

    Args:
        data: episodes of `examples/record_episodes.py`, in one of the package's environments: a folder, glob or file
            of shards.
        frames_per_clip: T.
        clips_per_episode: evenly spaced in each episode; they overlap if it is short.
        target: "labels" (what a pixel shows), or "distance" (see `render_distances`).
        limits: what rows may cost and reach.

    Attributes:
        names: of the labels; None for distances. Known when the first clip was read.
        skipped: reasons by name of episodes that could not be read.
    """

    def __init__(
        self,
        data: str,
        frames_per_clip: int,
        clips_per_episode: int = 1,
        target: Target = "labels",
        limits: ReadLimits | None = None,
    ):
        check_choice("target", target, ("labels", "distance"))
        self.frames_per_clip = check_count("frames_per_clip", frames_per_clip)
        self.clips_per_episode = check_count("clips_per_episode", clips_per_episode)
        self.data, self.target, self.limits = data, target, limits
        self.names: tuple[str, ...] | None = None
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[DenseClip]:
        source, environments = ShardSource(self.data, self.limits), {}
        for shard, number, row in source.read_all():
            name = row.get("episode_id") or source.row_name(shard, number, row.get("path"))
            recording = _recording(row, self.data)
            videos = video_columns(row) or {TOP: "video"}
            if TOP not in videos:
                raise ValueError(f"{self.data!r} has the views {', '.join(videos)}; labels are those of {TOP!r}.")
            key = json.dumps([recording["env"], recording["env_kwargs"]])
            if key not in environments:
                environments[key] = make_plain(recording["env"], **recording["env_kwargs"])
            names = label_names(environments[key])
            if self.target == "labels" and self.names not in (None, names):
                raise ValueError(f"{self.data!r} mixes environments with the labels {self.names} and {names}.")
            self.names = names if self.target == "labels" else None
            try:
                yield from self._clips(name, row[videos[TOP]], row["states"], environments[key])
            except (ValueError, OSError) as error:
                self.skipped[name] = str(error)
        self.skipped = source.skipped | self.skipped

    def _clips(self, name: str, video: Any, states: list, env: PlaneEnv) -> Iterator[DenseClip]:
        states = np.asarray(states, np.float64)
        render = render_labels if self.target == "labels" else render_distances
        with VideoReader(video, self.limits) as reader:
            last = len(reader) - self.frames_per_clip
            if last < 0 or len(states) != len(reader):
                raise ValueError(
                    f"it has {len(reader)} frames and {len(states)} states; expected as many states as frames, and "
                    f"at least frames_per_clip={self.frames_per_clip}"
                )
            count = self.clips_per_episode
            starts = [last // 2] if count == 1 else np.linspace(0, last, count).astype(int)
            for start in dict.fromkeys(map(int, starts)):
                numbers = start + np.arange(self.frames_per_clip)
                labels = np.stack([render(env, states[number]) for number in numbers])
                clip_name = name if count == 1 else f"{name}, frame {start}"
                yield DenseClip(clip_name, reader.frames(numbers), labels, group=name)


def _recording(row: dict[str, Any], data: str) -> dict[str, Any]:
    """How an episode was recorded: its environment and settings."""
    try:
        recording = json.loads(row["recording"])
        if row.get("states") is not None:
            return {"env": str(recording["env"]), "env_kwargs": dict(recording["env_kwargs"])}
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"The rows of {data!r} have the columns {sorted(row)}, but `recording` and `states` are needed to render "
        "labels: record episodes with examples/record_episodes.py."
    )
