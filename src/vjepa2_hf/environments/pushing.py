"""The pushing environment: a disc pushes a block to a goal position; `vjepa2_hf/Pushing-v0`."""

import numpy as np

from .appearance import IMAGE_SIZE
from .plane import SUBSTEPS, SUCCESS_PIXELS, PlaneEnv, is_inside, keep_inside, length
from .symmetries import FLIP_HORIZONTAL, FLIP_VERTICAL, TRANSPOSE


PUSHING = "vjepa2_hf/Pushing-v0"

# Set once for a success rate of about 0.38; the sampled goals depend on them.
PULL, NOISE = 0.5, 0.9


def drawn_to_block_actions(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random actions biased towards the block: states (..., 4) -> float32 (..., 2)."""
    offset = states[..., 2:] - states[..., :2]
    pull = offset / np.maximum(length(offset), 1e-6)
    return np.clip(PULL * pull + NOISE * rng.standard_normal(pull.shape), -1, 1).astype(np.float32)


class PushingEnv(PlaneEnv):
    """A disc (the pusher, the agent) pushes a larger disc (the block) to a goal position.

    State (4,): pusher x, y, block x, y. The block moves along the line between the centers; at the edge of the field
    it stops, and the pusher with it. Success is the block within 5 pixels of its goal.
    Task of a seed: a random start; the goal is the state after 20 steps of the data policy `drawn_to_block`, accepted
    only if the block moved by at least 0.2 of the field.

    Args:
        agent_radius, block_radius: of the pusher and the block, in pixels, at most 16 each.
        settings: of [`PlaneEnv`].
    """

    GOAL_STEPS = 20
    MIN_BLOCK_MOVE = 0.2

    state_dim = 4
    plain_colors = ((215.0, 50.0, 45.0), (45.0, 90.0, 200.0))
    discs = ("pusher", "block")
    target, controlled = slice(2, 4), slice(0, 4)
    symmetries = {"flip_horizontal": FLIP_HORIZONTAL, "flip_vertical": FLIP_VERTICAL, "transpose": TRANSPOSE}

    def __init__(
        self, render_mode: str | None = None, agent_radius: float = 6.0, block_radius: float = 12.0, **settings
    ):
        radii = {"agent_radius": (agent_radius, 16.0), "block_radius": (block_radius, 16.0)}
        super().__init__(render_mode, radii=radii, **settings)
        self.pusher_radius, self.block_radius = self.radii  # in field units, as the distance of touching discs
        self.contact = self.pusher_radius + self.block_radius

    def is_free(self, states: np.ndarray) -> np.ndarray:
        pusher, block = states[..., :2], states[..., 2:]
        apart = length(block - pusher)[..., 0] >= self.contact - 1e-4
        return apart & is_inside(pusher, self.pusher_radius) & is_inside(block, self.block_radius)

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        pusher, block = (np.asarray(part, np.float64) for part in (states[..., :2], states[..., 2:]))
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (self.step_size / SUBSTEPS)
        for _ in range(SUBSTEPS):
            pusher, block = self._push(pusher, block, move)
        pusher, block = np.broadcast_arrays(pusher, block)
        return np.concatenate([pusher, block], axis=-1).astype(np.float32)

    def _push(self, pusher: np.ndarray, block: np.ndarray, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One substep, (..., 2) each: the pusher moves the block, and a blocked block stops the pusher."""
        moved = keep_inside(pusher + move, self.pusher_radius)
        offset = block - moved
        distance = length(offset)
        overlap = np.maximum(self.contact - distance, 0)
        if not overlap.any():
            return moved, block
        pushed = keep_inside(block + offset * (overlap / np.maximum(distance, 1e-9)), self.block_radius)
        offset = pushed - moved
        distance = length(offset)
        overlap = np.maximum(self.contact - distance, 0)
        moved = keep_inside(moved - offset * (overlap / np.maximum(distance, 1e-9)), self.pusher_radius)
        jammed = length(pushed - moved) < self.contact - 1e-5  # both in a corner: nothing moves
        return np.where(jammed, pusher, moved), np.where(jammed, block, pushed)

    def cost_to_go(self, states: np.ndarray, goals: np.ndarray, whole_state: bool = False) -> np.ndarray:
        """The block's distance, plus a little for the pusher: its distance from where it touches the block opposite to
        the goal, so that plans which do not reach the block yet differ. With `whole_state` its own goal replaces this
        gradually within the last 5 pixels of the block."""
        offset = states[..., 2:] - goals[..., 2:]
        distance = length(offset)
        behind = states[..., 2:] + offset * (self.contact / np.maximum(distance, 1e-6))
        cost = distance + 0.1 * length(states[..., :2] - behind)
        if whole_state:
            arrived = np.maximum(1 - distance * (IMAGE_SIZE / SUCCESS_PIXELS), 0)
            own = 0.3 * length(states[..., :2] - goals[..., :2])
            cost = distance + (1 - arrived) * (cost - distance) + arrived * own
        return cost[..., 0] * IMAGE_SIZE

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform states in which the discs do not overlap: (count, 4) float32."""
        starts = np.empty((0, 4), np.float32)
        while len(starts) < count:
            pusher = rng.uniform(self.pusher_radius, 1 - self.pusher_radius, (2 * count, 2))
            block = rng.uniform(self.block_radius, 1 - self.block_radius, (2 * count, 2))
            states = np.concatenate([pusher, block], axis=-1).astype(np.float32)
            starts = np.concatenate([starts, states[self.is_free(states)]])
        return starts[:count]

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            starts = states = self.sample_starts(rng, 16)  # a batch costs as much as one
            for _ in range(self.GOAL_STEPS):
                states = self.dynamics(states, drawn_to_block_actions(states, rng))
            kept = length(states[:, 2:] - starts[:, 2:])[:, 0] >= self.MIN_BLOCK_MOVE
            if kept.any():
                first = int(np.argmax(kept))
                return starts[first], states[first]
