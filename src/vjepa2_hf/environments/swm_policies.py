"""A data policy for stable-worldmodel's TwoRoom, named `vjepa2_hf.environments.swm_policies:TwoRoomWaypoints`.

It is an example of a policy of one's own: stable-worldmodel's expert has another interface and stops at one goal.
"""

import gymnasium
import numpy as np


class TwoRoomWaypoints:
    """Stable-worldmodel's expert walks to one random position after another, with noisy actions (2,).

    Its episodes cover both rooms and the door, and most of their frames are far apart: a learned distance needs such
    pairs.
    """

    NOISE = 0.5  # standard deviation, per dimension of an action between -1 and 1
    NEAR = 8.0  # pixels; then follows the next position
    LEAVE = 0.01  # probability per step, if an episode does not get there
    LOW, HIGH = 21.0, 203.0  # pixels; positions that the agent can reach
    waypoint: np.ndarray | None = None

    def __init__(self) -> None:
        from stable_worldmodel.envs.two_room.expert_policy import ExpertPolicy  # the extra `swm`

        self.expert = ExpertPolicy(door_reach_tol=4.0)

    def __call__(self, env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
        position = env.agent_position.numpy()
        reached = self.waypoint is None or np.linalg.norm(position - self.waypoint) < self.NEAR
        if reached or rng.random() < self.LEAVE:
            self.waypoint = rng.uniform(self.LOW, self.HIGH, 2).astype(np.float32)
        self.expert.set_env(env)
        action = self.expert.get_action({"state": position, "goal_state": self.waypoint})
        return np.clip(action + self.NOISE * rng.standard_normal(2), -1, 1).astype(np.float32)
