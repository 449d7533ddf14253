"""Symmetries of environments: turns of the image under which the physics is the same, with the matrix of an action.

An environment declares them in its attribute `symmetries`, by the names of `vjepa2_hf.training.augmentation.TURNS`.
"""

import gymnasium

from ..specs import refuse


FLIP_HORIZONTAL = [[-1.0, 0.0], [0.0, 1.0]]  # of an action (x to the right, y down)
FLIP_VERTICAL = [[1.0, 0.0], [0.0, -1.0]]
TRANSPOSE = [[0.0, 1.0], [1.0, 0.0]]


def find_symmetries(env_id: str) -> dict[str, list[list[float]]]:
    """The symmetries of a registered environment, matrices (A, A) by name."""
    if not isinstance(env_id, str):
        refuse("env_id", env_id, "the id of an environment, such as 'vjepa2_hf/Pushing-v0'")
    try:
        env = gymnasium.make(env_id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"The environment {env_id!r} of symmetries cannot be made: {error}") from error
    found = dict(getattr(env.unwrapped, "symmetries", {}))
    env.close()
    if not found:
        advice = "give matrices by name, such as {flip_horizontal: [[-1, 0], [0, 1]]}"
        raise ValueError(f"The environment {env_id!r} declares no symmetries: {advice}.")
    return found
