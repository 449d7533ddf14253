"""The goals of tasks, encoded once per episode."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .tasks import TaskBatch
from .views import Images


class KeptGoals:
    """Keeps the encoded goals of a batch of tasks until their images change or the next batch begins. The weights do
    not change in between.

    Args:
        encode: images of n goals to what can be indexed by rows, such as latents (n, N, D).
    """

    def __init__(self, encode: Callable[[Images], Any]):
        self.encode, self._goals = encode, None
        self._episodes, self._images = np.zeros(0, np.int64), {}

    def __call__(self, tasks: TaskBatch, episodes: np.ndarray, images: Images) -> Any:
        """The encoded goals of these episodes (ascending indices), whose goal images are `images`."""
        by_view = images if isinstance(images, dict) else {"": images}
        if not (tasks.steps_taken and self._holds(episodes, by_view)):
            self._goals, self._episodes = self.encode(images), episodes.copy()
            self._images = {view: part.copy() for view, part in by_view.items()}
        return self._goals[np.searchsorted(self._episodes, episodes).tolist()]

    def _holds(self, episodes: np.ndarray, by_view: dict[str, np.ndarray]) -> bool:
        if not np.isin(episodes, self._episodes).all() or by_view.keys() != self._images.keys():
            return False
        rows = np.searchsorted(self._episodes, episodes)
        return all(np.array_equal(self._images[view][rows], part) for view, part in by_view.items())
