"""The four-rooms environment: three doors, and a second disc that moves on its own; `vjepa2_hf/FourRooms-v0`."""

import numpy as np

from .appearance import IMAGE_SIZE
from .plane import is_inside
from .rooms import RoomsEnv


FOUR_ROOMS = "vjepa2_hf/FourRooms-v0"


class FourRoomsEnv(RoomsEnv):
    """A disc (the agent) moves between four rooms while another disc (the distractor) crosses the whole field.

    ::

        +-------+-------+
        | 0     |     3 |       three doors join the rooms in the order of their numbers; the upper wall has none,
        |       |       |       so the way from room 0 to room 3 leads through all rooms
        +--   --+--   --+
        |       |       |
        | 1           2 |
        +-------+-------+

    State (6,): agent x, y, distractor x, y, and the distractor's velocity, its move a step. The distractor moves
    straight, passes over walls and under the agent, and bounces off the edges of the field: its motion follows from
    the state. An image does not show its velocity. An action of 1.0 moves the agent by 0.03 of the field.
    Success is the agent within 5 pixels of its goal; the distractor does not count. Task of a seed: start and goal
    uniform in their rooms, 1, 2 or 3 doors apart (1 + seed modulo 3), the distractor anywhere in both. A task has 150
    steps; the longest way takes about 60.

    Args:
        agent_radius: in pixels, at most 6: a door is 14 pixels wide.
        settings: of [`PlaneEnv`].
    """

    MIDDLE = (30 / IMAGE_SIZE, 34 / IMAGE_SIZE)  # of the field: the walls, x or y
    DOORS = (8 / IMAGE_SIZE, 22 / IMAGE_SIZE), (42 / IMAGE_SIZE, 56 / IMAGE_SIZE)  # in the first and the second half
    DISTRACTOR_RADIUS = 4.0  # pixels
    SPEED = 0.03  # of the distractor, field units a step
    MAX_SPEED = 0.1  # of a state that is set
    CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # column and row of each room

    state_dim = 6
    step_size = 0.03
    max_steps = 150
    layers = (1, 0)  # the agent is visible everywhere
    plain_colors = ((215.0, 50.0, 45.0), (40.0, 145.0, 80.0))
    discs = ("agent", "distractor")
    walls = np.array(
        [
            [[MIDDLE[0], -1.0], [MIDDLE[1], DOORS[1][0]]],  # between left and right: a door below
            [[MIDDLE[0], DOORS[1][1]], [MIDDLE[1], 2.0]],
            [[-1.0, MIDDLE[0]], [DOORS[0][0], MIDDLE[1]]],  # between above and below: two doors
            [[DOORS[0][1], MIDDLE[0]], [DOORS[1][0], MIDDLE[1]]],
            [[DOORS[1][1], MIDDLE[0]], [2.0, MIDDLE[1]]],
        ]
    )

    def __init__(self, render_mode: str | None = None, agent_radius: float = 4.0, **settings):
        radii = {"agent_radius": (agent_radius, 6.0), "distractor": (self.DISTRACTOR_RADIUS, self.DISTRACTOR_RADIUS)}
        super().__init__(render_mode, radii=radii, **settings)

    def is_free(self, states: np.ndarray) -> np.ndarray:
        speeds = np.hypot(states[..., 4], states[..., 5])
        return self.is_clear(states[..., :2]) & is_inside(states[..., 2:4], self.radii[1]) & (speeds <= self.MAX_SPEED)

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        agent = self.move_agent(states[..., :2], actions)
        distractor = self._move_distractor(states[..., 2:4], states[..., 4:])
        return np.concatenate([agent, np.broadcast_to(distractor, (*agent.shape[:-1], 4))], axis=-1)

    def disturbed(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.concatenate([self.move_agent(states[..., :2], actions), states[..., 2:]], axis=-1)

    def _move_distractor(self, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """One step of positions and velocities (..., 2), joined: float32 (..., 4)."""
        low, high = self.radii[1], 1 - self.radii[1]
        moved = np.asarray(positions, np.float64) + velocities
        bounces = (moved < low) | (moved > high)
        mirrored = np.where(moved < low, 2 * low - moved, 2 * high - moved)
        moved, velocities = np.where(bounces, mirrored, moved), np.where(bounces, -velocities, velocities)
        return np.concatenate([moved, velocities], axis=-1).astype(np.float32)

    def room_of(self, agent: np.ndarray) -> np.ndarray:
        """The number of the room, (..., 2) -> int (...); doors belong to the nearer room."""
        right, below = agent[..., 0] >= 0.5, agent[..., 1] >= 0.5
        return np.where(below, 1 + right, 3 * right)

    def sample_position(self, rng: np.random.Generator, room: int) -> np.ndarray:
        """A uniform position of the agent in a room, (2,)."""
        return rng.uniform(self.radius, self.MIDDLE[0] - self.radius, 2) + self.MIDDLE[1] * np.array(
            self.CORNERS[room]
        )

    def _sample_state(self, rng: np.random.Generator, room: int) -> np.ndarray:
        distractor, angle = rng.uniform(self.radii[1], 1 - self.radii[1], 2), rng.uniform(0, 2 * np.pi)
        velocity = self.SPEED * np.array([np.cos(angle), np.sin(angle)])
        return np.concatenate([self.sample_position(rng, room), distractor, velocity]).astype(np.float32)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.stack([self._sample_state(rng, room) for room in rng.integers(4, size=count)])

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        doors = 1 + seed % 3
        first = rng.integers(4 - doors)
        rooms = [first, first + doors] if rng.random() < 0.5 else [first + doors, first]
        return self._sample_state(rng, rooms[0]), self._sample_state(rng, rooms[1])
