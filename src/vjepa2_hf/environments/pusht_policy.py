"""gym-pusht with relative actions, and a behavior policy that pushes the T about the field so that it moves and turns.

    python examples/record_episodes.py --env vjepa2_hf.environments.pusht_policy:vjepa2_hf/RelativePushT-v0 \\
        --policy vjepa2_hf.environments.pusht_policy:RelativePusher --output runs/pusht/episodes ...

Both are written as your own would be: importing a module registers an environment, and a policy reads the unwrapped
environment (`env.agent`, `env.block`). The policy of gym-pusht itself is `ScriptedPusher`. Positions are in the
environment's pixels, 0 to 512.
"""

from typing import Any

import gymnasium
import numpy as np


RELATIVE_PUSH_T, ACTION_SCALE = "vjepa2_hf/RelativePushT-v0", 100.0  # pixels of an action of 1
AGENT_RADIUS, FIELD = 15.0, (20.0, 492.0)  # the agent's center stays within the walls
# Corners of the T in its own coordinates, in an order that leaves the outside on the left
CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
SIDES = np.roll(CORNERS, -1, axis=0) - CORNERS
LENGTHS = np.linalg.norm(SIDES, axis=1)
NORMALS = np.stack([SIDES[:, 1], -SIDES[:, 0]], axis=1) / LENGTHS[:, None]  # outward
CENTER, CLEAR_RADIUS = np.array([0.0, 45.0]), 105.0  # from here, no part of the T touches the agent


class RelativeActions(gymnasium.ActionWrapper):
    """Actions (2,) in [-1, 1] are the next target of the agent relative to it, in units of `ACTION_SCALE` pixels.

    DINO-WM and stable-worldmodel act like this. gym-pusht takes the target's position in the field.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """The target's position in the field, (2,), of a relative action (2,)."""
        space = self.env.action_space
        target = np.array(self.unwrapped.agent.position) + ACTION_SCALE * np.asarray(action, np.float64)
        return np.clip(target, space.low, space.high).astype(space.dtype)


def make_relative(**settings: Any) -> gymnasium.Env:
    """gym-pusht's environment with relative actions."""
    try:
        from gym_pusht.envs import PushTEnv
    except ImportError as error:
        raise ImportError(f'{RELATIVE_PUSH_T} needs gym-pusht: pip install "vjepa2-hf[pusht]".') from error
    return RelativeActions(PushTEnv(**settings))


if RELATIVE_PUSH_T not in gymnasium.registry:
    gymnasium.register(RELATIVE_PUSH_T, entry_point=make_relative, max_episode_steps=300)


class ScriptedPusher:
    """Actions (2,) in strokes: goes around the T to a random point of its outline, then pushes for a random distance.

    Points off the T's center turn it. Speed, direction and length of a stroke are random, and every action has noise.
    A few strokes go to a random point of the field, so that a model also sees the actions that a planner samples.
    """

    NOISE = 6.0  # pixels, of each action
    WANDER = 0.15  # fraction of strokes

    def __init__(self):
        self.phase, self.steps_left = "choose", 0

    def __call__(self, env: Any, rng: np.random.Generator) -> np.ndarray:
        agent = np.array(env.agent.position)
        if self.steps_left == 0 or (self.phase == "push" and self._reaches_a_wall(env, agent)):
            self._choose(env, agent, rng)
        self.steps_left -= 1
        if self.phase == "wander":
            return self._act(agent, self.target, rng)
        if self.phase == "approach":
            start = _to_world(env.block, self.start)
            if np.linalg.norm(start - agent) > 12:
                goal = _way_around(env.block, agent, start)
                return self._act(agent, agent + _limited(2 * (goal - agent), self.reach), rng)
            self._push(env, rng)
        return self._act(agent, agent + self.reach * self.direction, rng)

    def _reaches_a_wall(self, env: Any, agent: np.ndarray) -> bool:
        ahead = _to_world(env.block, CENTER) + 30 * self.direction
        return not (_is_inside(agent + self.reach * self.direction) and _is_inside(ahead, 50))

    def _choose(self, env: Any, agent: np.ndarray, rng: np.random.Generator) -> None:
        """Begins a stroke, often at the nearest of a few points."""
        self.phase, self.steps_left, self.reach = "approach", 25, rng.uniform(40, 100)
        starts = [self._sample_start(env, rng) for _ in range(4)]
        found = [start for start in starts if start is not None]
        if not found or rng.random() < self.WANDER:
            self.phase, self.steps_left, self.target = "wander", int(rng.integers(2, 7)), rng.uniform(*FIELD, 2)
            return
        nearest = min(found, key=lambda start: np.linalg.norm(_to_world(env.block, start[0]) - agent))
        self.start, self.inward = nearest if rng.random() < 0.6 else found[0]

    def _sample_start(self, env: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """A point beside the outline and the direction to it, in the T's coordinates; None if there is no room."""
        side = rng.choice(len(SIDES), p=LENGTHS / LENGTHS.sum())
        contact = CORNERS[side] + rng.uniform(0.1, 0.9) * SIDES[side]
        start = contact + NORMALS[side] * (AGENT_RADIUS + rng.uniform(8, 25))
        pushed = _to_world(env.block, CENTER) - 50 * _turn(NORMALS[side], env.block.angle)
        free = _outline_distance(start) > AGENT_RADIUS and _is_inside(_to_world(env.block, start))
        return (start, -NORMALS[side]) if free and _is_inside(pushed, 70) else None

    def _push(self, env: Any, rng: np.random.Generator) -> None:
        self.phase, self.steps_left, self.reach = "push", int(rng.integers(4, 15)), rng.uniform(12, 40)
        self.direction = _turn(self.inward, env.block.angle + rng.normal(0, 0.25))

    def _act(self, agent: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The environment's action for a target (2,) of the agent, with noise."""
        return np.clip(target + rng.normal(0, self.NOISE, 2), *FIELD).astype(np.float32)


class RelativePusher(ScriptedPusher):
    """The same for environments with relative actions."""

    def _act(self, agent: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = (super()._act(agent, target, rng) - agent) / ACTION_SCALE
        return np.clip(action, -1, 1).astype(np.float32)


def _way_around(block: Any, agent: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The goal if the way is free; otherwise the next point of a circle around the T."""
    points = agent + np.linspace(0, 1, 12)[1:, None] * (goal - agent)
    if min(_outline_distance(_to_local(block, point)) for point in points) > AGENT_RADIUS:
        return goal
    center = _to_world(block, CENTER)
    now, then = (np.arctan2(*(point - center)[::-1]) for point in (agent, goal))
    turn = np.clip((then - now + np.pi) % (2 * np.pi) - np.pi, -0.7, 0.7)
    return np.clip(center + CLEAR_RADIUS * np.array([np.cos(now + turn), np.sin(now + turn)]), *FIELD)


def _outline_distance(point: np.ndarray) -> float:
    """From a point in the T's coordinates to its outline."""
    along = np.clip(((point - CORNERS) * SIDES).sum(1) / LENGTHS**2, 0, 1)
    return float(np.linalg.norm(point - CORNERS - along[:, None] * SIDES, axis=1).min())


def _to_world(block: Any, point: np.ndarray) -> np.ndarray:
    return np.array(block.position) + _turn(point, block.angle)


def _to_local(block: Any, point: np.ndarray) -> np.ndarray:
    return _turn(point - np.array(block.position), -block.angle)


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]])


def _limited(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


def _is_inside(point: np.ndarray, margin: float = 0.0) -> bool:
    return bool((point > FIELD[0] + margin).all() and (point < FIELD[1] - margin).all())
