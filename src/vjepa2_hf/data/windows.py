"""Windows of cached episodes: sampled or tiled, and their training batches.

Legend: F frames of a window, B windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..configuration_vjepa2 import check
from .feature_cache import FeatureCache, gather_by


PADDED = ("actions", "proprio_states")  # columns whose width depends on the embodiment


class WindowMixture:
    """Windows of episodes of caches with the same columns. A window is (cache, episode, first frame), int64.

    `episodes` are int64 indices per cache, and `weights` the fraction of the sampled windows per cache; within a cache
    every window is equally likely.

    With `embodiments`, an id per cache, `read` also gives `embodiment_ids`, and actions and proprio states are padded
    with zeros to `widths`, numbers per frame by column: at first the largest of the caches.
    """

    def __init__(
        self,
        caches: Sequence[FeatureCache],
        episodes: Sequence[torch.Tensor],
        weights: Sequence[float],
        embodiments: Sequence[int] | None = None,
    ):
        self.caches, self.episodes = list(caches), list(episodes)
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)
        self.embodiments = None if embodiments is None else list(embodiments)
        columns = {column for cache in self.caches for column in cache.columns} & set(PADDED)
        self.widths = {column: max(cache.width(column) for cache in self.caches) for column in columns}

    def __len__(self) -> int:
        """Number of episodes."""
        return sum(map(len, self.episodes))

    def num_windows(self, cache: int, frames: int, skip: int) -> np.ndarray:
        """Number of windows in each of the E episodes of a cache, int64 (E,)."""
        return (self.caches[cache].lengths[self.episodes[cache]] - (frames - 1) * skip).clamp(min=0).numpy()

    def sample(self, count: int, frames: int, skip: int, rng: np.random.Generator) -> torch.Tensor:
        """Random windows, (count, 3)."""
        several = len(self.caches) > 1
        caches = rng.choice(len(self.caches), size=count, p=self.weights) if several else np.zeros(count, np.int64)
        windows = np.empty((count, 3), np.int64)
        for number, cache in enumerate(self.caches):
            ends = self.num_windows(number, frames, skip).cumsum()
            needed = f"{(frames - 1) * skip + 1} frames of a window (in {str(cache.folder)!r})"
            check(len(ends) and ends[-1] > 0, f"No episode has the {needed}; record longer ones.")
            mine = np.flatnonzero(caches == number)
            sampled = rng.integers(ends[-1], size=len(mine))
            index = np.searchsorted(ends, sampled, side="right")
            starts = sampled - np.concatenate([[0], ends])[index]
            windows[mine] = np.stack([np.full_like(index, number), self.episodes[number].numpy()[index], starts], 1)
        return torch.from_numpy(windows)

    def tile(self, frames: int, skip: int, stride: int, limit: int) -> torch.Tensor:
        """Windows that begin every `stride` frames, evenly subsampled to at most `limit`: (count, 3)."""
        windows = []
        for cache in range(len(self.caches)):
            counts = self.num_windows(cache, frames, skip).tolist()
            for episode, count in zip(self.episodes[cache].tolist(), counts):
                windows += [(cache, episode, start) for start in range(0, count, stride)]
        windows = torch.tensor(windows, dtype=torch.int64).view(-1, 3)
        return windows if len(windows) <= limit else windows[torch.linspace(0, len(windows) - 1, limit).long()]

    def names(self, windows: torch.Tensor) -> list[str]:
        """Readable names of windows (B, 3): episode and first frame."""
        return [f"{self.caches[cache].ids[episode]}, frame {start}" for cache, episode, start in windows.tolist()]

    def read(self, windows: torch.Tensor, frames: int, skip: int) -> dict[str, torch.Tensor]:
        """The columns of windows (B, 3); see `FeatureCache.windows`. With several embodiments, actions are
        (B, F-1, 1, skip · width): those of a step, and zeros after them."""
        return gather_by(windows[:, 0], lambda cache, chosen: self._read(cache, windows[chosen], frames, skip))

    def _read(self, cache: int, windows: torch.Tensor, frames: int, skip: int) -> dict[str, torch.Tensor]:
        batch = self.caches[cache].windows(windows[:, 1], windows[:, 2], frames, skip)
        if self.embodiments is None:
            return batch
        if "actions" in batch:
            batch["actions"] = _padded(batch["actions"].flatten(2), skip * self.widths["actions"]).unsqueeze(2)
        if "proprio_states" in self.widths:
            states = batch.get("proprio_states", torch.zeros(len(windows), frames, 0))
            batch["proprio_states"] = _padded(states, self.widths["proprio_states"])
        batch["embodiment_ids"] = torch.full((len(windows),), self.embodiments[cache])
        return batch

    def fit_widths(self, actions: int, proprio_states: int) -> None:
        """Pads to these numbers per frame, of a model that may have larger embodiments than the data."""
        if self.embodiments is None:
            return
        for column, width in (("actions", actions), ("proprio_states", proprio_states)):
            found = self.widths.get(column, 0)
            check(found <= width, f"The data has {column} of {found} numbers, but the model's are {width} at most.")
        self.widths = {"actions": actions, **({"proprio_states": proprio_states} if proprio_states else {})}

    def of_embodiment(self, embodiment: int) -> WindowMixture:
        """The windows of one embodiment."""
        own = [number for number, found in enumerate(self.embodiments) if found == embodiment]
        parts = [[values[number] for number in own] for values in (self.caches, self.episodes, self.weights)]
        return WindowMixture(*parts, [embodiment] * len(own))


def _padded(values: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]))


class WindowBatches(torch.utils.data.Dataset):
    """Micro-batches of windows for a DataLoader with `batch_size=None` and a range as sampler.

    Item n depends on the seed and n alone, so that a resumed run begins the range later and any number of workers
    gives the same batches. An item holds the windows' columns, and the windows themselves (B, 3) as `windows`.
    Processes and micro-batches split the windows that one process would sample for the whole step. `batch_size` is B,
    per process and micro-batch; `frames_at` gives F for a step (from 1); frames of a window are `skip` apart.
    """

    def __init__(
        self,
        mixture: WindowMixture,
        batch_size: int,
        frames_at: Callable[[int], int],
        skip: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ):
        self.mixture, self.batch_size, self.frames_at, self.skip = mixture, batch_size, frames_at, skip
        self.seed, self.rank, self.world_size, self.micro_batches = seed, rank, world_size, micro_batches

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        step, micro_batch = number // self.micro_batches + 1, number % self.micro_batches
        frames = self.frames_at(step)
        everyone = self.batch_size * self.world_size * self.micro_batches
        windows = self.mixture.sample(everyone, frames, self.skip, np.random.default_rng((self.seed, step)))
        first = (micro_batch * self.world_size + self.rank) * self.batch_size
        windows = windows[first : first + self.batch_size]
        return {"windows": windows, **self.mixture.read(windows, frames, self.skip)}
