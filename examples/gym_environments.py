"""Any gymnasium environment: made, drawn, and read by names; of `examples/record_episodes.py` and `gym_tasks.py`.

Letters: H and W pixels, S numbers of a state.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np


def make_env(env_id: str, **settings: Any) -> gymnasium.Env:
    """Any registered environment that renders "rgb_array"; an id such as `module:Name-v0` imports its module first.

    Raises:
        ValueError: it can not be made, in one sentence.
    """
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **settings)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"The environment {env_id!r} can not be made: {error}") from error


def is_picture(value: Any) -> bool:
    """Whether it is a uint8 picture (H, W, 3)."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def read_picture(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """What the environment shows now, uint8 (H, W, 3): its observation, where that is a picture, else its rendering.

    Raises:
        ValueError: it can not draw itself, or draws something else.
    """
    if is_picture(observation):  # drawing it again would double the cost
        return observation
    try:
        picture = env.render()
    except gymnasium.error.Error as error:  # such as a drawing library that is not installed
        raise ValueError(f"The environment {env.spec.id!r} can not draw itself: {error}") from error
    if not is_picture(picture):
        raise ValueError(f"The environment {env.spec.id!r} renders no uint8 picture (H, W, 3) as 'rgb_array'.")
    return picture


def read_numbers(names: Sequence[str], info: dict[str, Any], observation: Any = None) -> np.ndarray:
    """Numbers that an environment tells, joined: float32 (S,).

    Args:
        names: of entries of its info, or else of a dict of observations.

    Raises:
        ValueError: an entry is not there, with those that are, or is not finite.
    """
    told = {**(observation if isinstance(observation, dict) else {}), **info}
    for name in names:
        if name not in told:
            raise ValueError(f"The environment tells no {name!r}; it tells {', '.join(sorted(told)) or 'nothing'}.")
    found = {name: np.asarray(told[name], np.float32).reshape(-1) for name in names}
    for name, numbers in found.items():
        if not np.isfinite(numbers).all():
            raise ValueError(f"The environment tells {name!r} as {told[name]!r}; expected finite numbers.")
    return np.concatenate([found[name] for name in names])
