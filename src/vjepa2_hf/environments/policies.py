"""Behavior policies for recording episodes: `policy(env, rng) -> action`.

Your own policy is named `module:callable`: a function, an object with `__call__`, or a class of such objects. Every
episode gets its own copy, so an object may keep what it likes between steps. `env` is the unwrapped environment; all
randomness must come from `rng`.
"""

import copy
import importlib
from collections.abc import Callable

import gymnasium
import numpy as np

from ..specs import check_known
from .appearance import IMAGE_SIZE
from .four_rooms import FOUR_ROOMS, FourRoomsEnv
from .plane import SUCCESS_PIXELS, PlaneEnv, length
from .pushing import PUSHING, PushingEnv, drawn_to_block_actions
from .two_rooms import TWO_ROOMS


# Set once for a success rate of about 0.14
PERSISTENCE, WANDER = 0.8, 1.0


def wandering_actions(last_actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random actions that keep their heading for a few steps: last actions (..., 2) -> float32 (..., 2)."""
    actions = PERSISTENCE * last_actions + WANDER * rng.standard_normal(last_actions.shape)
    return np.clip(actions, -1, 1).astype(np.float32)


def uniform(env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
    """Uniform random actions (A,); for any environment with a bounded Box action space."""
    space = env.action_space
    return np.asarray(rng.uniform(space.low, space.high)).astype(space.dtype)  # of shape () it is a plain float


class Held:
    """Uniform random actions (A,), each repeated with probability `KEEP`; for any environment with a bounded Box."""

    KEEP = 0.8
    action = None

    def __call__(self, env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
        if self.action is None or rng.random() >= self.KEEP:
            self.action = uniform(env, rng)
        return self.action


def drawn_to_block(env: PushingEnv, rng: np.random.Generator) -> np.ndarray:
    """The data policy of pushing, (2,): random, biased towards the block."""
    return drawn_to_block_actions(env.state, rng)


def wander(env: PlaneEnv, rng: np.random.Generator) -> np.ndarray:
    """The data policy of two rooms, (2,): random, keeping its heading for a few steps."""
    return wandering_actions(env.last_action, rng)


class Waypoints:
    """The data policy of four rooms, (2,): shortest paths to random positions in other rooms, with noisy actions.

    The next position follows within 5 pixels of the last. `actions` advances N episodes together.
    """

    PULL, NOISE = 0.5, 0.8
    waypoints: np.ndarray | None = None  # (N, 2)

    def actions(self, env: FourRoomsEnv, agents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions of agents (N, 2): float32 (N, 2)."""
        if self.waypoints is None:
            self.waypoints = np.array(agents, np.float64)  # visited: new ones are sampled
        near = env.paths.distance(agents, self.waypoints) * IMAGE_SIZE <= SUCCESS_PIXELS
        for index in np.flatnonzero(near):
            another = (env.room_of(agents[index]) + rng.integers(1, 4)) % 4
            self.waypoints[index] = env.sample_position(rng, int(another))
        offset = env.paths.next_points(agents, self.waypoints) - agents
        pull = offset / np.maximum(length(offset), 1e-6)
        return np.clip(self.PULL * pull + self.NOISE * rng.standard_normal(pull.shape), -1, 1).astype(np.float32)

    def __call__(self, env: FourRoomsEnv, rng: np.random.Generator) -> np.ndarray:
        return self.actions(env, env.state[None, :2], rng)[0]


Policy = Callable[[gymnasium.Env, np.random.Generator], np.ndarray]
POLICIES = {
    "uniform": uniform,
    "held": Held,
    "drawn_to_block": drawn_to_block,
    "wander": wander,
    "waypoints": Waypoints,
}
# others act anywhere
_POLICY_ENVIRONMENT = {"drawn_to_block": PushingEnv, "wander": PlaneEnv, "waypoints": FourRoomsEnv}
DATA_POLICY = {PUSHING: "drawn_to_block", TWO_ROOMS: "wander", FOUR_ROOMS: "waypoints"}


def find_policy(name: str, env: gymnasium.Env) -> Policy:
    """The policy called `name`, new for one episode of `env`, which must have a bounded Box of actions.

    Args:
        name: one of `POLICIES`, or `module:callable`.
    """
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
        raise ValueError(f"The environment's action space is {space}, but a bounded Box is expected.")
    if ":" in name:
        return _import_policy(name)
    check_known(name, POLICIES, "policy")
    needed = _POLICY_ENVIRONMENT.get(name, gymnasium.Env)
    if not isinstance(env.unwrapped, needed):
        raise ValueError(
            f"The policy {name!r} needs {needed.__name__}, but the environment is {type(env.unwrapped).__name__}; use "
            "the policy 'uniform' or 'held'."
        )
    policy = POLICIES[name]
    return policy() if isinstance(policy, type) else policy


def _import_policy(name: str) -> Policy:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(
            f"The policy {name!r} cannot be imported ({error}); expected module:callable, of an installed module "
            "or one in a folder of PYTHONPATH."
        ) from error
    policy = found() if isinstance(found, type) else copy.deepcopy(found)
    if not callable(policy):
        expected = "a function policy(env, rng) -> action, or a class whose objects are called like that"
        raise ValueError(f"The policy {name!r} is {type(policy).__name__}; expected {expected}.")
    return policy
