"""The pushing environment: a disc pushes a block to a goal position; `vjepa2_hf/Pushing-v0`."""

import numpy as np

from .appearance import IMAGE_SIZE
from .plane import STEP_SIZE, SUBSTEPS, PlaneEnv, is_inside, keep_inside, length


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
    """

    PUSHER_RADIUS = 6 / IMAGE_SIZE
    BLOCK_RADIUS = 12 / IMAGE_SIZE
    CONTACT = PUSHER_RADIUS + BLOCK_RADIUS
    GOAL_STEPS = 20
    MIN_BLOCK_MOVE = 0.2

    state_dim = 4
    radii = (PUSHER_RADIUS, BLOCK_RADIUS)
    plain_colors = ((215.0, 50.0, 45.0), (45.0, 90.0, 200.0))
    target = slice(2, 4)

    def is_free(self, states: np.ndarray) -> np.ndarray:
        pusher, block = states[..., :2], states[..., 2:]
        apart = length(block - pusher)[..., 0] >= self.CONTACT - 1e-4
        return apart & is_inside(pusher, self.PUSHER_RADIUS) & is_inside(block, self.BLOCK_RADIUS)

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        pusher, block = (np.asarray(part, np.float64) for part in (states[..., :2], states[..., 2:]))
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (STEP_SIZE / SUBSTEPS)
        for _ in range(SUBSTEPS):
            pusher, block = self._push(pusher, block, move)
        pusher, block = np.broadcast_arrays(pusher, block)
        return np.concatenate([pusher, block], axis=-1).astype(np.float32)

    def _push(self, pusher: np.ndarray, block: np.ndarray, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One substep, (..., 2) each: the pusher moves the block, and a blocked block stops the pusher."""
        moved = keep_inside(pusher + move, self.PUSHER_RADIUS)
        offset = block - moved
        distance = length(offset)
        overlap = np.maximum(self.CONTACT - distance, 0)
        if not overlap.any():
            return moved, block
        pushed = keep_inside(block + offset * (overlap / np.maximum(distance, 1e-9)), self.BLOCK_RADIUS)
        offset = pushed - moved
        distance = length(offset)
        overlap = np.maximum(self.CONTACT - distance, 0)
        moved = keep_inside(moved - offset * (overlap / np.maximum(distance, 1e-9)), self.PUSHER_RADIUS)
        jammed = length(pushed - moved) < self.CONTACT - 1e-5  # both in a corner: nothing moves
        return np.where(jammed, pusher, moved), np.where(jammed, block, pushed)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform states in which the discs do not overlap: (count, 4) float32."""
        starts = np.empty((0, 4), np.float32)
        while len(starts) < count:
            pusher = rng.uniform(self.PUSHER_RADIUS, 1 - self.PUSHER_RADIUS, (2 * count, 2))
            block = rng.uniform(self.BLOCK_RADIUS, 1 - self.BLOCK_RADIUS, (2 * count, 2))
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
