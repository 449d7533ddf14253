"""Access to any gymnasium environment: making, resetting and stepping it, its images and numbers.

A ValueError of one sentence says what does not fit. Letters: S state size, H and W pixels.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np


def make_env(env_id: str, **settings: Any) -> gymnasium.Env:
    """Makes a registered environment that renders "rgb_array"; an id `module:Name-v0` imports the module first."""
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **settings)
    except gymnasium.error.NamespaceNotFound as error:
        example = f"of a package that must be imported first, such as stable_worldmodel:{env_id}"
        raise ValueError(
            f"The environment {env_id!r} cannot be made: {error} Give module:id for an environment {example}."
        ) from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"The environment {env_id!r} cannot be made: {error}") from error


def is_image(value: Any) -> bool:
    """Whether it is an image, uint8 (H, W, 3)."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _name(env: gymnasium.Env) -> str:
    return repr(env.spec.id if env.spec is not None else type(env.unwrapped).__name__)


def _old_interface(env: gymnasium.Env, found: str) -> ValueError:
    return ValueError(
        f"{found}: the environment {_name(env)} has the old gym interface; reset(seed, options) must return "
        "(observation, info), and step (observation, reward, terminated, truncated, info)."
    )


def reset_env(env: gymnasium.Env, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, Mapping[str, Any]]:
    """Observation and info of a reset; a ValueError for the old gym interface."""
    try:
        found = env.reset(seed=seed, options=options)
    except TypeError as error:
        missing = re.search(r"unexpected keyword argument '(seed|options)'", str(error))
        if missing is None:
            raise
        raise _old_interface(env, f"reset takes no {missing[1]}") from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise _old_interface(env, f"reset returned {_kinds(found)}")
    return found


def step_env(env: gymnasium.Env, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
    """Observation, reward, terminated, truncated, info of an action (A,); a ValueError for the old gym interface."""
    try:
        found = env.step(np.array(action))  # its own copy, which it may change
    except ValueError as error:  # of gymnasium's wrapper for the number of steps
        if "values to unpack (expected 5" not in str(error):
            raise
        raise _old_interface(env, f"step returned other than 5 values ({error})") from error
    if not (isinstance(found, tuple) and len(found) == 5 and isinstance(found[4], Mapping)):
        raise _old_interface(env, f"step returned {_kinds(found)}")
    observation, reward, terminated, truncated, info = found
    return observation, reward, bool(terminated), bool(truncated), info


def _kinds(found: Any) -> str:
    kinds = [type(value).__name__ for value in (found if isinstance(found, tuple) else [found])]
    return f"({', '.join(kinds)})" if isinstance(found, tuple) else kinds[0]


def read_image(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """The current image, uint8 (H, W, 3): a copy of the observation if it is an image, else of the rendering."""
    if is_image(observation):  # rendering it again would double the cost
        return np.array(observation)  # environments may reuse their buffers
    try:
        image = env.render()
    except gymnasium.error.Error as error:  # for example a rendering library that is not installed
        raise ValueError(f"The environment {_name(env)} cannot render: {error}") from error
    if not is_image(image):
        raise ValueError(f"The environment {_name(env)} renders no uint8 image (H, W, 3) as 'rgb_array'.")
    return np.array(image)


def read_view(env: gymnasium.Env, observation: Any, view: str) -> np.ndarray:
    """The image of one camera, uint8 (H, W, 3): a copy of an entry of a dict observation."""
    found = observation if isinstance(observation, dict) else {}
    if not is_image(found.get(view)):
        known = ", ".join(str(name) for name, value in found.items() if is_image(value)) or "none by name"
        raise ValueError(f"The environment {_name(env)} observes no image {view!r}, but {known}.")
    return np.array(found[view])


def is_numbers(value: Any) -> bool:
    """Whether an entry of an info is a number or an array of numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # a list of lists of several lengths
        return False


def read_values(names: Sequence[str], info: dict[str, Any], observation: Any = None) -> np.ndarray:
    """Concatenates the named entries of an info or of a dict observation: finite float32 (S,)."""
    entries, values = {**(observation if isinstance(observation, dict) else {}), **info}, []
    for name in names:
        if name not in entries:
            known = ", ".join(sorted(map(str, entries))) or "nothing"
            raise ValueError(f"The environment reports no {name!r}; it reports {known}.")
        if not is_numbers(entries[name]) or not np.isfinite(entries[name]).all():
            raise ValueError(f"The environment reports {name!r} as {entries[name]!r:.200}; expected finite numbers.")
        values.append(np.asarray(entries[name], np.float32).reshape(-1))
    return np.concatenate(values)
