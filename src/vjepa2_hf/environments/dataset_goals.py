"""Tasks from recorded episodes: start and goal are two frames of one held-out episode.

    pairs = read_pairs("runs/episodes", offset=25, fraction=0.07, count=50, seed=100_000)
    bring_to(episode, pairs[0], 0, reset_option={"state": "states"})        # 1: to the goal

Letters: T frames, S state size, A action size, H and W pixels.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..data.episodes import episode_ids, held_out_of, read_episodes
from ..data.video_writing import resize_frame
from ..training.episode_latents import trained_fraction


COLUMNS = ("states", "proprio_states")  # of an episode, that `reset(options=...)` may take
# Of video encoding, which changed no pixel by more than 20 of 255 in the package's environments
PIXEL_TOLERANCE, PIXEL_FRACTION = 64, 0.001
STATE_TOLERANCE = 0.01  # absolute, and relative


@dataclass(frozen=True)
class RecordedPair:
    """Start and goal of a task: frames `frame` and `frame + offset` of an episode."""

    episode_id: str
    frame: int
    offset: int
    images: np.ndarray
    """uint8 (2, H, W, 3): start, goal."""
    columns: dict[str, np.ndarray]
    """Those of `COLUMNS` that the data has: float32 (2, S)."""
    actions: np.ndarray
    """float32 (frame + offset, A), from the first frame of the episode to the goal."""
    replay: dict[str, Any]
    """Columns with which `record_episodes.py` repeats and describes an episode: `env_seed`, `reset_options`,
    `recording`."""

    @property
    def source(self) -> dict[str, Any]:
        """Where the task comes from: episode, frame and goal frame."""
        return {"episode": self.episode_id, "frame": self.frame, "goal_frame": self.frame + self.offset}

    @property
    def seed(self) -> int | None:
        """The environment's seed, if the data has it."""
        return self.replay.get("env_seed")

    @property
    def policy(self) -> str | None:
        """The policy that recorded the episode, if the data names it."""
        return json.loads(self.replay.get("recording") or "{}").get("policy")

    @property
    def reset_options(self) -> dict[str, Any]:
        """Options with which the environment was reset when it was recorded."""
        return json.loads(self.replay.get("reset_options") or "{}")


class SteppedEpisode(Protocol):
    """One environment, as `gym_tasks` steps it."""

    ended: bool

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> None:
        """Starts the environment."""

    def step(self, action: np.ndarray) -> bool:
        """Takes an action (A,); returns whether the environment ended the episode."""

    def image(self) -> np.ndarray:
        """The current image, uint8 (H, W, 3)."""


def find_fraction(paths: Iterable[str]) -> float:
    """The `validation_fraction` of the training runs of models and policies, by their folders RUN/final."""
    found = set(map(trained_fraction, paths)) - {None}
    if len(found) == 1:
        return float(found.pop())
    if found:
        raise ValueError(
            f"The models were trained with validation_fraction {sorted(found)}, so they have other held-out episodes: "
            "set gym.validation_fraction to the smallest, if they were trained on the same data."
        )
    raise ValueError(
        "No config.yaml of a training run beside the models gives validation_fraction: set gym.validation_fraction "
        "(1.0 if all of gym.data is new to the models)."
    )


def _sample(seed: int, name: str) -> np.random.Generator:
    """Random numbers of an episode, whatever other episodes there are."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


@functools.lru_cache(maxsize=8)  # every row of an evaluation has the same pairs
def read_pairs(data: str, offset: int, fraction: float, count: int, seed: int) -> tuple[RecordedPair, ...]:
    """A pair of frames from each of `count` held-out episodes, `offset` frames apart.

    Args:
        data: as for `read_episodes`.
        fraction: the `validation_fraction` of training, which held the same episodes out.
        seed: of the order of the episodes, which is that of all offsets, and of their frames.

    Raises:
        ValueError: there are fewer than `count` held-out episodes of more than `offset` frames.
    """
    held_out = held_out_of(episode_ids(data), fraction)
    pairs, found = [], 0
    for episode in read_episodes(data, wanted=held_out):
        found += 1
        last = len(episode["frames"]) - 1 - offset
        if last < 0:
            continue
        name = episode["episode_id"]
        start = int(_sample(seed, name).integers(last + 1))
        kept = [start, start + offset]
        columns = {column: episode[column][kept] for column in COLUMNS if episode[column] is not None}
        actions = episode["actions"][: start + offset]
        images = episode["frames"][kept].copy()  # not a view: the others are let go
        pairs.append(RecordedPair(name, start, offset, images, columns, actions.copy(), episode["replay"]))
    if len(pairs) < count:
        raise ValueError(
            f"{data!r} has {found} held-out episodes (validation_fraction={fraction}), {len(pairs)} of more than "
            f"gym.goal_offset={offset} frames, but episodes={count}, and each gives one task: record more or longer "
            "episodes, or lower episodes."
        )
    pairs.sort(key=lambda pair: _sample(seed, f"order of {pair.episode_id}").random())
    return tuple(pairs[:count])


def bring_to(episode: SteppedEpisode, pair: RecordedPair, which: int, seed: int, reset_option: dict[str, str]) -> None:
    """Brings an environment to the start (`which` 0) or the goal (1) of a pair.

    Args:
        seed: of the reset, if the data has none.
        reset_option: option of `reset` by name, and the column that gives its value; {}: the recorded actions are
            repeated from the recorded seed.
    """
    if reset_option:
        missing = sorted(set(reset_option.values()) - pair.columns.keys())
        if missing:
            raise ValueError(
                f"gym.reset_option names the column {missing[0]!r}, but the episodes of gym.data have "
                f"{' and '.join(pair.columns) or 'neither states nor proprio_states'}."
            )
        values = {option: pair.columns[column][which] for option, column in reset_option.items()}
        episode.reset(seed if pair.seed is None else pair.seed, {**pair.reset_options, **values})
        return
    if pair.seed is None:
        raise ValueError(
            f"Episode {pair.episode_id!r} has no env_seed, from which its actions could be repeated: set "
            "gym.reset_option to an option of the environment's reset, such as {state: states}, or record the "
            "episodes with examples/record_episodes.py."
        )
    episode.reset(pair.seed, pair.reset_options or None)
    for action in pair.actions[: pair.frame + which * pair.offset]:
        episode.step(action)


def check_arrival(episode: SteppedEpisode, pair: RecordedPair, which: int, state: np.ndarray | None) -> None:
    """Refuses an environment that shows another image, or another state (S,), than the recorded frame."""
    frame = pair.frame + which * pair.offset
    recorded, image = pair.images[which], episode.image()
    if image.shape != recorded.shape:
        image = resize_frame(image, len(recorded))
    advice = "check env, gym.env_kwargs and gym.reset_option against the recording"
    where = f"At frame {frame} of episode {pair.episode_id!r} the environment"
    if image.shape != recorded.shape:
        raise ValueError(f"{where} shows {image.shape[:2]} pixels, but {recorded.shape[:2]} were recorded: {advice}.")
    differs = np.abs(image.astype(np.int16) - recorded).max(axis=-1) > PIXEL_TOLERANCE
    if differs.mean() > PIXEL_FRACTION:
        raise ValueError(
            f"{where} shows another image than the recorded one: {100 * differs.mean():.1f} % of its pixels differ by "
            f"more than {PIXEL_TOLERANCE} of 255, but at most {100 * PIXEL_FRACTION} % may; {advice}."
        )
    known = pair.columns.get("states")
    if state is None or known is None or known.shape[1] != len(state):
        return
    if not np.allclose(state, known[which], rtol=STATE_TOLERANCE, atol=STATE_TOLERANCE):
        raise ValueError(
            f"{where} has the state {state.tolist()}, but {known[which].tolist()} was recorded; {advice}."
        )
