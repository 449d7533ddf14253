"""The two-rooms environment: a disc passes through a door in a wall; `vjepa2_hf/TwoRooms-v0`."""

import numpy as np

from .appearance import IMAGE_SIZE
from .plane import STEP_SIZE, SUBSTEPS, PlaneEnv, is_inside, keep_inside, length


TWO_ROOMS = "vjepa2_hf/TwoRooms-v0"


class TwoRoomsEnv(PlaneEnv):
    """A disc (the agent) moves between two rooms through a door in the wall.

    State (2,): x, y. The wall stops the disc, which slides along it. Success is the agent within 5 pixels of its
    goal. Task of a seed: start and goal uniform in the rooms and at least 0.1 of the field apart; the goal of an even
    seed lies in the other room, that of an odd seed in either, so at least half of the goals are behind the door.
    """

    RADIUS = 6 / IMAGE_SIZE
    WALL = (30 / IMAGE_SIZE, 34 / IMAGE_SIZE)  # x
    DOOR = (22 / IMAGE_SIZE, 42 / IMAGE_SIZE)  # y
    MIN_DISTANCE = 0.1  # beyond the 5 pixels of success

    state_dim = 2
    radii = (RADIUS,)
    plain_colors = ((215.0, 50.0, 45.0),)
    target = slice(0, 2)
    _wall_parts = np.array([[[WALL[0], -1.0], [WALL[1], DOOR[0]]], [[WALL[0], DOOR[1]], [WALL[1], 2.0]]])

    def is_free(self, states: np.ndarray) -> np.ndarray:
        apart = is_inside(states, self.RADIUS)
        for low, high in self._wall_parts:
            nearest = np.minimum(np.maximum(states, low), high)
            apart = apart & (length(states - nearest)[..., 0] >= self.RADIUS - 1e-4)
        return apart

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        agent = np.asarray(states, np.float64)
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (STEP_SIZE / SUBSTEPS)
        for _ in range(SUBSTEPS):
            agent = self._slide(agent, keep_inside(agent + move, self.RADIUS))
        return agent.astype(np.float32)

    def _slide(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """One substep, (..., 2): pushes the disc out of the wall along the line to the wall's nearest point."""
        for low, high in self._wall_parts:
            offset = after - np.minimum(np.maximum(after, low), high)
            distance = length(offset)
            overlap = np.maximum(self.RADIUS - distance, 0)
            after = after + offset * (overlap / np.maximum(distance, 1e-9))
        jammed = ~self.is_free(after)
        return np.where(jammed[..., None], before, after)

    def sample_positions(self, rng: np.random.Generator, right: bool) -> np.ndarray:
        """A uniform position in the left or the right room, float32 (2,)."""
        left_room = (self.RADIUS, self.WALL[0] - self.RADIUS)
        low, high = (self.WALL[1] + self.RADIUS, 1 - self.RADIUS) if right else left_room
        return np.array([rng.uniform(low, high), rng.uniform(self.RADIUS, 1 - self.RADIUS)], np.float32)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.stack([self.sample_positions(rng, right) for right in rng.random(count) < 0.5])

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            start_right, goal_right = rng.random(2) < 0.5
            if seed % 2 == 0:
                goal_right = not start_right
            start, goal = self.sample_positions(rng, start_right), self.sample_positions(rng, goal_right)
            if np.linalg.norm(goal - start) >= self.MIN_DISTANCE:
                return start, goal

    def render_walls(self, background: np.ndarray, color: np.ndarray) -> None:
        left, right = (round(x * IMAGE_SIZE) for x in self.WALL)
        top, bottom = (round(y * IMAGE_SIZE) for y in self.DOOR)
        background[:top, left:right] = color
        background[bottom:, left:right] = color
