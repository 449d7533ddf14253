"""Base class of the environments with walls: a disc (the agent) slides along them."""

from functools import cached_property

import numpy as np

from .appearance import IMAGE_SIZE
from .plane import SUBSTEPS, PlaneEnv, is_inside, keep_inside, length
from .shortest_paths import ShortestPaths


class RoomsEnv(PlaneEnv):
    """A disc (the agent) moves between rooms; walls stop it, and it slides along them."""

    walls: np.ndarray  # (W, 2, 2), lowest and highest corner of each in field units
    controlled = target = slice(0, 2)

    @property
    def radius(self) -> float:
        """Of the agent, in field units."""
        return self.radii[0]

    @cached_property
    def paths(self) -> ShortestPaths:
        """Shortest paths of the agent around the walls."""
        return ShortestPaths(self.walls, self.radius)

    def path_distance(self, states: np.ndarray, goals: np.ndarray, whole_state: bool = False) -> np.ndarray:
        return self.paths.distance(states[..., self.target], goals[..., self.target]) * IMAGE_SIZE

    def is_free(self, states: np.ndarray) -> np.ndarray:
        return self.is_clear(states[..., :2])

    def is_clear(self, agent: np.ndarray) -> np.ndarray:
        """Whether the agent is inside the field and apart from the walls: (..., 2) -> bool (...)."""
        apart = is_inside(agent, self.radius)
        for low, high in self.walls:
            nearest = np.minimum(np.maximum(agent, low), high)
            apart = apart & (length(agent - nearest)[..., 0] >= self.radius - 1e-4)
        return apart

    def move_agent(self, agent: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Positions (..., 2) after actions (..., 2), float32 (..., 2)."""
        agent = np.asarray(agent, np.float64)
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (self.step_size / SUBSTEPS)
        for _ in range(SUBSTEPS):
            agent = self._slide(agent, keep_inside(agent + move, self.radius))
        return agent.astype(np.float32)

    def _slide(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """One substep, (..., 2): pushes the disc out of the wall along the line to the wall's nearest point."""
        for low, high in self.walls:
            offset = after - np.minimum(np.maximum(after, low), high)
            distance = length(offset)
            overlap = np.maximum(self.radius - distance, 0)
            after = after + offset * (overlap / np.maximum(distance, 1e-9))
        jammed = ~self.is_clear(after)
        return np.where(jammed[..., None], before, after)

    def render_walls(self, background: np.ndarray, color: np.ndarray) -> None:
        for (left, top), (right, bottom) in np.clip(np.round(self.walls * IMAGE_SIZE), 0, IMAGE_SIZE).astype(int):
            background[top:bottom, left:right] = color
