"""New videos of an environment, for looking at what a model makes of them."""

import numpy as np

from .gym_env import make_env, read_image, reset_env, step_env
from .policies import DATA_POLICY, find_policy


def record_clip(env_id: str, num_frames: int, seed: int = 0, **settings) -> np.ndarray:
    """Frames of an episode under the environment's data policy (`held` in other environments), uint8 (T, H, W, 3).

    Args:
        num_frames: T, fewer if the environment ends before.
        seed: of the environment and of the policy. Equal seeds, equal frames.
        settings: keyword arguments of the environment.
    """
    if env_id in DATA_POLICY:
        settings = {"terminate_on_success": False, "max_episode_steps": num_frames, **settings}
    env, rng = make_env(env_id, **settings), np.random.default_rng(seed)
    try:
        policy = find_policy(DATA_POLICY.get(env_id, "held"), env)
        observation, _ = reset_env(env, seed)
        frames = [read_image(env, observation)]
        while len(frames) < num_frames:
            observation, _, terminated, truncated, _ = step_env(env, policy(env.unwrapped, rng))
            frames.append(read_image(env, observation))
            if terminated or truncated:
                break
        return np.stack(frames)
    finally:
        env.close()
