"""The two-rooms environment: a disc passes through a door in a wall; `vjepa2_hf/TwoRooms-v0`."""

import numpy as np

from .appearance import IMAGE_SIZE
from .rooms import RoomsEnv
from .symmetries import FLIP_HORIZONTAL, FLIP_VERTICAL


TWO_ROOMS = "vjepa2_hf/TwoRooms-v0"


class TwoRoomsEnv(RoomsEnv):
    """A disc (the agent) moves between two rooms through a door in the wall.

    State (2,): x, y. The wall stops the disc, which slides along it. Success is the agent within 5 pixels of its
    goal. Task of a seed: start and goal uniform in the rooms and at least 0.1 of the field apart; the goal of an even
    seed lies in the other room, that of an odd seed in either, so at least half of the goals are behind the door.

    Args:
        agent_radius: in pixels, at most 9: the door is 20 pixels wide.
        settings: of [`PlaneEnv`].
    """

    WALL = (30 / IMAGE_SIZE, 34 / IMAGE_SIZE)  # x
    DOOR = (22 / IMAGE_SIZE, 42 / IMAGE_SIZE)  # y
    MIN_DISTANCE = 0.1  # beyond the 5 pixels of success

    state_dim = 2
    plain_colors = ((215.0, 50.0, 45.0),)
    discs = ("agent",)
    symmetries = {"flip_horizontal": FLIP_HORIZONTAL, "flip_vertical": FLIP_VERTICAL}
    walls = np.array([[[WALL[0], -1.0], [WALL[1], DOOR[0]]], [[WALL[0], DOOR[1]], [WALL[1], 2.0]]])

    def __init__(self, render_mode: str | None = None, agent_radius: float = 6.0, **settings):
        super().__init__(render_mode, radii={"agent_radius": (agent_radius, 9.0)}, **settings)

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return self.move_agent(states, actions)

    def sample_positions(self, rng: np.random.Generator, right: bool) -> np.ndarray:
        """A uniform position in the left or the right room, float32 (2,)."""
        left_room = (self.radius, self.WALL[0] - self.radius)
        low, high = (self.WALL[1] + self.radius, 1 - self.radius) if right else left_room
        return np.array([rng.uniform(low, high), rng.uniform(self.radius, 1 - self.radius)], np.float32)

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
